"""Hand poses of a robot: measured by its joints, reached by them, held where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_common.configuration.yaml_reader import read_yaml
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract, contract_file, load_contract
from ki_robot.errors import RobotError
from ki_robot.space.robot_space import RobotSpace

HANDS = load_contract('bimanual_hands')
LEFT, RIGHT = slice(0, 5), slice(5, 10)  # of the policy's columns: x, y, z, yaw, opening
ARM = {'left': slice(2, 8), 'right': slice(8, 14)}  # of the robot's: two grippers, then the arms
READY = np.array([0.4101, -1.5532, 2.2127, 0.0, 0.9113, 0.4101])  # an arm over the table, its hand pointing down
HOME = np.concatenate([[0.1, 0.1], READY, READY * np.array([-1, 1, 1, 1, 1, -1])])


@pytest.fixture(scope='module')
def space() -> RobotSpace:
    return RobotSpace(HANDS)


def path(space: RobotSpace, steps: int, **end: float) -> np.ndarray:
    """A chunk (steps, 10) from the pose of HOME in a straight line; `end` is what the left hand moves by."""
    rows = np.tile(space.state(HOME), (steps, 1))
    part = np.linspace(0.0, 1.0, steps)
    for name, by in end.items():
        rows[:, ('x', 'y', 'z', 'yaw').index(name)] += part * by
    return rows


def test_a_contract_without_hands_is_its_own_robot() -> None:
    contract = load_contract('bimanual_mobile')
    space, values = RobotSpace(contract), np.arange(17.0)
    assert contract.robot is contract
    assert space.state(values) is values
    assert space.solve(values[None], values).commands_HN[0].tolist() == values.tolist()


def test_the_robots_columns_are_joints_and_what_passes_through() -> None:
    robot = HANDS.robot
    assert robot.state_names == robot.action_names
    assert robot.action_names[:3] == ('left_gripper/position', 'right_gripper/position', 'left_joint1/position')
    assert not robot.hands
    assert robot.robot is robot
    assert {column for output in robot.outputs for column in output.columns} == set(robot.action_names)


def test_a_path_is_followed_to_a_tenth_of_a_millimetre(space: RobotSpace) -> None:
    chunk = path(space, 50, x=0.15, y=-0.1, z=-0.1, yaw=0.8)
    found = space.solve(chunk, HOME)
    assert found.unreached == ()
    assert found.commands_HN.shape == (50, 14)
    back = space.actions(found.commands_HN)
    assert np.abs(back - chunk)[:, [0, 1, 2, 5, 6, 7]].max() < 1e-4  # m
    assert np.abs(back - chunk)[:, [3, 8]].max() < 1e-3  # rad
    assert np.abs(np.diff(found.commands_HN, axis=0)).max() < 0.1
    np.testing.assert_array_equal(found.commands_HN[:, :2], chunk[:, [4, 9]])


def test_the_same_chunk_gives_the_same_joints(space: RobotSpace) -> None:
    chunk = path(space, 20, x=0.1)
    one, two = space.solve(chunk, HOME), RobotSpace(HANDS).solve(chunk, HOME)
    np.testing.assert_array_equal(one.commands_HN, two.commands_HN)


def test_leading_axes_and_unknown_values(space: RobotSpace) -> None:
    measured = np.tile(HOME, (2, 3, 1))
    measured[0, 1, 5] = np.nan  # a joint of the left arm
    state = space.state(measured)
    assert state.shape == (2, 3, 10)
    assert np.isnan(state[0, 1, :4]).all()
    assert np.isfinite(state[0, 1, 4:]).all()
    np.testing.assert_array_equal(state[1, 2], space.state(HOME))


def test_a_pose_out_of_reach_is_named_and_held(space: RobotSpace) -> None:
    away = HANDS.replace(actions=tuple(each.replace(limits=each.limits.replace(lower=None, upper=None)) if
                                       'hand' in each.name else each for each in HANDS.actions))  # fmt: skip
    space = RobotSpace(away)
    chunk = path(space, 40, x=1.0)
    found = space.solve(chunk, HOME)
    [miss] = found.unreached
    assert miss.column == 'left_hand/x/position'
    assert 5 < miss.step < 35
    assert miss.steps == 40 - miss.step
    assert miss.residual_m > 0.2
    assert 'left_hand holds at step' in miss.text
    held = found.commands_HN[miss.step :, ARM['left']]
    np.testing.assert_array_equal(held, np.tile(found.commands_HN[miss.step - 1, ARM['left']], (len(held), 1)))
    assert np.abs(np.diff(found.commands_HN, axis=0)).max() < 0.4
    # the other arm goes on
    assert np.abs(space.actions(found.commands_HN)[:, RIGHT] - chunk[:, RIGHT]).max() < 1e-3


def test_an_arm_that_held_goes_on_where_the_path_is_in_reach_again(space: RobotSpace) -> None:
    out = path(space, 30, z=0.9)
    chunk = np.concatenate([out, out[::-1]])
    found = space.solve(chunk, HOME)
    assert found.unreached
    assert np.abs(space.actions(found.commands_HN)[-5:] - chunk[-5:]).max() < 1e-3


def test_places_beyond_the_box_of_a_hand_are_brought_to_it(space: RobotSpace) -> None:
    found = space.solve(path(space, 40, z=-0.6), HOME)
    least = next(each.limits.lower for each in HANDS.actions if each.name == 'left_hand/z/position')
    assert space.actions(found.commands_HN)[-1, 2] == pytest.approx(least, abs=1e-4)


def test_joints_stay_within_their_limits_up_to_the_border(space: RobotSpace) -> None:
    found = space.solve(path(space, 50, yaw=-5.0), HOME)
    lower = np.array([each.limits.lower for each in HANDS.robot.actions])
    upper = np.array([each.limits.upper for each in HANDS.robot.actions])
    assert (found.commands_HN >= lower).all()
    assert (found.commands_HN <= upper).all()
    [miss] = found.unreached
    assert 'at the limit' in miss.text
    assert miss.column == 'left_hand/yaw/position'


def test_a_robot_that_stands_beyond_a_limit_begins_at_the_limit(space: RobotSpace) -> None:
    start = HOME.copy()
    start[2] = -2.45  # left_joint1, its limit is -2.4
    found = space.solve(np.tile(space.state(start), (3, 1)), start)
    assert found.commands_HN[:, 2].min() >= -2.4


def test_no_joint_jumps_on_a_path_through_a_singularity(space: RobotSpace) -> None:
    # With joint 5 straight, joints 4 and 6 turn about one axis: the hand passes it on its way.
    start = HOME.copy()
    start[ARM['left']] = [0.0, 0.2, 0.3, 0.0, 0.4, 0.0]
    flat = RobotSpace(_with_rotation('rpy'))
    joints = np.tile(start, (40, 1))
    joints[:, 6] = np.linspace(0.4, -0.4, 40)
    chunk = flat.actions(joints)
    chunk[:, 1] += np.linspace(0.0, 0.05, 40)  # and not exactly through it
    found = flat.solve(chunk, start)
    reach = np.array([each.limits.velocity for each in HANDS.robot.actions]) * HANDS.step_ns / 1e9
    assert (np.abs(np.diff(found.commands_HN, axis=0)) <= 3.0 * reach).all()


def test_a_first_pose_far_away_is_solved_so_that_the_guard_sees_how_far(space: RobotSpace) -> None:
    chunk = path(space, 10)
    chunk[:, 0:2] += [0.15, 0.2]
    found = space.solve(chunk, HOME)
    assert found.unreached == ()
    assert np.abs(found.commands_HN[0] - HOME).max() > 0.2


def test_a_chunk_is_solved_from_the_step_that_is_due(space: RobotSpace) -> None:
    rows = path(space, 20, x=0.1)
    chunk = ActionChunk(10**9, HANDS.step_ns, HANDS.action_names, rows, 10**9, 7, policy_id='p')
    made, missed = space.chunk(chunk, HOME, first=5)
    assert missed == ()
    assert made.names == HANDS.robot.action_names
    assert (made.start_ns, made.chunk_id, made.policy_id) == (chunk.start_ns, 7, 'p')
    np.testing.assert_array_equal(made.data_HN[:5], np.tile(made.data_HN[5], (5, 1)))
    np.testing.assert_allclose(space.actions(made.data_HN)[5:, :3], rows[5:, :3], atol=1e-4)


@pytest.mark.parametrize('rotation', ['rpy', 'axis_angle', 'quaternion', 'rot6d'])
def test_whole_rotations_are_followed_in_every_representation(rotation: str) -> None:
    space = RobotSpace(_with_rotation(rotation))
    joints = np.tile(HOME, (20, 1))
    joints[:, ARM['left']] += np.linspace(0, 1, 20)[:, None] * np.array([0.3, 0.2, -0.4, 0.5, -0.3, 0.6])
    chunk = space.actions(joints)
    found = space.solve(chunk, HOME)
    assert found.unreached == ()
    np.testing.assert_allclose(found.commands_HN, joints, atol=5e-3)


def test_a_quaternion_of_norm_0_is_refused_by_name() -> None:
    space = RobotSpace(_with_rotation('quaternion'))
    chunk = np.zeros((3, len(space.contract.actions)))
    with pytest.raises(RobotError, match='left_hand/qx/position: a quaternion has a norm of 0'):
        space.solve(chunk, HOME)


@pytest.mark.parametrize('rotation', ['rpy', 'axis_angle', 'quaternion', 'rot6d', 'none'])
@pytest.mark.parametrize('value', [1e9, -1e300, 1.7e308])
def test_numbers_beyond_all_measure_are_held_or_refused(rotation: str, value: float) -> None:
    space = RobotSpace(_with_rotation(rotation))
    good = space.state(HOME)
    for column in range(len(good)):
        chunk = np.tile(good, (4, 1))
        chunk[2, column] = value
        if space.contract.action_names[column].split('/')[1] not in ('x', 'y', 'z', 'position'):
            with pytest.raises(RobotError, match='is no rotation'):
                space.solve(chunk, HOME)
            continue
        found = space.solve(chunk, HOME)
        assert np.isfinite(found.commands_HN[:, 2:]).all()
        assert np.abs(np.diff(found.commands_HN[:, 2:], axis=0)).max() < 1.0


def test_a_place_alone_leaves_the_rotation_to_the_arm() -> None:
    space = RobotSpace(_with_rotation('none'))
    chunk = np.tile(space.state(HOME), (15, 1))
    chunk[:, 0] += np.linspace(0, 0.1, 15)
    found = space.solve(chunk, HOME)
    assert found.unreached == ()
    np.testing.assert_allclose(space.actions(found.commands_HN), chunk, atol=2e-4)


def test_joints_that_nobody_knows_are_named(space: RobotSpace) -> None:
    start = HOME.copy()
    start[4] = np.nan
    with pytest.raises(RobotError, match='left_joint3/position carries left_hand, and where it stands is not known'):
        space.solve(path(space, 3), start)


def test_a_joint_that_is_measured_only_carries_the_hand_and_stays(tmp_path: Path) -> None:
    contract = _changed(lambda told: told['outputs'][0]['columns'].remove('left_joint1/position'))
    space = RobotSpace(contract)
    assert 'left_joint1/position' in space.robot.state_names
    assert 'left_joint1/position' not in space.robot.action_names
    measured = np.array([dict(zip(HANDS.robot.state_names, HOME, strict=True))[n] for n in space.robot.state_names])
    start = np.array([dict(zip(HANDS.robot.state_names, HOME, strict=True))[n] for n in space.robot.action_names])
    chunk = np.tile(space.state(measured), (5, 1))
    chunk[:, 2] += np.linspace(0, 0.05, 5)
    found = space.solve(chunk, start, measured)
    np.testing.assert_allclose(space.actions(found.commands_HN, np.tile(measured, (5, 1))), chunk, atol=2e-4)
    assert np.isnan(space.actions(found.commands_HN)[:, :4]).all()  # where the first joint was, is not known


def test_what_a_recording_tells_of_hands(space: RobotSpace) -> None:
    left = {'left_gripper/position', *(f'left_joint{i}/position' for i in range(1, 7))}
    assert space.told_by(left) == list(HANDS.action_names[LEFT])
    assert space.told_by(left - {'left_joint2/position'}) == ['left_gripper/position']


def test_a_contract_of_a_bundle_needs_no_file(space: RobotSpace, tmp_path: Path) -> None:
    kept = Contract.parse(HANDS.to_dict())
    assert kept.hash == HANDS.hash
    np.testing.assert_array_equal(RobotSpace(kept).state(HOME), space.state(HOME))
    bare = HANDS.to_dict()
    del bare['kinematics']['chain']
    with pytest.raises(RobotError, match='load the contract from its file'):
        RobotSpace(Contract.parse(bare))


def _with_rotation(rotation: str) -> Contract:
    """The simulator's robot with other columns for the rotations of its hands."""
    axes = {'rpy': 'roll pitch yaw', 'axis_angle': 'rx ry rz', 'quaternion': 'qx qy qz qw', 'none': '',
            'rot6d': 'r11 r21 r31 r12 r22 r32'}[rotation].split()  # fmt: skip
    unit = 'rad' if rotation in ('rpy', 'axis_angle') else '1'

    def change(told: dict[str, Any]) -> None:
        for label in ('state', 'actions'):
            kept = [each for each in told[label] if '/yaw/' not in each['name']]
            for side in ('left', 'right'):
                like = next(each for each in told[label] if each['name'] == f'{side}_hand/yaw/position')
                kept += [{**like, 'name': f'{side}_hand/{axis}/position', 'unit': unit} for axis in axes]
            told[label] = kept
        for each in told['actions']:
            each['limits'] = {} if 'hand' in each['name'] else each['limits']

    return _changed(change)


def _changed(change: Any) -> Contract:
    told = read_yaml(contract_file('bimanual_hands'))
    told['kinematics'] = HANDS.to_dict()['kinematics']
    change(told)
    return Contract.parse(told)
