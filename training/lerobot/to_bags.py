"""LeRobot datasets as recordings: one rosbag2 folder an episode, with the topics that a contract names.

A dataset of another robot becomes bags that are indexed, checked, replayed and trained on like one's own. Joints are
matched by name; a contract for a dataset that has none is made from its metadata, to be checked by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ki_bags import message_builders
from ki_bags.errors import BagError
from ki_bags.problems import Problems
from ki_bags.writer import BagWriter
from ki_common.errors import KiError
from ki_common.files import read_json
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.names import interface_of, is_column, twist_axis_of
from training.errors import TrainingError
from training.lerobot.read import LerobotDataset, LerobotEpisode

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
) -> tuple[Contract, Problems]:
    """Writes `out/episode_000000` ... and `out/contract.yaml`.

    Args:
        source: A LeRobot dataset, v2.1 or v3.0.
        out: The folder to make the bags in.
        robot: A contract by name or file; without one it is made from the dataset.
        episodes: Which; all that are on disk by default.
        quality: JPEG quality of the pictures.
        progress: Told after every episode.

    Raises:
        TrainingError: No episode on disk, or a column of the contract that the dataset lacks.
    """
    dataset = LerobotDataset(source)
    wanted = list(dataset.numbers if episodes is None else episodes)
    absent = sorted(set(wanted) - set(dataset.numbers))
    if absent or not wanted:
        there = ', '.join(map(str, dataset.numbers)) or 'none'
        raise TrainingError(f'{source} has no episode {", ".join(map(str, absent))}; on disk are {there}.')
    contract = load_contract(robot) if robot else contract_of(dataset)
    plan = _Plan(dataset, contract)
    problems = Problems(dataset.problems)
    out.mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(wanted):
        path = out / f'episode_{number:06d}'
        try:
            episode = dataset.episode(number)
            write_episode(episode, dataset, plan, path, quality)
        except BagError:
            raise
        except KiError as error:
            problems.add(source, f'episode {number}', 'unreadable', str(error))
        else:
            promised = dataset.promised_steps(number)
            if promised not in (None, len(episode.state)):
                text = f'episode {number} has {len(episode.state)} steps; the metadata promises {promised}'
                problems.add(source, f'episode {number}', 'length', text)
        if progress is not None:
            progress(place + 1, len(wanted), str(path))
    text = yaml.safe_dump(contract.to_dict(), sort_keys=False, allow_unicode=True)
    (out / 'contract.yaml').write_text(text, encoding='utf-8')
    return contract, problems


def misfit(dataset: LerobotDataset, contract: Contract) -> str:
    """Why a dataset cannot become recordings of a contract's robot; empty where it can."""
    try:
        _Plan(dataset, contract)
    except TrainingError as error:
        return str(error)
    return ''


