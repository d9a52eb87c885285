"""Which number of a LeRobot dataset is which column of a robot, in which unit, and which picture is which camera.

A map is a YAML file. What a name tells beyond doubt is drafted; what it does not (a unit, a kind) is asked for, all of
it in one message. Names never become positions by guessing: `x.vel` is none, and `joint1` from -90 to 90 is no radian.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from ki_common.configuration.model import Config
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import INTERFACE_UNITS, interface_of, is_column
from ki_robot.contract.parts import ActionColumn, StateColumn
from training.errors import TrainingError
from training.lerobot.read import LerobotDataset, LerobotEpisode

UNKNOWN: Literal['?'] = '?'
LARGEST_ANGLE = 4 * math.pi  # rad; a joint that goes further is in degrees, or in shares of its range
StoredUnit = Literal[
    'rad', 'deg', 'm', 'cm', 'mm', 'percent', '1', 'rad/s', 'deg/s', 'rpm', 'm/s', 'mm/s', 'N', 'N*m', '?'
]
# As stored -> (unit of a column, factor).
UNITS: Mapping[str, tuple[str, float]] = {
    'rad': ('rad', 1.0),
    'deg': ('rad', math.pi / 180),
    'm': ('m', 1.0),
    'cm': ('m', 1e-2),
    'mm': ('m', 1e-3),
    'percent': ('1', 1e-2),
    '1': ('1', 1.0),
    'rad/s': ('rad/s', 1.0),
    'deg/s': ('rad/s', math.pi / 180),
    'rpm': ('rad/s', math.pi / 30),
    'm/s': ('m/s', 1.0),
    'mm/s': ('m/s', 1e-3),
    'N': ('N', 1.0),
    'N*m': ('N*m', 1.0),
}
# Words of a name, apart from its joint, that say which kind of number it is.
KINDS = {
    'pos': 'position',
    'position': 'position',
    'qpos': 'position',
    'vel': 'velocity',
    'velocity': 'velocity',
    'qvel': 'velocity',
    'torque': 'effort',
    'effort': 'effort',
}
# Words that say that a number is no joint's position, and not which column it is. Wrists roll, so that only a whole
# name `roll` is one of them.
# fmt: off
OTHER_WORDS = frozenset((
    'acc', 'accel', 'acceleration', 'current', 'delta', 'ee', 'eef', 'euler', 'force', 'load', 'pose', 'quat',
    'quaternion', 'rot', 'rotation', 'rx', 'ry', 'rz', 'speed', 'tcp', 'temp', 'temperature', 'theta', 'twist',
    'vx', 'vy', 'vz', 'voltage', 'w', 'wx', 'wy', 'wz', 'x', 'y', 'z',
))
# fmt: on
WHOLE_WORDS = frozenset(('roll', 'pitch', 'yaw'))


class ColumnEntry(Config):
    """One column and where it comes from."""

    raises = TrainingError

    feature: str
    """Key in meta/info.json, such as observation.state."""
    element: str | int
    """Name of the number in the feature, or its place, from 0."""
    column: str
    """ros2_control interface of the robot; its last part is the kind: position, velocity or effort."""
    unit: StoredUnit
    """As stored."""
    invert: bool = False
    """Whether the sign turns."""
    scale: float = Field(default=1.0, gt=0)
    """Multiplies, after the unit. With a scale the column may have another unit: percent of an opening in m."""
    offset: float = 0.0
    """Is added last, in the unit of the column."""

    @model_validator(mode='after')
    def _fits_its_kind(self) -> Self:
        if self.column == UNKNOWN:
            return self
        units = INTERFACE_UNITS.get(interface_of(self.column))
        if units is None or not is_column(self.column):
            raise ValueError(f'column is {self.column!r}; end it in {", ".join(INTERFACE_UNITS)}, like joint1/position')
        if self.unit != UNKNOWN and self.scale == 1.0 and UNITS[self.unit][0] not in units:
            fitting = ', '.join(stored for stored, (unit, _) in UNITS.items() if unit in units)
            raise ValueError(f'unit is {self.unit!r}; {self.column} is stored in {fitting}, else give a scale')
        return self

    @property
    def factor(self) -> float:
        """From the stored number to the column's unit, without the offset."""
        return UNITS[self.unit][1] * self.scale * (-1.0 if self.invert else 1.0)


