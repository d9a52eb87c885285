"""Messages to the controllers of the simulated robot do what they say, at their time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ki_bags import message_builders
from ki_bags.types import deserialise
from ki_robot.contract.contract import load_contract
from ki_robot.contract.parts import Output
from ki_sim.errors import SimError
from ki_sim.node.commands import reader
from ki_sim.record.sim_bags import ROBOT, Sender
from ki_sim.world.robot import ARM_JOINTS, COLUMNS
from ki_sim.world.world import STEP_NS, World

OFFSET_NS = 1_700_000_000_000_000_000


@pytest.fixture
def world() -> Iterator[World]:
    with World('demo', 0, cameras=()) as made:
        yield made


def output_of(column: str) -> Output:
    return next(output for output in load_contract(ROBOT).outputs if column in output.columns)


def commanded(world: World, side: str, after_s: float) -> np.ndarray:
    """What the controller of an arm asks for in a while."""
    return world.arms[side].update(world.time_ns + round(after_s * 1e9), np.zeros(6))


def test_a_trajectory_moves_the_arm_that_it_is_for_from_its_stamp_on(world: World) -> None:
    before = {side: commanded(world, side, 0.0) for side in ('left', 'right')}
    goal = before['right'] + 0.05
    stamp_ns = OFFSET_NS + world.time_ns + 500_000_000
    message = message_builders.trajectory(stamp_ns, ARM_JOINTS['right'], [400_000_000], [goal])
    reader(output_of('right_joint1/position'))(message)(world, OFFSET_NS)
    half = commanded(world, 'right', 0.7)
    assert (half > before['right']).all()
    assert (half < goal).all()
    np.testing.assert_allclose(commanded(world, 'right', 1.0), goal, atol=1e-9)
    np.testing.assert_allclose(commanded(world, 'left', 1.0), before['left'], atol=1e-9)

    late = message_builders.trajectory(OFFSET_NS - 2_000_000_000, ARM_JOINTS['right'], [400_000_000], [goal])
    with pytest.raises(SimError, match='past'):
        reader(output_of('right_joint1/position'))(late)(world, OFFSET_NS)


def test_a_gripper_takes_its_opening_alone(world: World) -> None:
    output = output_of('left_gripper/position')
    reader(output)(message_builders.command(output, 0, [0.02]))(world, 0)
    assert list(world.grippers['left'].command) == [0.02]
    with pytest.raises(SimError, match='left_gripper_controller got 2 numbers: send the opening alone'):
        reader(output)(message_builders.command(output, 0, [0.02, 0.03]))(world, 0)


def test_the_base_is_told_three_velocities(world: World) -> None:
    output = output_of('base/linear/x/velocity')
    reader(output)(message_builders.command(output, OFFSET_NS, [0.2, -0.1, 0.3]))(world, OFFSET_NS)
    np.testing.assert_allclose(world.base.sample(world.time_ns + 100_000_000), [0.2, -0.1, 0.3])
    np.testing.assert_allclose(world.base.sample(world.time_ns + 10**9), 0.0)  # it ran out


class Wire:
    """Takes the commands of a `Sender` to the controllers of a world."""

    def __init__(self, world: World) -> None:
        self.world, self.topics = world, {}
        self.readers = {'/' + output.topic: reader(output) for output in load_contract(ROBOT).outputs}

    def add_topic(self, name: str, type_name: str) -> None:
        self.topics[name] = type_name

    def write(self, topic: str, time_ns: int, data: bytes) -> None:
        self.readers[topic](deserialise(data, self.topics[topic]))(self.world, OFFSET_NS)


def test_rows_sent_as_messages_and_rows_given_to_step_make_the_same_states(world: World) -> None:
    wire, rng = Wire(world), np.random.default_rng(0)
    sender = Sender(wire, load_contract(ROBOT))
    row = world.observe(images=False).state
    with World('demo', 0, cameras=()) as stepped:
        for _ in range(20):
            row = row + np.concatenate([rng.normal(0.0, 0.02, 14), rng.normal(0.0, 0.01, 3)])
            row[[COLUMNS.index(f'{side}_gripper/position') for side in ('left', 'right')]] = 0.05
            sender.commands(OFFSET_NS + world.time_ns, row)
            world.advance(STEP_NS)
            stepped.step(row)
            assert world.joint_states() == stepped.joint_states()
            assert np.array_equal(world.odometry(), stepped.odometry())
