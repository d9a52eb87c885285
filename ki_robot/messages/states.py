"""The messages of a state stream as the values of its columns, whatever their type: live and from a bag alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import StateStream
from ki_robot.messages.arrays import Vector, joint_values, odometry_values, stamp_ns
from ki_robot.messages.poses import FrameTree, pose_values

# Type of a state stream -> the message that its topic carries.
STATE_TYPES = {
    'joint_state': 'sensor_msgs/msg/JointState',
    'odometry': 'nav_msgs/msg/Odometry',
    'pose': 'geometry_msgs/msg/PoseStamped',
    'tf': 'tf2_msgs/msg/TFMessage',
}


def measured_columns(contract: Contract, stream: StateStream) -> tuple[str, ...]:
    """The columns that `stream` measures, in order: the robot's own, below the hands."""
    return tuple(column.name for column in contract.robot.state if column.source == stream.name)


class StateReader:
    """Reads one stream, message by message; of tf it keeps what a pose is put together from.

    Args:
        stream: Of a contract.
        columns: What it measures, in the order of the values.
    """

    def __init__(self, stream: StateStream, columns: Sequence[str]) -> None:
        self._stream, self._columns = stream, tuple(columns)
        self._tree = FrameTree(stream.frame, stream.child) if stream.type == 'tf' else None

    def read(self, message: Any) -> tuple[int, Vector] | None:
        """Stamp and values of a message; None where it tells nothing of this stream, as most of tf.

        Raises:
            Rejected: The message cannot be used.
        """
        stream, columns = self._stream, self._columns
        if self._tree is not None:
            return self._tree.values(columns) if self._tree.take(message, static=False) else None
        if stream.type == 'odometry':
            values = odometry_values(message, columns)
        elif stream.type == 'pose':
            values = pose_values(message, columns, stream.frame)
        else:
            values = joint_values(message, columns, stream.prefix, stream.extra_joints)
        return stamp_ns(message.header), values

    def read_static(self, message: Any) -> None:
        """Takes a message of tf_static, which a pose stands on and which dates none.

        Raises:
            Rejected: The message cannot be used.
        """
        if self._tree is not None:
            self._tree.take(message, static=True)

    def clear(self) -> None:
        """Forgets what moves: the clock jumped."""
        if self._tree is not None:
            self._tree.clear()


def static_topic(stream: StateStream) -> str:
    """The topic of the transforms that never change, beside that of a tf stream; empty for the other types."""
    return f'{stream.topic}_static' if stream.type == 'tf' else ''