class ColumnMap(Config):
    """A whole map."""

    raises = TrainingError

    state: tuple[ColumnEntry, ...]
    """The columns of the state."""
    actions: tuple[ColumnEntry, ...]
    """The columns of the actions."""
    cameras: dict[str, str] = Field(default_factory=dict)
    """Camera of the robot -> key of the dataset, such as observation.images.front."""


@dataclass(frozen=True)
class ColumnSource:
    """Where one column comes from: value = stored * factor + offset."""

    feature: str
    place: int
    factor: float
    offset: float


@dataclass(frozen=True)
class Plan:
    """A map that was found to fit a dataset and a contract.

    Attributes:
        state, actions: A source for each column of `contract.robot`, in its order: what streams measure and outputs
            take, which of a contract with hands are joints.
        cameras: Camera of the contract -> camera of the dataset.
    """

    contract: Contract
    state: tuple[ColumnSource, ...]
    actions: tuple[ColumnSource, ...]
    cameras: dict[str, str]

    def numbers(self, episode: LerobotEpisode) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """State (T, S) and actions (T, N) of an episode, SI."""
        return values_of(self.state, episode), values_of(self.actions, episode)


def values_of(sources: Sequence[ColumnSource], episode: LerobotEpisode) -> NDArray[np.float64]:
    """Columns (T, n) of an episode.

    Raises:
        TrainingError: The episode lacks a feature.
    """
    columns = []
    for source in sources:
        if source.feature not in episode.values:
            raise TrainingError(f'episode {episode.number} has no column {source.feature}.')
        columns.append(episode.values[source.feature][:, source.place] * source.factor + source.offset)
    return np.stack(columns, axis=1) if columns else np.zeros((episode.steps, 0))


# What a name tells.


def column_of(name: str) -> str:
    """The column that a name tells beyond doubt, else `?`.

    `shoulder/position` for `shoulder`, `shoulder.pos` and `position.shoulder`, `arm/shoulder/position` for
    `arm/shoulder`, `base/linear/x/velocity` as it is, `joint1/velocity` for `joint1.vel`.
    """
    clean = name.strip().replace(' ', '_')
    if '/' in clean and is_column(clean) and interface_of(clean) in INTERFACE_UNITS:
        return clean
    words = clean.split('.')
    kinds = [KINDS[word] for word in (words[0], words[-1]) if word in KINDS] if len(words) > 1 else []
    if len(words) > 1 and words[-1] in KINDS:
        words = words[:-1]
    elif len(words) > 1 and words[0] in KINDS:
        words = words[1:]
    joint, kind = '.'.join(words), kinds[-1] if kinds else 'position'
    said = set(re.split(r'[._/\-]+', joint.lower()))
    if said & (OTHER_WORDS | KINDS.keys()) or joint.lower() in WHOLE_WORDS or not is_column(f'{joint}/{kind}'):
        return UNKNOWN
    return f'{joint}/{kind}'


def unit_of(name: str, column: str, low: float, high: float, contract: Contract | None = None) -> StoredUnit:
    """The unit that numbers from `low` to `high` of a column must be in, else `?`.

    A contract says the unit of its columns, and a name that is a whole ros2_control interface is in SI. Joints within
    two turns are in radians, as every public dataset in SI has them. Nothing else is known from numbers.
    """
    if column == UNKNOWN:
        return UNKNOWN
    columns = () if contract is None else (*contract.robot.actions, *contract.robot.state)
    known = {each.name: each.unit for each in columns}
    interface = interface_of(column)
    unit: StoredUnit = UNKNOWN
    if column in known:
        unit = known[column]
    elif interface == 'position':
        unit = 'rad'
    elif name == column:
        unit = 'N*m' if interface == 'effort' else 'm/s' if '/linear/' in column else 'rad/s'
    if unit == 'rad' and max(abs(low), abs(high)) > LARGEST_ANGLE:
        return UNKNOWN
    return unit


