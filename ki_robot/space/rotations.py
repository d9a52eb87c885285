"""Rotations as matrices, and as the numbers that columns hold: yaw, roll-pitch-yaw, axis-angle, quaternion, rot6d.

Every function takes any leading axes. The order of the numbers is that of `ROTATION_AXES`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.names import ROTATION_AXES, RotationName
from ki_robot.errors import RobotError

Array = NDArray[np.floating[Any]]
Matrices = NDArray[np.float64]

LEAST_NORM = 0.1  # of a quaternion or a column of rot6d: below it, its direction is noise
MOST = 1e6  # of any number: beyond it, nothing is left of a turn
# The orientation of a hand that points down at yaw 0, by the axis of its frame that points down.
POINTING_DOWN: dict[str, Matrices] = {
    'x': np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]),
    'z': np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]]),
}


def to_matrix(kind: RotationName, values: Array, down: str = 'z') -> Matrices:
    """Rotation matrices (..., 3, 3) of numbers (..., k).

    Args:
        kind: How the rotation is said.
        values: SI, in the order of `ROTATION_AXES`.
        down: Which axis of the hand points down; of `yaw` alone.

    Raises:
        RobotError: Numbers that are no rotation: not finite, a quaternion of norm 0, parallel columns of rot6d.
    """
    numbers = _floats(values)
    if numbers.shape[-1:] != (len(ROTATION_AXES[kind]),):
        raise RobotError(f'{kind} has {len(ROTATION_AXES[kind])} numbers; the shape {numbers.shape} was given.')
    if not np.isfinite(numbers).all():
        raise RobotError(f'{kind} holds a number that is not finite; it is no rotation.')
    if (np.abs(numbers) > MOST).any():
        raise RobotError(f'{kind} holds {float(np.abs(numbers).max()):.3g}; it is no rotation.')
    if kind == 'yaw':
        return about('z', numbers[..., 0]) @ POINTING_DOWN[down]
    if kind == 'rpy':
        roll, pitch, yaw = np.moveaxis(numbers, -1, 0)
        return about('z', yaw) @ about('y', pitch) @ about('x', roll)
    if kind == 'axis_angle':
        return _from_axis_angle(numbers)
    if kind == 'quaternion':
        return _from_quaternion(numbers)
    return _from_columns(numbers)


def from_matrix(kind: RotationName, matrix: Matrices, down: str = 'z') -> Matrices:
    """Numbers (..., k) of rotation matrices (..., 3, 3); the inverse of `to_matrix`.

    Angles lie in [-pi, pi], axis-angles are no longer than pi, quaternions have qw >= 0. `yaw` is that of the hand
    pointing down whose orientation is nearest.
    """
    matrix = np.asarray(matrix, np.float64)
    if kind == 'yaw':
        turned = matrix @ POINTING_DOWN[down].T
        yaw = np.arctan2(turned[..., 1, 0] - turned[..., 0, 1], turned[..., 0, 0] + turned[..., 1, 1])
        return _floats(yaw)[..., None]
    if kind == 'rpy':
        flat = np.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
        pitch = np.arctan2(-matrix[..., 2, 0], flat)
        straight = flat < 1e-9  # roll and yaw turn about the same axis: yaw takes it all
        roll = np.where(straight, 0.0, np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2]))
        yaw = np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0])
        yaw = np.where(straight, np.arctan2(-matrix[..., 0, 1], matrix[..., 1, 1]), yaw)
        return np.stack([roll, pitch, yaw], axis=-1)
    if kind == 'axis_angle':
        return _to_axis_angle(matrix)
    if kind == 'quaternion':
        return _to_quaternion(matrix)
    return np.concatenate([matrix[..., :, 0], matrix[..., :, 1]], axis=-1)


def about(axis: str, angle: Array) -> Matrices:
    """Rotation matrices (..., 3, 3) about `x`, `y` or `z` by angles (...), rad."""
    angle = np.asarray(angle, np.float64)
    one, other = {'x': (1, 2), 'y': (2, 0), 'z': (0, 1)}[axis]
    found: Matrices = np.broadcast_to(np.eye(3), (*angle.shape, 3, 3)).copy()
    cosine, sine = np.cos(angle), np.sin(angle)
    found[..., one, one] = found[..., other, other] = cosine
    found[..., one, other], found[..., other, one] = -sine, sine
    return found


def continuous(kind: RotationName, numbers_TK: Array, start_K: Array | None = None) -> Matrices:
    """The same rotations, each said so that it is nearest to the one before: no jump by a turn or a sign.

    Args:
        kind: How the rotations are said.
        numbers_TK: One rotation a row.
        start_K: What stands before the first row; left out, the first row stays.
    """
    numbers = np.array(numbers_TK, np.float64)
    for row in range(len(numbers)):
        before = start_K if row == 0 else numbers[row - 1]
        if before is None:
            continue
        here = numbers[row]
        if kind == 'quaternion':
            numbers[row] = here if here @ before >= 0 else -here
        elif kind == 'axis_angle':
            angle = float(np.linalg.norm(here))
            if angle > 1e-9:
                turns = np.round((here / angle @ before - angle) / (2 * np.pi))
                numbers[row] = here * (1.0 + 2 * np.pi * turns / angle)
        elif kind in ('yaw', 'rpy'):
            numbers[row] = here - 2 * np.pi * np.round((here - before) / (2 * np.pi))
    return numbers


def _floats(values: Array) -> Matrices:
    return np.asarray(values, np.float64)


def _from_axis_angle(numbers: Matrices) -> Matrices:
    angle = np.linalg.norm(numbers, axis=-1)[..., None, None]
    cross = np.zeros((*numbers.shape[:-1], 3, 3))
    x, y, z = np.moveaxis(numbers, -1, 0)
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -z, y, -x
    cross = cross - np.swapaxes(cross, -1, -2)
    # sin(a) / a and (1 - cos(a)) / a^2, which sinc keeps finite at 0
    half = np.sinc(angle / (2 * np.pi))
    return _floats(np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * half**2 * (cross @ cross))


def _to_axis_angle(matrix: Matrices) -> Matrices:
    quaternion = _to_quaternion(matrix)
    sine = np.linalg.norm(quaternion[..., :3], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, quaternion[..., 3:])
    found: Matrices = quaternion[..., :3] * np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0)
    return found


def _from_quaternion(numbers: Matrices) -> Matrices:
    norm = np.linalg.norm(numbers, axis=-1, keepdims=True)
    if (norm < LEAST_NORM).any():
        raise RobotError(f'a quaternion has a norm of {float(norm.min()):.3g}; it is no rotation, send unit ones.')
    x, y, z, w = np.moveaxis(numbers / norm, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _to_quaternion(matrix: Matrices) -> Matrices:
    """By the largest of the four candidates, so that no small number is divided by."""
    m = matrix
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    squares = np.stack([1 - trace + 2 * m[..., i, i] for i in range(3)] + [1 + trace], axis=-1)  # 4 q_i^2
    best = np.argmax(squares, axis=-1)
    products = np.empty((*m.shape[:-2], 4, 4))  # 4 q_i q_j
    for i in range(4):
        products[..., i, i] = squares[..., i]
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        products[..., i, j] = products[..., j, i] = m[..., j, i] + m[..., i, j]
        products[..., 3, k] = products[..., k, 3] = m[..., j, i] - m[..., i, j]
    row = np.take_along_axis(products, best[..., None, None], axis=-2)[..., 0, :]
    found: Matrices = row / np.linalg.norm(row, axis=-1, keepdims=True)
    return np.where(found[..., 3:] < 0, -found, found)


def _from_columns(numbers: Matrices) -> Matrices:
    """Gram-Schmidt, as in arXiv 1812.07035, section 4."""
    one, other = numbers[..., :3], numbers[..., 3:]
    length = np.linalg.norm(one, axis=-1, keepdims=True)
    first = one / np.maximum(length, 1e-12)
    rest = other - (first * other).sum(axis=-1, keepdims=True) * first
    width = np.linalg.norm(rest, axis=-1, keepdims=True)
    if min(length.min(initial=1.0), width.min(initial=1.0)) < LEAST_NORM:
        raise RobotError('rot6d has a column that is 0 or parallel to the other; it is no rotation.')
    second = rest / width
    return np.stack([first, second, np.cross(first, second)], axis=-1)
