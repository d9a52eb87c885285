"""The contract of a robot: what it shows to a model, what a model may command, and within which limits.

Read from `config/robots/NAME.yaml`, checked as a whole, hashed. Columns carry the names of ros2_control
interfaces (`left_joint1/position`, `base/linear/x/velocity`); values are SI, angles in radians.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ki_common.errors import shown
from ki_common.share import share_folders
from ki_robot.contract.names import (
    CAMERA_KINDS,
    OUTPUT_KINDS,
    STAMPS,
    STREAM_TYPES,
    UNITS,
    is_column,
    is_topic,
    is_word,
)
from ki_robot.contract.rules import MODEL_FIELDS, check_contract
from ki_robot.errors import RobotError
from ki_robot.fields import Fields, read_yaml

Options = dict[str, bool | float | str]


@dataclass(frozen=True)
class Limits:
    """Bounds of one column; None is unlimited.

    `lower` and `upper` bound the value. `velocity` bounds the speed and `acceleration` its change:
    for a position column the first and second derivative of the value, for a velocity column
    the absolute value and its first derivative.
    """

    lower: float | None = None
    upper: float | None = None
    velocity: float | None = None
    acceleration: float | None = None


@dataclass(frozen=True)
class Camera:
    """One view of the model; `width` and `height`, when given, are the only size accepted.

    `stamp` says which clock dates a frame: the driver's `header`, or `receive` for a driver without a usable clock.
    """

    name: str
    topic: str
    transport: str
    max_age_s: float
    kind: str = 'scene'
    required: bool = True
    width: int | None = None
    height: int | None = None
    stamp: str = 'header'


@dataclass(frozen=True)
class StateStream:
    """One topic with measured state.

    `prefix` is put before every joint name of its messages (two arms whose drivers use the same names);
    `extra_joints` says whether joints that no column wants are let pass (`allow`) or refused (`refuse`).
    """

    name: str
    topic: str
    type: str
    max_age_s: float
    prefix: str = ''
    extra_joints: str = 'refuse'
    stamp: str = 'header'


@dataclass(frozen=True)
class StateColumn:
    """One number of the state vector, from the stream named `source`."""

    name: str
    unit: str
    source: str
    limits: Limits = Limits()


@dataclass(frozen=True)
class ActionColumn:
    """One number of an action; `delta` is meant to the model only, relative to the state at the chunk's observation."""

    name: str
    unit: str
    representation: str
    limits: Limits


@dataclass(frozen=True)
class Output:
    """Which columns go to which controller, and how; the options of each kind are in `names.OUTPUT_KINDS`."""

    name: str
    kind: str
    topic: str
    columns: tuple[str, ...]
    frame_id: str = ''
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Contract:
    """Everything that policy and robot must agree on; checked on construction, so an existing one is sound."""

    name: str
    rate_hz: float
    horizon: int
    image_size: int
    sync_tolerance_s: float
    cameras: tuple[Camera, ...]
    state_streams: tuple[StateStream, ...]
    state: tuple[StateColumn, ...]
    actions: tuple[ActionColumn, ...]
    outputs: tuple[Output, ...] = ()

    def __post_init__(self) -> None:
        check_contract(self)

    @property
    def step_ns(self) -> int:
        """Time between two action steps, nanoseconds."""
        return round(1e9 / self.rate_hz)

    @property
    def streams(self) -> tuple[Camera | StateStream, ...]:
        """What an observation is made of: the cameras in model order, then the state."""
        return (*self.cameras, *self.state_streams)

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The views in model order."""
        return tuple(camera.name for camera in self.cameras)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The columns of the state vector, in order."""
        return tuple(column.name for column in self.state)

    @property
    def action_names(self) -> tuple[str, ...]:
        """The columns of an action, in order."""
        return tuple(column.name for column in self.actions)

    @property
    def hash(self) -> str:
        """sha256 (hex) of the canonical JSON: independent of the order and layout of the YAML."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(',', ':'), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Plain data that `from_dict` and YAML take back; fields at None or empty are left out."""
        plain = json.loads(json.dumps(asdict(self)))
        return {key: _without_empty(value) for key, value in plain.items()}

    @classmethod
    def from_dict(cls, data: object, where: str = 'contract') -> Contract:
        """The contract in plain data, as YAML holds it.

        Args:
            data: A mapping with the fields of this class.
            where: What messages call it, usually the file.

        Raises:
            RobotError: Anything unknown, missing, twice or contradictory, by field.
        """
        top = Fields(data, where)
        try:
            found = cls(
                name=top.text('name', fits=is_word, mend='write a lower-case name such as arm_single'),
                rate_hz=top.number('rate_hz'),
                horizon=top.integer('horizon', high=1000),
                image_size=top.integer('image_size', 224, low=16, high=4096),
                sync_tolerance_s=top.number('sync_tolerance_s', 0.1),
                cameras=top.items('cameras', _camera),
                state_streams=top.items('state_streams', _state_stream),
                state=top.items('state', _state_column),
                actions=top.items('actions', _action_column),
                outputs=top.items('outputs', _output, required=False),
            )
            top.done()
        except RobotError as error:
            message = str(error)
            raise RobotError(message if message.startswith(where) else f'{where}: {message}') from error
        return found

    def mismatches(self, other: Contract) -> list[str]:
        """What a model made for `self` would get wrong on `other`: one sentence a field, empty when it fits.

        Topics, ages, limits and outputs are the robot's own affair and are not compared.
        """
        found = []
        for label, value in MODEL_FIELDS.items():
            ours, theirs = value(self), value(other)
            if ours != theirs:
                found.append(f'{label}: the policy has {shown(ours)}, the robot {shown(theirs)}')
        return found


