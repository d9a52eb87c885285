"""The model of the robot and the contract that describes it to policies say the same."""

from __future__ import annotations

import numpy as np

from ki_robot.contract.contract import load_contract
from ki_sim.record.sim_bags import ROBOT
from ki_sim.world.robot import BASE_COLUMNS, BASE_SPEED, CAMERAS, COLUMNS, LIMITS, POSITION_JOINTS
from ki_sim.world.world import STEP_NS


def test_columns_and_cameras_are_the_contracts():
    contract = load_contract(ROBOT)
    assert contract.action_names == COLUMNS
    assert contract.state_names == COLUMNS
    assert contract.camera_names == CAMERAS
    assert contract.step_ns == STEP_NS


def test_the_contract_allows_nothing_that_the_robot_cannot_do():
    columns = {column.name: column.limits for column in load_contract(ROBOT).actions}
    for joint in POSITION_JOINTS:
        allowed, can = columns[f'{joint}/position'], LIMITS[joint]
        assert (allowed.lower, allowed.upper) == (can.lower, can.upper)
        assert allowed.velocity <= can.velocity
    for name in BASE_COLUMNS:
        assert columns[name].upper <= BASE_SPEED[name]


def test_limits_of_the_model_are_those_that_are_checked(blind_world):
    model = blind_world().model
    for joint in POSITION_JOINTS:
        low, high = model.actuator(joint).ctrlrange
        assert np.allclose((low, high), (LIMITS[joint].lower, LIMITS[joint].upper))


def test_state_names_come_in_the_contracts_order(blind_world, still_action):
    world = blind_world()
    action = still_action(world)
    action[0] += 0.1
    for _ in range(10):
        world.step(action)
    observation = world.observe(images=False)
    assert observation.state.shape == (17,)
    assert np.isclose(observation.state[0], action[0], atol=0.01)
    assert observation.state[0] == observation.joints['left_joint1'][0]
    assert observation.state[13] == observation.joints['right_gripper'][0]
