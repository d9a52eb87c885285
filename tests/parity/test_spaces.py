"""Ready contracts against what openpi's transforms do to the same numbers, stated here as facts: SI in, SI out.

openpi sees ALOHA as 14 numbers with normalised grippers, DROID as joints and a gripper of 0 .. 1, LIBERO as a place, an
axis-angle and two fingers. Sources are named in the contracts.
"""

from __future__ import annotations

import numpy as np
import pytest

from ki_robot.contract.contract import Contract, load_contract
from ki_robot.policy_values import policy_actions, policy_state, robot_actions

FLIP = np.array([1, -1, -1, 1, 1, 1, 1, 1, -1, -1, 1, 1, 1, 1])  # ALOHA's joints in pi0's directions
GRIPPERS, ARMS = [6, 13], [i for i in range(14) if i not in (6, 13)]
FINGER_SHUT, FINGER_OPEN = 0.01844, 0.05800  # m: normalised openings 0 and 1 of ALOHA's datasets
MOTOR_SHUT, MOTOR_OPEN = -0.6213, 1.4910  # rad: normalised commands 0 and 1


def motor_of(finger: np.ndarray) -> np.ndarray:
    """The motor's angle for a finger's place, by the crank (22 mm) and rod (36 mm) of the gripper."""
    return np.arcsin(np.clip((0.022**2 + finger**2 - 0.036**2) / (2 * 0.022 * finger), -1, 1))


def openpi_state(dataset_14: np.ndarray) -> np.ndarray:
    """A state of ALOHA's datasets as pi0 sees it with adapt_to_pi."""
    found = FLIP * dataset_14
    finger = dataset_14[..., GRIPPERS] * (FINGER_OPEN - FINGER_SHUT) + FINGER_SHUT
    found[..., GRIPPERS] = (motor_of(finger) - 0.5476) / (1.6296 - 0.5476)
    return found


def openpi_commands(said_H14: np.ndarray, state_14: np.ndarray) -> np.ndarray:
    """What pi0 says (deltas of the arms) as joint commands of ALOHA: rad, the gripper's motor in rad."""
    absolute = said_H14.copy()
    absolute[:, ARMS] += openpi_state(state_14)[ARMS]
    commands = FLIP * absolute
    normalised = (absolute[:, GRIPPERS] + 0.5476 - MOTOR_SHUT) / (MOTOR_OPEN - MOTOR_SHUT)
    commands[:, GRIPPERS] = normalised * (MOTOR_OPEN - MOTOR_SHUT) + MOTOR_SHUT
    return commands


def measured(dataset_14: np.ndarray) -> np.ndarray:
    """The same state as the driver measures it: a finger's place in m."""
    found = dataset_14.copy()
    found[..., GRIPPERS] = found[..., GRIPPERS] * (FINGER_OPEN - FINGER_SHUT) + FINGER_SHUT
    return found


@pytest.fixture(scope='module')
def aloha() -> Contract:
    return load_contract('aloha')


