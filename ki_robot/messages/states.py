"""One message of a state stream as the values of its columns, whatever its type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import StateStream
from ki_robot.messages.arrays import Vector, joint_values, odometry_values
from ki_robot.messages.poses import pose_values

# Type of a state stream -> the message that its topic carries.
STATE_TYPES = {
    'joint_state': 'sensor_msgs/msg/JointState',
    'odometry': 'nav_msgs/msg/Odometry',
    'pose': 'geometry_msgs/msg/PoseStamped',
}


def measured_columns(contract: Contract, stream: StateStream) -> tuple[str, ...]:
    """The columns that `stream` measures, in order: the robot's own, below the hands."""
    return tuple(column.name for column in contract.robot.state if column.source == stream.name)


def state_values(stream: StateStream, columns: Sequence[str], message: Any) -> Vector:
    """The values of a stream's columns in one of its messages.

    Raises:
        Rejected: The message cannot be used.
    """
    if stream.type == 'odometry':
        return odometry_values(message, columns)
    if stream.type == 'pose':
        return pose_values(message, columns, stream.frame)
    return joint_values(message, columns, stream.prefix, stream.extra_joints)
