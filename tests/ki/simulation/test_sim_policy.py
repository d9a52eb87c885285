"""The node's policy cycle on the simulator's clock: chunks are carried out as on a robot."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki.simulation.sim_policy import MEASURED, ClosedLoopPolicy, SimRobotColumns, open_sim_policy
from ki_policy_node.cycle.continuation import Timing
from ki_policy_node.errors import NodeError
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.observation.observation import Observation
from ki_robot.space.robot_space import RobotSpace
from ki_sim.errors import SimError
from ki_sim.evaluate.closed_loop import EvaluationSettings, run_episode
from ki_sim.record.record import record_episode
from ki_sim.record.sim_bags import HANDS_ROBOT, ROBOT
from ki_sim.world.kinematics import Arms
from ki_sim.world.robot import COLUMNS
from ki_sim.world.world import STEP_NS, SimObservation, World
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.serving import ASKED_MODES, Serving
from ki_vla.policy.untrained import write_untrained

SMALL = EvaluationSettings(image_size=16)


@pytest.fixture(scope='module')
def contract() -> Contract:
    return load_contract(ROBOT)


@dataclass
class Chunks:
    """A policy that answers with rows of a plan, from the observation's time on."""

    contract: Contract
    rows: np.ndarray
    policy_id: str = 'chunks@1'
    backend: str = 'test'
    serving: Serving = field(default_factory=lambda: Serving.for_horizon(50, max_delay=10))
    asked: list[int] = field(default_factory=list)

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass

    def infer(self, observation: Observation, prefix_KN: Any, delay_steps: int, epoch: int) -> Inferred:
        first = (observation.state_stamp_ns - 1) // STEP_NS
        self.asked.append(first)
        return Inferred(self.rows[np.clip(np.arange(first, first + 50), 0, len(self.rows) - 1)])


def sensed(time_ns: int) -> SimObservation:
    return SimObservation(time_ns, {}, {}, np.zeros(3), np.zeros(3), np.zeros(17), 'go')


def carried_out(policy: ClosedLoopPolicy, steps: int) -> list[float | None]:
    """The first column of every step."""
    rows = [policy.next_row(step * STEP_NS, lambda step=step: sensed(step * STEP_NS)) for step in range(steps)]
    return [None if row is None else float(row[0]) for row in rows]


@pytest.mark.parametrize('mode', ASKED_MODES)
@pytest.mark.parametrize('delay_steps', [0, 4])
def test_a_perfect_policy_is_carried_out_in_every_mode(contract: Contract, mode: str, delay_steps: int) -> None:
    plan = Chunks(contract, np.arange(200.0)[:, None] * np.ones(17))
    policy = ClosedLoopPolicy(plan, Timing(mode, 20), delay_steps)
    policy.reset()
    rows = carried_out(policy, 120)
    assert rows == pytest.approx(np.arange(120.0))
    assert plan.asked[:4] == [0, 20, 40, 60] if mode != 'queue' else len(plan.asked) >= 4


def test_it_succeeds_in_the_simulator(contract: Contract) -> None:
    frames = record_episode('demo', 3, None, quality=None, arms=Arms()).frames
    plan = Chunks(contract, np.array([frame.action for frame in frames]))
    outcome = run_episode(ClosedLoopPolicy(plan, Timing('latest', 20), 4), 'demo', 3, settings=SMALL)
    assert outcome.success
    assert outcome.calls == len(plan.asked)


def test_hand_poses_are_carried_out_by_the_joints() -> None:
    """The scripted expert's joints as poses of its hands, where they point down; back through inverse kinematics."""
    hands = load_contract(HANDS_ROBOT)
    frames = record_episode('put_in_bin', 3, None, quality=None, arms=Arms()).frames
    rows = np.array([frame.action for frame in frames])
    told = rows[:, [COLUMNS.index(name) for name in hands.robot.action_names]]
    plan = Chunks(hands, RobotSpace(hands).actions(told))
    outcome = run_episode(ClosedLoopPolicy(plan, Timing('latest', 20), 4), 'put_in_bin', 3, settings=SMALL)
    assert outcome.success


@pytest.mark.parametrize('order', [(0, 49), (0, 30, 31), (7, 8, 25), tuple(range(50))])
def test_a_step_of_hand_poses_comes_out_as_if_the_whole_chunk_were_solved(order: tuple[int, ...]) -> None:
    hands = load_contract(HANDS_ROBOT)
    space, columns = RobotSpace(hands), SimRobotColumns(hands)
    frames = record_episode('put_in_bin', 3, None, quality=None, arms=Arms()).frames[40:90]
    commanded = [COLUMNS.index(name) for name in hands.robot.action_names]
    told = np.array([frame.action for frame in frames])[:, commanded]
    chunk = ActionChunk(1, STEP_NS, hands.action_names, space.actions(told))
    with World('put_in_bin', 3, cameras=()) as world:
        columns.state(replace(world.observe(images=False), state=frames[0].action))
    whole, _ = space.chunk(chunk, told[0], order[0])
    for step in order:
        np.testing.assert_array_equal(columns.row(chunk, step)[commanded], whole.data_HN[step])


