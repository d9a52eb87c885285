"""The words of a contract: units, kinds, and what a topic or an interface may be called."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Literal

from ki_common.configuration.types import Matches

Unit = Literal['rad', 'm', 'rad/s', 'm/s', 'N', 'N*m', '1']

# The units that the last part of a column's name allows; '1' is a normalised opening, such as a hand's.
INTERFACE_UNITS = {
    'position': ('rad', 'm', '1'),
    'velocity': ('rad/s', 'm/s', '1'),
    'effort': ('N', 'N*m'),
}

# How a rotation is said in a pose's columns, and the last names but one of those columns, in order.
RotationName = Literal['yaw', 'rpy', 'axis_angle', 'quaternion', 'rot6d']
PLACE_AXES = ('x', 'y', 'z')
ROTATION_AXES: dict[RotationName, tuple[str, ...]] = {
    'yaw': ('yaw',),  # of a tool that points down, about the base frame's z
    'rpy': ('roll', 'pitch', 'yaw'),  # Rz(yaw) Ry(pitch) Rx(roll)
    'axis_angle': ('rx', 'ry', 'rz'),
    'quaternion': ('qx', 'qy', 'qz', 'qw'),
    'rot6d': ('r11', 'r21', 'r31', 'r12', 'r22', 'r32'),  # the first two columns of the matrix
}
POSE_AXES = (*PLACE_AXES, *dict.fromkeys(axis for axes in ROTATION_AXES.values() for axis in axes))

TWIST_AXES = tuple(f'{part}/{axis}/velocity' for part in ('linear', 'angular') for axis in 'xyz')

_PART = r'[A-Za-z_][A-Za-z0-9_.\-]*'
_COLUMN = rf'{_PART}(/{_PART})+'
_TOPIC = r'(~/|/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*'

# A camera, a stream, an output, a robot.
Name = Annotated[str, Matches(r'[a-z][a-z0-9_]*', 'write a lower-case name such as arm_single', longest=64)]
# A ros2_control interface: a joint (or base and axis), a slash, the interface.
ColumnName = Annotated[str, Matches(_COLUMN, 'write a ros2_control interface such as joint1/position')]
Topic = Annotated[str, Matches(_TOPIC, 'write a ROS topic name, relative unless it is shared by all robots')]
Frame = Annotated[str, Matches(rf'({_TOPIC})?', 'write a frame such as base_link')]
# What is put before a joint's name.
JointPrefix = Annotated[str, Matches(rf'({_PART}/)*({_PART})?', 'write a joint prefix such as left_', longest=250)]


def is_column(text: str) -> bool:
    """Whether `text` names a ros2_control interface: a joint (or base and axis), a slash, the interface."""
    return len(text) <= 256 and re.fullmatch(_COLUMN, text) is not None


def joint_of(column: str) -> str:
    """`left_joint1` of `left_joint1/position`."""
    return column.rpartition('/')[0]


def interface_of(column: str) -> str:
    """`position` of `left_joint1/position`."""
    return column.rpartition('/')[2]


@lru_cache(maxsize=1024)  # every message of a base asks
def twist_axis_of(column: str) -> str | None:
    """`linear/x/velocity` of `base/linear/x/velocity`; None when the column is not part of a twist."""
    return next((axis for axis in TWIST_AXES if column.endswith(f'/{axis}')), None)


def pose_axis_of(column: str) -> str | None:
    """`yaw` of `left_hand/yaw/position`; None when the column is not part of a pose."""
    _, _, last = column.rpartition('/')
    axis = joint_of(column).rpartition('/')[2]
    return axis if last == 'position' and '/' in joint_of(column) and axis in POSE_AXES else None


def hand_of(column: str) -> str:
    """`left_hand` of `left_hand/yaw/position`."""
    return joint_of(column).rpartition('/')[0]


def duplicates(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, in order of their second occurrence."""
    seen: set[str] = set()
    found = []
    for name in names:
        if name in seen:
            found.append(name)
        seen.add(name)
    return found
