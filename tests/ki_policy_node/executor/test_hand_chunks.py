"""Chunks of hand poses in the executor: solved to joints, which keep the limits, jumps and holds of any chunk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ki_policy_node.executor.chunk_follower import Follower
from ki_policy_node.executor.hand_chunks import HandChunks
from ki_policy_node.executor.safety import Event, Kind, PolicyHealth, Rules, Severity, State
from ki_robot.actions.chunk import ActionChunk
from ki_robot.actions.guard import GuardPolicy
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.space.robot_space import RobotSpace

MS = 1_000_000
HANDS = load_contract('bimanual_hands')
HOME = np.array([0.1, 0.1, 0.41, -1.5532, 2.2127, 0.0, 0.9113, 0.41, -0.41, -1.5532, 2.2127, 0.0, 0.9113, -0.41])
X, Z = HANDS.action_names.index('left_hand/x/position'), HANDS.action_names.index('left_hand/z/position')


class Bench:
    """What the executor's node does with a chunk, around a robot that goes where it is sent."""

    def __init__(self, contract: Contract = HANDS, rules: Rules | None = None) -> None:
        rules = rules or Rules()
        self.contract, self.space = contract, RobotSpace(contract)
        self.hands = HandChunks(contract, rules.guard)
        limits = [column.limits for column in contract.robot.actions]
        self.follower = Follower(contract.robot, limits, rules, 10 * MS)
        self.now, self.pose = 10**12, HOME.copy()
        self.events: list[Event] = []
        self.sent: list[np.ndarray] = []
        self.follower.enable(True, self.now)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.now += 10 * MS
            values = dict(zip(self.contract.robot.action_names, self.pose.tolist(), strict=True))
            self.follower.on_state('joint_states', values, self.now, self.now)
            self.follower.on_policy_health(PolicyHealth(True, False, '', self.now))
            command = self.follower.tick(self.now, self.now)
            if command is not None:
                self.pose = command.setpoint_N.copy()
                self.sent.append(self.pose)
        self.events += self.follower.events
        self.follower.events = []

    def chunk(self, **moved: float) -> ActionChunk:
        """From where the hands are; `moved` is how far the left one goes within the chunk."""
        rows = np.tile(self.space.state(self.pose), (50, 1))
        for name, by in moved.items():
            rows[:, HANDS.action_names.index(f'left_hand/{name}/position')] += np.linspace(0, by, 50)
        return ActionChunk(self.now, self.contract.step_ns, self.contract.action_names, rows, self.now, 1)

    def give(self, chunk: ActionChunk) -> ActionChunk | None:
        solved = self.hands.solve(chunk, self.now, self.follower.where_N, {})
        self.follower.on_solved(solved.events, self.now)
        if solved.chunk is not None:
            self.follower.on_chunk(solved.chunk, self.now, self.now)
        return solved.chunk

    def told(self, kind: Kind) -> list[Event]:
        return [event for event in self.events if event.kind is kind]


def test_a_chunk_of_hand_poses_is_followed_by_the_joints() -> None:
    bench = Bench()
    bench.tick(20)
    wanted = bench.chunk(x=0.12, z=-0.1, yaw=0.4)
    bench.give(wanted)
    bench.tick(240)
    assert bench.follower.state is State.RUN
    assert not bench.told(Kind.WORKSPACE)
    reached = bench.space.state(bench.pose)
    np.testing.assert_allclose(reached[:3], wanted.data_HN[-2, :3], atol=4e-3)  # the next to last is in force by now
    reach = np.array([column.limits.velocity for column in HANDS.robot.actions]) * 0.01
    assert (np.abs(np.diff(bench.sent, axis=0)) <= reach * (1 + 1e-6)).all()


def test_a_new_chunk_goes_on_from_where_the_joints_are_commanded() -> None:
    bench = Bench()
    bench.tick(20)
    bench.give(bench.chunk(x=0.1))
    for _ in range(6):
        bench.tick(30)
        bench.give(bench.chunk(x=0.1))
    assert bench.follower.state is State.RUN
    assert not bench.told(Kind.START_JUMP)


