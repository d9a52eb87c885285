"""The executor's decisions, without ROS: when it runs, when it holds, and what it tells."""

from __future__ import annotations

import numpy as np
import pytest

from ki_policy_node.executor.chunk_follower import Follower, Hold
from ki_policy_node.executor.outputs import Plan
from ki_policy_node.executor.safety import Kind, PolicyHealth, Rules, Severity, State
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract

MS = 1_000_000
STEP = 50 * MS
START = 10**12
NAMES = ('joint1/position', 'joint2/position', 'gripper/position', 'base/linear/x/velocity')


class Bench:
    """A follower with a robot that goes where it is sent, on one clock."""

    def __init__(self, contract: Contract, rules: Rules | None = None) -> None:
        limits = [column.limits for column in contract.actions]
        self.follower = Follower(contract, limits, rules or Rules(), 10 * MS)
        self.now = START
        self.pose = np.array([0.1, -0.2, 0.3])
        self.running, self.ended, self.words = True, False, ''
        self.measures = self.speaks = True
        self.sent: list[Plan | Hold | None] = []

    def tick(self, count: int = 1) -> Plan | Hold | None:
        for _ in range(count):
            self.now += 10 * MS
            if self.measures:
                values = dict(zip(NAMES, self.pose.tolist(), strict=False))
                self.follower.on_state('joint_states', values, self.now, self.now)
            if self.speaks:
                self.follower.on_policy_health(PolicyHealth(self.running, self.ended, self.words, self.now))
            self.sent.append(self.follower.tick(self.now, self.now))
            if isinstance(self.sent[-1], Plan):
                self.pose = self.sent[-1].setpoint_N[:3].copy()
        return self.sent[-1]

    def chunk(self, slope: float = 0.2, steps: int = 50, **changes) -> ActionChunk:
        start = changes.pop('start', self.now)
        rows = np.arange(steps)[:, None] * STEP / 1e9 * slope
        data = np.concatenate([self.pose + rows, np.full((steps, 1), 0.2)], axis=1)
        return ActionChunk(start, STEP, NAMES, data, observation_ns=start, chunk_id=7, **changes)

    def go(self) -> None:
        self.follower.enable(True, self.now)
        self.tick(2)
        self.follower.on_chunk(self.chunk(), self.now, self.now)
        self.tick(30)
        assert self.follower.state is State.RUN

    def told(self, kind: Kind):
        return [event for event in self.follower.events if event.kind is kind]


@pytest.fixture
def contract(rigs) -> Contract:
    return Contract.parse(rigs.small_robot())


@pytest.fixture
def bench(contract) -> Bench:
    return Bench(contract)


def test_nothing_is_sent_before_it_is_enabled(bench):
    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    assert bench.tick(5) is None
    assert bench.follower.state is State.DISABLED


def test_nothing_is_sent_before_the_first_chunk(bench):
    bench.follower.enable(True, bench.now)
    assert bench.tick(5) is None
    assert bench.follower.state is State.IDLE


def test_a_chunk_is_followed_at_its_own_times(bench):
    bench.go()
    chunk = bench.follower._chunk
    plan = bench.tick()
    expected = np.interp(bench.now + 10 * MS, chunk.times_ns, chunk.data_HN[:, 0])
    assert plan.setpoint_N[0] == pytest.approx(expected, abs=2e-3)
    assert plan.setpoint_N[3] == pytest.approx(0.2)


def test_a_window_reaches_300_ms_ahead_and_agrees_with_the_chunk(bench):
    bench.go()
    plan = bench.tick()
    assert plan.times_ns.tolist() == [k * 50 * MS for k in range(1, 7)]
    chunk = bench.follower._chunk
    for time, value in zip(plan.times_ns.tolist(), plan.values_KN[:, 0].tolist(), strict=True):
        assert value == pytest.approx(np.interp(bench.now + time, chunk.times_ns, chunk.data_HN[:, 0]), abs=3e-3)
    assert plan.velocities_KN[:, 0] == pytest.approx(0.2, abs=0.02)


