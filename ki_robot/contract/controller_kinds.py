"""The kinds of controllers that actions go to: the one table of them.

To add a kind: an entry here (its name in `ControllerKindName`, its messages, which columns and options it takes), and
its sender in `SENDERS` of `ki_policy_node.executor.outputs`. A test holds the two tables to each other; contracts,
replay and the reading of recorded commands go by this one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ki_robot.contract.names import TWIST_AXES, duplicates, hand_of, interface_of, pose_axis_of, twist_axis_of

ControllerKindName = Literal[
    'joint_trajectory', 'forward_command', 'joint_state', 'twist_stamped', 'twist', 'pose_stamped', 'gripper'
]

TRAJECTORY, ARRAY = 'trajectory_msgs/msg/JointTrajectory', 'std_msgs/msg/Float64MultiArray'
JOINT_STATE, FLOAT, GRIPPER = 'sensor_msgs/msg/JointState', 'std_msgs/msg/Float64', 'control_msgs/msg/GripperCommand'
POSE_STAMPED = 'geometry_msgs/msg/PoseStamped'
TWIST, TWIST_STAMPED = 'geometry_msgs/msg/Twist', 'geometry_msgs/msg/TwistStamped'

# Of columns, and whether they may go to a controller that never times out: why a kind does not take them, or nothing.
ColumnRule = Callable[[Sequence[str], bool], str]


@dataclass(frozen=True)
class ControllerKind:
    """One kind of controller."""

    messages: tuple[str, ...]  # types that commands to it are read from; the first is the one that is written
    refuses: ColumnRule  # which columns it does not take
    options: tuple[str, ...] = ()  # fields of `OutputOptions` that it takes


def _trajectory_refuses(columns: Sequence[str], _: bool) -> str:
    interfaces = _interfaces(columns)
    if interfaces == ['position']:
        return ''
    return f'are of {", ".join(interfaces)}; a joint_trajectory takes position columns only'


def _joint_state_refuses(columns: Sequence[str], _: bool) -> str:
    interfaces = _interfaces(columns)
    if interfaces == ['position']:
        return ''
    return f'are of {", ".join(interfaces)}; a joint_state takes position columns only'


def _forward_refuses(columns: Sequence[str], without_timeout: bool) -> str:
    interfaces = _interfaces(columns)
    if len(interfaces) > 1:
        return f'mix {", ".join(interfaces)}; a forward_command has one interface'
    if interfaces == ['position'] or without_timeout:
        return ''
    return (
        f'send {interfaces[0]} to a controller without a timeout, which would run on if the sender died; use a twist '
        'or trajectory controller, or set options.allow_without_timeout: true'
    )


def _twist_refuses(columns: Sequence[str], _: bool) -> str:
    strange = [column for column in columns if twist_axis_of(column) is None]
    if strange:
        return f'has {strange[0]!r}; a twist takes {", ".join(TWIST_AXES)}'
    twice = duplicates(str(twist_axis_of(column)) for column in columns)
    return f'has two for {twice[0]}; keep one' if twice else ''


def _pose_refuses(columns: Sequence[str], _: bool) -> str:
    strange = [column for column in columns if pose_axis_of(column) is None]
    if strange:
        return f'has {strange[0]!r}; a pose takes columns such as hand/x/position and hand/rx/position'
    hands = sorted({hand_of(column) for column in columns})
    return f'are of {", ".join(hands)}; a pose_stamped takes one hand' if len(hands) > 1 else ''


def _gripper_refuses(columns: Sequence[str], _: bool) -> str:
    interfaces = _interfaces(columns)
    if len(columns) == 1 and interfaces == ['position']:
        return ''
    return f'are {len(columns)} of {", ".join(interfaces)}; a gripper takes one position column'


def _interfaces(columns: Sequence[str]) -> list[str]:
    return sorted({interface_of(column) for column in columns})


CONTROLLER_KINDS: dict[ControllerKindName, ControllerKind] = {
    'joint_trajectory': ControllerKind((TRAJECTORY, JOINT_STATE), _trajectory_refuses, ('window_s', 'interpolation')),
    'forward_command': ControllerKind(
        (ARRAY, FLOAT, JOINT_STATE), _forward_refuses, ('interpolation', 'allow_without_timeout')
    ),
    'joint_state': ControllerKind((JOINT_STATE,), _joint_state_refuses, ('interpolation',)),
    'twist_stamped': ControllerKind((TWIST_STAMPED, TWIST), _twist_refuses),
    'twist': ControllerKind((TWIST, TWIST_STAMPED), _twist_refuses),
    'pose_stamped': ControllerKind((POSE_STAMPED,), _pose_refuses, ('interpolation',)),
    'gripper': ControllerKind(
        (ARRAY, TRAJECTORY, FLOAT, JOINT_STATE, GRIPPER), _gripper_refuses, ('interface', 'dead_band', 'max_effort')
    ),
}
