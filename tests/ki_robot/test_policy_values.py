"""What a policy sees and says of SI columns: deltas, rotations composed, every one inverted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.names import ROTATION_AXES, RotationName
from ki_robot.errors import RobotError
from ki_robot.policy_values import policy_actions, policy_state, robot_actions
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