def test_the_late_part_of_a_chunk_is_never_played(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(100)
    late = bench.chunk(start=bench.now - 1_000 * MS)
    bench.follower.on_chunk(late, bench.now, bench.now)
    bench.tick(60)
    values = [plan.setpoint_N[0] for plan in bench.sent if isinstance(plan, Plan)]
    assert np.all(np.diff(values) >= -1e-9), 'it only ever moves forward'
    assert values[-1] == pytest.approx(np.interp(bench.now + 10 * MS, late.times_ns, late.data_HN[:, 0]), abs=2e-3)


def test_a_chunk_that_is_past_is_refused_and_told(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(2)
    bench.follower.on_chunk(bench.chunk(start=bench.now - 3 * 10**9), bench.now, bench.now)
    assert bench.tick() is None
    event = bench.told(Kind.CHUNK_EXPIRED)[0]
    assert (event.severity, event.chunk_id) == (Severity.REJECTED, 7)


def test_a_chunk_that_starts_far_away_is_refused_and_names_the_joint(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(2)
    far = bench.chunk()
    bench.pose = bench.pose + np.array([0.0, 1.0, 0.0])
    bench.tick(1)
    bench.follower.on_chunk(far, bench.now, bench.now)
    assert bench.tick(2) is None
    event = bench.told(Kind.START_JUMP)[0]
    assert event.column == 'joint2/position'
    assert event.value == pytest.approx(1.0, abs=0.01)
    assert event.limit == pytest.approx(0.6), 'what full speed covers in 0.3 s'


def test_columns_are_matched_by_name(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(2)
    chunk = bench.chunk(slope=0.0)
    order = [3, 1, 0, 2]
    mixed = ActionChunk(chunk.start_ns, STEP, tuple(NAMES[i] for i in order), chunk.data_HN[:, order], chunk.start_ns)
    bench.follower.on_chunk(mixed, bench.now, bench.now)
    assert bench.tick(20).setpoint_N == pytest.approx(chunk.data_HN[0], abs=1e-6)


def test_an_older_chunk_that_was_overtaken_is_ignored(bench):
    bench.go()
    newest = bench.follower._chunk
    bench.follower.on_chunk(bench.chunk(start=newest.start_ns - STEP), bench.now, bench.now)
    assert bench.follower._chunk is newest


@pytest.mark.parametrize(
    ('fault', 'ticks', 'kind'),
    [('speaks', 26, Kind.CHUNK_TIMEOUT), ('measures', 21, Kind.STATE_STALE)],
)
def test_silence_is_a_hold_within_its_timeout(bench, fault, ticks, kind):
    bench.go()
    setattr(bench, fault, False)
    assert isinstance(bench.tick(ticks - 2), Plan)
    assert isinstance(bench.tick(2), Hold)
    assert len(bench.told(kind)) == 1


def test_the_hold_is_the_measured_pose_and_does_not_creep(bench):
    bench.go()
    bench.pose = bench.pose + np.array([0.01, 0.0, 0.05])
    bench.running, bench.words = False, 'head: stale'
    hold = bench.tick()
    assert isinstance(hold, Hold)
    assert not hold.again
    assert hold.pose_N[:2] == pytest.approx(bench.pose[:2])
    assert hold.pose_N[2] == pytest.approx(bench.pose[2] - 0.05), 'a gripper keeps its last command'
    assert hold.pose_N[3] == 0.0, 'a base stands still'
    bench.pose = bench.pose + 0.02
    again = bench.tick(3)
    assert again.again
    assert again.pose_N == pytest.approx(hold.pose_N)
    assert bench.follower.reason == 'policy: head: stale'


def test_without_a_measured_pose_the_hold_is_the_last_setpoint(bench):
    bench.go()
    setpoint = bench.follower.setpoint_N
    bench.measures = False
    hold = bench.tick(30)
    assert isinstance(hold, Hold)
    assert hold.pose_N[:2] == pytest.approx(setpoint[:2], abs=0.1)


def test_the_end_of_a_chunk_is_a_hold(bench):
    bench.go()
    bench.tick(300)
    assert bench.follower.state is State.HOLD
    assert bench.told(Kind.CHUNK_EXPIRED)


def test_after_a_run_the_hold_is_released(bench):
    bench.go()
    bench.running, bench.ended, bench.words = False, True, 'stopped'
    assert isinstance(bench.tick(50), Hold)
    assert bench.tick(60) is None
    assert bench.follower.state is State.IDLE


def test_a_hold_ends_with_a_chunk_that_came_after_it(bench):
    bench.go()
    bench.running = False
    bench.tick(5)
    bench.running = True
    assert isinstance(bench.tick(5), Hold), 'the chunk from before the hold is void'
    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    assert isinstance(bench.tick(), Plan)


def test_a_fault_stays_until_it_is_reset(bench):
    bench.go()
    bench.follower.on_estop(True, bench.now)
    assert isinstance(bench.tick(), Hold)
    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    bench.tick(3)
    assert bench.follower.state is State.FAULT
    assert 'still pressed' in bench.follower.reset_fault()
    bench.follower.on_estop(False, bench.now)
    bench.tick()
    assert bench.follower.state is State.FAULT
    assert bench.follower.reset_fault() == ''
    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    bench.tick()
    assert bench.follower.state is State.RUN


def test_nan_from_the_joints_three_times_in_a_row_is_a_fault(bench):
    bench.go()
    for _ in range(2):
        bench.follower.on_invalid_state('nan in joint1', True, bench.now)
    bench.tick()
    assert bench.follower.state is State.RUN
    for _ in range(3):
        bench.follower.on_invalid_state('nan in joint1', True, bench.now)
    assert bench.follower.state is State.FAULT


def test_a_robot_that_does_not_follow_is_a_fault(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(2)
    stuck = bench.pose.copy()
    bench.follower.on_chunk(bench.chunk(slope=0.9), bench.now, bench.now)
    for _ in range(170):
        bench.tick()
        bench.pose = stuck.copy()
    assert bench.follower.state is State.FAULT
    assert 'away from its setpoint' in bench.follower.reason


def test_a_clock_jump_voids_the_chunk(bench):
    bench.go()
    bench.follower.on_clock_jump(-50.0, bench.now)
    assert isinstance(bench.tick(), Hold)
    assert bench.follower.reason == 'ROS time jumped by -50.000 s'


def test_disabling_holds_once_and_falls_silent(bench):
    bench.go()
    bench.follower.enable(False, bench.now)
    assert isinstance(bench.tick(), Hold)
    assert bench.tick() is None


def test_the_last_word_is_a_hold_only_where_something_moved(bench, contract):
    assert Bench(contract).follower.last_word('the end', START) is None
    bench.go()
    assert isinstance(bench.follower.last_word('the end', bench.now), Hold)


def test_a_chunk_beyond_a_limit_is_clamped_and_told(bench):
    bench.go()
    fast = bench.chunk(slope=4.0)
    bench.follower.on_chunk(fast, bench.now, bench.now)
    assert bench.told(Kind.VELOCITY_LIMIT)[0].severity is Severity.CLAMPED
    before = bench.follower.setpoint_N.copy()
    plan = bench.tick()
    assert np.abs(plan.setpoint_N - before)[:3].max() <= 2.0 * 0.01 + 1e-9


def test_the_same_event_is_told_once_a_second(bench):
    bench.go()
    for _ in range(50):
        bench.tick()
        bench.follower.on_chunk(bench.chunk(start=bench.now - 3 * 10**9), bench.now, bench.now)
    assert len(bench.told(Kind.CHUNK_EXPIRED)) == 0, 'an overtaken chunk is not even worth a word'


def test_seams_between_chunks_keep_the_limits(bench):
    bench.go()
    rng = np.random.default_rng(1)
    values = [bench.follower.setpoint_N.copy()]
    for _ in range(20):
        chunk = bench.chunk(slope=float(rng.uniform(-1.5, 1.5)))
        bench.follower.on_chunk(chunk, bench.now, bench.now)
        for _ in range(20):
            plan = bench.tick()
            if isinstance(plan, Plan):
                values.append(plan.setpoint_N.copy())
    speed = np.diff(np.array(values)[:, 0]) / 0.01
    assert np.abs(speed).max() <= 2.0 + 1e-6
    assert np.abs(np.diff(speed) / 0.01).max() <= 20.0 + 1e-6


def test_limits_are_kept_in_ros_time_when_ticks_are_late(bench):
    bench.go()
    before, at = bench.follower.setpoint_N.copy(), bench.now
    bench.follower.on_chunk(bench.chunk(slope=1.8), bench.now, bench.now)
    bench.now += 40 * MS
    plan = bench.tick()
    moved = np.abs(plan.setpoint_N - before)[:3].max()
    assert 0.0 < moved <= 2.0 * (bench.now - at) / 1e9 + 1e-9


def test_a_clock_that_stands_still_moves_nothing(bench):
    bench.go()
    setpoint = bench.follower.setpoint_N.copy()
    for steady in range(10):
        plan = bench.follower.tick(bench.now, bench.now + steady)
        assert plan.setpoint_N == pytest.approx(setpoint)


def test_a_hold_of_an_earlier_run_is_never_said_again(bench):
    bench.go()
    assert isinstance(bench.follower.last_word('deactivated', bench.now), Hold)
    bench.pose = bench.pose + 1.0
    bench.measures = True
    assert bench.follower.last_word('the end', bench.now) is None, 'the robot has been moved meanwhile'
    bench.follower.enable(True, bench.now)
    assert bench.tick(3) is None


def test_an_estop_that_was_pressed_while_disabled_wants_a_reset(bench):
    bench.follower.on_estop(True, bench.now)
    bench.follower.enable(True, bench.now)
    assert bench.follower.state is State.FAULT
    bench.follower.on_estop(False, bench.now)
    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    assert bench.tick(3) is None
    assert bench.follower.state is State.FAULT
    assert bench.follower.reset_fault() == ''
    assert bench.follower.state is State.IDLE, 'nothing is held that never moved'


@pytest.mark.parametrize('way_out', ['disable', 'deactivate'])
def test_only_a_reset_takes_a_fault_away(bench, way_out):
    bench.go()
    bench.follower.on_estop(True, bench.now)
    bench.follower.on_estop(False, bench.now)
    bench.tick()
    if way_out == 'disable':
        bench.follower.enable(False, bench.now)
    else:
        bench.follower.last_word('deactivated', bench.now)
    bench.tick(2)
    bench.follower.enable(True, bench.now)
    assert (bench.follower.state, bench.follower.reason) == (State.FAULT, 'The e-stop is pressed.')


def test_a_chunk_that_came_before_any_measurement_is_judged_when_it_starts(bench):
    bench.measures = False
    bench.follower.enable(True, bench.now)
    bench.tick(2)
    far = bench.chunk()
    bench.pose = bench.pose + np.array([3.0, 0.0, 0.0])
    bench.follower.on_chunk(far, bench.now, bench.now)
    bench.measures = True
    assert bench.tick(2) is None
    assert bench.told(Kind.START_JUMP)[0].column == 'joint1/position'
    assert 'start jump' in bench.follower.reason


def test_a_refused_chunk_does_not_hide_a_fault(bench):
    bench.go()
    bench.follower.on_estop(True, bench.now)
    far = bench.chunk()
    bench.pose = bench.pose + 3.0
    bench.tick()
    bench.follower.on_chunk(far, bench.now, bench.now)
    assert bench.told(Kind.START_JUMP)
    assert bench.follower.reason == 'The e-stop is pressed.'


def test_a_hold_in_mid_run_is_released_when_the_run_is_over(bench):
    bench.go()
    bench.running, bench.words = False, 'head: stale'
    assert isinstance(bench.tick(300), Hold)
    bench.ended, bench.words = True, 'stopped'
    bench.tick(110)
    assert bench.follower.state is State.IDLE
    assert bench.tick() is None


def test_every_stop_that_was_not_asked_for_is_told(bench):
    bench.go()
    bench.running, bench.words = False, 'head: stale'
    bench.tick()
    assert bench.told(Kind.HOLD)[0].message == 'policy: head: stale'
    for number, stop in enumerate(
        (lambda: bench.follower.on_clock_jump(-5.0, bench.now), lambda: bench.follower.stop('nobody', bench.now))
    ):
        bench.running = True
        bench.tick(150)
        bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
        bench.tick(3)
        assert bench.follower.state is State.RUN
        stop()
        assert len(bench.told(Kind.HOLD)) == 2 + number


def test_a_run_that_was_ended_on_purpose_is_no_intervention(bench):
    bench.go()
    bench.running, bench.ended, bench.words = False, True, 'stopped'
    bench.tick(5)
    assert not bench.told(Kind.HOLD)
