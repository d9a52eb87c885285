"""The simulator with what drives or records it, as processes, and their services."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ki.stack.processes import Processes, Program
from ki.support.progress import progress
from ki_common.errors import KiError
from ki_common.nodes import NODES

START_S = 120.0
# Where simulated time is slowed for a slow machine, nothing breaks when a node is silent for longer than a robot may be
# left; the executor judges silence by the wall clock.
PATIENT = {'state_timeout': 5.0, 'status_timeout': 5.0}
PATIENT_POLICY = {'inference_timeout': 60.0}


def program(name: str, parameters: Mapping[str, Any]) -> Program:
    """One node of the stack."""
    return Program(name, (sys.executable, '-m', NODES[name]), parameters)


@contextlib.contextmanager
def running(programs: list[Program], log: Path, domain: int | None = None) -> Iterator[Any]:
    """The nodes as processes for the length of a `with` block, and a port to their services.

    Their output goes to `log`. With `domain` they are alone in it.
    """
    from ki_policy_node.common.ros import node, use_dds_profile

    if domain is not None:
        os.environ['ROS_DOMAIN_ID'] = str(domain)
    use_dds_profile()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w', encoding='utf-8') as stream:
        processes = Processes(programs, os.environ, stream, quiet=True)
        try:
            with node('episode_runner') as made:
                yield RosStackServices(made, processes, log)
        finally:
            processes.end()


def record_live(
    jobs: Sequence[Any], out: Path, image_size: int, quality: int, real_time: bool, tell: Callable[[Any], None]
) -> None:
    """Records jobs of ki_sim.record.batch over the topics of a simulator with the expert at its commands."""
    from ki_policy_node.common.ros import use_dds_profile
    from ki_robot.contract.contract import load_contract
    from ki_sim.evaluate.episode_runner import record
    from ki_sim.record.sim_bags import INSTRUCTION, ROBOT, SUBTASK

    if all(Path(job.path).exists() for job in jobs):
        for job in jobs:
            tell(existing(job))
        return
    use_dds_profile()
    contract = load_contract(ROBOT)
    topics = [stream.topic for stream in contract.streams] + [output.topic for output in contract.outputs]
    topics += [INSTRUCTION.lstrip('/'), SUBTASK.lstrip('/')]
    folder = out / '.recording'
    shutil.rmtree(folder, ignore_errors=True)
    fast = {'clock': True, 'speed': 0.0, 'lock_step': True}
    sim = {'operator': 'expert', 'width': image_size, 'height': image_size, 'quality': quality}
    recorder = {'folder': str(folder), 'topics': topics, 'use_sim_time': not real_time}
    programs = [
        program('sim_robot', sim if real_time else sim | fast),
        program('recorder', recorder),
    ]
    with running(programs, out / 'recording.log', private_domain()) as port:
        record(port, jobs, tell)
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Stack:
    """What evaluates a policy through the node, and how."""

    bundle: Path | None
    backend: str = 'auto'
    plan: bool = False
    mode: str = 'auto'
    execute_steps: int = 0
    speed: float = 1.0
    image_size: int = 96
    seed: int = 0

    @property
    def clocked(self) -> bool:
        """Whether time is the simulator's, on /clock."""
        return self.speed != 1.0

    @property
    def slowed(self) -> bool:
        """Whether time is slower than the wall clock, so that everybody can keep up."""
        return 0.0 < self.speed < 1.0

    def programs(self) -> list[Program]:
        """The processes."""
        from ki.simulation.sim_policy import simulated_robot

        robot = simulated_robot(self.bundle)
        timed = {'use_sim_time': self.clocked}
        sim: dict[str, Any] = {
            'operator': 'plan' if self.plan else 'none',
            'width': self.image_size,
            'height': self.image_size,
        }
        sim |= {'clock': self.clocked, 'speed': self.speed, 'robot': robot}
        made = [
            program('sim_robot', sim),
            program('chunk_executor', {'robot': robot} | timed | (PATIENT if self.slowed else {})),
        ]
        if not self.plan:
            policy = {'robot': robot, 'backend': self.backend, 'dry_run': False, 'mode': self.mode, 'seed': self.seed}
            policy |= {'bundle': str(self.bundle or ''), 'execute_steps': self.execute_steps} | timed
            policy |= PATIENT_POLICY if self.slowed else {}
            made.append(program('policy_node', policy))
        return made

    def described(self) -> dict[str, Any]:
        """For the report."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()} | {
            'through': 'policy_node and chunk_executor'
        }


def evaluate_live(
    stack: Stack, tasks: Sequence[str], seeds: Sequence[int], split: str, paired: bool, out: Path
) -> Iterator[Any]:
    """Reports of tasks, each also as JSON in `out`, from episodes played by the whole stack."""
    from ki_sim.evaluate.episode_runner import EpisodeOptions, evaluate
    from ki_sim.node.settings import SimRobotSettings

    for name in tasks:
        SimRobotSettings.parse({'task': name}, 'episodes')
    with running(stack.programs(), out / 'nodes.log', private_domain()) as port:
        for name in tasks:
            with progress(name, len(seeds) * (2 if paired else 1)) as line:
                match, described = (
                    EpisodeOptions(stack.plan, split, stack.speed),
                    stack.described() | {'split': split, 'paired': paired},
                )
                report = evaluate(port, name, seeds, match, described, line.advance, paired)
            report.save(out / f'{name}-through-node.json')
            yield report


def last_words(log: Path, name: str) -> str:
    """The last line that a program wrote into the common log, empty when it was silent."""
    lines = [line.partition(' | ') for line in log.read_text(encoding='utf-8', errors='replace').splitlines()]
    said = [text for head, _, text in lines if head.split()[-1:] == [name] and text.strip()]
    return f'It said: {said[-1].strip()} ' if said else ''


def existing(job: Any) -> Any:
    """The result of a job that was done before."""
    from ki_sim.record.job import RecordingResult

    return RecordingResult(job.task, job.seed, 'present')


def private_domain() -> int:
    """A ROS domain that nobody else is likely to be in: two stacks side by side must not command each other."""
    from ki_policy_node.common.ros import domain_id

    named = domain_id()
    return 60 + os.getpid() % 40 if named is None else named


class RosStackServices:
    """Services of the stack; see ki_sim.evaluate.episode_runner.StackServices."""

    def __init__(self, node: Any, processes: Processes, log: Path) -> None:
        from ki_msgs.msg import PolicyStatus
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from std_msgs.msg import String

        from ki_policy_node.common.service_calls import ServiceCalls

        self.node, self._processes, self._log = node, processes, log
        self._calls = ServiceCalls(node, self._receive, f'{log} says what the nodes are doing.')
        self._said: dict[str, str] = {}
        self._runs = False
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._hear(String, 'chunk_executor/state', lambda message: message.data, latched)
        self._hear(PolicyStatus, 'policy_node/status', self._on_status, latched)

    def _on_status(self, message: Any) -> str:
        self._runs = message.state in (message.STATE_RUNNING, message.STATE_DRY_RUN, message.STATE_HOLDING)
        return message.message or 'no reason'

    def _receive(self) -> None:
        from ki_policy_node.common.ros import spin_once

        self.check()
        spin_once(self.node, 0.05)

    def _hear(self, kind: type, topic: str, text: Any, qos: Any) -> None:
        def keep(message: Any) -> None:
            self._said[topic] = text(message)

        self.node.create_subscription(kind, topic, keep, qos)

    def trigger(self, service: str) -> tuple[bool, str]:
        """Calls a std_srvs/Trigger."""
        from std_srvs.srv import Trigger

        answer = self._call(Trigger, service, Trigger.Request())
        return answer.success, answer.message

    def start_policy(self) -> tuple[bool, str]:
        """Begins a run of the policy node, or finds that it runs: a second start is refused by the node."""
        from std_srvs.srv import Trigger

        answer = self._call(Trigger, 'policy_node/start', Trigger.Request(), lambda: self._runs)
        return (True, 'running') if answer is None else (answer.success, answer.message)

    def switch(self, service: str, on: bool) -> tuple[bool, str]:
        """Calls a std_srvs/SetBool."""
        from std_srvs.srv import SetBool

        answer = self._call(SetBool, service, SetBool.Request(data=on))
        return answer.success, answer.message

    def set(self, node: str, **values: Any) -> None:
        """Sets parameters of a node, all or none."""
        from rcl_interfaces.srv import SetParametersAtomically
        from rclpy.parameter import Parameter

        request = SetParametersAtomically.Request()
        request.parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        result = self._call(SetParametersAtomically, f'{node}/set_parameters_atomically', request).result
        if not result.successful:
            raise KiError(result.reason)

    def start_recording(self, task: str, policy_id: str) -> str:
        """Begins a recording; the folder it will be in."""
        from ki_msgs.srv import StartRecording

        request = StartRecording.Request(task=task, policy_id=policy_id, request_id=uuid.uuid4().hex)
        answer = self._call(StartRecording, 'recorder/start_recording', request)
        if not answer.success:
            raise KiError(answer.message)
        return str(answer.uri)

    def stop_recording(self, outcome: int) -> str:
        """Ends it; the folder of its bag, empty when it was discarded."""
        from ki_msgs.srv import StopRecording

        request = StopRecording.Request(outcome=outcome, request_id=uuid.uuid4().hex)
        answer = self._call(StopRecording, 'recorder/stop_recording', request)
        if not answer.success:
            raise KiError(answer.message)
        return str(answer.uri)

    def complaint(self) -> str:
        """What the executor and the policy node say of themselves."""
        return '; '.join(f'{topic.split("/")[0]} says: {text}' for topic, text in self._said.items()) or 'all is silent'

    def check(self) -> None:
        """Raises KiError when a process has ended."""
        ended = self._processes.ended()
        if ended:
            raise KiError(
                f'{ended[0]} ended with status {ended[1]}. {last_words(self._log, ended[0])}(all: {self._log})'
            )

    def pid(self, name: str) -> int:
        """The process of a node."""
        return self._processes.running[name].pid

    def _call(self, kind: Any, name: str, request: Any, done: Callable[[], bool] = lambda: False) -> Any:
        return self._calls.call(kind, name, request, START_S, done=done)
