"""ROS messages as arrays, and arrays as ROS messages: stamps, joints, twists, images, trajectories, chunks.

Duck-typed on purpose: the same functions take rclpy messages (arrays are `array.array`) and rosbags messages (arrays
are numpy), so that a bag and a live robot go through the same code. Reading never changes a message; a message
that cannot be used raises `Rejected` with a named reason. Writing fills a message object that the caller made.
"""

from __future__ import annotations

import array
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ki_common.errors import shown
from ki_robot.actions.chunk import MAX_STEPS, ActionChunk
from ki_robot.contract.names import INTERFACE_UNITS, interface_of, joint_of, twist_axis_of
from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.images import Image, decode_compressed, decode_depth, decode_image

__all__ = [
    'decode_compressed',
    'decode_depth',
    'decode_image',
    'fill_compressed',
    'fill_image',
    'fill_joint_columns',
    'fill_joint_state',
    'fill_multi_array',
    'fill_trajectory',
    'fill_twist',
    'from_chunk',
    'joint_positions',
    'joint_values',
    'odometry_values',
    'sent_ns',
    'set_time',
    'stamp_ns',
    'time_ns',
    'to_chunk',
    'twist_values',
]

NS = 1_000_000_000
MAX_NAMES = 4096
MAX_ID = 200  # characters of a policy's or an instruction's id
Vector = NDArray[np.float64]


def time_ns(time: Any) -> int:
    """A builtin_interfaces/Time or Duration as integer nanoseconds."""
    return int(time.sec) * NS + int(time.nanosec)


def stamp_ns(header: Any) -> int:
    """The stamp of a std_msgs/Header as integer nanoseconds; 0 means that the sender set none."""
    return time_ns(header.stamp)


def sent_ns(msg: Any) -> int:
    """The stamp of a message: of its header, or of foxglove's messages, which have none, their timestamp."""
    return stamp_ns(msg.header) if hasattr(msg, 'header') else time_ns(msg.timestamp)


def set_time(time: Any, value_ns: int) -> None:
    """Writes nanoseconds into a builtin_interfaces/Time or Duration."""
    time.sec, time.nanosec = int(value_ns) // NS, int(value_ns) % NS


def joint_values(msg: Any, columns: Sequence[str], prefix: str = '', extra_joints: str = 'allow') -> Vector:
    """The values of `columns` in a sensor_msgs/JointState, matched by name: its order does not matter.

    Args:
        msg: name, position, velocity and effort, each empty or as long as name.
        columns: Interfaces such as `joint1/position` or `joint1/velocity`.
        prefix: Put before every name of the message.
        extra_joints: `allow`, or `refuse` a message with joints that no column names.

    Returns:
        float64 (len(columns),), SI.

    Raises:
        Rejected: None of the joints is there (OTHER_JOINTS: the message is another driver's); a name is missing, twice
            or too many, lengths differ, or a value is not finite.
    """
    if len(msg.name) > MAX_NAMES:
        raise Rejected(Reason.TOO_LARGE, f'joint state has {len(msg.name)} names; at most {MAX_NAMES} are accepted.')
    row = {prefix + name: index for index, name in enumerate(msg.name)}
    if len(row) != len(msg.name):
        twice = next(name for index, name in enumerate(msg.name) if row[prefix + name] != index)
        raise Rejected(Reason.DUPLICATE_NAME, f'joint state names {shown(prefix + twice)} twice.')
    wanted, places = _joints_of(tuple(columns))
    missing = [joint for joint in wanted if joint not in row]
    if missing:
        other = bool(row) and len(missing) == len(wanted)
        hint = '' if other else ' Joints that another driver publishes need a state stream of their own.'
        raise Rejected(
            Reason.OTHER_JOINTS if other else Reason.MISSING_NAME,
            f'joint state lacks {missing[0]!r}; it has {shown(sorted(row))}.{hint}',
        )
    if extra_joints == 'refuse' and len(row) != len(set(wanted)):
        stranger = next(name for name in row if name not in wanted)
        raise Rejected(
            Reason.EXTRA_NAME,
            f'joint state has {shown(stranger)}, which no column names; add it, or set extra_joints: allow.',
        )
    return _picked(msg, columns, places, np.array([row[joint] for joint in wanted], dtype=np.intp))


