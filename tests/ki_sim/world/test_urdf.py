"""The URDF that ships is the simulator's robot: pinocchio and MuJoCo agree about where its hands are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_robot.contract.contract import contract_file, load_contract
from ki_robot.space.hand_solver import HandSolver
from ki_robot.space.robot_space import RobotSpace
from ki_sim.world.kinematics import pointing_down
from ki_sim.world.robot import ARM_JOINTS, LIMITS, SIDES
from ki_sim.world.urdf import robot_urdf
from ki_sim.world.world import HOME_ARM

HANDS = load_contract('bimanual_hands')
RANGES = [(LIMITS[name].lower, LIMITS[name].upper) for name in ARM_JOINTS['left']]
JOINTS = st.tuples(*(st.floats(*limits) for limits in RANGES))


@pytest.fixture(scope='module')
def space() -> RobotSpace:
    return RobotSpace(HANDS)


@pytest.fixture(scope='module')
def solvers() -> dict[str, HandSolver]:
    assert HANDS.kinematics is not None
    return {hand.name: HandSolver(HANDS.kinematics, hand) for hand in HANDS.kinematics.hands}


def test_the_file_is_what_the_simulator_writes():
    assert (contract_file('bimanual_hands').parent / 'bimanual_mobile.urdf').read_text() == robot_urdf()


def test_joints_have_the_limits_of_the_simulator():
    for joint in HANDS.joints:
        limit = LIMITS[joint.name.partition('/')[0]]
        assert (joint.limits.lower, joint.limits.upper) == (limit.lower, limit.upper)
        assert joint.limits.velocity == limit.velocity


@settings(max_examples=60, deadline=None)
@given(JOINTS, st.sampled_from(SIDES))
def test_both_measure_the_same_pose(arms, solvers, joints, side):
    place, turn = arms.pose(side, joints)
    found, where = solvers[f'{side}_hand'].pose(np.array(joints))
    np.testing.assert_allclose(where, place, atol=1e-12)
    np.testing.assert_allclose(found, turn, atol=1e-12)


def test_what_the_joints_are_solved_to_is_where_the_simulator_puts_the_hands(arms, space):
    start = _robot(HOME_ARM['left'], HOME_ARM['right'])
    here = space.state(start)
    part = np.linspace(0.0, 1.0, 25)[:, None]
    for x, y, z, yaw in ((0.55, 0.13, 0.741, 0.3), (0.35, 0.0, 0.9, -0.6), (0.46, 0.3, 0.75, 1.2)):
        goal = np.concatenate([[x, y, z, yaw, 0.05], [x, -y, z, -yaw, 0.1]])
        chunk = here + part * (goal - here)
        found = space.solve(chunk, start)
        assert found.unreached == ()
        for row, wanted in zip(found.commands_HN, chunk, strict=True):
            for number, side in enumerate(SIDES):
                place, turn = arms.pose(side, row[2 + 6 * number : 8 + 6 * number])
                np.testing.assert_allclose(place, wanted[5 * number : 5 * number + 3], atol=2e-4)
                np.testing.assert_allclose(turn, pointing_down(wanted[5 * number + 3]), atol=2e-3)


def _robot(left, right):
    """The robot's columns of both arms, grippers open."""
    assert HANDS.robot.action_names[:2] == ('left_gripper/position', 'right_gripper/position')
    return np.concatenate([[0.1, 0.1], left, right])