def contract_of(dataset: LerobotDataset) -> Contract:
    """The contract that our own export left behind, or one made from names and extremes, for someone to check."""
    ours = dataset.folder / 'meta' / 'contract.json'
    if ours.is_file():
        return Contract.parse(read_json(ours, TrainingError), str(ours))
    readable = _readable(dataset)
    state = np.concatenate([each.state for each in readable])
    action = np.concatenate([each.action for each in readable])
    steps = np.concatenate([np.abs(np.diff(each.action, axis=0)) for each in readable])
    speed = steps.max(axis=0, initial=0.0) * dataset.fps
    actions = []
    for index, name in enumerate(dataset.action_names):
        low, high = float(action[:, index].min()), float(action[:, index].max())
        margin = max(MARGIN * (high - low), 1e-3)
        limits = {'lower': low - margin, 'upper': high + margin, 'velocity': max(1.3 * float(speed[index]), 0.1)}
        column = column_of(name)
        known = column in {column_of(each) for each in dataset.state_names}
        unit = _unit(column)
        representation = 'delta' if known and interface_of(column) == 'position' else 'absolute'
        actions.append({'name': column, 'unit': unit, 'representation': representation, 'limits': limits})
    if not np.isfinite(state).all():
        raise TrainingError(f'{dataset.folder}: the states hold values that are not finite.')
    return Contract.parse(
        {
            'name': 'lerobot_dataset',
            'rate_hz': float(dataset.fps),
            'horizon': MAX_HORIZON,
            'cameras': [
                {
                    'name': _word(camera),
                    'topic': f'{_word(camera)}/image_raw/compressed',
                    'transport': 'compressed',
                    'kind': 'wrist' if 'wrist' in camera else 'scene',
                    'max_age_s': 3.0 / dataset.fps,
                }
                for camera in dataset.cameras
            ],
            'state_streams': [
                {'name': 'joint_states', 'topic': 'joint_states', 'type': 'joint_state', 'max_age_s': 3.0 / dataset.fps}
            ],
            'state': [
                {
                    'name': column_of(name),
                    'unit': _unit(column_of(name)),
                    'source': 'joint_states',
                }
                for name in dataset.state_names
            ],
            'actions': actions,
            'outputs': _outputs([column_of(name) for name in dataset.action_names]),
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
        raise TrainingError(f'{dataset.folder} has no readable episode on disk.{first_error}')
    return found


def _unit(column: str) -> str:
    """A guess that `ki data from-lerobot` tells the user to check."""
    if interface_of(column) == 'position':
        return 'rad'
    if interface_of(column) == 'effort':
        return 'N*m'
    return 'm/s' if '/linear/' in column else 'rad/s'


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


def column_of(name: str) -> str:
    """`shoulder/position` for `shoulder` or `shoulder.pos`, `base/linear/x/velocity` as it is."""
    clean = name.removesuffix('.pos').replace(' ', '_')
    if '/' in clean and is_column(clean):
        return clean
    column = f'{clean}/position'
    if not is_column(column):
        raise TrainingError(f'{name!r} cannot be the name of a joint; rename the column in meta/info.json.')
    return column


def _word(name: str) -> str:
    return name.lower().replace('.', '_').replace('-', '_').replace('/', '_')


class _Plan:
    """Which column of the dataset goes where; refuses what cannot be matched by name."""

    def __init__(self, dataset: LerobotDataset, contract: Contract) -> None:
        self.contract = contract
        self.state = self._match(dataset, 'state', dataset.state_names, contract.state_names)
        self.action = self._match(dataset, 'action', dataset.action_names, contract.action_names)
        names = {_word(camera): camera for camera in dataset.cameras}
        self.cameras = {camera.name: names[camera.name] for camera in contract.cameras if camera.name in names}
        missing = [each.name for each in contract.cameras if each.required and each.name not in self.cameras]
        if missing:
            raise TrainingError(
                f'{dataset.folder} has no camera {missing[0]}; it has {", ".join(names) or "none"}. '
                'Name the cameras of the contract like those of the dataset.'
            )
        if dataset.fps < contract.rate_hz:
            raise TrainingError(
                f'{dataset.folder} has {dataset.fps:g} steps a second, {contract.name} wants {contract.rate_hz:g}; '
                'lower rate_hz in a copy of the contract.'
            )

    @staticmethod
    def _match(dataset: LerobotDataset, what: str, have: Sequence[str], want: Sequence[str]) -> NDArray[np.int64]:
        places = {column_of(name): place for place, name in enumerate(have)}
        for column in want:
            if column not in places:
                raise TrainingError(
                    f'{dataset.folder} has no {what} column {column}; it has {", ".join(sorted(places))[:300]}.'
                )
        return np.array([places[column] for column in want], dtype=np.int64)


def write_episode(episode: LerobotEpisode, dataset: LerobotDataset, plan: _Plan, path: Path, quality: int = 95) -> Path:
    """One episode as a rosbag2 folder.

    Raises:
        BagError: The folder exists, or the disk takes no more.
        TrainingError: Its numbers or pictures do not read; nothing that looks complete is left behind.
    """
    contract = plan.contract
    task = said = episode.tasks[0] if episode.tasks else ''
    on_grid = dataset.fps == contract.rate_hz
    clips = {camera: dataset.frames(episode.clips[name], len(episode.state)) for camera, name in plan.cameras.items()}
    with BagWriter(path, custom={'task': task, 'source': f'{dataset.folder.name}#{episode.number}'}) as bag:
        message_builders.put(bag, 'episode', EPOCH_NS, message_builders.marker(EPOCH_NS, 0, episode.number, task))
        for step in range(len(episode.state)):
            # On the grid of the contract to the nanosecond: a frame dated after its step would be seen one step late.
            time_ns = EPOCH_NS + (step * contract.step_ns if on_grid else round(step * 1e9 / dataset.fps))
            if episode.tasks[step] not in ('', said):
                said = episode.tasks[step]
                message_builders.put(bag, 'instruction', time_ns, message_builders.instruction(time_ns, said))
            for camera in contract.cameras:
                if camera.name in clips:
                    picture = message_builders.picture(time_ns, next(clips[camera.name]), quality=quality)
                    message_builders.put(bag, camera.topic, time_ns, picture)
            measured = dict(zip(contract.state_names, episode.state[step, plan.state].tolist(), strict=True))
            for stream in contract.state_streams:
                message_builders.put(
                    bag, stream.topic, time_ns, message_builders.state(contract, stream, time_ns, measured)
                )
            action = dict(zip(contract.action_names, episode.action[step, plan.action].tolist(), strict=True))
            for output in contract.outputs:
                command = message_builders.command(output, time_ns, [action[column] for column in output.columns])
                message_builders.put(bag, output.topic, time_ns, command)
        message_builders.put(bag, 'episode', time_ns, message_builders.marker(time_ns, 1, episode.number, task, 1))
    return path