def camera_words(cameras: Sequence[str]) -> dict[str, str]:
    """Names that a contract takes -> cameras of a dataset: `camera_0` for `0`, `top_view` for `top view`."""
    found: dict[str, str] = {}
    for camera in cameras:
        word = re.sub(r'[^a-z0-9_]', '_', camera.lower().rpartition('images.')[2])[:60].lstrip('_') or 'camera'
        if not word[0].isalpha():
            word = f'camera_{word}'
        name = word
        for number in range(2, len(cameras) + 2):
            if name not in found:
                break
            name = f'{word}_{number}'
        found[name] = camera
    return found


# Drafts.


@dataclass(frozen=True)
class Drafted:
    """A drafted entry, and what was seen of its numbers."""

    entry: ColumnEntry
    low: float
    high: float


@dataclass(frozen=True)
class Draft:
    """What could be told from a dataset; `?` where nothing can."""

    state: tuple[Drafted, ...]
    actions: tuple[Drafted, ...]
    cameras: dict[str, str]

    def map_for(self, contract: Contract | None) -> ColumnMap:
        """As a map; of what a contract has, where it is known."""
        state, actions = self.state, self.actions
        if contract is not None:
            state = tuple(each for each in state if each.entry.column in contract.robot.state_names)
            actions = tuple(each for each in actions if each.entry.column in contract.robot.action_names)
        return ColumnMap(
            state=tuple(each.entry for each in state),
            actions=tuple(each.entry for each in actions),
            cameras=self.cameras,
        )


def draft_of(dataset: LerobotDataset, episodes: Sequence[LerobotEpisode], contract: Contract | None = None) -> Draft:
    """Drafts a map from names and extremes.

    Args:
        dataset: The dataset.
        episodes: From which extremes are taken.
        contract: The robot, where it is known: its units count.
    """
    info = dataset.info
    wanted = set() if contract is None else {*contract.robot.state_names, *contract.robot.action_names}

    def entries(keys: Sequence[str]) -> tuple[Drafted, ...]:
        found = []
        for key in keys:
            values = [each.values[key] for each in episodes if key in each.values]
            whole = np.concatenate(values) if values else np.zeros((1, info.features[key].size))
            names: Sequence[str | int] = info.features[key].elements or range(info.features[key].size)
            for place, name in enumerate(names):
                low, high = float(np.nanmin(whole[:, place])), float(np.nanmax(whole[:, place]))
                column = _known_as(name, wanted)
                unit = unit_of(str(name), column, low, high, contract)
                entry = ColumnEntry(feature=key, element=name, column=column, unit=unit)
                found.append(Drafted(entry, low, high))
        return tuple(found)

    action_keys = [dataset.action_key] if dataset.action_key else [key for key in info.numbers if 'action' in key]
    state_keys = [dataset.state_key] if dataset.state_key else [key for key in info.numbers if key not in action_keys]
    keys = {short: info.cameras[short] for short in dataset.cameras}
    cameras = {word: keys[camera] for word, camera in camera_words(dataset.cameras).items()}
    return Draft(entries(state_keys), entries(action_keys), cameras)


def _known_as(name: str | int, wanted: Collection[str]) -> str:
    """The column of an element: the contract's of that very name, else what the name tells."""
    if isinstance(name, int):
        return UNKNOWN
    clean = name.strip().replace(' ', '_')
    return next((each for each in (clean, f'{clean}/position') if each in wanted), column_of(name))


