"""LeRobot datasets as recordings: one rosbag2 folder an episode, with the topics that a contract names.

A dataset of another robot becomes bags that are indexed, checked, replayed and trained on like one's own. Which number
is which column, and in which unit, is in a map (`training.lerobot.column_map`); a contract for a dataset that has none
is made from it and from extremes, to be checked by hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ki_bags import message_builders
from ki_bags.errors import BagError
from ki_bags.problems import Problem, Problems
from ki_bags.writer import BagWriter
from ki_common.errors import KiError
from ki_common.files import read_json, write_text
from ki_common.parallel import run_all
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.names import interface_of, twist_axis_of
from training.errors import TrainingError
from training.lerobot.column_map import (
    UNITS,
    ColumnMap,
    Plan,
    draft_of,
    draft_text,
    load_map,
    make_plan,
    questions,
    sources_of,
    values_of,
)
from training.lerobot.pictures import Picture
from training.lerobot.read import LerobotDataset, LerobotEpisode
from training.lerobot.times import StepTimes, step_times

POLICY, HUMAN = 1, 2  # of ki_msgs/ControlSource
EPOCH_NS = 1_700_000_000 * 10**9  # the first stamp: no stamp is 0, and the same dataset gives the same bags
MARGIN = 0.05  # of its span, beyond what a column reached, where limits are made from data
MAX_HORIZON = 50
Progress = Callable[[int, int, str], None]


def from_lerobot(
    source: Path,
    out: Path,
    robot: str | None = None,
    episodes: Sequence[int] | None = None,
    quality: int = 95,
    progress: Progress | None = None,
    map_file: Path | None = None,
    workers: int = 1,
    ray: str = '',
) -> tuple[Contract, Problems]:
    """Writes `out/episode_000000` ... and `out/contract.yaml`.

    Args:
        source: A LeRobot dataset, v2.1 or v3.0.
        out: The folder to make the bags in.
        robot: A contract by name or file; without one it is made from the dataset.
        episodes: Which; all that are on disk by default.
        quality: JPEG quality of the pictures.
        progress: Told after every episode.
        map_file: Which number is which column; without one, what the names tell beyond doubt.
        workers: Episodes at a time, each in a process.
        ray: Address of a Ray cluster instead, see `ki_common.parallel.run_all`.

    Raises:
        TrainingError: No episode on disk, a column of the contract that the dataset lacks, or something that neither
            names nor the map tell: all of it in one message.
    """
    dataset = LerobotDataset(source)
    wanted = list(dataset.numbers if episodes is None else episodes)
    absent = sorted(set(wanted) - set(dataset.numbers))
    if not wanted:
        raise TrainingError(f'{source} has no episode on disk: {"; ".join(each.text for each in dataset.problems)}.')
    if absent:
        there = ', '.join(map(str, dataset.numbers)) or 'none'
        raise TrainingError(f'{source} has no episode {", ".join(map(str, absent))}; on disk are {there}.')
    plan = plan_for(dataset, load_contract(robot) if robot else None, map_file)
    contract, problems = plan.contract, Problems(dataset.problems)
    if not contract.outputs:
        text = f'{contract.name} has no outputs, so the actions are left out'
        problems.add(source, 'actions', 'actions_left_out', text)
    out.mkdir(parents=True, exist_ok=True)
    jobs = [EpisodeJob(dataset.only(number), plan, out / f'episode_{number:06d}', quality) for number in wanted]
    told: dict[int, Problems] = {}
    with contextlib.closing(run_all(write_job, jobs, workers, ray)) as results:
        for place, result in results:
            if isinstance(result, BagError):
                raise result
            if isinstance(result, Exception):
                text = f'the process that read it died ({type(result).__name__}: {result})'
                result = Problems([Problem(str(source), f'episode {wanted[place]}', 'unreadable', text)])
            told[place] = result
            if progress is not None:
                progress(len(told), len(wanted), str(jobs[place].path))
    for place in sorted(told):
        problems.extend(told[place])
    write_text(out / 'contract.yaml', yaml.safe_dump(contract.to_dict(), sort_keys=False, allow_unicode=True))
    return contract, problems


@dataclass(frozen=True)
class EpisodeJob:
    """One episode to write: the dataset with it alone, which number is which column, where to, quality of JPEGs."""

    dataset: LerobotDataset
    plan: Plan
    path: Path
    quality: int


def write_job(job: EpisodeJob) -> Problems:
    """Writes an episode; returns what is odd about it, or why it cannot be read.

    Raises:
        BagError: The folder exists, or the disk takes no more.
    """
    problems, [number] = Problems(), job.dataset.numbers
    try:
        episode = job.dataset.episode(number)
        times = write_episode(episode, job.dataset, job.plan, job.path, job.quality)
    except BagError:
        raise
    except KiError as error:
        problems.add(job.dataset.folder, f'episode {number}', 'unreadable', str(error))
    else:
        _tell(episode, times, job.dataset, problems)
    return problems


def write_draft(source: Path, path: Path, robot: str | None = None) -> list[str]:
    """Writes a commented map of a dataset, for someone to complete; returns what is open.

    Raises:
        TrainingError: No dataset, or the file exists.
    """
    if path.exists():
        raise TrainingError(f'{path} exists already; name another file.')
    dataset = LerobotDataset(source)
    contract = load_contract(robot) if robot else _own_contract(dataset)
    draft = draft_of(dataset, _readable(dataset), contract)
    write_text(path, draft_text(draft, dataset))
    return questions(draft)


def plan_for(dataset: LerobotDataset, contract: Contract | None = None, map_file: Path | None = None) -> Plan:
    """Which number of a dataset becomes which column.

    Args:
        dataset: The dataset.
        contract: The robot; without one, the contract that our own export left behind, or one that is made.
        map_file: A map; without one, what the names tell beyond doubt.

    Raises:
        TrainingError: Something is open or does not fit: all of it in one message.
    """
    contract = contract or _own_contract(dataset)
    if map_file is not None:
        column_map, where = load_map(map_file), str(map_file)
    else:
        draft = draft_of(dataset, _readable(dataset), contract)
        asked = questions(draft) if contract is None else []
        if asked:
            raise TrainingError(
                f'{dataset.folder}: names and numbers do not tell the {"; the ".join(asked)}. Write a map with --draft '
                "map.yaml, answer every '?' in it, and give it with --map map.yaml."
            )
        column_map, where = draft.map_for(contract), 'by the names of the dataset (--draft map.yaml writes a map)'
    if contract is None:
        contract = _made_contract(dataset, column_map, where)
    return make_plan(dataset, contract, column_map, where)


def misfit(dataset: LerobotDataset, contract: Contract) -> str:
    """Why a dataset cannot become recordings of a contract's robot; empty where it can."""
    try:
        plan_for(dataset, contract)
    except TrainingError as error:
        return str(error)
    return ''