@pytest.mark.parametrize('robot', [ROBOT, HANDS_ROBOT])
def test_a_policy_is_shown_the_cameras_of_its_contract(robot: str, tmp_path: Path) -> None:
    write_untrained(tmp_path / 'bundle', load_contract(robot))
    policy = open_sim_policy(tmp_path / 'bundle', 'torch', 0, 'latest', 20, 0)
    outcome = run_episode(policy, 'put_in_bin', 3, settings=EvaluationSettings(16, limit_s=0.3))
    policy.close()
    assert not outcome.error
    assert outcome.time_s == pytest.approx(0.3)


def test_the_robot_stands_still_where_the_chunk_ends_before_the_next_is_there(contract: Contract) -> None:
    policy = ClosedLoopPolicy(Chunks(contract, np.arange(200.0)[:, None] * np.ones(17)), Timing('latest', 45), 10)
    rows = carried_out(policy, 70)
    assert rows[:50] == pytest.approx(np.arange(50.0))
    assert rows[50:55] == [None] * 5
    assert rows[55:] == pytest.approx(np.arange(49.0, 64.0)), 'it goes on from the row on which it stands'


def test_an_inference_as_long_as_a_chunk_is_refused(contract: Contract) -> None:
    plan = Chunks(contract, np.zeros((200, 17)))
    with pytest.raises(NodeError, match='--delay-steps is 50; a chunk of chunks@1 has 50 steps'):
        ClosedLoopPolicy(plan, Timing(), 50)


@dataclass
class Slow(Chunks):
    """A policy that takes more than two steps, and says how often it was asked."""

    def infer(self, observation: Observation, prefix_KN: Any, delay_steps: int, epoch: int) -> Inferred:
        self.asked.append(observation.state_stamp_ns)
        time.sleep(2.4 * STEP_NS / 1e9)
        return Inferred(np.full((50, len(self.contract.actions)), 0.01 * len(self.asked)))


def test_a_measured_delay_is_as_long_as_the_inference_took(contract: Contract) -> None:
    policy = ClosedLoopPolicy(Slow(contract, np.zeros((1, 1))), Timing('latest', 10), MEASURED)
    first = carried_out(policy, 16)
    assert first[0] == pytest.approx(0.01), 'the first chunk is awaited'
    assert first[10:13] == pytest.approx([0.01] * 3), 'nothing is there before it could be'
    policy.close()


def test_episodes_do_not_remember_each_other(contract: Contract) -> None:
    policy = ClosedLoopPolicy(Chunks(contract, np.arange(200.0)[:, None] * np.ones(17)), Timing('rtc', 20), 3)
    one = carried_out(policy, 50)
    policy.reset()
    assert carried_out(policy, 50) == one


def test_a_policy_that_is_broken_ends_the_episode_with_the_reason_of_the_node(contract: Contract) -> None:
    policy = ClosedLoopPolicy(Chunks(contract, np.full((200, 17), np.nan)), Timing('latest', 20))
    with pytest.raises(SimError, match=r'values are finite\. \(3 times in a row\)'):
        carried_out(policy, 5)


def test_an_episode_has_the_noise_of_its_own_times_and_seed(contract: Contract, tmp_path: Path) -> None:
    from ki_vla.policy.inference import load_policy

    write_untrained(tmp_path / 'bundle', contract)
    images = {name: np.full((16, 16, 3), 90, np.uint8) for name in contract.camera_names}
    policy = open_sim_policy(tmp_path / 'bundle', 'torch', 3, 'latest', 20, 0)
    policy.reset()
    seen = SimObservation(0, images, {}, np.zeros(3), np.zeros(3), np.zeros(17), 'go')
    row = policy.next_row(0, lambda: seen)
    policy.close()
    with load_policy(tmp_path / 'bundle', 'torch', seed=3, allow_untrained=True) as loaded:
        assert np.array_equal(row, loaded.act(images, np.zeros(17), 'go', stamp_ns=0)[0])


def test_an_engine_is_opened_after_a_scene_was_drawn() -> None:
    """Without a GPU a scene is drawn by Mesa, whose LLVM and Triton's do not live in one process."""
    code = """
from ki_sim.world.world import World
with World('demo', seed=7, image_size=16) as world:
    world.observe()
import ki_vla.engine.torch
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