def states(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.uniform(-1.2, 1.2, (count, 14))
    found[:, GRIPPERS] = rng.uniform(0.02, 0.98, (count, 2))
    return found


def test_aloha_is_seen_as_pi0_saw_it(aloha: Contract) -> None:
    data = states(0, 200)
    np.testing.assert_allclose(policy_state(aloha, measured(data)), openpi_state(data), atol=1e-9)


def test_what_pi0_says_moves_aloha_as_openpi_moves_it(aloha: Contract) -> None:
    rng = np.random.default_rng(1)
    for state in states(2, 20):
        said = rng.normal(0, 0.1, (50, 14))
        said[:, GRIPPERS] = rng.uniform(-1.1, 0.9, (50, 2))  # between the ends of the crank
        ours = robot_actions(aloha, said, measured(state))
        wanted = openpi_commands(said, state)
        np.testing.assert_allclose(ours[:, ARMS], wanted[:, ARMS], atol=1e-9)
        np.testing.assert_allclose(motor_of(ours[:, GRIPPERS]), wanted[:, GRIPPERS], atol=1e-6)
        np.testing.assert_allclose(policy_actions(aloha, ours, measured(state)), said, atol=1e-6)


def test_mobile_aloha_has_the_same_arms_and_a_base_that_passes_through() -> None:
    mobile, table = load_contract('mobile_aloha'), load_contract('aloha')
    assert mobile.action_names[:14] == table.action_names
    assert [each.mapping for each in mobile.actions[:14]] == [each.mapping for each in table.actions]
    assert not any(each.is_mapped for each in mobile.actions[14:])


def test_droid_says_joint_velocities_of_3_rad_a_second_at_1(aloha: Contract) -> None:
    droid, rng = load_contract('droid'), np.random.default_rng(3)
    joints, gripper = rng.uniform(-1, 1, 7), 0.25
    state = np.array([*joints, gripper * 0.8])
    np.testing.assert_allclose(policy_state(droid, state), [*joints, gripper], atol=1e-12)
    said = rng.uniform(-1, 1, (15, 8))
    ours = robot_actions(droid, said, state)
    np.testing.assert_allclose(ours[:, :7] / droid.rate_hz, 0.2 * said[:, :7], atol=1e-12)  # rad a step
    np.testing.assert_allclose(ours[:, 7], 0.8 * said[:, 7], atol=1e-12)


def test_libero_says_steps_of_5_cm_and_half_a_rad_at_1() -> None:
    libero, rng = load_contract('libero'), np.random.default_rng(4)
    state = np.array([0.1, 0.2, 0.3, 3.1, 0.1, -0.2, 0.03, 0.02])
    np.testing.assert_allclose(policy_state(libero, state), [*state[:7], -0.02])
    said = rng.uniform(-1, 1, (10, 7))
    ours = robot_actions(libero, said, state)
    np.testing.assert_allclose(ours[:, :3] / libero.rate_hz, 0.05 * said[:, :3], atol=1e-12)
    np.testing.assert_allclose(ours[:, 3:6] / libero.rate_hz, 0.5 * said[:, 3:6], atol=1e-12)
    np.testing.assert_allclose(ours[:, 6], 0.02 * (1 - said[:, 6]), atol=1e-12)  # -1: 4 cm open, 1: shut


def test_so101_sees_degrees_and_a_gripper_of_0_to_100() -> None:
    so101 = load_contract('so101')
    state = np.array([0.1, -0.5, 1.0, 0.2, -1.0, 1.7453])
    np.testing.assert_allclose(policy_state(so101, state)[:5], np.degrees(state[:5]), atol=1e-9)
    assert policy_state(so101, state)[5] == pytest.approx(100.0, abs=0.01)
    state[5] = -0.1745
    assert policy_state(so101, state)[5] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    ('name', 'state', 'actions', 'cameras', 'rate'),
    [
        ('aloha', 14, 14, ('cam_high', 'cam_left_wrist', 'cam_right_wrist'), 50),
        ('mobile_aloha', 16, 16, ('cam_high', 'cam_left_wrist', 'cam_right_wrist'), 50),
        ('droid', 8, 8, ('exterior', 'wrist'), 15),
        ('libero', 8, 7, ('agentview', 'wrist'), 20),
        ('ur5e', 7, 7, ('base', 'wrist'), 20),
        ('franka_fr3', 8, 8, ('scene', 'wrist'), 15),
        ('so101', 6, 6, ('front', 'wrist'), 30),
        ('openarm_bimanual', 16, 16, ('head', 'left_wrist', 'right_wrist'), 30),
    ],
)
def test_ready_contracts_have_the_widths_views_and_rates_of_their_checkpoints(
    name: str, state: int, actions: int, cameras: tuple[str, ...], rate: float
) -> None:
    contract = load_contract(name)
    assert (len(contract.state), len(contract.actions)) == (state, actions)
    assert contract.camera_names == cameras
    assert contract.rate_hz == rate
    lower = np.array([each.limits.lower for each in contract.robot.actions], float)
    upper = np.array([each.limits.upper for each in contract.robot.actions], float)
    rows = 0.5 * (lower + upper) + np.linspace(-0.4, 0.4, 5)[:, None] * (upper - lower)
    seen = np.zeros(len(contract.state)) + 0.03
    back = robot_actions(contract, policy_actions(contract, rows, seen), seen)
    np.testing.assert_allclose(back, rows, atol=1e-9)