def joint_positions(msg: Any, joints: Sequence[str], prefix: str = '') -> Vector:
    """The positions of `joints` in a sensor_msgs/JointState by name; see `joint_values`."""
    return joint_values(msg, [f'{joint}/position' for joint in joints], prefix)


def odometry_values(msg: Any, columns: Sequence[str]) -> Vector:
    """The twist of a nav_msgs/Odometry for columns such as `base/linear/x/velocity`: float64 (len(columns),)."""
    values = twist_values(msg.twist.twist, columns)
    _finite(values, columns, 'odometry')
    return values


def twist_values(twist: Any, columns: Sequence[str]) -> Vector:
    """Columns such as `base/linear/x/velocity` of a geometry_msgs/Twist, finite or not: float64 (len(columns),)."""
    values = np.empty(len(columns))
    for index, column in enumerate(columns):
        part, axis = _axis(column)
        values[index] = getattr(getattr(twist, part), axis)
    return values


def to_chunk(msg: Any) -> ActionChunk:
    """A ki_msgs/ActionChunk as `ActionChunk`; the values are copied out of the message.

    Raises:
        Rejected: data is not horizon x columns, a value is not finite, a name is twice, step_dt or stamp is not > 0, or
            an id is longer than `MAX_ID`.
    """
    if max(len(msg.policy_id), len(msg.instruction_id)) > MAX_ID:
        raise Rejected(Reason.TOO_LARGE, f'chunk {msg.chunk_id} has an id of more than {MAX_ID} characters.')
    horizon, names = int(msg.horizon), tuple(msg.interface_names)
    if len(names) > MAX_NAMES or horizon > MAX_STEPS:
        raise Rejected(Reason.TOO_LARGE, f'chunk {msg.chunk_id} has {horizon} steps of {len(names)} columns.')
    if not names or not horizon or len(msg.data) != horizon * len(names):
        raise Rejected(
            Reason.BAD_LAYOUT,
            f'chunk {msg.chunk_id} has {len(msg.data)} values; {horizon} steps of {len(names)} columns need '
            f'{horizon * len(names)}.',
        )
    data = np.array(msg.data, dtype=np.float64).reshape(horizon, len(names))
    if not np.isfinite(data).all():
        step, column = np.argwhere(~np.isfinite(data))[0]
        raise Rejected(
            Reason.NON_FINITE, f'chunk {msg.chunk_id} has {data[step, column]} in {names[column]} at step {step}.'
        )
    start_ns = stamp_ns(msg.header)
    if start_ns <= 0:
        raise Rejected(Reason.ZERO_STAMP, f'chunk {msg.chunk_id} has no stamp; header.stamp says when step 0 applies.')
    try:
        return ActionChunk(
            start_ns=start_ns,
            step_ns=time_ns(msg.step_dt),
            names=names,
            data_HN=data,
            observation_ns=time_ns(msg.observation_stamp),
            chunk_id=int(msg.chunk_id),
            frozen_prefix=int(msg.frozen_prefix),
            policy_id=str(msg.policy_id),
            instruction_id=str(msg.instruction_id),
        )
    except RobotError as error:
        raise Rejected(Reason.BAD_LAYOUT, str(error)) from error


def from_chunk(chunk: ActionChunk, msg: Any, frame_id: str = '') -> Any:
    """Fills a ki_msgs/ActionChunk from `chunk` and returns it."""
    set_time(msg.header.stamp, chunk.start_ns)
    msg.header.frame_id = frame_id
    set_time(msg.observation_stamp, chunk.observation_ns)
    set_time(msg.step_dt, chunk.step_ns)
    msg.chunk_id, msg.horizon, msg.frozen_prefix = chunk.chunk_id, chunk.horizon, chunk.frozen_prefix
    msg.interface_names = list(chunk.names)
    _put(msg, 'data', chunk.data_HN, 'd')
    msg.policy_id, msg.instruction_id = chunk.policy_id, chunk.instruction_id
    return msg


