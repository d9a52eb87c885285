"""The words of a contract: units, kinds, and what a topic or an interface may be called."""

from __future__ import annotations

import re

UNITS = ('rad', 'm', 'rad/s', 'm/s', 'N', 'N*m', '1')
CAMERA_KINDS = ('scene', 'wrist')
STREAM_TYPES = ('joint_state', 'odometry')
STAMPS = ('header', 'receive')

# The units that the last part of a column's name allows; '1' is a normalised opening, such as a hand's.
INTERFACE_UNITS = {
    'position': ('rad', 'm', '1'),
    'velocity': ('rad/s', 'm/s', '1'),
    'effort': ('N', 'N*m'),
}

# Output kind -> its options with the type of each.
OUTPUT_KINDS: dict[str, dict[str, type]] = {
    'joint_trajectory': {'window_s': float, 'interpolation': str},
    # This controller never times out: in velocity or effort mode the last command runs for ever.
    'forward_command': {'interpolation': str, 'allow_without_timeout': bool},
    'twist_stamped': {},
    'twist': {},
    'gripper': {'interface': str, 'dead_band': float, 'max_effort': float},
}
OPTION_CHOICES = {
    'interpolation': ('linear', 'cubic'),
    'interface': ('topic', 'gripper_command', 'parallel_gripper_command'),
}
TWIST_AXES = tuple(f'{part}/{axis}/velocity' for part in ('linear', 'angular') for axis in 'xyz')

_WORD = re.compile(r'[a-z][a-z0-9_]{0,63}')
_COLUMN = re.compile(r'[A-Za-z_][A-Za-z0-9_.\-]*(/[A-Za-z_][A-Za-z0-9_.\-]*)+')
_TOPIC = re.compile(r'(~/|/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*')


def is_word(text: str) -> bool:
    """Lower-case name of at most 64 letters, digits and underscores."""
    return _WORD.fullmatch(text) is not None


def is_column(text: str) -> bool:
    """Name of a ros2_control interface: a joint (or base and axis), a slash, the interface."""
    return len(text) <= 256 and _COLUMN.fullmatch(text) is not None


def is_topic(text: str) -> bool:
    """Relative, private or absolute ROS name."""
    return len(text) <= 256 and _TOPIC.fullmatch(text) is not None


def joint_of(column: str) -> str:
    """`left_joint1` of `left_joint1/position`."""
    return column.rpartition('/')[0]


def interface_of(column: str) -> str:
    """`position` of `left_joint1/position`."""
    return column.rpartition('/')[2]


def twist_axis_of(column: str) -> str | None:
    """`linear/x/velocity` of `base/linear/x/velocity`; None when the column is not part of a twist."""
    return next((axis for axis in TWIST_AXES if column.endswith(f'/{axis}')), None)
