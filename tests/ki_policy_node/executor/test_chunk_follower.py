"""The executor's decisions, without ROS: when it runs, when it holds, and what it tells."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ki_policy_node.executor.chunk_follower import Follower
from ki_policy_node.executor.playback import Setpoints
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
        self.sent: list[Setpoints | None] = []

    def tick(self, count: int = 1) -> Setpoints | None:
        for _ in range(count):
            self.now += 10 * MS
            if self.measures:
                values = dict(zip(NAMES, self.pose.tolist(), strict=False))
                self.follower.on_state('joint_states', values, self.now, self.now)
            if self.speaks:
                self.follower.on_policy_health(PolicyHealth(self.running, self.ended, self.words, self.now))
            self.sent.append(self.follower.tick(self.now, self.now))
            if self.sent[-1] is not None:
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
        self.tick(60)
        assert self.follower.state is State.RUN

    def runs(self) -> bool:
        """Whether the next tick follows a chunk."""
        self.tick()
        return self.follower.state is State.RUN

    def rest(self) -> np.ndarray:
        """Ticks until nothing is said any more; the setpoints on the way, (T, 4)."""
        way = [self.follower.setpoint_N]
        for _ in range(200):
            command = self.tick()
            if command is None:
                return np.array(way)
            way.append(command.setpoint_N)
        raise AssertionError('it never comes to rest')

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
    assert bench.tick(25) is None
    assert bench.follower.state is State.DISABLED


def test_nothing_is_sent_before_the_first_chunk(bench):
    bench.follower.enable(True, bench.now)
    assert bench.tick(25) is None
    assert bench.follower.state is State.IDLE


def test_a_chunk_is_followed_at_its_own_times(bench):
    bench.go()
    chunk = bench.follower._chunk
    command = bench.tick()
    expected = np.interp(bench.now + 10 * MS, chunk.times_ns, chunk.data_HN[:, 0])
    assert command.setpoint_N[:2] == pytest.approx([expected, expected - 0.3], abs=2e-3)
    assert command.setpoint_N[3] == pytest.approx(0.2)


def test_a_motion_begins_where_the_robot_is_measured_at_rest(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(2)
    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    begun = next(command for command in (bench.tick() for _ in range(40)) if command is not None)
    assert begun.setpoint_N[:2] == pytest.approx([0.1, -0.2], abs=1e-9)
    window = begun.window
    assert window.values_KN[0] == pytest.approx([0.1, -0.2])
    assert window.rates_KN[0].tolist() == window.rates_KN[-1].tolist() == [0.0, 0.0]
    assert window.times_ns[0] == bench.now + 200 * MS, 'until then its controller leads there'


def test_a_hold_while_a_controller_leads_to_the_start_lets_it_arrive_and_stay(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(20)
    bench.follower.on_chunk(bench.chunk(slope=0.5), bench.now, bench.now)
    begun = bench.tick()
    bench.running = False
    windows = [command.window for command in (bench.tick() for _ in range(60)) if command and command.window]
    assert len(windows) == 1, 'begun anew once, when it is nearly there'
    assert windows[0].times_ns.tolist() == [begun.window.times_ns[0]]
    assert windows[0].values_KN[0] == pytest.approx(begun.window.values_KN[0])


def test_a_motion_does_not_begin_while_the_robot_is_moved(bench):
    bench.follower.enable(True, bench.now)
    for _ in range(30):
        bench.pose = bench.pose + np.array([0.005, 0.0, 0.0])
        bench.follower.on_chunk(bench.chunk(slope=0.0), bench.now, bench.now)
        assert bench.tick() is None
    assert bench.follower.reason == 'joint1/position still moves.'
    bench.tick(20)
    assert bench.follower.state is State.RUN


def test_a_motion_does_not_begin_where_no_joint_can_be(bench):
    bench.pose = np.array([2.3, 0.0, 0.3])
    bench.follower.enable(True, bench.now)
    bench.tick(20)
    bench.follower.on_chunk(bench.chunk(slope=0.0), bench.now, bench.now)
    assert bench.tick(5) is None
    assert bench.follower.reason == (
        'joint1/position is measured at 2.3, beyond its limits (-2.2 to 2.2, a margin included).'
    )


def test_the_late_part_of_a_chunk_is_never_played(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(100)
    late = bench.chunk(start=bench.now - 1_000 * MS)
    bench.follower.on_chunk(late, bench.now, bench.now)
    bench.tick(90)
    values = [command.setpoint_N[0] for command in bench.sent if command is not None]
    assert np.all(np.diff(values) >= -1e-9), 'it only ever moves forward'
    assert values[-1] == pytest.approx(np.interp(bench.now + 10 * MS, late.times_ns, late.data_HN[:, 0]), abs=2e-3)


def test_a_chunk_that_is_past_is_refused_and_told(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(20)
    bench.follower.on_chunk(bench.chunk(start=bench.now - 3 * 10**9), bench.now, bench.now)
    assert bench.tick() is None
    event = bench.told(Kind.CHUNK_EXPIRED)[0]
    assert (event.severity, event.chunk_id) == (Severity.REJECTED, 7)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'observation_ns': 3600 * 10**9}, 'an observation 3600.000 s in the future'),
        ({'observation_ns': 60 * 10**9, 'start_ns': 60 * 10**9}, 'an observation 60.000 s in the future'),
        ({'start_ns': 60 * 10**9}, 'starts in 60.000 s'),
        ({'step_ns': 3600 * 10**9}, 'has a step of 3600 s; the contract of small has 0.05 s'),
        ({'step_ns': STEP + STEP // 100}, 'has a step of 0.0505 s'),
    ],
)
def test_a_chunk_of_impossible_times_is_refused_and_blocks_no_later_one(bench, change, said):
    bench.go()
    good = bench.chunk()
    bad = {name: value if name == 'step_ns' else bench.now + value for name, value in change.items()}
    bench.follower.on_chunk(replace(good, chunk_id=66, **bad), bench.now, bench.now)
    assert said in bench.follower.events[-1].message
    assert bench.follower.events[-1].chunk_id == 66
    bench.tick(2)
    for number in range(12):
        bench.follower.on_chunk(replace(bench.chunk(), chunk_id=100 + number), bench.now, bench.now)
        bench.tick(20)
        assert bench.follower._chunk.chunk_id == 100 + number


def test_a_chunk_that_starts_far_away_is_refused_and_names_the_joint(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(20)
    far = bench.chunk()
    bench.pose = bench.pose + np.array([0.0, 1.0, 0.0])
    bench.tick(1)
    bench.follower.on_chunk(far, bench.now, bench.now)
    assert bench.tick(20) is None
    event = bench.told(Kind.START_JUMP)[0]
    assert event.column == 'joint2/position'
    assert event.value == pytest.approx(1.0, abs=0.01)
    assert event.limit == pytest.approx(0.6), 'what full speed covers in 0.3 s'


def test_a_far_start_is_approached_slowly_where_the_contract_says_so(contract):
    bench = Bench(contract.replace(on_far_start='approach', start_speed=0.2))
    bench.follower.enable(True, bench.now)
    bench.tick(20)
    goal = bench.chunk(slope=0.0)
    bench.pose = bench.pose + np.array([0.0, 1.0, 0.0])
    bench.tick(20)
    speeds, before = [], None
    for number in range(400):
        if number % 40 == 0:
            moved = replace(goal, start_ns=bench.now, observation_ns=bench.now, chunk_id=number)
            bench.follower.on_chunk(moved, bench.now, bench.now)
        command = bench.tick()
        if before is not None and command is not None:
            speeds.append(np.abs(command.setpoint_N - before.setpoint_N)[1] / 0.01)
        before = command
    assert bench.follower.state is State.RUN
    assert bench.pose[1] == pytest.approx(-0.2, abs=1e-6)
    assert max(speeds) == pytest.approx(0.2 * 2.0, rel=1e-6)


def test_columns_are_matched_by_name(bench):
    bench.follower.enable(True, bench.now)
    bench.tick(20)
    chunk = bench.chunk(slope=0.0)
    order = [3, 1, 0, 2]
    mixed = ActionChunk(chunk.start_ns, STEP, tuple(NAMES[i] for i in order), chunk.data_HN[:, order], chunk.start_ns)
    bench.follower.on_chunk(mixed, bench.now, bench.now)
    assert bench.tick(50).setpoint_N == pytest.approx(chunk.data_HN[0], abs=1e-6)


def test_an_older_chunk_that_was_overtaken_is_ignored(bench):
    bench.go()
    newest = bench.follower._chunk
    bench.follower.on_chunk(bench.chunk(start=newest.start_ns - STEP), bench.now, bench.now)
    assert bench.follower._chunk is newest


def test_another_policy_may_take_over_but_not_two_speak_in_turn(bench):
    bench.go()

    def say(policy: str) -> None:
        bench.tick(4)
        bench.follower.on_chunk(bench.chunk(policy_id=policy), bench.now, bench.now)

    say('a')
    say('b')
    assert bench.runs(), 'another was loaded'
    say('a')
    assert not bench.runs()
    for policy in 'babab':
        say(policy)
        assert not bench.runs()
    assert bench.follower.reason == "Several policies send chunks in turn ('', 'a', 'b'); end all but one."
    assert bench.told(Kind.FOREIGN_PUBLISHER)[0].severity is Severity.REJECTED
    for _ in range(60):
        say('b')
    assert bench.runs(), 'one of them has been silent for a while'


def test_two_nodes_of_one_policy_are_told_apart_by_the_numbers_of_their_chunks(bench):
    bench.go()

    def say(number: int) -> None:
        bench.tick(20)
        bench.follower.on_chunk(replace(bench.chunk(), chunk_id=number), bench.now, bench.now)

    for number in (8, 9, 1, 2, 3):
        say(number)
        assert bench.runs(), 'a policy that was started anew'
    for number in (10, 4, 11, 5):
        say(number)
        assert not bench.runs()
    assert bench.told(Kind.FOREIGN_PUBLISHER)


@pytest.mark.parametrize(
    ('fault', 'ticks', 'kind'),
    [('speaks', 26, Kind.CHUNK_TIMEOUT), ('measures', 21, Kind.STATE_STALE)],
)
def test_silence_is_a_hold_within_its_timeout(bench, fault, ticks, kind):
    bench.go()
    setattr(bench, fault, False)
    bench.tick(ticks - 2)
    assert bench.follower.state is State.RUN
    bench.tick(2)
    assert bench.follower.state is State.HOLD
    assert len(bench.told(kind)) == 1


def test_a_hold_brakes_from_the_command_and_never_goes_to_the_measured_pose(bench):
    bench.go()
    bench.follower.on_chunk(bench.chunk(slope=1.5), bench.now, bench.now)
    bench.tick(30)
    before = bench.tick().setpoint_N
    bench.pose = bench.pose - np.array([0.1, 0.1, 0.05])
    bench.running, bench.words = False, 'head: stale'
    bench.measures = False
    way = bench.rest()
    assert bench.follower.reason == 'policy: head: stale'
    assert (np.diff(way[:, :3], axis=0) >= -1e-12).all(), 'on and slower, not back'
    assert (way[-1, :3] - before[:3] <= 1.5**2 / (2 * 20.0) + 1.5 * 0.06).all(), 'no further than a brake takes'
    assert way[-1, 3] == 0.0, 'a base stands still'
    assert np.abs(np.diff(way[:, :3], 2, axis=0) / 0.01**2).max() <= 20.0 * (1 + 1e-6)
    assert np.abs(np.diff(way[:, 3]) / 0.01).max() <= 5.0 * (1 + 1e-6)


def test_a_hold_is_said_until_it_rests_and_then_no_more(bench):
    bench.go()
    bench.running, bench.words = False, 'head: stale'
    bench.rest()
    bench.pose = bench.pose + 0.3  # moved by hand, or its controllers started elsewhere
    assert all(bench.tick() is None for _ in range(500))
    assert bench.follower.state is State.HOLD


def test_zeros_from_a_broken_driver_are_no_place_to_go(bench):
    bench.pose = np.array([1.2, -0.9, 0.3])
    bench.go()
    before = bench.follower.setpoint_N.copy()
    bench.measures = False
    for _ in range(80):
        bench.now += 10 * MS
        bench.follower.on_state('joint_states', dict.fromkeys(NAMES, 0.0), bench.now, bench.now)
        bench.follower.on_policy_health(PolicyHealth(True, False, '', bench.now))
        command = bench.follower.tick(bench.now, bench.now)
        if command is not None:
            assert np.abs(command.setpoint_N - before)[:2].max() < 0.25
    assert bench.follower.state is State.FAULT
    assert bench.follower.reason.startswith(
        '3 states that cannot be true within a second: joint1/position is measured at 0, 0.'
    )


def test_a_column_may_stray_as_far_as_its_contract_says(contract):
    actions = (contract.actions[0].replace(tolerance=0.02), *contract.actions[1:])
    bench = Bench(contract.replace(actions=actions))
    bench.go()
    bench.measures = False
    stuck = bench.pose.copy()
    for _ in range(70):
        bench.now += 10 * MS
        bench.follower.on_state('joint_states', dict(zip(NAMES, stuck.tolist(), strict=False)), bench.now, bench.now)
        bench.follower.on_policy_health(PolicyHealth(True, False, '', bench.now))
        bench.follower.tick(bench.now, bench.now)
    assert bench.follower.state is State.FAULT
    assert bench.told(Kind.START_JUMP)[0].limit == 0.02


def test_the_end_of_a_chunk_is_a_hold(bench):
    bench.go()
    bench.tick(300)
    assert bench.follower.state is State.HOLD
    assert bench.told(Kind.CHUNK_EXPIRED)


def test_after_a_run_the_hold_is_released(bench):
    bench.go()
    bench.running, bench.ended, bench.words = False, True, 'stopped'
    bench.rest()
    assert bench.follower.state is State.IDLE


def test_a_hold_ends_with_a_chunk_that_came_after_it(bench):
    bench.go()
    bench.running = False
    bench.tick(5)
    bench.running = True
    bench.tick(5)
    assert bench.follower.state is State.HOLD, 'the chunk from before the hold is void'
    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    assert bench.runs()


def test_a_run_that_goes_on_in_mid_brake_does_not_jump(bench):
    bench.go()
    bench.follower.on_chunk(bench.chunk(slope=1.5), bench.now, bench.now)
    bench.tick(30)
    way = [bench.tick().setpoint_N]
    bench.running = False
    way += [bench.tick().setpoint_N for _ in range(3)]
    bench.running = True
    bench.follower.on_chunk(bench.chunk(slope=1.5), bench.now, bench.now)
    way += [bench.tick().setpoint_N for _ in range(20)]
    assert bench.follower.state is State.RUN
    assert np.abs(np.diff(np.array(way)[:, 2], 2) / 0.01**2).max() <= 20.0 * (1 + 1e-6)


def test_a_fault_stays_until_it_is_reset(bench):
    bench.go()
    bench.follower.on_estop(True, bench.now)
    assert bench.tick() is not None
    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    bench.tick(3)
    assert bench.follower.state is State.FAULT
    assert 'still pressed' in bench.follower.reset_fault(bench.now)
    bench.follower.on_estop(False, bench.now)
    bench.rest()
    assert bench.follower.state is State.FAULT
    assert bench.follower.reset_fault(bench.now) == ''
    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    bench.tick()
    assert bench.follower.state is State.RUN


def test_controllers_that_were_started_again_elsewhere_are_not_pulled_back(bench):
    """Measured with the real ones: with the e-stop latched, a hold that was repeated drove joints at 10 rad/s."""
    bench.go()
    bench.follower.on_estop(True, bench.now)
    bench.tick(10)
    for _ in range(100):
        bench.follower.stop('Nobody listens to arm_controller/joint_trajectory.', bench.now)
        bench.tick()
    bench.pose = np.array([1.0, 1.0, 1.0])
    bench.follower.unblock()
    assert all(bench.tick() is None for _ in range(200))
    bench.follower.on_estop(False, bench.now)
    assert bench.follower.reset_fault(bench.now) == ''
    bench.follower.on_chunk(bench.chunk(slope=0.0), bench.now, bench.now)
    begun = bench.tick()
    assert begun.setpoint_N[:3] == pytest.approx([1.0, 1.0, 1.0]), 'afresh, where it is now'


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
    bench.tick(20)
    stuck = bench.pose.copy()
    bench.follower.on_chunk(bench.chunk(slope=0.9), bench.now, bench.now)
    for _ in range(190):
        bench.tick()
        bench.pose = stuck.copy()
    assert bench.follower.state is State.FAULT
    assert 'away from its command' in bench.follower.reason


def test_a_hand_that_grips_is_neither_stuck_nor_opened(bench):
    bench.go()
    for number in range(200):
        if number % 20 == 0:
            chunk = bench.chunk(slope=0.0)
            rows = chunk.data_HN.copy()
            rows[:, 2] = np.minimum(bench.follower.setpoint_N[2] + 0.5 * np.arange(50) * STEP / 1e9, 1.0)
            bench.follower.on_chunk(replace(chunk, data_HN=rows), bench.now, bench.now)
        bench.tick()
        bench.pose[2] = min(bench.pose[2], 0.4)  # what it grips
    assert bench.follower.state is State.RUN
    gripped = bench.follower.setpoint_N[2]
    assert gripped > 0.9
    bench.running, bench.words = False, 'head: stale'
    for _ in range(100):
        command = bench.tick()
        bench.pose[2] = 0.4
        assert command is None or command.setpoint_N[2] >= gripped - 1e-9
    bench.running = True
    bench.follower.on_chunk(bench.chunk(slope=0.0), bench.now, bench.now)
    assert bench.tick().setpoint_N[2] >= gripped - 0.002, 'and the next run goes on from there'


def test_a_clock_jump_voids_the_chunk(bench):
    bench.go()
    bench.now -= 50 * 10**9
    bench.follower.on_clock_jump(-50.0, bench.now)
    assert bench.tick() is not None
    assert bench.follower.state is State.HOLD
    assert bench.follower.reason == 'ROS time jumped by -50.000 s'
    bench.rest()


@pytest.mark.parametrize('act', ['disable', 'end'])
def test_disabling_and_ending_brake_to_rest_and_fall_silent(bench, act):
    bench.go()
    bench.follower.on_chunk(bench.chunk(slope=1.5), bench.now, bench.now)
    bench.tick(30)
    if act == 'disable':
        bench.follower.enable(False, bench.now)
    else:
        bench.follower.end('the end')
    assert bench.follower.state is State.DISABLED
    way = bench.rest()
    assert len(way) > 8, 'it takes the time that the limit asks for'
    assert np.abs(np.diff(way[:, :3], 2, axis=0) / 0.01**2).max() <= 20.0 * (1 + 1e-6)
    assert bench.follower.silent
    bench.pose = bench.pose + 1.0
    bench.follower.enable(True, bench.now)
    assert bench.tick(30) is None


def test_ending_says_nothing_where_nothing_moved(bench):
    bench.follower.end('the end')
    assert bench.follower.silent
    assert bench.tick() is None


def test_a_chunk_beyond_a_limit_is_clamped_and_told(bench):
    bench.go()
    fast = bench.chunk(slope=4.0)
    bench.follower.on_chunk(fast, bench.now, bench.now)
    assert bench.told(Kind.VELOCITY_LIMIT)[0].severity is Severity.CLAMPED
    before = bench.follower.setpoint_N.copy()
    command = bench.tick()
    assert np.abs(command.setpoint_N - before)[:3].max() <= 2.0 * 0.01 + 1e-9


def test_a_chunk_that_the_limits_make_late_is_told(bench):
    bench.go()
    bench.tick(100)
    bench.follower.on_chunk(bench.chunk(slope=0.0), bench.now, bench.now)
    chunk = bench.chunk(slope=0.0)
    rows = chunk.data_HN + np.array([0.59, 0.0, 0.0, 0.0])
    bench.follower.on_chunk(replace(chunk, data_HN=rows), bench.now, bench.now)
    bench.tick(2)
    event = bench.told(Kind.VELOCITY_LIMIT)[0]
    assert event.column == 'joint1/position'
    assert 'behind its chunk' in event.message


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
            values.append(bench.tick().setpoint_N)
    speed = np.diff(np.array(values)[:, :3], axis=0) / 0.01
    assert np.abs(speed).max() <= 2.0 + 1e-6
    assert np.abs(np.diff(speed, axis=0) / 0.01).max() <= 20.0 + 1e-6


@pytest.mark.parametrize('late', [40, 90, 400])
def test_time_that_a_late_tick_loses_is_not_made_up_for_in_one_step(bench, late):
    bench.go()
    bench.follower.on_chunk(bench.chunk(slope=1.8), bench.now, bench.now)
    bench.tick(25)
    before = bench.follower.setpoint_N.copy()
    bench.now += late * MS
    bench.follower.on_state('joint_states', dict(zip(NAMES, bench.pose.tolist(), strict=False)), bench.now, bench.now)
    command = bench.tick()
    assert 0.0 <= command.setpoint_N[2] - before[2] <= 2.0 * 0.01 + 1e-9
    assert bool(bench.told(Kind.HOLD)) == (late > 50)
    if late > 50:
        assert bench.told(Kind.HOLD)[0].message.startswith(f'A tick came {late} ms late')
    values = np.array([bench.tick().setpoint_N[2] for _ in range(60)])
    assert np.abs(np.diff(values)).max() <= 2.0 * 0.01 + 1e-9
    chunk = bench.follower._chunk
    assert values[-1] == pytest.approx(np.interp(bench.now + 10 * MS, chunk.times_ns, chunk.data_HN[:, 2]), abs=0.12)


def test_a_window_repeats_what_plays_and_only_then_goes_its_own_way(bench):
    bench.go()
    windows = []
    for number in range(60):
        if number % 9 == 0:
            bench.follower.on_chunk(bench.chunk(slope=0.3 * (-1) ** number), bench.now, bench.now)
        command = bench.tick()
        if command.window is not None:
            windows.append((bench.now, command.window))
    assert 8 <= len(windows) <= 30, 'a window that still holds is left alone'
    for (_, old), (now, new) in itertools.pairwise(windows):
        assert new.times_ns[0] <= now
        assert new.rates_KN[-1].tolist() == [0.0, 0.0], 'it ends at rest'
        for time in range(now, now + 40 * MS, 3 * MS):
            assert new.at(time)[0] == pytest.approx(old.at(time)[0], abs=1e-12)
            assert new.at(time)[1] == pytest.approx(old.at(time)[1], abs=1e-9)


def test_a_clock_that_stands_still_moves_nothing_tick_by_tick_for_long(bench):
    bench.go()
    for steady in range(10):
        bench.follower.tick(bench.now, bench.now + steady)
    setpoint = bench.follower.setpoint_N.copy()
    for steady in range(10, 30):
        command = bench.follower.tick(bench.now, bench.now + steady)
        assert command.setpoint_N == pytest.approx(setpoint)


def test_an_estop_that_was_pressed_while_disabled_wants_a_reset(bench):
    bench.follower.on_estop(True, bench.now)
    bench.follower.enable(True, bench.now)
    assert bench.follower.state is State.FAULT
    bench.follower.on_estop(False, bench.now)
    bench.follower.on_chunk(bench.chunk(), bench.now, bench.now)
    assert bench.tick(3) is None
    assert bench.follower.state is State.FAULT
    assert bench.follower.reset_fault(bench.now) == ''
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
        bench.follower.end('deactivated')
    bench.tick(2)
    bench.follower.enable(True, bench.now)
    assert (bench.follower.state, bench.follower.reason) == (State.FAULT, 'The e-stop is pressed.')


def test_a_chunk_that_came_before_any_measurement_is_judged_when_it_starts(bench):
    bench.measures = False
    bench.follower.enable(True, bench.now)
    bench.tick(2)
    far = bench.chunk()
    bench.pose = bench.pose + np.array([1.5, 0.0, 0.0])
    bench.follower.on_chunk(far, bench.now, bench.now)
    bench.measures = True
    assert bench.tick(20) is None
    assert bench.told(Kind.START_JUMP)[0].column == 'joint1/position'
    assert 'start jump' in bench.follower.reason


def test_a_refused_chunk_does_not_hide_a_fault(bench):
    bench.go()
    bench.follower.on_estop(True, bench.now)
    far = bench.chunk()
    bench.rest()
    bench.pose = bench.pose + 1.2
    bench.tick()
    bench.follower.on_chunk(far, bench.now, bench.now)
    assert bench.told(Kind.START_JUMP)
    assert bench.follower.reason == 'The e-stop is pressed.'


def test_a_hold_in_mid_run_is_released_when_the_run_is_over(bench):
    bench.go()
    bench.running, bench.words = False, 'head: stale'
    bench.tick(300)
    assert bench.follower.state is State.HOLD
    bench.ended, bench.words = True, 'stopped'
    bench.tick(1)
    assert bench.follower.state is State.IDLE


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


def test_where_nothing_is_in_fault_a_reset_is_never_refused(bench):
    """A simulated robot that is set elsewhere between two runs, and reset with everything else."""
    bench.go()
    bench.follower.enable(False, bench.now)
    bench.tick(3)
    values = dict(zip(NAMES, (bench.pose + 1.0).tolist(), strict=False))
    bench.follower.on_state('joint_states', values, bench.now + 1, bench.now + 1)
    assert bench.follower.reset_fault(bench.now + 2) == ''
