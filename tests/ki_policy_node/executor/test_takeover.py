"""Policy, human, policy: one drives at a time, without a jump; and a live operator where one is required."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ki_policy_node.executor.chunk_follower import Follower
from ki_policy_node.executor.safety import Driver, Kind, Rules, Severity, State
from ki_policy_node.executor.teleop import HumanCommands
from ki_robot.contract.contract import Contract
from ki_robot.errors import RobotError

MS = 1_000_000
ARMS = ('joint1/position', 'joint2/position')


def bench_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location('follower_bench', Path(__file__).with_name('test_chunk_follower.py'))
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules['follower_bench'] = made
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def contract(rigs) -> Contract:
    return Contract.parse(rigs.small_robot())


@pytest.fixture
def bench(contract):
    made = bench_module().Bench(contract)
    made.way = []
    return made


def drive(bench, follower: Follower, ticks: int, targets=None, every: int = 2) -> None:
    """A human sends where both joints shall be, every so many ticks."""
    for tick in range(ticks):
        if targets is not None and tick % every == 0:
            at = targets(tick) if callable(targets) else targets
            values = dict(zip(ARMS, at, strict=True))
            chunk = follower.on_human('teleop/arm', values, bench.now, bench.now)
            if chunk is not None:
                follower.on_chunk(chunk, bench.now, bench.now, Driver.HUMAN)
        bench.tick()
        bench.way.append(bench.follower.setpoint_N.copy())


def test_a_human_takes_over_from_a_policy_and_gives_back_without_a_jump(bench, contract):
    bench.go()
    follower, begin = bench.follower, bench.pose.copy()
    follower.take_over(True, bench.now)
    assert (follower.state, follower.source) == (State.HOLD, Driver.HOLD), 'between two sources lies a brake'
    drive(bench, follower, 150, lambda tick: begin[:2] + 0.002 * tick)
    assert (follower.state, follower.source) == (State.RUN, Driver.HUMAN)
    assert follower.followed.policy_id == 'teleop/arm'
    np.testing.assert_allclose(bench.pose[:2], begin[:2] + 0.3, atol=0.03)

    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    assert follower.source is Driver.HUMAN, 'a policy that goes on speaking is not followed'
    follower.take_over(False, bench.now)
    drive(bench, follower, 5)
    assert follower.state is State.HOLD
    follower.on_chunk(bench.chunk(), bench.now, bench.now)
    drive(bench, follower, 60)
    assert (follower.state, follower.source) == (State.RUN, Driver.POLICY)

    told = [event.message for event in bench.told(Kind.TAKEOVER)]
    assert told == ['A human takes over.', 'The human gives back to the policy.']
    way = np.array(bench.way)[:, :2]
    speed = np.diff(way, axis=0) / 0.01
    limits = [contract.actions[i].limits for i in (0, 1)]
    assert np.abs(speed).max() <= max(each.velocity for each in limits) * (1 + 1e-6)


def test_a_human_who_is_far_away_is_approached_slowly_and_then_followed(bench, contract):
    bench.go()
    follower = bench.follower
    follower.take_over(True, bench.now)
    bench.rest()
    far = bench.pose[:2] + np.array([0.9, -0.6])
    drive(bench, follower, 40, far)
    assert follower.source is Driver.HUMAN
    slow = contract.start_speed * contract.actions[0].limits.velocity
    assert np.abs(np.diff(np.array(bench.way)[:, 0])).max() / 0.01 <= slow * (1 + 1e-6)
    drive(bench, follower, 600, far)
    np.testing.assert_allclose(bench.pose[:2], far, atol=1e-3)
    # A leader arm that is suddenly elsewhere is approached again.
    bench.way.clear()
    drive(bench, follower, 60, far - np.array([1.2, 0.0]))
    assert np.abs(np.diff(np.array(bench.way)[:, 0])).max() / 0.01 <= slow * (1 + 1e-6)


def test_a_human_who_falls_silent_is_a_hold_and_never_a_policy(bench):
    bench.go()
    follower = bench.follower
    follower.take_over(True, bench.now)
    drive(bench, follower, 100, bench.pose[:2])
    assert follower.source is Driver.HUMAN
    for _ in range(40):
        follower.on_chunk(bench.chunk(), bench.now, bench.now)
        bench.tick()
    assert (follower.state, follower.selected) == (State.HOLD, Driver.HUMAN)
    assert 'teleop/arm has fallen silent' in follower.reason
    assert bench.told(Kind.CHUNK_TIMEOUT)
    assert not follower.teleop_alive(bench.now)
    drive(bench, follower, 40, bench.pose[:2])
    assert follower.source is Driver.HUMAN, 'it goes on when the human does'


def test_an_estop_and_a_limit_beat_a_human(bench, contract):
    bench.go()
    follower = bench.follower
    follower.take_over(True, bench.now)
    upper = contract.actions[0].limits.upper
    begin = bench.pose[:2].copy()
    drive(bench, follower, 250, lambda tick: begin + np.array([0.015 * tick, 0.0]))
    assert begin[0] + 0.015 * 250 > upper + 1.0
    assert bench.pose[0] <= upper
    assert bench.told(Kind.POSITION_LIMIT), 'the same guard, which says so'
    follower.on_estop(True, bench.now)
    drive(bench, follower, 30, bench.pose[:2])
    assert follower.state is State.FAULT
    assert follower.source is Driver.HOLD
    follower.on_estop(False, bench.now)
    assert follower.reset_fault(bench.now) == ''
    assert follower.selected is Driver.HUMAN


def test_a_human_needs_no_policy(contract):
    bench = bench_module().Bench(contract)
    bench.way, bench.speaks = [], False
    follower = bench.follower
    follower.enable(True, bench.now)
    follower.take_over(True, bench.now)
    bench.tick(20)
    assert follower.reason == 'waits for the commands of a human'
    begin = bench.pose[:2].copy()
    for tick in range(100):
        values = dict(zip(ARMS, begin + 0.001 * tick, strict=True))
        chunk = follower.on_human('teleop/arm', values, bench.now, bench.now)
        if chunk is not None:
            follower.on_chunk(chunk, bench.now, bench.now, Driver.HUMAN)
        bench.tick()
    assert follower.source is Driver.HUMAN
    assert bench.pose[0] > begin[0] + 0.05


def test_what_a_human_does_not_command_stays_where_it_is_and_what_is_gripped_gripped(bench):
    bench.go()
    follower = bench.follower
    follower.take_over(True, bench.now)
    bench.rest()
    grip = float(follower.setpoint_N[2])
    bench.pose[2] = grip + 0.01  # something is in the hand, which is measured wider than it is commanded
    drive(bench, follower, 100, bench.pose[:2])
    assert follower.source is Driver.HUMAN
    assert bench.follower.setpoint_N[2] == pytest.approx(grip, abs=1e-6)
    assert bench.follower.setpoint_N[3] == 0.0, 'the base stands'


@pytest.mark.parametrize('act', ['lost', 'left'])
def test_without_a_live_operator_it_holds_within_a_second_until_it_is_enabled_again(contract, act):
    bench = bench_module().Bench(contract, Rules(operator_ns=700 * MS))
    follower = bench.follower
    assert 'no live operator' in follower.enable(True, bench.now)
    assert follower.state is State.DISABLED
    follower.on_operator('ada', bench.now)
    bench.go()
    for _ in range(20):
        follower.on_operator('ada', bench.now)
        bench.tick()
    assert follower.state is State.RUN
    assert follower.operator(bench.now) == 'ada'
    if act == 'left':
        follower.on_operator('', bench.now)
    bench.tick(2 if act == 'left' else 72)
    assert follower.state is State.HOLD
    assert bench.told(Kind.OPERATOR_LOST)[0].severity is Severity.REJECTED
    # One who is back does not set it moving.
    for _ in range(50):
        follower.on_operator('ada', bench.now)
        follower.on_chunk(bench.chunk(), bench.now, bench.now)
        bench.tick()
    assert follower.state in (State.HOLD, State.IDLE)
    assert 'enable again' in follower.reason
    assert follower.enable(True, bench.now) == ''
    follower.on_chunk(bench.chunk(), bench.now, bench.now)
    assert bench.runs()


def test_commands_are_interpolated_and_an_unknown_column_is_refused(contract):
    human = HumanCommands(contract, 250 * MS)
    here = np.array([0.1, 0.2, 0.3, 0.0])
    with pytest.raises(RobotError, match="'joint9/position', which is no action"):
        human.take('joystick', {'joint9/position': 0.0}, here, 10**12, 0)
    with pytest.raises(RobotError, match='not finite'):
        human.take('joystick', {'joint1/position': np.nan}, here, 10**12, 0)
    first = human.take('joystick', {'joint1/position': 0.5}, here, 10**12, 0)
    assert first.data_HN[-1].tolist() == [0.5, 0.2, 0.3, 0.0]
    assert human.take('joystick', {'joint1/position': 0.6}, here, 10**12 + 20 * MS, 20 * MS) is None, 'too soon'
    second = human.take('joystick', {'joint1/position': 0.7}, here, 10**12 + 50 * MS, 50 * MS)
    # Two steps of 50 ms later: where the human was then, and up to where the human is now.
    np.testing.assert_allclose(second.data_HN[:, 0], [0.5, 0.5, 0.7, 0.7, 0.7])


def test_a_velocity_that_is_not_sent_any_more_is_zero_while_other_commands_go_on(contract):
    human = HumanCommands(contract, 250 * MS)
    here = np.zeros(4)
    human.take('teleop/base', {'base/linear/x/velocity': 0.4}, here, 10**12, 0)
    made = None
    for step in range(1, 11):
        at = step * 50 * MS
        made = human.take('teleop/arm', {'joint1/position': 0.1}, here, 10**12 + at, at)
        if at <= 250 * MS:
            assert made.data_HN[-1, 3] == 0.4
    assert made is None, 'and one of two sources that falls silent ends both'
    assert 'teleop/base has fallen silent' in human.silent(500 * MS)


def test_a_wild_value_is_refused_and_a_clock_that_goes_back_starts_over(contract):
    human = HumanCommands(contract, 250 * MS)
    here = np.zeros(4)
    human.take('joystick', {'joint1/position': 1e308}, here, 10**12, 0)
    with pytest.raises(RobotError, match='values are finite'):
        human.take('joystick', {'joint1/position': -1e308}, here, 10**12 + 60 * MS, 60 * MS)
    made = human.take('joystick', {'joint1/position': 0.1}, here, 10**12 - 10 * 10**9, 100 * MS)
    np.testing.assert_array_equal(made.data_HN[:, 0], 0.1)
