"""Rotations as columns say them: each there and back, and equal to an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ki_robot.contract.names import ROTATION_AXES, RotationName
from ki_robot.errors import RobotError
from ki_robot.space.rotations import POINTING_DOWN, continuous, from_matrix, to_matrix

TURNS = Rotation.concatenate(
    [
        Rotation.random(200, rng=0),
        Rotation.identity(),
        Rotation.from_rotvec([[np.pi, 0, 0], [0, np.pi, 0], [0, 0, np.pi], [1e-9, 0, 0], [0, np.pi - 1e-7, 0]]),
        Rotation.from_euler('xyz', [[0.3, np.pi / 2, 0.1], [0.3, -np.pi / 2, 0.1]]),
    ]
)


@pytest.mark.parametrize('kind', [kind for kind in ROTATION_AXES if kind != 'yaw'])
def test_every_representation_is_there_and_back(kind: RotationName) -> None:
    matrices = TURNS.as_matrix()
    numbers = from_matrix(kind, matrices)
    assert numbers.shape == (len(matrices), len(ROTATION_AXES[kind]))
    np.testing.assert_allclose(to_matrix(kind, numbers), matrices, atol=1e-7)


def test_representations_are_those_of_scipy() -> None:
    some = TURNS[:200]
    np.testing.assert_allclose(from_matrix('axis_angle', some.as_matrix()), some.as_rotvec(), atol=1e-9)
    np.testing.assert_allclose(from_matrix('quaternion', some.as_matrix()), some.as_quat(canonical=True), atol=1e-9)
    np.testing.assert_allclose(from_matrix('rpy', some.as_matrix()), some.as_euler('xyz'), atol=1e-9)


@pytest.mark.parametrize('down', ['x', 'z'])
def test_yaw_turns_a_hand_that_points_down(down: str) -> None:
    yaw = np.linspace(-3.1, 3.1, 21)[:, None]
    matrices = to_matrix('yaw', yaw, down)
    axis = 'xyz'.index(down)
    np.testing.assert_allclose(matrices[:, :, axis], np.tile([0, 0, -1.0], (21, 1)), atol=1e-12)
    np.testing.assert_allclose(from_matrix('yaw', matrices, down), yaw, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(POINTING_DOWN[down]), 1.0)
    tilted = matrices @ Rotation.from_rotvec([0.2, 0.3, -0.1]).as_matrix()
    assert np.abs(np.sin((from_matrix('yaw', tilted, down) - yaw) / 2)).max() < 0.2


@pytest.mark.parametrize(
    ('kind', 'numbers', 'said'),
    [
        ('quaternion', [0.0, 0, 0, 0], 'norm of 0'),
        ('quaternion', [np.nan, 0, 0, 1], 'not finite'),
        ('rot6d', [0.0] * 6, 'column that is 0 or parallel'),
        ('rot6d', [1.0, 0, 0, 2, 0, 0], 'column that is 0 or parallel'),
        ('axis_angle', [0.0, 0.0], 'axis_angle has 3 numbers'),
    ],
)
def test_what_is_no_rotation_is_refused(kind: RotationName, numbers: list[float], said: str) -> None:
    with pytest.raises(RobotError, match=said):
        to_matrix(kind, np.array(numbers))


def test_numbers_of_a_model_need_not_be_orthonormal() -> None:
    some = TURNS[:5]
    np.testing.assert_allclose(to_matrix('quaternion', 1.2 * some.as_quat()), some.as_matrix(), atol=1e-9)
    numbers = from_matrix('rot6d', some.as_matrix()) * np.array([2.0] * 3 + [0.5] * 3)
    numbers[:, 3:] += 0.3 * numbers[:, :3]
    np.testing.assert_allclose(to_matrix('rot6d', numbers), some.as_matrix(), atol=1e-9)


def test_a_path_has_no_jumps_once_it_is_made_continuous() -> None:
    turns = Rotation.from_euler('z', np.linspace(0.0, 9.0, 40)[:, None]) * Rotation.from_euler('x', np.pi)
    for kind in ('axis_angle', 'quaternion', 'rpy'):
        numbers = continuous(kind, from_matrix(kind, turns.as_matrix()))
        np.testing.assert_allclose(to_matrix(kind, numbers), turns.as_matrix(), atol=1e-9)
        assert np.abs(np.diff(numbers, axis=0)).max() < 0.4, kind
