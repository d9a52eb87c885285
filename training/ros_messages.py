"""Messages of a contract's topics, written into a recording without ROS: images, states, commands, markers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ki_bags.types import message, serialise
from ki_bags.writer import BagWriter
from ki_robot.contract import Contract, Output, StateStream
from ki_robot.messages import fill_compressed, fill_joint_state, fill_multi_array, fill_trajectory, fill_twist, set_time
from ki_robot.names import interface_of, joint_of
from training.errors import TrainingError

TYPES = {
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory',
    'forward_command': 'std_msgs/msg/Float64MultiArray',
    'twist_stamped': 'geometry_msgs/msg/TwistStamped',
    'twist': 'geometry_msgs/msg/Twist',
    'gripper': 'std_msgs/msg/Float64MultiArray',
}


def _put(bag: BagWriter, topic: str, kind: str, time_ns: int, value: Any) -> None:
    name = '/' + topic.lstrip('/')
    bag.add_topic(name, kind)
    bag.write(name, time_ns, serialise(value, kind))


def _header(time_ns: int, frame_id: str = '') -> Any:
    stamp = message('builtin_interfaces/msg/Time', sec=0, nanosec=0)
    set_time(stamp, time_ns)
    return message('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id)


def put_marker(bag: BagWriter, time_ns: int, phase: int, index: int, task: str, outcome: int = 0) -> None:
    """Writes an EpisodeMarker; `phase` 0 begins, 1 ends."""
    value = message(
        'ki_msgs/msg/EpisodeMarker',
        header=_header(time_ns),
        phase=phase,
        episode_index=index,
        task=task,
        outcome=outcome,
        policy_id='',
    )
    _put(bag, 'episode', 'ki_msgs/msg/EpisodeMarker', time_ns, value)


def put_image(bag: BagWriter, topic: str, time_ns: int, image: NDArray[np.uint8], quality: int) -> None:
    """Writes uint8 (h, w, 3) RGB as a CompressedImage (JPEG)."""
    kind = 'sensor_msgs/msg/CompressedImage'
    value = message(kind, header=_header(time_ns), format='', data=np.zeros(0, dtype=np.uint8))
    try:
        fill_compressed(value, image, time_ns, quality=quality)
    except cv2.error as error:
        raise TrainingError(f'{topic}: a picture cannot be written as JPEG: {error}.') from error
    _put(bag, topic, kind, time_ns, value)


def put_state(bag: BagWriter, contract: Contract, stream: StateStream, time_ns: int, values: dict[str, float]) -> None:
    """Writes what one state stream shows, from values by column."""
    columns = [column.name for column in contract.state if column.source == stream.name]
    if stream.type == 'odometry':
        _put(bag, stream.topic, 'nav_msgs/msg/Odometry', time_ns, _odometry(time_ns, columns, values))
        return
    kind = 'sensor_msgs/msg/JointState'
    empty = np.zeros(0)
    value = message(kind, header=_header(time_ns), name=[], position=empty, velocity=empty, effort=empty)
    joints = list(dict.fromkeys(joint_of(column) for column in columns))
    every = {
        interface: [values.get(f'{joint}/{interface}', 0.0) for joint in joints]
        if any(interface_of(column) == interface for column in columns)
        else []
        for interface in ('position', 'velocity', 'effort')
    }
    names = [joint.removeprefix(stream.prefix) for joint in joints]
    fill_joint_state(value, names, every['position'], time_ns, every['velocity'], every['effort'])
    _put(bag, stream.topic, kind, time_ns, value)


def _vector() -> Any:
    return message('geometry_msgs/msg/Vector3', x=0.0, y=0.0, z=0.0)


def _twist() -> Any:
    return message('geometry_msgs/msg/Twist', linear=_vector(), angular=_vector())


def _odometry(time_ns: int, columns: Sequence[str], values: dict[str, float]) -> Any:
    twist = fill_twist(_twist(), columns, [values[column] for column in columns])
    pose = message(
        'geometry_msgs/msg/Pose',
        position=message('geometry_msgs/msg/Point', x=0.0, y=0.0, z=0.0),
        orientation=message('geometry_msgs/msg/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0),
    )
    unknown = np.zeros(36)
    return message(
        'nav_msgs/msg/Odometry',
        header=_header(time_ns, 'odom'),
        child_frame_id='base_link',
        pose=message('geometry_msgs/msg/PoseWithCovariance', pose=pose, covariance=unknown),
        twist=message('geometry_msgs/msg/TwistWithCovariance', twist=twist, covariance=unknown),
    )


def put_command(bag: BagWriter, output: Output, time_ns: int, values: NDArray[np.float64]) -> None:
    """Writes what one controller is told, from values (n,) in the order of the output's columns."""
    kind = TYPES[output.kind]
    if output.kind == 'joint_trajectory':
        empty = message(kind, header=_header(time_ns), joint_names=[], points=[])
        joints = [joint_of(column) for column in output.columns]
        value = fill_trajectory(empty, _point, joints, [0], values[None], stamp=time_ns)
    elif kind == 'std_msgs/msg/Float64MultiArray':
        layout = message('std_msgs/msg/MultiArrayLayout', dim=[], data_offset=0)
        value = fill_multi_array(message(kind, layout=layout, data=values), values)
    else:
        twist = fill_twist(_twist(), output.columns, values)
        value = (
            twist if kind.endswith('Twist') else message(kind, header=_header(time_ns, output.frame_id), twist=twist)
        )
    _put(bag, output.topic, kind, time_ns, value)


def _point() -> Any:
    empty = np.zeros(0)
    wait = message('builtin_interfaces/msg/Duration', sec=0, nanosec=0)
    return message(
        'trajectory_msgs/msg/JointTrajectoryPoint',
        positions=empty,
        velocities=empty,
        accelerations=empty,
        effort=empty,
        time_from_start=wait,
    )