def contract_of(dataset: LerobotDataset, map_file: Path | None = None) -> Contract:
    """The contract that our own export left behind, or one made from a map and extremes, for someone to check."""
    return plan_for(dataset, None, map_file).contract


def _own_contract(dataset: LerobotDataset) -> Contract | None:
    ours = dataset.folder / 'meta' / 'contract.json'
    return Contract.parse(read_json(ours, TrainingError), str(ours)) if ours.is_file() else None


def _made_contract(dataset: LerobotDataset, column_map: ColumnMap, where: str) -> Contract:
    """A contract from a map and extremes."""
    state, actions_from = (tuple(each.values()) for each in sources_of(dataset, column_map, where))
    readable = _readable(dataset)
    for title in ('state', 'actions'):
        if not getattr(column_map, title):
            raise TrainingError(f'{dataset.folder}: nothing is known as {title}; name it in a map (--draft map.yaml).')
    state_T = [values_of(state, each) for each in readable]
    if not all(np.isfinite(each).all() for each in state_T):
        raise TrainingError(f'{dataset.folder}: the states hold values that are not finite.')
    action_T = [values_of(actions_from, each) for each in readable]
    whole = np.concatenate(action_T)
    steps = np.concatenate([np.abs(np.diff(each, axis=0)) for each in action_T])
    speed = steps.max(axis=0, initial=0.0) * dataset.fps
    measured = {entry.column for entry in column_map.state}
    actions = []
    for index, entry in enumerate(column_map.actions):
        low, high = float(whole[:, index].min()), float(whole[:, index].max())
        margin = max(MARGIN * (high - low), 1e-3)
        velocity = max(1.3 * float(speed[index]), 0.1)
        if interface_of(entry.column) == 'velocity':
            velocity = max(abs(low), abs(high)) + margin
        limits = {'lower': low - margin, 'upper': high + margin, 'velocity': velocity}
        is_delta = entry.column in measured and interface_of(entry.column) == 'position'
        unit, representation = UNITS[entry.unit][0], 'delta' if is_delta else 'absolute'
        actions.append({'name': entry.column, 'unit': unit, 'representation': representation, 'limits': limits})
    if not column_map.cameras:
        raise TrainingError(
            f'{dataset.folder} has no camera, and a policy that sees nothing must not move; name one in cameras of '
            'a map (--draft map.yaml), or give --robot a contract whose cameras the dataset has.'
        )
    max_age_s = min(3.0 / dataset.fps, 10.0)
    return Contract.parse(
        {
            'name': 'lerobot_dataset',
            'rate_hz': float(dataset.fps),
            'horizon': MAX_HORIZON,
            'cameras': [
                {
                    'name': camera,
                    'topic': f'{camera}/image_raw/compressed',
                    'transport': 'compressed',
                    'kind': 'wrist' if 'wrist' in camera else 'scene',
                    'max_age_s': max_age_s,
                }
                for camera in column_map.cameras
            ],
            'state_streams': [
                {'name': 'joint_states', 'topic': 'joint_states', 'type': 'joint_state', 'max_age_s': max_age_s}
            ],
            'state': [
                {'name': entry.column, 'unit': UNITS[entry.unit][0], 'source': 'joint_states'}
                for entry in column_map.state
            ],
            'actions': actions,
            'outputs': _outputs([entry.column for entry in column_map.actions]),
        },
        f'contract of {dataset.folder}',
    )