def draft_text(draft: Draft, dataset: LerobotDataset) -> str:
    """A draft as a commented YAML file."""
    used = {each.entry.feature for each in (*draft.state, *draft.actions)}
    others = [f'{key} ({feature.size})' for key, feature in dataset.info.numbers.items() if key not in used]
    lines = [
        f'# Which number of {dataset.folder.name} is which column of the robot.',
        "# Answer every '?', and delete the lines of what the robot does not have.",
        '# column:  a ros2_control interface; its last part is the kind: position, velocity or effort.',
        f'# unit:    as stored: {", ".join(UNITS)}.',
        '# invert:  true turns the sign.',
        '# scale:   multiplies, and may lead to another unit: percent of an opening in m.',
        "# offset:  is added last, in the column's unit.",
    ]
    if others:
        lines.append(f'# Other features that may hold columns: {", ".join(others)}.')
    for title, entries in (('state', draft.state), ('actions', draft.actions)):
        lines.append(f'{title}:' if entries else f'{title}: []')
        lines += [f'  - {_line(each.entry)}  # from {each.low:.4g} to {each.high:.4g}' for each in entries]
    lines.append('cameras:  # of the robot: key of the dataset' if draft.cameras else 'cameras: {}')
    lines += [f'  {name}: {_quoted(key)}' for name, key in draft.cameras.items()]
    return '\n'.join(lines) + '\n'


def _line(entry: ColumnEntry) -> str:
    element = entry.element if isinstance(entry.element, int) else _quoted(entry.element)
    parts = (_quoted(entry.feature), element, _quoted(entry.column), _quoted(entry.unit))
    return '{{feature: {}, element: {}, column: {}, unit: {}}}'.format(*parts)


def _quoted(text: str) -> str:
    """A word of YAML, in quotes where it needs them."""
    plain = re.fullmatch(r'[A-Za-z_][A-Za-z0-9_./*\-]*', text)
    words = {'true', 'false', 'yes', 'no', 'on', 'off', 'null', 'y', 'n'}
    return text if plain and text.lower() not in words else "'" + text.replace("'", "''") + "'"


# A map against a dataset and a contract.


def sources_of(dataset: LerobotDataset, column_map: ColumnMap, where: str) -> tuple[dict[str, ColumnSource], ...]:
    """Where each column of the state and of the actions comes from.

    Args:
        dataset: The dataset.
        column_map: Which is which.
        where: What errors call the map.

    Raises:
        TrainingError: All entries that are open, or name nothing of the dataset, in one message.
    """
    wrong: list[str] = []
    found = tuple(_sources(dataset, title, column_map, wrong) for title in ('state', 'actions'))
    if wrong:
        raise TrainingError(f'{dataset.folder}, {where}: {"; ".join(wrong)}.')
    return found


def make_plan(dataset: LerobotDataset, contract: Contract, column_map: ColumnMap, where: str) -> Plan:
    """Checks a map against both.

    Args:
        dataset: The dataset.
        contract: The robot.
        column_map: Which is which.
        where: What errors call the map.

    Raises:
        TrainingError: All that is open or does not fit, in one message.
    """
    wrong: list[str] = []
    found = []
    wanted: Sequence[tuple[str, Sequence[StateColumn | ActionColumn]]]
    wanted = (('state', contract.robot.state), ('actions', contract.robot.actions))
    for title, columns in wanted:
        sources = _sources(dataset, title, column_map, wrong)
        wrong += _misfits(title, column_map, sources, {column.name: column.unit for column in columns})
        found.append(tuple(sources[column.name] for column in columns if column.name in sources))
    for key in (dataset.state_key, dataset.action_key):
        used = {entry.feature for entry in (*column_map.state, *column_map.actions)}
        if key and key not in used and not dataset.info.features[key].elements:
            size = dataset.info.features[key].size
            wrong.append(f'features.{key}.names in meta/info.json does not name its {size} columns')
    cameras = _cameras(dataset, contract, column_map, wrong)
    if wrong:
        raise TrainingError(f'{dataset.folder} and {contract.name}, {where}: {"; ".join(wrong)}.')
    return Plan(contract, found[0], found[1], cameras)


