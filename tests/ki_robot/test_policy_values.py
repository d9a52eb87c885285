"""What a policy sees and says of SI columns: deltas, rotations composed, every one inverted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from ki_robot.contract.column_maps import COLUMN_MAPS, MapName
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.names import ROTATION_AXES, RotationName
from ki_robot.errors import RobotError
from ki_robot.policy_values import policy_actions, policy_state, robot_actions, without_jumps
from ki_robot.space.rotations import from_matrix, to_matrix

NUMBERS = st.floats(-10, 10, width=32)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, (4, 17), elements=NUMBERS), hnp.arrays(np.float64, 17, elements=NUMBERS))
def test_deltas_invert_and_leave_absolute_columns_alone(actions: np.ndarray, state: np.ndarray) -> None:
    contract = load_contract('bimanual_mobile')
    model = policy_actions(contract, actions, state)
    absolute = [i for i, column in enumerate(contract.actions) if column.representation == 'absolute']
    assert [contract.action_names[i] for i in absolute] == [
        'left_gripper/position', 'right_gripper/position', *contract.action_names[14:],
    ]  # fmt: skip
    np.testing.assert_array_equal(model[:, absolute], actions[:, absolute])
    np.testing.assert_allclose(model[:, 0], actions[:, 0] - state[0])
    back = robot_actions(contract, model, state)
    np.testing.assert_array_equal(back[:, absolute], actions[:, absolute])
    np.testing.assert_allclose(back, actions, rtol=0, atol=1e-14 * 20)


def test_deltas_take_leading_axes() -> None:
    contract = load_contract('arm_single')
    state = np.random.default_rng(0).normal(size=(6, 8))
    actions = np.random.default_rng(1).normal(size=(6, 50, 8))
    batch = policy_actions(contract, actions, state)
    np.testing.assert_array_equal(batch[4], policy_actions(contract, actions[4], state[4]))
    with pytest.raises(RobotError, match='arm_single has 8 state columns'):
        policy_actions(contract, actions, state[:, :7])


def posed(rotation: RotationName, delta: str, representation: str = 'delta') -> Contract:
    """A robot whose hand is measured by a stream, in one representation of its rotation."""
    axes = ('x', 'y', 'z', *ROTATION_AXES[rotation])
    turning = '1' if rotation in ('quaternion', 'rot6d') else 'rad'
    units = {axis: 'm' if axis in 'xyz' else turning for axis in axes}
    state = [{'name': f'hand/{axis}/position', 'unit': units[axis], 'source': 'pose'} for axis in axes]
    told: dict[str, Any] = {
        'name': 'posed', 'rate_hz': 10.0, 'horizon': 5,
        'cameras': [{'name': 'eye', 'topic': 'eye', 'transport': 'raw', 'max_age_s': 1.0}],
        'state_streams': [
            {'name': 'pose', 'topic': 'pose', 'type': 'pose', 'frame': 'base', 'max_age_s': 1.0, 'delta': delta}
        ],
        'state': state,
        'actions': [
            {'name': each['name'], 'unit': each['unit'], 'representation': representation} for each in state
        ],
    }  # fmt: skip
    return Contract.parse(told)


def poses(rotation: RotationName, count: int, seed: int) -> np.ndarray:
    """A smooth path of poses."""
    rng = np.random.default_rng(seed)
    start, turn = Rotation.random(rng=rng), rng.normal(size=3)
    matrices = np.stack([(Rotation.from_rotvec(0.1 * step * turn) * start).as_matrix() for step in range(count)])
    if rotation == 'yaw':
        matrices = to_matrix('yaw', np.linspace(2.8, 3.9, count)[:, None])
    return np.concatenate([rng.normal(size=(count, 3)), from_matrix(rotation, matrices)], axis=1)


@pytest.mark.parametrize('delta', ['base', 'tip'])
@pytest.mark.parametrize('rotation', list(ROTATION_AXES))
def test_a_delta_of_a_rotation_is_a_rotation_and_inverts(rotation: RotationName, delta: str) -> None:
    contract = posed(rotation, delta)
    path = poses(rotation, 7, seed=3)
    state, actions = path[0], path[1:]
    said = policy_actions(contract, actions, state)
    back = robot_actions(contract, said, state)
    np.testing.assert_allclose(to_matrix(rotation, back[:, 3:]), to_matrix(rotation, actions[:, 3:]), atol=1e-9)
    np.testing.assert_allclose(back[:, :3], actions[:, :3], atol=1e-12)
    batch = np.stack([actions, actions[::-1]])
    two = policy_actions(contract, batch, np.stack([state, path[3]]))
    np.testing.assert_allclose(two[0], said, atol=1e-15)
    np.testing.assert_allclose(robot_actions(contract, two, np.stack([state, path[3]]))[0], back, atol=1e-12)


def test_a_delta_in_the_axes_of_the_tip_does_not_change_when_the_robot_is_turned() -> None:
    contract = posed('axis_angle', 'tip')
    path = poses('axis_angle', 4, seed=5)
    turn = Rotation.from_rotvec([0.3, -1.0, 0.5])
    moved = np.concatenate(
        [turn.apply(path[:, :3]), (turn * Rotation.from_rotvec(path[:, 3:])).as_rotvec()], axis=1
    )  # fmt: skip
    ours = policy_actions(contract, path[1:], path[0])
    np.testing.assert_allclose(policy_actions(contract, moved[1:], moved[0]), ours, atol=1e-9)


def test_a_yaw_across_half_a_turn_is_a_small_delta() -> None:
    contract = posed('yaw', 'base')
    state, action = np.array([0.0, 0, 0, 3.1]), np.array([[0.0, 0, 0, -3.1]])
    said = policy_actions(contract, action, state)
    assert said[0, 3] == pytest.approx(2 * np.pi - 6.2)
    assert robot_actions(contract, said, state)[0, 3] == pytest.approx(2 * np.pi - 3.1)


@pytest.mark.parametrize('rotation', ['axis_angle', 'quaternion', 'rpy', 'yaw'])
def test_no_step_of_a_chunk_jumps_by_a_turn_or_a_sign(rotation: RotationName) -> None:
    contract = posed(rotation, 'base')
    # A gripper that points down lies at the seam of axis-angles: (pi, 0, 0) and (-pi, 0, 0) are one.
    turns = Rotation.from_rotvec([[np.pi + 0.02 * step, 0.0, 0.0] for step in range(-6, 7)]).as_matrix()
    if rotation == 'yaw':
        turns = to_matrix('yaw', np.linspace(3.0, 3.3, 13)[:, None])
    path = np.concatenate([np.zeros((13, 3)), from_matrix(rotation, turns)], axis=1)
    chunk = robot_actions(contract, policy_actions(contract, path[1:], path[0]), path[0])
    assert np.abs(np.diff(chunk, axis=0)).max() < 0.05


def test_steps_without_a_rotation_are_that_of_the_state() -> None:
    contract = posed('quaternion', 'base')
    path = poses('quaternion', 3, seed=1)
    actions = np.stack([path[1], np.zeros(7), np.full(7, np.nan)])
    said = policy_actions(contract, actions, path[0])
    np.testing.assert_allclose(said[1, 3:], [0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(said[2, 3:], [0, 0, 0, 1], atol=1e-12)
    with pytest.raises(RobotError, match='norm of 0'):
        robot_actions(contract, np.zeros((1, 7)), path[0])


def test_a_state_is_seen_as_it_is_measured() -> None:
    contract = posed('rot6d', 'base')
    state = poses('rot6d', 2, seed=2)
    assert policy_state(contract, state) is state


def aloha_like(**column: Any) -> Contract:
    """A joint and a gripper, mapped."""
    limits = {'lower': -3.0, 'upper': 3.0, 'velocity': 3.0}
    state = [
        {'name': 'shoulder/position', 'unit': 'rad', 'source': 'joints', 'sign': -1},
        {'name': 'gripper/position', 'unit': 'rad', 'source': 'joints', **column},
    ]
    actions = [
        {'name': 'shoulder/position', 'unit': 'rad', 'representation': 'delta', 'sign': -1, 'limits': limits},
        {'name': 'gripper/position', 'unit': 'rad', 'representation': 'absolute', 'limits': limits, **column},
    ]
    return Contract.parse(
        {
            'name': 'aloha_like', 'rate_hz': 50.0, 'horizon': 5,
            'cameras': [{'name': 'eye', 'topic': 'eye', 'transport': 'raw', 'max_age_s': 1.0}],
            'state_streams': [{'name': 'joints', 'topic': 'joints', 'type': 'joint_state', 'max_age_s': 1.0}],
            'state': state, 'actions': actions,
        }
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float64, (6, 2), elements=st.floats(-1.5, 1.5)), st.floats(0.1, 60), st.floats(-3, 3))
def test_maps_come_before_deltas_and_invert(actions: np.ndarray, scale: float, offset: float) -> None:
    contract = aloha_like(scale=scale, offset=offset)
    state = np.array([0.4, 0.2])
    said = policy_actions(contract, actions, state)
    np.testing.assert_allclose(said[:, 0], -(actions[:, 0] - 0.4), atol=1e-12)
    np.testing.assert_allclose(said[:, 1], scale * actions[:, 1] + offset, atol=1e-9)
    np.testing.assert_allclose(policy_state(contract, state), [-0.4, scale * 0.2 + offset], atol=1e-12)
    np.testing.assert_allclose(robot_actions(contract, said, state), actions, atol=1e-9)


@pytest.mark.parametrize('name', list(COLUMN_MAPS))
def test_the_gripper_of_aloha_inverts_in_both_units(name: MapName) -> None:
    angles, fingers = np.linspace(-0.62, 1.49, 50), np.linspace(0.0185, 0.0575, 50)
    for unit, values in (('rad', angles), ('m', fingers)):
        pair = COLUMN_MAPS[name][unit]
        np.testing.assert_allclose(pair.invert(pair.apply(values)), values, atol=1e-9)
    # a motor's angle and the finger that it moves are one gripper
    moved = 0.022 * np.sin(angles) + np.sqrt(0.036**2 - (0.022 * np.cos(angles)) ** 2)
    by_finger, by_angle = COLUMN_MAPS[name]['m'].apply(moved), COLUMN_MAPS[name]['rad'].apply(angles)
    np.testing.assert_allclose(by_finger, by_angle, atol=1e-9)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'map': 'aloha_gripper_state', 'unit': '1'}, r"map is 'aloha_gripper_state' for gripper/position in '1'; it"),
        ({'map': 'aloha'}, r"map is 'aloha'"),
        ({'scale': 0.0}, 'scale'),
        ({'sign': 2}, 'sign'),
    ],
)
def test_a_map_that_means_nothing_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RobotError, match=said):
        aloha_like(**change)


def test_a_delta_of_two_maps_is_refused() -> None:
    told = aloha_like().to_dict()
    del told['state'][0]['sign']
    with pytest.raises(RobotError, match='a delta with another sign, scale, offset or map than its state column'):
        Contract.parse(told)


def test_a_policy_of_other_signs_does_not_fit() -> None:
    told = aloha_like().to_dict()
    for label in ('state', 'actions'):
        del told[label][0]['sign']
    found = aloha_like().mismatches(Contract.parse(told))
    assert [text.split(':')[0] for text in found] == [
        'state (sign, scale, offset, map)', 'actions (sign, scale, offset, map)',
    ]  # fmt: skip


@pytest.mark.parametrize('rotation', ['axis_angle', 'quaternion', 'rpy', 'yaw'])
def test_chunks_that_follow_each_other_are_said_alike(rotation: RotationName) -> None:
    """A mean of two chunks of the same motion is that motion, also where the numbers of rotations jump."""
    contract = posed(rotation, 'base', 'absolute')
    angles = np.linspace(2.9, 3.5, 12)
    turns = Rotation.from_rotvec(angles[:, None] * [1.0, 0, 0]).as_matrix()
    turns = to_matrix('yaw', angles[:, None]) if rotation == 'yaw' else turns
    rows = np.concatenate([np.zeros((12, 3)), from_matrix(rotation, turns)], axis=1)
    one = without_jumps(contract, rows)
    two = without_jumps(contract, rows[8:], one[8])
    np.testing.assert_allclose(two, one[8:], atol=1e-9)
    assert np.abs(np.diff(one, axis=0)).max() < 0.1
    assert without_jumps(load_contract('arm_single'), rows) is rows