def _readable(dataset: LerobotDataset) -> list[LerobotEpisode]:
    """The episodes whose numbers can be read; the import names the others."""
    found, first_error = [], ''
    for number in dataset.numbers:
        try:
            found.append(dataset.episode(number))
        except TrainingError as error:
            first_error = first_error or f' {error}'
    if not found:
        told = first_error or ''.join(f' {each.text}.' for each in dataset.problems)
        raise TrainingError(f'{dataset.folder} has no readable episode on disk.{told}')
    return found


def _outputs(columns: list[str]) -> list[dict[str, Any]]:
    """A topic for each kind of column: nothing is known of the robot's real controllers."""
    twist = [column for column in columns if twist_axis_of(column)]
    made: list[dict[str, Any]] = []
    for interface in ('position', 'velocity', 'effort'):
        chosen = [column for column in columns if interface_of(column) == interface and column not in twist]
        if chosen:
            output: dict[str, Any] = {
                'name': interface,
                'kind': 'forward_command',
                'topic': f'{interface}_controller/commands',
                'columns': chosen,
            }
            made.append(output if interface == 'position' else {**output, 'options': {'allow_without_timeout': True}})
    if twist:
        made.append({'name': 'base', 'kind': 'twist_stamped', 'topic': 'base_controller/cmd_vel', 'columns': twist})
    return made


def write_episode(
    episode: LerobotEpisode, dataset: LerobotDataset, plan: Plan, path: Path, quality: int = 95
) -> StepTimes:
    """One episode as a rosbag2 folder; returns when its steps were.

    Raises:
        BagError: The folder exists, or the disk takes no more.
        TrainingError: Its times, numbers or pictures do not read; nothing that looks complete is left behind.
    """
    contract, robot = plan.contract, plan.contract.robot
    on_grid = dataset.fps == contract.rate_hz
    # On the grid of the contract to the nanosecond: a frame dated after its step would be seen one step late.
    times = step_times(episode.timestamps, dataset.fps, contract.step_ns if on_grid else round(1e9 / dataset.fps))
    state_TS, action_TN = plan.numbers(episode)
    said = task = episode.tasks[0]
    clips = {camera: dataset.frames(episode.clips[name], episode.timestamps) for camera, name in plan.cameras.items()}
    with BagWriter(path, custom={'task': task, 'source': f'{dataset.folder.name}#{episode.number}'}) as bag:
        message_builders.put(bag, 'episode', EPOCH_NS, message_builders.marker(EPOCH_NS, 0, episode.number, task))
        for step, since_start_ns in enumerate(times.since_start_ns.tolist()):
            time_ns = EPOCH_NS + since_start_ns
            if episode.human is not None and (step == 0 or episode.human[step] != episode.human[step - 1]):
                source = HUMAN if episode.human[step] else POLICY
                message_builders.put(bag, 'control_source', time_ns, message_builders.control_source(time_ns, source))
            if episode.tasks[step] not in ('', said):
                said = episode.tasks[step]
                message_builders.put(bag, 'instruction', time_ns, message_builders.instruction(time_ns, said))
            for camera in contract.cameras:
                if camera.name in clips:
                    picture = message_builders.picture(time_ns, _shown(clips[camera.name], times), quality=quality)
                    message_builders.put(bag, camera.topic, time_ns, picture)
            measured = dict(zip(robot.state_names, state_TS[step].tolist(), strict=True))
            for stream in contract.state_streams:
                message_builders.put(
                    bag, stream.topic, time_ns, message_builders.state(contract, stream, time_ns, measured)
                )
            action = dict(zip(robot.action_names, action_TN[step].tolist(), strict=True))
            for output in robot.outputs:
                command = message_builders.command(output, time_ns, [action[column] for column in output.columns])
                message_builders.put(bag, output.topic, time_ns, command)
        message_builders.put(bag, 'episode', time_ns, message_builders.marker(time_ns, 1, episode.number, task, 1))
    return times


def _shown(clip: Iterator[Picture], times: StepTimes) -> Picture:
    """The next picture; where there is none, a pause in the timestamps may be why."""
    try:
        return next(clip)
    except TrainingError as error:
        if times.gaps:
            text = f'{error} Its timestamps pause for {times.longest_gap_s:.2f} s, which the film does not.'
            raise TrainingError(text) from error
        raise


def _tell(episode: LerobotEpisode, times: StepTimes, dataset: LerobotDataset, problems: Problems) -> None:
    """What is odd about an episode that was written."""
    field = f'episode {episode.number}'
    promised = dataset.promised_steps(episode.number)
    if promised not in (None, episode.steps):
        text = f'{field} has {episode.steps} steps; the metadata promises {promised}'
        problems.add(dataset.folder, field, 'length', text)
    if times.gaps:
        text = f'{field} pauses for up to {times.longest_gap_s:.2f} s; steps without fresh inputs are not learned from'
        problems.add(dataset.folder, field, 'gap', text, times.gaps)
