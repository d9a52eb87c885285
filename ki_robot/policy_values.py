"""Between the columns of a contract, in SI units, and the values that its policy sees and says.

Two things lie between: the map of a column (`sign`, `scale`, `offset`, `map`), for a policy that was trained on other
signs and units; and deltas, which are relative to the state at the observation. Rotations are composed, not subtracted.
The processor, statistics and the fit of FAST all go through here; observations, chunks and recordings stay SI.

Letters: S state columns, N action columns, H steps; `...` any leading axes. Values keep their dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.column_maps import COLUMN_MAPS
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import RotationName
from ki_robot.contract.parts import ActionColumn, StateColumn
from ki_robot.contract.poses import PoseColumns
from ki_robot.errors import RobotError
from ki_robot.space.rotations import continuous, from_matrix, to_matrix

Array = NDArray[np.floating[Any]]
FloatArray = TypeVar('FloatArray', bound=NDArray[np.floating[Any]])


def policy_state(contract: Contract, state: FloatArray) -> FloatArray:
    """A state (..., S) as the policy sees it: through the maps of its columns."""
    return mapped_values(contract.state, _checked(contract, state, contract.state_names, 'state'))


def policy_actions(contract: Contract, actions: Array, state: Array) -> Array:
    """Absolute actions (..., H, N) as the policy says them: mapped, and relative to the state where they are deltas.

    Args:
        contract: Says which columns are mapped, and which are deltas.
        actions: SI. Steps that hold no rotation (0, or not finite) become that of the state.
        state: (..., S), SI, at the observation that begins the chunk.
    """
    seen = policy_state(contract, state)
    mapped = mapped_values(contract.actions, _checked(contract, actions, contract.action_names, 'actions'))
    found = mapped - _reference(contract, seen)[..., None, :].astype(mapped.dtype, copy=False)
    for pose, turns, moves in _composed(contract):
        start = _rotations(pose.rotation, seen[..., _state_of(contract, pose)], pose.hand.down)[..., None, :, :]
        if moves:
            found[..., pose.place] = (np.swapaxes(start, -1, -2) @ found[..., pose.place, None])[..., 0]
        if turns and pose.rotation == 'yaw':
            found[..., pose.turn] = _wrapped(found[..., pose.turn])
        elif turns and pose.rotation is not None:
            there = _rotations(pose.rotation, mapped[..., pose.turn], pose.hand.down, start)
            back = np.swapaxes(start, -1, -2)
            between = back @ there if pose.hand.delta == 'tip' else there @ back
            found[..., pose.turn] = from_matrix(pose.rotation, between, pose.hand.down)
    return found


def robot_actions(contract: Contract, values: Array, state: Array) -> Array:
    """The inverse of `policy_actions`: absolute SI (..., H, N) of what the policy says.

    Rotations are said so that none jumps by a turn or a sign from one step to the next.

    Raises:
        RobotError: Values that are no rotation, or that the map of a column never gives.
    """
    seen = policy_state(contract, state)
    values = _checked(contract, values, contract.action_names, 'actions')
    found = values + _reference(contract, seen)[..., None, :].astype(values.dtype, copy=False)
    for pose, turns, moves in _composed(contract):
        at = seen[..., _state_of(contract, pose)]
        start = _rotations(pose.rotation, at, pose.hand.down)[..., None, :, :]
        if moves:
            place = seen[..., [contract.state_names.index(contract.action_names[i]) for i in pose.place]]
            found[..., pose.place] = place[..., None, :] + (start @ values[..., pose.place, None])[..., 0]
        if turns and pose.rotation not in (None, 'yaw'):
            assert pose.rotation is not None
            turn = to_matrix(pose.rotation, values[..., pose.turn])
            there = start @ turn if pose.hand.delta == 'tip' else turn @ start
            numbers = from_matrix(pose.rotation, there)
            found[..., pose.turn] = _without_jumps(pose.rotation, numbers, at)
    return si_values(contract.actions, found)


def without_jumps(contract: Contract, rows_HN: FloatArray, before_N: Array | None = None) -> FloatArray:
    """Absolute actions whose rotations never jump by a turn or a sign: neither between steps, nor from `before_N` on.

    The poses are the same; their numbers can then be interpolated and averaged.
    """
    poses = [pose for pose in contract.action_poses if pose.rotation not in (None, 'rot6d')]
    if not poses:
        return rows_HN
    found = rows_HN.copy()
    for pose in poses:
        assert pose.rotation is not None
        start = None if before_N is None else before_N[pose.turn]
        found[:, pose.turn] = continuous(pose.rotation, rows_HN[:, pose.turn], start)
    return cast(FloatArray, found)


def _reference(contract: Contract, seen: Array) -> Array:
    """What each action column is relative to, (..., N): the seen state for deltas, 0 for absolute columns."""
    names = contract.state_names
    reference = np.zeros((*seen.shape[:-1], len(contract.actions)), dtype=seen.dtype)
    for index, column in enumerate(contract.actions):
        if column.representation == 'delta':
            reference[..., index] = seen[..., names.index(column.name)]
    return reference


def _composed(contract: Contract) -> list[tuple[PoseColumns, bool, bool]]:
    """Poses in whose deltas a rotation takes part: whether it is one itself, and whether it turns the place."""
    found = []
    for pose in contract.action_poses:
        delta = [contract.actions[int(index)].representation == 'delta' for index in (*pose.turn, *pose.place)]
        turns = any(delta[: len(pose.turn)])
        moves = any(delta[len(pose.turn) :]) and pose.hand.delta == 'tip'
        if turns or moves:
            found.append((pose, turns, moves))
    return found


def _state_of(contract: Contract, pose: PoseColumns) -> list[int]:
    """Where the state says the rotation that an action says."""
    return [contract.state_names.index(contract.action_names[int(index)]) for index in pose.turn]


def _rotations(kind: RotationName | None, numbers: Array, down: str, otherwise: Array | None = None) -> Array:
    """Matrices (..., 3, 3); those of numbers that say none are `otherwise`, where that is given."""
    if kind is None:
        raise RobotError('deltas in the axes of the tip need a rotation of the hand in state and actions.')
    if otherwise is None:
        return to_matrix(kind, numbers, down)
    none: NDArray[np.bool_] = np.asarray(~np.isfinite(numbers).all(axis=-1))
    if kind in ('quaternion', 'rot6d'):
        none = none | ~numbers.any(axis=-1)
    some = from_matrix(kind, np.eye(3), down)
    turned = to_matrix(kind, np.where(none[..., None], some, numbers), down)
    return np.where(none[..., None, None], otherwise, turned)


def _wrapped(angle: Array) -> Array:
    """Angles in [-pi, pi]; those that are there already, to the last bit."""
    return np.where(np.abs(angle) <= np.pi, angle, angle - 2 * np.pi * np.round(angle / (2 * np.pi)))


def _without_jumps(kind: RotationName, numbers: Array, start: Array) -> Array:
    """`continuous` over the steps of every chunk."""
    flat = numbers.reshape(-1, *numbers.shape[-2:])
    starts = np.broadcast_to(start, (*numbers.shape[:-2], numbers.shape[-1])).reshape(len(flat), -1)
    rows = [continuous(kind, chunk, at) for chunk, at in zip(flat, starts, strict=True)]
    return np.stack(rows).reshape(numbers.shape) if rows else numbers


def mapped_values(columns: Sequence[StateColumn | ActionColumn], values: FloatArray) -> FloatArray:
    """SI values (..., C) through the maps of their columns; untouched where there are none."""
    if not any(column.is_mapped for column in columns):
        return values
    found = values.astype(np.float64)
    for index, column in enumerate(columns):
        if column.is_mapped:
            found[..., index] = column.sign * column.scale * found[..., index] + column.offset
            if column.map is not None:
                found[..., index] = COLUMN_MAPS[column.map][column.unit].apply(found[..., index])
    return cast(FloatArray, found.astype(values.dtype, copy=False))


def si_values(columns: Sequence[StateColumn | ActionColumn], values: FloatArray) -> FloatArray:
    """Mapped values (..., C) back in SI units."""
    if not any(column.is_mapped for column in columns):
        return values
    found = values.astype(np.float64)
    for index, column in enumerate(columns):
        if column.is_mapped:
            if column.map is not None:
                found[..., index] = COLUMN_MAPS[column.map][column.unit].invert(found[..., index])
            found[..., index] = (found[..., index] - column.offset) / (column.sign * column.scale)
    return cast(FloatArray, found.astype(values.dtype, copy=False))


def _checked(contract: Contract, values: FloatArray, names: Sequence[str], what: str) -> FloatArray:
    if values.shape[-1:] != (len(names),):
        raise RobotError(f'{what} have the shape {values.shape}; {contract.name} has {len(names)} {what} columns.')
    return values
