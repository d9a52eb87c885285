"""Hands of a contract: which columns say one pose together, and the columns in which a robot itself says it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.kinematics import Kinematics
from ki_robot.contract.names import (
    PLACE_AXES,
    ROTATION_AXES,
    RotationName,
    hand_of,
    pose_axis_of,
)
from ki_robot.contract.parts import ActionColumn, StateColumn, StateStream

POSE_STREAMS = ('pose', 'tf')
UNITS = dict.fromkeys(PLACE_AXES, 'm') | {
    axis: '1' if name in ('quaternion', 'rot6d') else 'rad' for name, axes in ROTATION_AXES.items() for axis in axes
}


@dataclass(frozen=True)
class HandSpec:
    """What the numbers of one hand mean, wherever its pose is measured."""

    name: str
    down: Literal['x', 'z']  # which axis of the hand points down where yaw alone is said
    delta: Literal['base', 'tip']  # in whose axes deltas are
    stream: str = ''  # the state stream that measures it; empty: by forward kinematics


@dataclass(frozen=True, eq=False)
class PoseColumns:
    """The columns of a vector that say one hand's pose: its place, and its rotation if they say one.

    `place` and `turn` are positions in the vector, in the order of `PLACE_AXES` and of `ROTATION_AXES[rotation]`.
    """

    hand: HandSpec
    place: NDArray[np.intp]
    rotation: RotationName | None
    turn: NDArray[np.intp]


def hand_specs(
    kinematics: Kinematics | None, streams: Iterable[StateStream], state: Iterable[StateColumn]
) -> dict[str, HandSpec]:
    """The hands of a contract by name: those of its kinematics, and those that a stream measures."""
    found = {}
    for stream in streams:
        if stream.type in POSE_STREAMS:
            for column in state:
                if column.source == stream.name:
                    name = hand_of(column.name)
                    found[name] = HandSpec(name, stream.down, stream.delta, stream.name)
    for hand in kinematics.hands if kinematics is not None else ():
        found[hand.name] = HandSpec(hand.name, hand.down, hand.delta)
    return found


def is_pose_column(column: str, hands: Mapping[str, HandSpec]) -> bool:
    """Whether a column is part of the pose of one of these hands."""
    return pose_axis_of(column) is not None and hand_of(column) in hands


def pose_columns(names: Sequence[str], hands: Mapping[str, HandSpec]) -> tuple[PoseColumns, ...]:
    """The poses that a vector with these columns says; only of complete ones (`pose_flaw`)."""
    found = []
    for hand in hands.values():
        where = {pose_axis_of(name): index for index, name in enumerate(names) if hand_of(name) == hand.name}
        place = [where[axis] for axis in PLACE_AXES if axis in where]
        rotation = _rotation([axis for axis in where if axis is not None])
        turn = [where[axis] for axis in ROTATION_AXES[rotation]] if rotation is not None else []
        if place or turn:
            found.append(PoseColumns(hand, np.array(place, np.intp), rotation, np.array(turn, np.intp)))
    return tuple(found)


def pose_flaw(hand: str, columns: Sequence[StateColumn | ActionColumn]) -> str:
    """Why these columns, all of one hand, say no pose; empty where they do."""
    axes = [str(pose_axis_of(column.name)) for column in columns]
    turning = [axis for axis in axes if axis not in PLACE_AXES]
    if len(axes) - len(turning) not in (0, len(PLACE_AXES)):
        return f'{hand} has {", ".join(axes)}; a place is {", ".join(PLACE_AXES)}, all or none'
    if turning and _rotation(turning) is None:
        known = '; '.join(' '.join(each) for each in ROTATION_AXES.values())
        return f'{hand} has {", ".join(turning)}, which is no rotation; write one of: {known}'
    for column, axis in zip(columns, axes, strict=True):
        if column.unit != UNITS[axis]:
            return f'{column.name} has the unit {column.unit!r}; write {UNITS[axis]!r}'
    return ''


def _rotation(axes: Iterable[str]) -> RotationName | None:
    turning = {axis for axis in axes if axis not in PLACE_AXES}
    return next((name for name, needed in ROTATION_AXES.items() if set(needed) == turning), None)