def fill_image(msg: Any, image: Image, stamp: int, frame_id: str = '', encoding: str = 'rgb8') -> Any:
    """Fills a sensor_msgs/Image with uint8 pixels as they are; `encoding` names their order.

    Args:
        msg: The message to fill.
        image: uint8 (height, width, channels) or (height, width).
        stamp: Nanoseconds.
        frame_id: Optical frame of the camera.
        encoding: rgb8, bgr8, rgba8, bgra8, mono8 or another with one byte a channel.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise RobotError(f'image is {image.dtype} {image.shape}; give uint8 (height, width[, channels]).')
    _head(msg, stamp, frame_id)
    msg.height, msg.width, msg.encoding, msg.is_bigendian = image.shape[0], image.shape[1], encoding, 0
    msg.step = image.shape[1] * (image.shape[2] if image.ndim == 3 else 1)
    _put(msg, 'data', image, 'B')
    return msg


def fill_compressed(
    msg: Any, image: Image, stamp: int, frame_id: str = '', kind: str = 'jpeg', quality: int = 90
) -> Any:
    """Fills a sensor_msgs/CompressedImage with an RGB uint8 array as JPEG (`quality` 1..100) or PNG."""
    if kind not in ('jpeg', 'png'):
        raise RobotError(f'image kind is {shown(kind)}; write jpeg or png.')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise RobotError(f'image is {image.dtype} {image.shape}; give uint8 RGB (height, width, 3).')
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == 'jpeg' else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    done, encoded = cv2.imencode(f'.{kind}', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    if not done:
        raise RobotError(f'image of shape {image.shape} cannot be written as {kind}.')
    _head(msg, stamp, frame_id)
    msg.format = kind
    _put(msg, 'data', encoded, 'B')
    return msg


def fill_joint_state(
    msg: Any,
    joints: Sequence[str],
    positions: ArrayLike,
    stamp: int,
    velocities: ArrayLike = (),
    efforts: ArrayLike = (),
) -> Any:
    """Fills a sensor_msgs/JointState; velocities and efforts are empty or as long as `joints`."""
    _head(msg, stamp, '')
    msg.name = list(joints)
    for name, values in (('position', positions), ('velocity', velocities), ('effort', efforts)):
        values = np.asarray(values, dtype=np.float64)
        if values.shape not in ((len(joints),), (0,)):
            raise RobotError(f'{name} has shape {values.shape}; {len(joints)} joints are named.')
        _put(msg, name, values, 'd')
    return msg


def fill_joint_columns(
    msg: Any, values: Mapping[str, float], columns: Sequence[str], stamp: int, prefix: str = ''
) -> Any:
    """Fills a sensor_msgs/JointState such that `joint_values` reads `columns` from it; what `values` lacks is 0.

    Args:
        msg: The message to fill.
        values: SI, by column.
        columns: Interfaces such as `joint1/position` or `joint1/effort`; several may be of one joint.
        stamp: Nanoseconds.
        prefix: Taken off the names, which `joint_values` puts before them.
    """
    joints = list(dict.fromkeys(joint_of(column) for column in columns))
    told = {interface_of(column) for column in columns}
    positions, velocities, efforts = (
        [values.get(f'{joint}/{interface}', 0.0) for joint in joints] if interface in told else []
        for interface in ('position', 'velocity', 'effort')
    )
    names = [joint.removeprefix(prefix) for joint in joints]
    return fill_joint_state(msg, names, positions, stamp, velocities, efforts)


def fill_trajectory(
    msg: Any,
    new_point: Callable[[], Any],
    joints: Sequence[str],
    times_ns: Sequence[int],
    positions_TN: ArrayLike,
    velocities_TN: ArrayLike | None = None,
    stamp: int = 0,
    frame_id: str = '',
) -> Any:
    """Fills a trajectory_msgs/JointTrajectory as joint_trajectory_controller takes it.

    Args:
        msg: The message to fill.
        new_point: Makes an empty JointTrajectoryPoint, usually the class itself.
        joints: Joint names in column order.
        times_ns: time_from_start of each point, strictly rising.
        positions_TN: (T, N), rad or m.
        velocities_TN: (T, N); without it the controller interpolates linearly, with steps in speed.
        stamp: Nanoseconds; 0 starts on arrival.
        frame_id: Usually empty.
    """
    positions = np.asarray(positions_TN, dtype=np.float64)
    velocities = None if velocities_TN is None else np.asarray(velocities_TN, dtype=np.float64)
    shape = (len(times_ns), len(joints))
    if positions.shape != shape or (velocities is not None and velocities.shape != shape):
        raise RobotError(
            f'trajectory has positions {positions.shape}; {shape[0]} times and {shape[1]} joints are given.'
        )
    if any(late <= early for early, late in itertools.pairwise(times_ns)):
        raise RobotError(f'trajectory times {shown(list(times_ns))} do not rise strictly.')
    _head(msg, stamp, frame_id)
    msg.joint_names = list(joints)
    points = []
    for index, time in enumerate(times_ns):
        point = new_point()
        _put(point, 'positions', positions[index], 'd')
        if velocities is not None:
            _put(point, 'velocities', velocities[index], 'd')
        set_time(point.time_from_start, int(time))
        points.append(point)
    msg.points = points
    return msg


def fill_multi_array(msg: Any, values: ArrayLike) -> Any:
    """Fills a std_msgs/Float64MultiArray with a flat vector, as forward_command_controller takes it."""
    _put(msg, 'data', np.asarray(values, dtype=np.float64), 'd')
    return msg


def fill_twist(twist: Any, columns: Sequence[str], values: ArrayLike) -> Any:
    """Writes columns such as `base/linear/x/velocity` into a geometry_msgs/Twist; its other axes stay as they are."""
    for column, value in zip(columns, np.asarray(values, dtype=np.float64).tolist(), strict=True):
        part, axis = _axis(column)
        setattr(getattr(twist, part), axis, value)
    return twist


@lru_cache(maxsize=256)
def _joints_of(columns: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, NDArray[np.intp]]]:
    """The joint of each column, and which columns are of which interface.

    Raises:
        RobotError: A column is no joint interface.
    """
    places: dict[str, list[int]] = {}
    for index, column in enumerate(columns):
        interface = interface_of(column)
        if interface not in INTERFACE_UNITS:
            raise RobotError(f'column {column!r} is no joint interface; end it in {", ".join(INTERFACE_UNITS)}.')
        places.setdefault(interface, []).append(index)
    joints = tuple(joint_of(column) for column in columns)
    return joints, {interface: np.array(each, dtype=np.intp) for interface, each in places.items()}


def _picked(msg: Any, columns: Sequence[str], places: dict[str, NDArray[np.intp]], rows: NDArray[np.intp]) -> Vector:
    """The values of `columns`, each from its row of the message; `places` says which are of which interface."""
    values = np.empty(len(columns))
    for interface, chosen in places.items():
        source = getattr(msg, interface)
        if len(source) != len(msg.name):
            raise Rejected(
                Reason.BAD_LAYOUT,
                f'joint state has {len(source)} values of {interface} for {len(msg.name)} names.',
            )
        values[chosen] = np.asarray(source, dtype=np.float64)[rows[chosen]]
    _finite(values, columns, 'joint state')
    return values


def _finite(values: Vector, columns: Sequence[str], what: str) -> None:
    if not np.isfinite(values).all():
        index = int(np.argmin(np.isfinite(values)))
        raise Rejected(Reason.NON_FINITE, f'{what} has {values[index]} in {columns[index]}.')


def _axis(column: str) -> tuple[str, str]:
    axis = twist_axis_of(column)
    if axis is None:
        raise RobotError(f'column {column!r} is not part of a twist; its name ends like base/linear/x/velocity.')
    part, letter, _ = axis.split('/')
    return part, letter


def _head(msg: Any, stamp: int, frame_id: str) -> None:
    set_time(msg.header.stamp, stamp)
    msg.header.frame_id = frame_id


def _put(msg: Any, field: str, values: NDArray[Any], typecode: str) -> None:
    """Assigns an array field: numpy where the message holds numpy, else `array.array`.

    rclpy checks anything but an array.array element by element: 200 ms for one 720p image.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    if isinstance(getattr(msg, field), np.ndarray):
        setattr(msg, field, flat.copy())
        return
    buffer = array.array(typecode)
    buffer.frombytes(flat.view(np.uint8).data)
    setattr(msg, field, buffer)
