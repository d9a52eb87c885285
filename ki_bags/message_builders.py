"""Messages of a contract's topics, made without ROS: states, images, commands, markers, instructions.

Every function returns a message of `ki_bags.types` that carries `time_ns` as its stamp; `put` writes one into a
recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike

from ki_bags.errors import BagError
from ki_bags.types import full_name, known, serialise, typestore
from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract
from ki_robot.contract.controller_kinds import ARRAY, CONTROLLER_KINDS, POSE_STAMPED, TRAJECTORY, TWIST
from ki_robot.contract.names import joint_of
from ki_robot.contract.parts import Output, StateStream
from ki_robot.contract.poses import POSE_STREAMS
from ki_robot.messages.arrays import (
    fill_compressed,
    fill_image,
    fill_joint_columns,
    fill_joint_state,
    fill_multi_array,
    fill_trajectory,
    fill_twist,
    set_time,
)
from ki_robot.messages.images import Image
from ki_robot.messages.poses import fill_pose
from ki_robot.messages.states import STATE_TYPES, measured_columns

JOINT_STATE, ODOMETRY = 'sensor_msgs/msg/JointState', 'nav_msgs/msg/Odometry'
COMPRESSED, RAW = 'sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/Image'
MARKER, INSTRUCTION = 'ki_msgs/msg/EpisodeMarker', 'ki_msgs/msg/Instruction'
CONTROL_SOURCE = 'ki_msgs/msg/ControlSource'
# Output kind -> the message that a command to it is written as.
COMMAND_TYPES = {name: kind.messages[0] for name, kind in CONTROLLER_KINDS.items()}
POINT = 'trajectory_msgs/msg/JointTrajectoryPoint'
QUATERNION = 'geometry_msgs/msg/Quaternion'  # the one message here whose definition has a default that is not zero


def empty(type_name: str) -> Any:
    """A message of a known type with zero and empty fields, as ROS makes it.

    Raises:
        BagError: The type is in no definition at hand.
    """
    return known(full_name(type_name))(**{name: make() for name, make in _fields(full_name(type_name))})


@lru_cache(maxsize=256)
def _fields(type_name: str) -> tuple[tuple[str, Callable[[], Any]], ...]:
    made = {name: _maker(node) for name, node in typestore().get_msgdef(type_name).fields}
    if type_name == QUATERNION:
        made['w'] = lambda: 1.0
    return tuple(made.items())


def _maker(node: Any) -> Callable[[], Any]:
    """What makes the empty value of a field."""
    from rosbags.interfaces import Nodetype

    kind, detail = node
    if kind == Nodetype.NAME:
        return lambda: empty(detail)
    if kind == Nodetype.BASE:
        value = {'string': '', 'bool': False}.get(detail[0], 0.0 if 'float' in detail[0] else 0)
        return lambda: value
    (inner, name), count = detail
    count = count if kind == Nodetype.ARRAY else 0
    if inner == Nodetype.NAME:
        return lambda: [empty(name) for _ in range(count)]
    if name[0] == 'string':
        return lambda: [''] * count
    dtype = {'octet': 'uint8', 'byte': 'uint8'}.get(name[0], name[0])
    return lambda: np.zeros(count, dtype=dtype)


def put(bag: BagWriter, topic: str, time_ns: int, value: Any) -> None:
    """Writes a message under a topic of a contract, which is made absolute."""
    name = '/' + topic.lstrip('/')
    bag.add_topic(name, value.__msgtype__)
    bag.write(name, time_ns, serialise(value, value.__msgtype__))


def _stamped(type_name: str, time_ns: int, frame_id: str = '') -> Any:
    value = empty(type_name)
    set_time(value.header.stamp, time_ns)
    value.header.frame_id = frame_id
    return value


def joint_state(
    time_ns: int, joints: Sequence[str], positions: ArrayLike, velocities: ArrayLike = (), efforts: ArrayLike = ()
) -> Any:
    """A JointState in the order of `joints`."""
    return fill_joint_state(empty(JOINT_STATE), joints, positions, time_ns, velocities, efforts)


def odometry(
    time_ns: int, columns: Sequence[str], values: ArrayLike, pose: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Any:
    """An Odometry with a twist by column (`base/linear/x/velocity`) and a pose (x [m], y [m], yaw [rad])."""
    value = _stamped(ODOMETRY, time_ns, 'odom')
    value.child_frame_id = 'base_link'
    place, turn = value.pose.pose.position, value.pose.pose.orientation
    place.x, place.y = float(pose[0]), float(pose[1])
    turn.z, turn.w = float(np.sin(pose[2] / 2)), float(np.cos(pose[2] / 2))
    fill_twist(value.twist.twist, columns, values)
    return value


def state(contract: Contract, stream: StateStream, time_ns: int, values: Mapping[str, float]) -> Any:
    """What one state stream of a contract shows, from values by column of the robot."""
    columns = measured_columns(contract, stream)
    if stream.type in POSE_STREAMS:
        return pose(time_ns, columns, [values[column] for column in columns], stream)
    if stream.type == 'odometry':
        return odometry(time_ns, columns, [values[column] for column in columns])
    return fill_joint_columns(empty(JOINT_STATE), values, columns, time_ns, stream.prefix)


def pose(time_ns: int, columns: Sequence[str], values: ArrayLike, stream: StateStream) -> Any:
    """What a pose or tf stream shows of a hand, from its columns as a robot says them: a PoseStamped or a TFMessage."""
    posed = fill_pose(empty(POSE_STAMPED), columns, values, time_ns, stream.frame)
    if stream.type == 'pose':
        return posed
    value, moved = empty(STATE_TYPES['tf']), empty('geometry_msgs/msg/TransformStamped')
    moved.header, moved.child_frame_id = posed.header, stream.child
    for axis in 'xyz':
        setattr(moved.transform.translation, axis, getattr(posed.pose.position, axis))
    moved.transform.rotation = posed.pose.orientation
    value.transforms = [moved]
    return value


def picture(time_ns: int, pixels: Image, frame_id: str = '', quality: int = 90) -> Any:
    """A CompressedImage: uint8 RGB (height, width, 3) as JPEG.

    Raises:
        RobotError, BagError: It is no such picture, or cannot be written as JPEG.
    """
    try:
        return fill_compressed(empty(COMPRESSED), pixels, time_ns, frame_id, quality=quality)
    except cv2.error as error:
        raise BagError(f'A picture of shape {pixels.shape} cannot be written as JPEG: {error}.') from error


def compressed(time_ns: int, data: Any, frame_id: str = '') -> Any:
    """A CompressedImage of JPEG bytes or uint8 (n,)."""
    value = _stamped(COMPRESSED, time_ns, frame_id)
    value.format, value.data = 'jpeg', np.frombuffer(data, np.uint8)
    return value


def raw(time_ns: int, pixels: Image, frame_id: str = '') -> Any:
    """An Image: uint8 RGB (height, width, 3)."""
    return fill_image(empty(RAW), pixels, time_ns, frame_id)


def trajectory(
    time_ns: int, joints: Sequence[str], times_ns: Sequence[int], positions: ArrayLike, frame_id: str = ''
) -> Any:
    """A JointTrajectory: positions (points, joints) at times after its start; stamp 0 starts on arrival."""
    value = empty(TRAJECTORY)
    return fill_trajectory(value, lambda: empty(POINT), joints, times_ns, positions, stamp=time_ns, frame_id=frame_id)


def command(output: Output, time_ns: int, values: ArrayLike, reach_ns: int = 0) -> Any:
    """What one controller is told, from values (n,) in the order of the output's columns.

    Args:
        output: Whose controller.
        time_ns: The stamp, where the message has one.
        values: SI.
        reach_ns: When a trajectory's only point is to be reached, after its start.
    """
    kind = COMMAND_TYPES[output.kind]
    values = np.asarray(values, dtype=np.float64)
    if kind == TRAJECTORY:
        return trajectory(time_ns, [joint_of(column) for column in output.columns], [reach_ns], values[None])
    if kind == ARRAY:
        return fill_multi_array(empty(kind), values)
    if kind == JOINT_STATE:
        return joint_state(time_ns, [joint_of(column) for column in output.columns], values)
    if kind == TWIST:
        return fill_twist(empty(kind), output.columns, values)
    if kind == POSE_STAMPED:
        return fill_pose(empty(kind), output.columns, values, time_ns, output.frame_id)
    value = _stamped(kind, time_ns, output.frame_id)
    fill_twist(value.twist, output.columns, values)
    return value


def marker(time_ns: int, phase: int, index: int, task: str, outcome: int = 0, policy_id: str = '') -> Any:
    """An EpisodeMarker; `phase` 0 begins, 1 ends."""
    value = _stamped(MARKER, time_ns)
    value.phase, value.episode_index, value.outcome = phase, index, outcome
    value.task, value.policy_id = task, policy_id
    return value


def control_source(time_ns: int, source: int, driver: str = '') -> Any:
    """A ControlSource: who drives from then on, by the numbers of the message."""
    value = _stamped(CONTROL_SOURCE, time_ns)
    value.source, value.driver = source, driver
    return value


def instruction(time_ns: int, text: str, name: str = '') -> Any:
    """An Instruction, also for a subtask."""
    value = _stamped(INSTRUCTION, time_ns)
    value.id, value.text = name, text
    return value
