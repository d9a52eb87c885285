"""Poses in ROS messages: geometry_msgs/PoseStamped, and tf between two frames; as x, y, z and rot6d.

Duck-typed like `arrays`: rclpy's messages and those of a bag are the same here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ki_common.errors import shown
from ki_robot.contract.names import pose_axis_of
from ki_robot.contract.robot_columns import ROBOT_AXES
from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.arrays import Vector, set_time, stamp_ns
from ki_robot.space.rotations import from_matrix, to_matrix

NORM_SLACK = 0.05  # how far from 1 the norm of a measured quaternion may be: more is no rounding
MAX_FRAMES = 4096
Matrix = NDArray[np.float64]


def pose_values(message: Any, columns: Sequence[str], frame: str) -> Vector:
    """The columns of a hand (`ROBOT_AXES`) in a PoseStamped.

    Raises:
        Rejected: It is in another frame, not finite, or its quaternion is none.
    """
    said = str(message.header.frame_id).lstrip('/')
    if said != frame.lstrip('/'):
        raise Rejected(Reason.BAD_LAYOUT, f'a pose is in frame {shown(said)}; the contract has {frame!r}.')
    place, turn = _parts(message.pose.position, message.pose.orientation, 'a pose')
    return _columns(place, turn, columns)


def fill_pose(message: Any, columns: Sequence[str], values: ArrayLike, stamp: int, frame: str) -> Any:
    """Fills a PoseStamped from the columns of a hand; rot6d need not be orthonormal."""
    numbers = dict(zip([pose_axis_of(name) for name in columns], np.asarray(values, np.float64), strict=True))
    quaternion = from_matrix('quaternion', to_matrix('rot6d', np.array([numbers[axis] for axis in ROBOT_AXES[3:]])))
    place, turn = message.pose.position, message.pose.orientation
    place.x, place.y, place.z = (float(numbers[axis]) for axis in ROBOT_AXES[:3])
    turn.x, turn.y, turn.z, turn.w = quaternion.tolist()
    set_time(message.header.stamp, stamp)
    message.header.frame_id = frame
    return message


class FrameTree:
    """The newest transforms of tf and tf_static: the pose of one frame in another.

    Args:
        frame: In which the pose is said.
        child: Whose pose it is.
    """

    def __init__(self, frame: str, child: str) -> None:
        self._frame, self._child = frame.lstrip('/'), child.lstrip('/')
        self._edges: dict[str, tuple[str, int, Vector, Matrix]] = {}  # by child: parent, stamp, place, rotation

    def take(self, message: Any, static: bool) -> bool:
        """Takes a TFMessage; whether it moved something between the two frames.

        Raises:
            Rejected: A transform of the way is not finite, or its quaternion is none.
        """
        news = False
        for each in message.transforms:
            name = str(each.child_frame_id).lstrip('/')
            if name not in self._edges and len(self._edges) >= MAX_FRAMES:
                continue
            place, turn = _parts(each.transform.translation, each.transform.rotation, f'the transform of {name}')
            stamp = 0 if static else stamp_ns(each.header)
            self._edges[name] = (str(each.header.frame_id).lstrip('/'), stamp, place, turn)
            news = news or name in self._way(self._child) or name in self._way(self._frame)
        return news

    def values(self, columns: Sequence[str]) -> tuple[int, Vector] | None:
        """The oldest stamp on the way and the columns of the hand; None while a transform is missing."""
        up, over = self._way(self._child), self._way(self._frame)
        shared = next((name for name in [*up, self._top(self._child)] if name in [*over, self._top(self._frame)]), None)
        if shared is None:
            return None
        one, other = self._to(self._child, shared), self._to(self._frame, shared)
        turn = other[2].T @ one[2]
        place = other[2].T @ (one[1] - other[1])
        stamps = [stamp for stamp in (one[0], other[0]) if stamp]
        return min(stamps, default=0), _columns(place, turn, columns)

    def clear(self) -> None:
        """Forgets what moves; what is static stays."""
        self._edges = {name: edge for name, edge in self._edges.items() if edge[1] == 0}

    def _way(self, frame: str) -> list[str]:
        """A frame and those above it that hang on another; ends where it would turn in a circle."""
        found: list[str] = []
        while frame in self._edges and frame not in found:
            found.append(frame)
            frame = self._edges[frame][0]
        return found

    def _top(self, frame: str) -> str:
        way = self._way(frame)
        return self._edges[way[-1]][0] if way else frame

    def _to(self, frame: str, above: str) -> tuple[int, Vector, Matrix]:
        """The pose of a frame in one above it, and the oldest stamp on the way."""
        stamp, place, turn = 0, np.zeros(3), np.eye(3)
        while frame != above:
            parent, at, offset, rotation = self._edges[frame]
            place, turn = offset + rotation @ place, rotation @ turn
            stamp = min(stamp or at, at) if at else stamp
            frame = parent
        return stamp, place, turn


def _parts(place: Any, turn: Any, what: str) -> tuple[Vector, Matrix]:
    numbers = np.array([place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w], np.float64)
    if not np.isfinite(numbers).all():
        raise Rejected(Reason.NON_FINITE, f'{what} is not finite.')
    norm = float(np.linalg.norm(numbers[3:]))
    if abs(norm - 1.0) > NORM_SLACK:
        raise Rejected(Reason.BAD_LAYOUT, f'{what} has a quaternion of norm {norm:.3g}; it is no rotation.')
    return numbers[:3], to_matrix('quaternion', numbers[3:])


def _columns(place: Vector, turn: Matrix, columns: Sequence[str]) -> Vector:
    numbers = dict(zip(ROBOT_AXES, [*place.tolist(), *from_matrix('rot6d', turn).tolist()], strict=True))
    axes = [pose_axis_of(name) for name in columns]
    strange = next((name for name, axis in zip(columns, axes, strict=True) if axis not in numbers), None)
    if strange is not None:
        raise RobotError(f'column {strange!r} is no part of a pose as a robot says it ({", ".join(ROBOT_AXES)}).')
    return np.array([numbers[str(axis)] for axis in axes])
