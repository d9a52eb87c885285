"""The parts of a contract: cameras, state streams, columns with limits, outputs. Values are SI, angles in radians."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ki_common.configuration.model import Config
from ki_common.errors import shown
from ki_robot.contract.column_maps import COLUMN_MAPS, MapName
from ki_robot.contract.controller_kinds import CONTROLLER_KINDS, ControllerKindName
from ki_robot.contract.names import (
    INTERFACE_UNITS,
    ColumnName,
    Frame,
    JointPrefix,
    Name,
    Topic,
    Unit,
    interface_of,
    pose_axis_of,
)
from ki_robot.errors import RobotError

MAX_AGE_S = 10.0
MAX_COMMAND_AGE_S = 3600.0
Share = Annotated[float, Field(ge=0, le=1)]
MAX_WINDOW_S = 0.3  # a trajectory that outlives its policy must not run longer than this


class ContractPart(Config):
    """The base of contracts and their parts.

    Plain data and hash leave out every field that is at its default, so that a new optional field changes neither the
    hash of a contract that does not use it nor the bundles that hold it. `always_written` names the defaults that were
    in the hash from the beginning; add none. `unhashed` names what only the executor goes by, and no policy or
    recording depends on.
    """

    raises = RobotError
    always_written: ClassVar[tuple[str, ...]] = ()
    unhashed: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse` and YAML take back, without fields at their default (but see the class)."""
        return self._written(type(self).model_fields)

    def hashed(self) -> dict[str, Any]:
        """The same without the fields of `unhashed`."""
        return self._written([name for name in type(self).model_fields if name not in self.unhashed], hashed=True)

    def _written(self, names: Iterable[str], hashed: bool = False) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: _plain(getattr(self, name), hashed)
            for name in names
            if name in self.always_written or getattr(self, name) != fields[name].get_default(call_default_factory=True)
        }


def _plain(value: Any, hashed: bool) -> Any:
    if isinstance(value, ContractPart):
        return value.hashed() if hashed else value.to_dict()
    if isinstance(value, tuple):
        return [_plain(each, hashed) for each in value]
    if isinstance(value, Mapping):
        return {key: _plain(each, hashed) for key, each in value.items()}
    return value + 0.0 if isinstance(value, float) else value  # -0.0 and 0.0 are one limit, and hash as one


class Limits(ContractPart):
    """Bounds of one column. What is left out is unlimited.

    `velocity` and `acceleration` are the first and second derivative of a position; of a velocity they are the absolute
    value and its first derivative.
    """

    lower: float | None = None
    """Least value, in the column's unit."""
    upper: float | None = None
    """Greatest value, in the column's unit."""
    velocity: float | None = Field(default=None, gt=0)
    """Greatest speed: rad/s or m/s."""
    acceleration: float | None = Field(default=None, gt=0)
    """Greatest change of speed: rad/s^2 or m/s^2."""
    jerk: float | None = Field(default=None, gt=0)
    """Greatest change of acceleration: rad/s^3 or m/s^3. A limit rounds every motion, and makes it later by
    acceleration / jerk."""

    @model_validator(mode='after')
    def _leave_room(self) -> Self:
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError(f'lower is {self.lower}, not below upper {self.upper}; swap or correct them')
        return self


