"""The contract below the hands: the columns that a robot itself measures and takes.

The executor, and whatever reads a stream or a command, goes by it; the policy's columns are made of it, and turned into
it, by `ki_robot.space.robot_space`. A robot without hands has one contract for both.
"""

from __future__ import annotations

from typing import Any

from ki_robot.contract.names import PLACE_AXES, ROTATION_AXES, Unit, hand_of
from ki_robot.contract.parts import ActionColumn, JointColumn, Limits, Output, StateColumn
from ki_robot.contract.poses import HandSpec, is_pose_column
from ki_robot.contract.rules import Parts

# A robot says poses as x, y, z and rot6d: no turn and no sign makes those jump, so limits and speeds mean something.
ROBOT_AXES = (*PLACE_AXES, *ROTATION_AXES['rot6d'])
TURNING = 6**-0.5  # six numbers, each at most this fast, turn a hand by no more than one


def robot_parts(parts: Parts, hands: dict[str, HandSpec]) -> dict[str, Any]:
    """The fields of a contract that are others in the robot's columns.

    State is as streams measure it, actions and outputs are as controllers take them; there are no hands any more.
    """
    streamed = {hand.stream: hand for hand in hands.values() if hand.stream}
    state = [column for column in parts.state if not is_pose_column(column.name, hands)]
    for stream in parts.streams:
        if stream.name in streamed:
            names = pose_names(streamed[stream.name])
            state += [StateColumn(name=name, unit=_unit(name), source=stream.name) for name in names]
    measured = {column.name for column in state}
    state += [_measured(joint) for joint in parts.joints if joint.name not in measured]
    commanded = {name for output in parts.outputs for name in output.columns}
    actions = [column for column in parts.actions if not is_pose_column(column.name, hands)]
    actions += [_commanded(joint) for joint in parts.joints if joint.name in commanded or not parts.outputs]
    for hand in streamed.values():
        own = [column for column in parts.actions if hand_of(column.name) == hand.name]
        actions += _pose_commands(hand, [column for column in own if is_pose_column(column.name, hands)])
    outputs = tuple(_output(output, hands) for output in parts.outputs)
    return {'state': tuple(state), 'actions': tuple(actions), 'outputs': outputs, 'kinematics': None, 'joints': ()}


def pose_names(hand: HandSpec) -> list[str]:
    """The robot's own columns of a hand's pose."""
    return [f'{hand.name}/{axis}/position' for axis in ROBOT_AXES]


def _unit(name: str) -> Unit:
    return 'm' if name.split('/')[-2] in PLACE_AXES else '1'


def _measured(joint: JointColumn) -> StateColumn:
    return StateColumn(name=joint.name, unit=joint.unit, source=joint.source, limits=joint.limits)


def _commanded(joint: JointColumn) -> ActionColumn:
    return ActionColumn(
        name=joint.name, unit=joint.unit, representation='absolute', limits=joint.limits, tolerance=joint.tolerance
    )


def _pose_commands(hand: HandSpec, columns: list[ActionColumn]) -> list[ActionColumn]:
    """The nine columns of a hand that a controller takes as a pose, within the limits of the policy's columns."""
    if not columns:
        return []
    own = {column.name.split('/')[-2]: column for column in columns}
    turning = [column.limits for axis, column in own.items() if axis not in PLACE_AXES]

    def least(name: str) -> float | None:
        values = [value for each in turning if (value := getattr(each, name)) is not None]
        return min(values) * TURNING if values else None

    still = Limits(lower=-1.0, upper=1.0, velocity=least('velocity'), acceleration=least('acceleration'))
    made = []
    for name in pose_names(hand):
        axis = name.split('/')[-2]
        limits = own[axis].limits if axis in PLACE_AXES else still
        tolerance = own[axis].tolerance if axis in PLACE_AXES else None
        made.append(
            ActionColumn(name=name, unit=_unit(name), representation='absolute', limits=limits, tolerance=tolerance)
        )
    return made


def _output(output: Output, hands: dict[str, HandSpec]) -> Output:
    named = [hand for hand in hands.values() if any(hand_of(name) == hand.name for name in output.columns)]
    if output.kind != 'pose_stamped' or not named:
        return output
    return output.replace(columns=tuple(pose_names(named[0])))