def _cameras(dataset: LerobotDataset, contract: Contract, column_map: ColumnMap, wrong: list[str]) -> dict[str, str]:
    short = {key: name for name, key in dataset.info.cameras.items()} | {name: name for name in dataset.cameras}
    found = {}
    for camera in contract.cameras:
        wanted = column_map.cameras.get(camera.name)
        if wanted is not None and wanted in short:
            found[camera.name] = short[wanted]
        elif wanted is not None or camera.required:
            there = ', '.join(dataset.info.cameras.values()) or 'none'
            said = f'is {wanted!r}, which it has not' if wanted else 'is missing'
            wrong.append(f'cameras.{camera.name} {said} (the dataset has {there})')
    return found


def _sources(dataset: LerobotDataset, title: str, column_map: ColumnMap, wrong: list[str]) -> dict[str, ColumnSource]:
    """The sources of the entries that are sound; what is wrong with the others is added to `wrong`."""
    entries: tuple[ColumnEntry, ...] = getattr(column_map, title)
    found: dict[str, ColumnSource] = {}
    for place, entry in enumerate(entries):
        here = f'{title}[{place}]'
        asked = [what for what in ('column', 'unit') if getattr(entry, what) == UNKNOWN]
        wrong += [f'{here}.{what} ({entry.feature}, {entry.element}) is not answered' for what in asked]
        at = _place_of(dataset, entry)
        if isinstance(at, str):
            wrong.append(f'{here} {at}')
        elif entry.column in found:
            wrong.append(f'{here}.column is {entry.column}, which another entry has, too')
        elif not asked:
            found[entry.column] = ColumnSource(entry.feature, at, entry.factor, entry.offset)
    return found


def _misfits(
    title: str, column_map: ColumnMap, sources: Mapping[str, ColumnSource], units: Mapping[str, str]
) -> Iterator[str]:
    """What a map lacks of a contract, or has in a unit that the contract does not."""
    entries: tuple[ColumnEntry, ...] = getattr(column_map, title)
    for place, entry in enumerate(entries):
        unit = units.get(entry.column)
        if unit and entry.unit != UNKNOWN and UNITS[entry.unit][0] != unit and entry.scale == 1.0:
            yield f'{title}[{place}].unit is {entry.unit}, but {entry.column} is in {unit}; give a scale'
    known = {entry.column for entry in entries}
    for name in units:
        if name not in known:
            have = ', '.join(sorted(sources))[:300] or 'none'
            yield f'the dataset has no {title.removesuffix("s")} column {name} (it has {have})'


def questions(draft: Draft) -> list[str]:
    """What a draft leaves open, by name."""
    found = []
    for title, entries in (('state', draft.state), ('action', draft.actions)):
        for each in entries:
            entry = each.entry
            asked = [what for what in ('column', 'unit') if getattr(entry, what) == UNKNOWN]
            if asked:
                named = f'{title} {entry.feature}[{entry.element}]'
                found.append(f'{" and ".join(asked)} of {named} (from {each.low:.4g} to {each.high:.4g})')
    return found


def _place_of(dataset: LerobotDataset, entry: ColumnEntry) -> int | str:
    """Where an element lies in its feature, or why it lies nowhere."""
    feature = dataset.info.numbers.get(entry.feature)
    if feature is None:
        return f'names the feature {entry.feature!r}; numbers are in {", ".join(dataset.info.numbers) or "none"}'
    if isinstance(entry.element, int):
        inside = 0 <= entry.element < feature.size
        return entry.element if inside else f'names element {entry.element} of {feature.size} in {entry.feature}'
    if entry.element in feature.elements:
        return feature.elements.index(entry.element)
    named = ', '.join(feature.elements)[:300] or f'{feature.size} without names: give a place from 0'
    return f'names {entry.element!r} in {entry.feature}; it has {named}'


def load_map(path: str | Path) -> ColumnMap:
    """A map from its file.

    Raises:
        TrainingError: It does not read; names the field.
    """
    return ColumnMap.load(path)
