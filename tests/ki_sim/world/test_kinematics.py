"""Inverse kinematics undoes forward kinematics, inside the limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_sim.errors import SimError
from ki_sim.expert.motions import minimum_jerk, rotated
from ki_sim.world.kinematics import pointing, pointing_down, rotation_vector
from ki_sim.world.robot import ARM_JOINTS, LIMITS, SIDES
from ki_sim.world.world import HOME_ARM


@pytest.mark.parametrize('side', SIDES)
def test_every_grasp_over_the_work_area_is_reached(arms, side):
    for x in (0.35, 0.46, 0.565):
        for y in (-0.135, 0.0, 0.135):
            for z in (0.741, 0.90):
                q, error = arms.solve(side, (x, y, z), pointing_down(0.3), HOME_ARM[side])
                assert error < 1e-3
                position, rotation = arms.pose(side, q)
                assert np.allclose(position, (x, y, z), atol=1e-3)
                assert np.allclose(rotation, pointing_down(0.3), atol=0.02)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-0.25, 0.25), min_size=6, max_size=6), st.sampled_from(SIDES))
def test_a_pose_near_home_is_found_again(arms, offsets, side):
    wanted = np.array(HOME_ARM[side]) + offsets
    q, error = arms.solve(side, *arms.pose(side, wanted), HOME_ARM[side])
    assert error < 1e-3
    for name, angle in zip(ARM_JOINTS[side], q, strict=True):
        assert LIMITS[name].lower <= angle <= LIMITS[name].upper


def test_out_of_reach_leaves_an_error_and_no_broken_angles(arms):
    q, error = arms.solve('left', (2.0, 0.0, 1.0), pointing_down(0.0), HOME_ARM['left'])
    assert error > 0.5
    assert np.isfinite(q).all()


def test_six_angles_are_asked_for(arms):
    with pytest.raises(SimError, match='6 joint angles'):
        arms.solve('left', (0.4, 0.0, 1.0), pointing_down(0.0), [0.0, 0.0])


def test_hand_rotations_are_rotations():
    for rotation in (pointing_down(0.7), pointing(1.1, 0.3)):
        assert np.allclose(rotation @ rotation.T, np.eye(3))
        assert np.isclose(np.linalg.det(rotation), 1.0)
    assert np.allclose(pointing_down(0.0)[:, 0], (0, 0, -1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3))
def test_rotation_vectors_make_the_rotation_again(vector):
    rotation = rotated(np.eye(3), np.array(vector))
    assert np.allclose(rotation_vector(rotation), vector, atol=1e-6)


def test_minimum_jerk_starts_and_ends_at_rest():
    assert minimum_jerk(0.0) == 0.0
    assert minimum_jerk(1.0) == 1.0
    assert minimum_jerk(0.01) < 1e-5
    assert minimum_jerk(0.5) == 0.5