def load_contract(name_or_path: str | Path) -> Contract:
    """The contract of a robot, by file or by bare name.

    A bare name is looked up in this tree's `config/robots`, then in the share folders of an installed package.

    Raises:
        RobotError: No such robot (with the names that exist), or a contract that does not hold.
    """
    path = Path(name_or_path)
    if path.suffix not in ('.yaml', '.yml') and not path.is_file():
        path = _find(str(name_or_path))
    return Contract.from_dict(read_yaml(path), str(path))


def robot_folders() -> list[Path]:
    """The folders that hold contracts, nearest first."""
    folders = (share / 'config' / 'robots' for share in share_folders('ki_policy_node'))
    return [folder for folder in folders if folder.is_dir()]


def robot_names() -> list[str]:
    """The bare names that `load_contract` takes."""
    return sorted({path.stem for folder in robot_folders() for path in folder.glob('*.yaml')})


def _find(name: str) -> Path:
    if name in robot_names():
        return next(path for path in (folder / f'{name}.yaml' for folder in robot_folders()) if path.is_file())
    known = ', '.join(robot_names()) or 'none'
    raise RobotError(f'No robot is called {shown(name)}; known are {known}. Name one, or give the path of a YAML file.')


def _without_empty(value: object) -> object:
    """`value` without mapping entries that are None or an empty mapping: absent and empty mean the same."""
    if isinstance(value, dict):
        inner = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item is not None and item != {}}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value


def _limits(source: Fields) -> Limits:
    found = Limits(**{each.name: source.optional_number(each.name) for each in fields(Limits)})
    source.done()
    return found


def _camera(data: object, where: str) -> Camera:
    source = Fields(data, where)
    found = Camera(
        name=source.text('name', fits=is_word, mend='write a lower-case name such as head'),
        topic=_topic(source),
        transport=source.choice('transport', ('raw', 'compressed')),
        max_age_s=source.number('max_age_s'),
        kind=source.choice('kind', CAMERA_KINDS, 'scene'),
        required=source.flag('required', True),
        width=source.optional_integer('width', high=16384),
        height=source.optional_integer('height', high=16384),
        stamp=source.choice('stamp', STAMPS, 'header'),
    )
    source.done()
    return found


def _state_stream(data: object, where: str) -> StateStream:
    source = Fields(data, where)
    found = StateStream(
        name=source.text('name', fits=is_word, mend='write a lower-case name such as joint_states'),
        topic=_topic(source),
        type=source.choice('type', STREAM_TYPES),
        max_age_s=source.number('max_age_s'),
        prefix=source.text('prefix', '', lambda value: not value or is_column(f'{value}x/y'), 'write a joint prefix'),
        extra_joints=source.choice('extra_joints', ('refuse', 'allow'), 'refuse'),
        stamp=source.choice('stamp', STAMPS, 'header'),
    )
    source.done()
    return found


def _state_column(data: object, where: str) -> StateColumn:
    source = Fields(data, where)
    found = StateColumn(
        name=_column(source),
        unit=source.choice('unit', UNITS),
        source=source.text('source', fits=is_word, mend='name one of the state_streams'),
        limits=_limits(source.child('limits')),
    )
    source.done()
    return found


def _action_column(data: object, where: str) -> ActionColumn:
    source = Fields(data, where)
    found = ActionColumn(
        name=_column(source),
        unit=source.choice('unit', UNITS),
        representation=source.choice('representation', ('absolute', 'delta')),
        limits=_limits(source.child('limits')),
    )
    source.done()
    return found


def _output(data: object, where: str) -> Output:
    source = Fields(data, where)
    kind = source.choice('kind', OUTPUT_KINDS)
    found = Output(
        name=source.text('name', fits=is_word, mend='write a lower-case name such as left_arm'),
        kind=kind,
        topic=_topic(source),
        columns=source.items('columns', _column_name),
        frame_id=source.text('frame_id', '', lambda value: not value or is_topic(value), 'write a frame: base_link'),
        options=source.scalars('options'),
    )
    source.done()
    return found


def _topic(source: Fields) -> str:
    return source.text(
        'topic', fits=is_topic, mend='write a ROS topic name, relative unless it is shared by all robots'
    )


def _column(source: Fields) -> str:
    return source.text('name', fits=is_column, mend='write a ros2_control interface such as joint1/position')


def _column_name(data: object, where: str) -> str:
    if not isinstance(data, str):
        raise RobotError(f'{where} is {shown(data)}; write the name of an action column.')
    return data
