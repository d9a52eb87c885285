"""Episodes on a running simulator node: reset it, let a policy drive, read the outcome. No ROS, only its services.

For evaluation the policy node and the executor drive, as they would a robot; for recording the simulator's operator
does, and the recorder node writes. What counts as success is the simulator's `EpisodeMonitor`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from ki_bags.bag_metadata import add_metadata
from ki_bags.reader import open_bag
from ki_robot.contract.contract import load_contract
from ki_sim.errors import SimError
from ki_sim.evaluate.closed_loop import EvaluationReport, SceneOutcome, goal_pair
from ki_sim.record.job import RecordingJob, RecordingResult
from ki_sim.record.record import Recording
from ki_sim.record.sim_bags import ROBOT
from ki_sim.tasks import tasks
from ki_sim.world.world import STEP_NS, TICK_NS

SIM, POLICY, EXECUTOR, RECORDER = 'sim_robot', 'policy_node', 'chunk_executor', 'recorder'
POLL_S = 0.05
QUIET_S = 0.3  # for what was said, or seen, before to be over
LAST_WORD_S = 0.2  # for the executor's last hold, which must not meet the new scene
START_S = 20.0  # by then somebody must have commanded something
TRIES = 3
EXPERT = 'scripted expert'
SUCCESS, FAILURE, DISCARD = 1, 2, 3  # ki_msgs/EpisodeMarker OUTCOME_*


class StackServices(Protocol):
    """The services of the running nodes, by relative name."""

    def trigger(self, service: str) -> tuple[bool, str]:
        """Calls a std_srvs/Trigger."""
        ...

    def switch(self, service: str, on: bool) -> tuple[bool, str]:
        """Calls a std_srvs/SetBool."""
        ...

    def start_policy(self) -> tuple[bool, str]:
        """Begins a run of the policy node."""
        ...

    def set(self, node: str, **values: Any) -> None:
        """Sets parameters, all or none; raises SimError when one is refused."""
        ...

    def start_recording(self, task: str, policy_id: str) -> str:
        """Begins a recording; the folder it will be in."""
        ...

    def stop_recording(self, outcome: int) -> str:
        """Ends it; the folder of its bag, empty when it was discarded."""
        ...

    def complaint(self) -> str:
        """What the executor and the policy node say of themselves."""
        ...

    def check(self) -> None:
        """Raises when a process has ended."""
        ...


@dataclass(frozen=True)
class EpisodeOptions:
    """How episodes are played through the node.

    `plan`: the simulator's operator is the policy, with chunks it has rehearsed; else the policy node is. `speed`: how
    much simulated time passes in a second. `wall_limit_s` ends an episode whose time does not pass, at speed 1.
    """

    plan: bool = False
    split: str = 'train'
    speed: float = 1.0
    wall_limit_s: float = 180.0

    def patient(self, seconds: float) -> float:
        """Seconds by the wall clock for what takes `seconds` at speed 1; no less where time is faster."""
        return seconds / min(self.speed or 1.0, 1.0)


def evaluate(
    port: StackServices,
    task: str,
    seeds: Iterable[int],
    match: EpisodeOptions,
    settings: dict[str, Any],
    progress: Callable[[SceneOutcome], None] | None = None,
    paired: bool = False,
) -> EvaluationReport:
    """Plays the episodes of a task through the running nodes.

    Args:
        port: Their services; the executor's, the simulator's and, unless `match.plan`, the policy node's.
        task: A name of tasks.TASKS.
        seeds: Scenes; one episode each, or two with `paired`.
        match: Who drives.
        settings: What the report says of how it was done.
        progress: Called after each episode.
        paired: Play every scene with two different instructions.
    """
    report = EvaluationReport(task, settings)
    for seed in seeds:
        for goal in goal_pair(task, seed, match.split) if paired else (None,):
            outcome = play(port, task, seed, goal, match)
            report.outcomes.append(outcome)
            if progress is not None:
                progress(outcome)
    return report


def play(
    port: StackServices,
    task: str,
    seed: int,
    goal: int | None,
    match: EpisodeOptions,
    ready: Callable[[], None] | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> SceneOutcome:
    """One episode: the scene is new before anybody may command, and nobody may once it has ended.

    Args:
        port: Services of the running nodes.
        task: A name of tasks.TASKS.
        seed: The scene.
        goal: Instruction apart from the scene; None: from the seed.
        match: Who drives.
        ready: Called when the scene is new and nobody drives yet.
        watch: Called again and again with what the simulator says of the episode.
    """
    port.switch(f'{EXECUTOR}/enable', False)
    time.sleep(match.patient(LAST_WORD_S))
    reset(port, task, seed, goal, match.split)
    time.sleep(match.patient(QUIET_S))
    if ready is not None:
        ready()
    need(port.trigger(f'{EXECUTOR}/reset_fault'))
    need(port.switch(f'{EXECUTOR}/enable', True))
    if match.plan:
        need(port.switch(f'{SIM}/operate', True))
    else:
        port.trigger(f'{POLICY}/reset_fault')  # a fault of the last episode is told in its outcome
        need(port.start_policy())
    try:
        return outcome_of(_until_ended(port, match, watch))
    finally:
        if match.plan:
            port.switch(f'{SIM}/operate', False)
        else:
            port.trigger(f'{POLICY}/stop')
        port.switch(f'{EXECUTOR}/enable', False)


def reset(port: StackServices, task: str, seed: int, goal: int | None, split: str) -> None:
    """A new scene."""
    port.set(SIM, task=task, seed=seed, goal=-1 if goal is None else goal, split=split)
    need(port.trigger(f'{SIM}/reset'))


def state(port: StackServices) -> dict[str, Any]:
    """What the simulator says of the present episode."""
    text = port.trigger(f'{SIM}/success')[1]
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        raise SimError(text) from None
    return found


def outcome_of(said: dict[str, Any]) -> SceneOutcome:
    """The outcome in what the simulator says."""
    return SceneOutcome(**{field.name: said[field.name] for field in fields(SceneOutcome)})


def need(answer: tuple[bool, str]) -> None:
    """Raises SimError when a service said no."""
    if not answer[0]:
        raise SimError(answer[1] or 'a service said no and did not say why')


def _until_ended(
    port: StackServices, match: EpisodeOptions, watch: Callable[[dict[str, Any]], None] | None
) -> dict[str, Any]:
    begin, start_s, limit_s = time.monotonic(), match.patient(START_S), match.patient(match.wall_limit_s)
    while True:
        port.check()
        said, passed_s = state(port), time.monotonic() - begin
        if watch is not None:
            watch(said)
        if said['ended']:
            return said
        idle = not said['begun'] and passed_s > start_s
        if idle or passed_s > limit_s:
            what = f'nothing was commanded within {start_s:g} s' if idle else f'not over within {limit_s:g} s'
            return said | {'error': f'{what}: {port.complaint()}'}
        time.sleep(POLL_S)


# recording ----------------------------------------------------------------------------------------------------------


def record(
    port: StackServices, jobs: Sequence[RecordingJob], progress: Callable[[RecordingResult], None] | None = None
) -> list[RecordingResult]:
    """Records jobs one after the other through the running nodes; those whose bag is there are skipped.

    Args:
        port: Services of the simulator, which must have the expert as its operator, and of the recorder.
        jobs: What to record and where to; all `bag`.
        progress: Called after each job.

    Raises:
        SimError: a recording lacks messages, time and again.
    """
    results = []
    for job in jobs:
        result = RecordingResult(job.task, job.seed, 'present') if Path(job.path).exists() else _record_one(port, job)
        results.append(result)
        if progress is not None:
            progress(result)
    return results


def _record_one(port: StackServices, job: RecordingJob) -> RecordingResult:
    for _ in range(TRIES):
        reset(port, job.task, job.seed, None, job.split)
        episode = tasks.episode(job.task, job.seed, None, job.split)
        time.sleep(QUIET_S)  # the recorder begins a bag with the instruction it knows
        bag = port.start_recording(episode.instruction, EXPERT)
        _heard(port)
        need(port.switch(f'{SIM}/operate', True))
        said = _operated(port, 60.0 + 10 * episode.limit_s)
        steps = round(said['time_s'] * 1e9 / STEP_NS)
        keep = said['success'] or job.keep_failures
        port.stop_recording((SUCCESS if said['success'] else FAILURE) if keep else DISCARD)
        if not keep:
            return RecordingResult(job.task, job.seed, 'failed', steps)
        lost = missing(bag, steps)
        if not lost:
            break
        shutil.rmtree(bag)
    else:
        raise SimError(f'{job.path}: the recorder lost messages of {lost}: close other programs, or record offline')
    meta = Recording(episode, [], said['success'], said['score']).meta() | {'steps': steps}
    add_metadata(bag, {f'ki_sim.{key}': v if isinstance(v, str) else json.dumps(v) for key, v in meta.items()})
    Path(job.path).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(bag, job.path)
    Path(bag).mkdir()  # its number stays taken
    return RecordingResult(job.task, job.seed, 'written', steps)


def _heard(port: StackServices) -> None:
    """Waits until the recorder listens to all that is sent: sensors, and commands beside their controllers."""
    end = time.monotonic() + START_S
    while True:
        sensors, commands = state(port)['listeners']
        if sensors >= 1 and commands >= 1:
            break
        port.check()
        if time.monotonic() > end:
            raise SimError(f'nobody records all topics of the simulator within {START_S:g} s: is the recorder there?')
        time.sleep(POLL_S)
    time.sleep(QUIET_S)  # what one side has found, the other finds a moment later


def _operated(port: StackServices, limit_s: float) -> dict[str, Any]:
    """Waits until the operator is done."""
    end = time.monotonic() + limit_s
    while True:
        port.check()
        said = state(port)
        if not said['operating']:
            return said
        if time.monotonic() > end:
            raise SimError(f'the operator is not done within {limit_s:g} s: {said}')
        time.sleep(POLL_S)


def missing(bag: str | Path, steps: int) -> str:
    """The first topic of an episode's bag that lacks messages, with how many; empty when there is none.

    Every step has a command for each controller, and five measurements.
    """
    contract, topics = load_contract(ROBOT), open_bag(bag).topics
    wanted = {output.topic: steps for output in contract.outputs}
    wanted |= {stream.topic: steps * STEP_NS // TICK_NS for stream in contract.state_streams}
    for name, count in wanted.items():
        found = topics['/' + name].count if '/' + name in topics else 0
        if found is not None and found < count:
            return f'{name} ({found} of {count})'
    return ''