class Camera(ContractPart):
    """One view of the model."""

    always_written = ('kind', 'required', 'stamp')

    name: Name
    """What the model knows it by."""
    topic: Topic
    """Where its pictures are published."""
    transport: Literal['raw', 'compressed', 'video', 'ffmpeg']
    """Which message the topic carries: sensor_msgs/Image, CompressedImage, or H.264 or H.265 as
    foxglove_msgs/CompressedVideo or ffmpeg_image_transport_msgs/FFMPEGPacket."""
    max_age_s: float = Field(gt=0, le=MAX_AGE_S)
    """An older frame is not shown to the model, seconds."""
    kind: Literal['scene', 'wrist'] = 'scene'
    """Whether it stands still or moves with a hand; decides how training augments its images."""
    required: bool = True
    """Whether the model must not act without it."""
    width: int | None = Field(default=None, ge=1, le=16384)
    """The only width accepted, pixels; left out, any is."""
    height: int | None = Field(default=None, ge=1, le=16384)
    """The only height accepted, pixels; left out, any is."""
    crop: tuple[Share, Share, Share, Share] | None = None
    """What of the picture a policy is shown: left, top, width, height, as shares of it. A policy goes by the contract
    that it was trained with. Left out: all of it."""
    stamp: Literal['header', 'receive'] = 'header'
    """Which clock dates a frame: the driver's header, or its arrival for a driver without a usable clock."""

    @model_validator(mode='after')
    def _size_is_whole(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError(
                f'width is {self.width} and height {self.height}, only one of width and height; give both or neither'
            )
        return self

    @model_validator(mode='after')
    def _crop_is_inside(self) -> Self:
        if self.crop is not None:
            left, top, width, height = self.crop
            if not (width > 0 and height > 0 and left + width <= 1.0 + 1e-9 and top + height <= 1.0 + 1e-9):
                raise ValueError(
                    f'crop is {list(self.crop)}; write left, top, width, height with width and height above 0 and '
                    'left + width and top + height at most 1'
                )
        return self


class StateStream(ContractPart):
    """One topic with measured state."""

    always_written = ('prefix', 'extra_joints', 'stamp')
    unhashed = ('publishers',)

    name: Name
    """What state columns name as their source."""
    topic: Topic
    """sensor_msgs/JointState, nav_msgs/Odometry, geometry_msgs/PoseStamped or tf. Drivers that publish their own joints
    each on one topic are a stream each: a stream takes the messages that hold its joints, and lets pass those that hold
    none of them."""
    type: Literal['joint_state', 'odometry', 'pose', 'tf']
    """Which of these messages the topic carries."""
    max_age_s: float = Field(gt=0, le=MAX_AGE_S)
    """An older state is not used, seconds."""
    prefix: JointPrefix = ''
    """Put before every joint name of its messages, for two arms whose drivers use the same names."""
    extra_joints: Literal['refuse', 'allow'] = 'refuse'
    """Whether a message may hold joints that no column wants."""
    stamp: Literal['header', 'receive'] = 'header'
    """Which clock dates a state: the driver's header, or its arrival for a driver without a usable clock."""
    publishers: Literal['one', 'any'] = 'one'
    """Whether several nodes may publish the topic; with one (for each stream of the topic), the executor holds while
    another measures as well."""
    frame: Frame = ''
    """Of a pose or of tf: the frame in which the pose is said; a PoseStamped must have it as its frame_id."""
    child: Frame = ''
    """Of tf: the frame whose pose it is."""
    down: Literal['x', 'z'] = 'z'
    """Of a pose or of tf: which axis of the hand points down where the rotation is said by yaw alone."""
    delta: Literal['base', 'tip'] = 'base'
    """Of a pose or of tf: in whose axes delta actions are: of the frame, or of the hand where it was measured."""

    @model_validator(mode='after')
    def _frames_fit_the_type(self) -> Self:
        needed = {'pose': ('frame',), 'tf': ('frame', 'child')}.get(self.type, ())
        for name in ('frame', 'child'):
            if bool(getattr(self, name)) != (name in needed):
                what = 'is missing; write' if name in needed else f'is {getattr(self, name)!r}; leave out'
                raise ValueError(f'{name} {what} the frame of a {self.type} stream')
        return self


class _Column(ContractPart):
    """One number of a vector, named by its ros2_control interface."""

    name: ColumnName
    """ros2_control interface, such as left_joint1/position or base/linear/x/velocity."""
    unit: Unit
    """Unit of the value; 1 is a normalised opening, such as a hand's."""

    @model_validator(mode='after')
    def _unit_fits_the_interface(self) -> Self:
        interface = interface_of(self.name)
        units = INTERFACE_UNITS.get(interface)
        if units is None:
            known = ', '.join(INTERFACE_UNITS)
            raise ValueError(f'name is {self.name!r}, whose interface {interface!r} is unknown; end it in {known}')
        if self.unit not in units:
            raise ValueError(f'unit is {self.unit!r}; a {interface} is in {" or ".join(units)}')
        return self


class _PolicyColumn(_Column):
    """A column that a policy sees or says: of its SI value, map(sign * scale * value + offset)."""

    sign: Literal[1, -1] = 1
    """-1 where the policy was trained with the other direction."""
    scale: float = Field(default=1.0, gt=0)
    """The policy's units in one of the column's, such as 57.29578 for a policy that was trained in degrees."""
    offset: float = 0.0
    """Added after sign and scale, in the policy's unit."""
    map: MapName | None = None
    """A function that sign, scale and offset cannot say, applied last; `ki_robot.contract.column_maps` lists them."""

    @property
    def mapping(self) -> tuple[int, float, float, str | None]:
        """What lies between the SI value and the policy's."""
        return self.sign, self.scale, self.offset, self.map

    @property
    def is_mapped(self) -> bool:
        """Whether anything does."""
        return self.mapping != (1, 1.0, 0.0, None)

    @model_validator(mode='after')
    def _map_takes_the_unit(self) -> Self:
        if self.map is not None and self.unit not in COLUMN_MAPS[self.map]:
            units = ' or '.join(COLUMN_MAPS[self.map])
            raise ValueError(f'map is {self.map!r} for {self.name} in {self.unit!r}; it takes {units}')
        return self


class StateColumn(_PolicyColumn):
    """One number of the state vector."""

    source: Name
    """The state stream that it is read from, or the hand of `kinematics` whose pose it is part of."""
    limits: Limits = Limits()
    """What a measured value must stay within to be believed."""


class ActionColumn(_PolicyColumn):
    """One number of an action."""

    unhashed = ('tolerance',)

    representation: Literal['absolute', 'delta']
    """What the model predicts: the value itself, or its difference to the state at the chunk's observation."""
    limits: Limits = Limits()
    """What a command is kept within; a position needs lower, upper and velocity, a velocity needs velocity."""
    tolerance: float | None = Field(default=None, gt=0)
    """How far from its command the column may be measured, in its unit, for longer than half a second; beyond it
    the robot brakes and is in fault. Left out: the executor's max_tracking_error. Not held for a gripper."""

    @model_validator(mode='after')
    def _limits_suffice(self) -> Self:
        # Joints, which have limits of their own, may follow a pose; what its controller needs is a rule of outputs.
        missing = '' if pose_axis_of(self.name) else missing_limit(self.name, self.limits)
        if missing:
            raise ValueError(missing)
        return self


class JointColumn(_Column):
    """One number that the robot measures, and takes if an output names it, below the poses of its hands."""

    unhashed = ('limits', 'tolerance')

    source: Name
    """The state stream that it is read from."""
    limits: Limits = Limits()
    """What a command is kept within; a joint that an output names needs lower, upper and velocity."""
    tolerance: float | None = Field(default=None, gt=0)
    """As that of an action column."""


def missing_limit(column: str, limits: Limits) -> str:
    """What a commanded column's limits lack, as a sentence; empty where they suffice."""
    interface = interface_of(column)
    needed = {'position': ('lower', 'upper', 'velocity'), 'velocity': ('velocity',), 'effort': ('lower', 'upper')}
    for name in needed[interface]:
        if getattr(limits, name) is None:
            wanted = ', '.join(needed[interface])
            return f'limits ({column}) has no {name}; a {interface} command needs {wanted}'
    return ''


class OutputOptions(ContractPart):
    """How commands are sent; which kind of output takes which option is in `controller_kinds`."""

    window_s: float | None = Field(default=None, gt=0, le=MAX_WINDOW_S)
    """How far a trajectory reaches ahead, seconds: what may run on when the policy dies. Left out: 0.3."""
    interpolation: Literal['linear', 'cubic'] | None = None
    """Between the steps of a chunk. Left out: cubic."""
    allow_without_timeout: bool | None = None
    """Velocity or effort to a controller that never times out: the last command runs on for ever. Left out: refused."""
    interface: Literal['topic', 'gripper_command', 'parallel_gripper_command'] | None = None
    """How a gripper is commanded: a Float64MultiArray topic or one of the two actions. Left out: topic."""
    dead_band: float | None = Field(default=None, gt=0)
    """A gripper's smaller changes are not sent, in the column's unit. Left out: 0 on a topic, 0.002 for an action."""
    max_effort: float | None = Field(default=None, gt=0)
    """Effort in the goals of a gripper action, N. Left out: the controller's own."""

    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class Output(ContractPart):
    """Which columns go to which controller, and how."""

    always_written = ('frame_id',)
    unhashed = ('role', 'on_hold', 'controller')

    name: Name
    """What reports and errors call it."""
    kind: ControllerKindName
    """Which message the controller takes: JointTrajectory, Float64MultiArray, JointState, TwistStamped, Twist, or a
    gripper's."""
    topic: Topic
    """The controller's command topic, or the name of a gripper's action."""
    columns: tuple[ColumnName, ...] = Field(min_length=1)
    """Action columns, in the order in which the controller takes them."""
    controller: Topic | None = None
    """Name of the controller's node, which must listen before anything is commanded. Left out: the topic without its
    last part, as ros2_control names it."""
    frame_id: Frame = ''
    """Frame of a TwistStamped."""
    role: Literal['gripper'] | None = None
    """What the columns are: a gripper or hand grips things, so that it may stand far from its command, and goes on from
    its command when a new run begins. Left out: a gripper for the kind gripper, else nothing special."""
    on_hold: Literal['brake', 'keep_force'] = 'brake'
    """What a hold does: brake within limits (positions to rest at the command, velocities and efforts to zero), or keep
    the commanded effort, such as a hand's that must not let go."""
    commands: Literal['stream', 'goals'] | None = None
    """Whether commands are repeated while they count, or each is a goal that stands until the next. Left out: goals for
    a gripper that is sent actions or only what exceeds its dead_band, else a stream."""
    max_command_age_s: float | None = Field(default=None, gt=0, le=MAX_COMMAND_AGE_S)
    """How long a recorded command of a stream is what the robot is told, seconds after its last point. Left out: five
    periods of the stream."""
    options: OutputOptions = OutputOptions()
    """How commands are sent."""

    @property
    def has_goals(self) -> bool:
        """Whether each command stands until the next one."""
        if self.commands is not None:
            return self.commands == 'goals'
        sparse = self.options.interface not in (None, 'topic') or self.options.dead_band is not None
        return self.kind == 'gripper' and sparse

    @property
    def controller_name(self) -> str:
        """Name of the controller's node, relative to the robot's namespace."""
        return self.controller or self.topic.rpartition('/')[0] or self.topic

    @model_validator(mode='after')
    def _kind_takes_the_columns(self) -> Self:
        refused = CONTROLLER_KINDS[self.kind].refuses(self.columns, bool(self.options.allow_without_timeout))
        if refused:
            raise ValueError(f'columns ({self.name}) {refused}')
        return self

    @model_validator(mode='after')
    def _goals_do_not_age(self) -> Self:
        if self.has_goals and self.max_command_age_s is not None:
            raise ValueError(
                f'max_command_age_s ({self.name}) is {self.max_command_age_s}, but its commands are goals, which stand '
                'until the next; leave it out, or write commands: stream'
            )
        return self

    @model_validator(mode='after')
    def _force_is_an_effort(self) -> Self:
        interfaces = {interface_of(column) for column in self.columns}
        if self.on_hold == 'keep_force' and interfaces != {'effort'}:
            listed = ', '.join(sorted(interfaces))
            raise ValueError(
                f'on_hold ({self.name}) is keep_force for {listed}; only an effort is a force, leave it out'
            )
        return self

    @model_validator(mode='after')
    def _kind_takes_the_options(self) -> Self:
        known = CONTROLLER_KINDS[self.kind].options
        for name, value in self.options.given().items():
            if name not in known:
                raise ValueError(
                    f'options.{name} is {shown(value)}; {self.kind} knows {", ".join(known) or "no option"}'
                )
        return self