def test_a_first_pose_far_away_is_a_start_jump_of_the_joints() -> None:
    bench = Bench()
    bench.tick(20)
    far = bench.chunk()
    far.data_HN[:, X] -= 0.1
    far.data_HN[:, X + 1] += 0.45
    bench.give(far)
    bench.tick(20)
    assert bench.follower.state is State.IDLE
    [event] = bench.told(Kind.START_JUMP)
    assert event.column.startswith('left_joint')
    np.testing.assert_array_equal(bench.pose, HOME)


def test_a_pose_out_of_reach_is_told_and_the_arm_holds_there() -> None:
    loose = HANDS.replace(
        actions=tuple(
            each.replace(limits=each.limits.replace(lower=None, upper=None, velocity=None))
            if 'hand' in each.name
            else each
            for each in HANDS.actions
        )
    )
    bench = Bench(loose)
    bench.tick(20)
    bench.give(bench.chunk(x=0.8))
    bench.tick(245)
    assert bench.follower.state is State.RUN
    [event] = bench.told(Kind.WORKSPACE)
    assert event.severity is Severity.CLAMPED
    assert event.column == 'left_hand/x/position'
    assert event.step > 5
    assert event.value > 0.1
    assert 'left_hand holds at step' in event.message
    still = np.array(bench.sent[-40:])
    assert np.abs(np.diff(still, axis=0)).max() < 1e-3


def test_the_box_and_speed_of_a_hand_are_limits_like_those_of_a_joint() -> None:
    bench = Bench()
    bench.tick(20)
    bench.give(bench.chunk(z=-0.4))
    bench.tick(245)
    [event] = [each for each in bench.told(Kind.POSITION_LIMIT) if each.column == 'left_hand/z/position']
    assert event.limit == 0.735
    assert bench.space.state(bench.pose)[Z] == pytest.approx(0.735, abs=2e-3)

    strict = Bench(rules=Rules(guard=GuardPolicy(position='reject')))
    strict.tick(20)
    assert strict.give(strict.chunk(z=-0.4)) is None
    strict.tick(20)
    assert [event.severity for event in strict.told(Kind.POSITION_LIMIT)] == [Severity.REJECTED]
    np.testing.assert_array_equal(strict.pose, HOME)


def test_a_chunk_of_another_contract_is_refused_by_name() -> None:
    bench = Bench()
    bench.tick(20)
    chunk = bench.chunk()
    other = replace(chunk, names=tuple(name.replace('left_hand', 'hand') for name in chunk.names))
    assert bench.give(other) is None
    bench.tick()
    [event] = bench.told(Kind.NON_FINITE)
    assert "has no column 'left_hand/x/position'" in event.message


def test_nothing_is_solved_before_the_joints_are_measured() -> None:
    bench = Bench()
    assert bench.give(bench.chunk()) is None
    bench.tick()
    [event] = bench.told(Kind.NON_FINITE)
    assert 'where it stands is not known' in event.message


def test_columns_in_another_order_are_the_same_chunk() -> None:
    bench = Bench()
    bench.tick(20)
    chunk = bench.chunk(x=0.1)
    order = np.arange(len(chunk.names))[::-1]
    other = replace(chunk, names=tuple(chunk.names[i] for i in order), data_HN=chunk.data_HN[:, order])
    one, two = (bench.hands.solve(each, bench.now, HOME, {}).chunk for each in (chunk, other))
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.data_HN, two.data_HN)


def test_a_chunk_that_is_past_is_refused_once() -> None:
    bench = Bench()
    bench.tick(20)
    old = bench.chunk()
    bench.now += 4 * 10**9
    assert bench.give(old) is None


def test_a_robot_without_hands_follows_its_chunks_untouched() -> None:
    contract = load_contract('arm_single')
    chunk = ActionChunk(10**9, contract.step_ns, contract.action_names, np.zeros((5, 8)), 10**9)
    assert HandChunks(contract, GuardPolicy()).solve(chunk, 10**9, np.zeros(8), {}).chunk is chunk
