"""Controllers: what joint_trajectory_controller documents, and refusals that change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_sim.errors import SimError
from ki_sim.world.controllers import (
    ForwardController,
    JointTrajectoryController,
    Point,
    TrajectoryCommand,
    TwistController,
    rate_limited,
)
from ki_sim.world.robot import JointLimit

MS = 1_000_000
PERIOD = 10 * MS
LIMITS = {'a': JointLimit(-1.0, 1.0, 1.0, 1.0), 'b': JointLimit(-2.0, 2.0, 1.0, 1.0)}
AT = [0.0, 0.0]


class Arm:
    """A controller of two joints that is updated every 10 ms, and what it has commanded."""

    def __init__(self, timeout_ns: int = 0, from_desired: bool = True, start: Sequence[float] = (0.0, 0.0)) -> None:
        self.controller = JointTrajectoryController('arm', LIMITS, timeout_ns, PERIOD, from_desired)
        self.controller.activate(0, start)
        self.now = 0
        self.commands: list[np.ndarray] = []

    def accept(self, trajectory: TrajectoryCommand) -> None:
        self.controller.accept(trajectory, self.now)

    def until(self, ms: int, measured: Sequence[float] | None = None, speeds: Sequence[float] | None = None):
        """What is commanded for a time; joints are where they were sent, unless they are measured elsewhere."""
        while self.now < ms * MS:
            here = self.commands[-1] if self.commands else np.zeros(2)
            self.commands.append(self.controller.update(self.now, here if measured is None else measured, speeds))
            self.now += PERIOD
        return self.commands[-1] if self.commands else np.zeros(2)


def trajectory(
    *points: tuple[int, list[float]], stamp_ms: int = 0, joints: tuple[str, ...] = ('a', 'b')
) -> TrajectoryCommand:
    return TrajectoryCommand(joints, [Point(ms * MS, q) for ms, q in points], stamp_ms * MS)


def test_positions_alone_are_joined_by_straight_lines():
    arm = Arm()
    arm.accept(trajectory((0, AT), (100, [1.0, -1.0]), (200, [0.0, 0.0])))
    assert np.allclose(arm.until(50), [0.5, -0.5])
    assert np.allclose(arm.until(150), [0.5, -0.5])


def test_velocities_make_a_cubic_that_meets_them():
    arm = Arm()
    rest = [0.0, 0.0]
    points = [Point(0, rest, rest), Point(1000 * MS, [0.9, 0.0], rest)]
    points += [Point(2000 * MS, rest, [0.2, 0.0]), Point(3000 * MS, rest, rest)]
    arm.accept(TrajectoryCommand(('a', 'b'), points))
    assert arm.until(100)[0] < 0.1  # starts from rest, unlike a straight line
    assert np.allclose(arm.until(500), [0.45, 0.0])  # half way of a rest-to-rest cubic
    end = arm.until(2000)
    assert (end - arm.commands[-2])[0] / 0.01 == pytest.approx(0.2, abs=0.05)


def test_accelerations_make_a_quintic():
    arm = Arm()
    points = [Point(at * MS, [goal, 0.0], [0.0, 0.0], [0.0, 0.0]) for at, goal in ((0, 0.0), (1000, 1.0))]
    arm.accept(TrajectoryCommand(('a', 'b'), points))
    s = 0.25
    assert arm.until(250)[0] == pytest.approx(s**3 * (10 - 15 * s + 6 * s * s))


def test_the_last_point_is_held():
    arm = Arm()
    arm.accept(trajectory((100, [0.7, 0.3])))
    assert np.allclose(arm.until(10_000), [0.7, 0.3])


def test_joints_are_matched_by_name():
    arm = Arm()
    arm.accept(trajectory((100, [2.0, 1.0]), joints=('b', 'a')))
    assert np.allclose(arm.until(100), [1.0, 2.0])


def test_points_in_the_past_are_passed_over_and_later_ones_followed():
    arm = Arm()
    arm.until(1100)
    arm.accept(trajectory((10, [1.0, 0.0]), (200, [0.5, 0.0]), stamp_ms=1000))
    assert arm.until(1150)[0] == pytest.approx(1.0 - 0.5 * 140 / 190), 'on the line between its points'
    assert np.allclose(arm.until(1200), [0.5, 0.0])


def test_a_trajectory_all_in_the_past_is_refused_and_the_present_one_goes_on():
    arm = Arm()
    arm.accept(trajectory((400, [0.8, 0.0])))
    arm.until(100)
    with pytest.raises(SimError, match='in the past'):
        arm.accept(trajectory((10, [-1.0, 0.0]), stamp_ms=50))
    assert np.allclose(arm.until(400), [0.8, 0.0])


def test_a_trajectory_with_a_later_start_replaces_the_present_one_at_once():
    arm = Arm()
    arm.accept(trajectory((0, AT), (100, [0.4, 0.0]), (300, [0.8, 0.0])))
    arm.until(50)
    arm.accept(trajectory((100, [0.0, 1.0]), stamp_ms=200))
    assert arm.until(100)[1] > 0.1, 'a spline leads to its first point from the last command on'
    assert np.allclose(arm.until(300), [0.0, 1.0])


def speeds_of(arm: Arm) -> np.ndarray:
    return np.diff(np.array(arm.commands)[:, 0]) / 0.01


@pytest.mark.parametrize('from_desired', [True, False])
def test_a_splice_to_a_point_in_the_future_is_a_spike(from_desired):
    """As with the real one: 2.05 times the speed; a spline from a measured pose that lags runs backwards."""
    arm = Arm(from_desired=from_desired)
    for start in range(0, 500, 50):  # a constant 0.5 rad/s, said anew every 50 ms, stamped 0
        points = [Point(t * MS, [0.5 * (start + t) / 1000, 0.0], [0.5, 0.0]) for t in (100, 200, 299)]
        points.append(Point(300 * MS, [0.5 * (start + 299.5) / 1000, 0.0], [0.0, 0.0]))
        arm.accept(TrajectoryCommand(('a', 'b'), points))
        behind = arm.commands[-4] if len(arm.commands) > 3 else AT
        arm.until(start + 10, behind, [0.5, 0.0])
        arm.until(start + 50)
    speeds = speeds_of(arm)[12:]
    splices = speeds[2::5]
    usual = np.median(speeds)
    if from_desired:
        assert splices / usual == pytest.approx(2.05, abs=0.1)
    else:
        assert splices.max() < 0.0


def test_a_setpoint_every_50_ms_goes_a_third_of_the_way_in_the_first_period():
    """As with the real one: the line to a lone point begins a period early, so it takes 60 ms and 10 are over."""
    arm = Arm(start=(0.0, 0.0))
    arm.until(100)
    for step in range(1, 4):
        arm.accept(trajectory((50, [0.06 * step, 0.0]), stamp_ms=arm.now // MS))
        arm.until(100 + 50 * step)
    steps = np.diff(np.array(arm.commands)[9:, 0]).reshape(3, 5)
    assert steps == pytest.approx(np.tile([0.02, 0.01, 0.01, 0.01, 0.01], (3, 1)))


@pytest.mark.parametrize('from_desired', [True, False])
def test_a_splice_to_a_point_in_the_past_runs_on_as_if_there_were_none(from_desired):
    arm = Arm(from_desired=from_desired)
    for start in range(0, 500, 50):
        points = [Point(t * MS, [0.5 * (start + t) / 1000, 0.0], [0.5, 0.0]) for t in (0, 100, 200, 299)]
        points.append(Point(300 * MS, [0.5 * (start + 299.5) / 1000, 0.0], [0.0, 0.0]))
        if start == 0:
            points[0] = Point(0, AT, [0.5, 0.0])
        arm.accept(TrajectoryCommand(('a', 'b'), points, start * MS))
        arm.until(start + 50, [0.0, 0.0], [0.0, 0.0])
    assert speeds_of(arm) == pytest.approx(0.5, abs=1e-9)


def test_after_the_timeout_the_measured_pose_is_held():
    arm = Arm(timeout_ns=100 * MS)
    arm.accept(trajectory((100, [1.0, 0.0])))
    assert np.allclose(arm.until(210, [0.9, 0.0]), [1.0, 0.0])
    assert not arm.controller.timed_out
    assert np.allclose(arm.until(230, [0.9, 0.0]), [0.9, 0.0])
    assert arm.controller.timed_out
    arm.accept(trajectory((100, [0.0, 0.0])))
    assert not arm.controller.timed_out


def test_a_controller_that_is_activated_again_stays_where_the_joints_are_now():
    arm = Arm()
    arm.accept(trajectory((100, [1.0, 0.0])))
    arm.until(200)
    arm.controller.activate(arm.now, [0.3, 0.0])
    assert np.allclose(arm.until(300, [0.3, 0.0]), [0.3, 0.0])


@pytest.mark.parametrize(
    ('bad', 'said'),
    [
        (trajectory((100, [0.0, float('nan')])), r'not finite.*\(b\)'),
        (trajectory((100, [0.0, 0.0]), joints=('a', 'c')), r"\['a', 'c'\] but drives \['a', 'b'\]"),
        (trajectory((100, [0.0]), joints=('a',)), 'send each of them once'),
        (trajectory((100, [0.0, 0.0]), joints=('a', 'a')), 'send each of them once'),
        (trajectory((100, [1.5, 0.0])), r'a = 1.5000, outside its limits \[-1, 1\]'),
        (trajectory((100, [0.0])), r'got 1 positions of point 0 for 2 joints'),
        (trajectory((100, AT), (100, AT)), 'not after the one before'),
        (trajectory(), 'without points'),
        (
            TrajectoryCommand(('b', 'a'), [Point(100 * MS, AT, [0.2, 0.1]), Point(200 * MS, AT, [-0.2, 0.0])]),
            'a last point at which b still moves at -0.2 rad/s: .*allow_nonzero_velocity_at_trajectory_end is false',
        ),
    ],
)
def test_a_refused_trajectory_says_why_and_changes_nothing(bad, said):
    arm = Arm()
    arm.accept(trajectory((100, [0.5, 0.5])))
    arm.until(10)
    with pytest.raises(SimError, match=said):
        arm.accept(bad)
    assert np.allclose(arm.until(100), [0.5, 0.5])


def test_rounding_beyond_a_limit_is_clipped():
    arm = Arm()
    arm.accept(trajectory((100, [1.0005, 0.0])))
    assert arm.until(100)[0] == 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 300), st.floats(-1, 1), st.floats(-2, 2)), min_size=1, max_size=6
    )
)
def test_replacements_never_jump_and_stay_inside_the_limits(commands):
    arm = Arm()
    for wait, start, a, b in commands:
        arm.until(arm.now // MS + wait)
        arm.accept(TrajectoryCommand(('a', 'b'), [Point(100 * MS, [a, b])], arm.now + start * MS))
    arm.until(arm.now // MS + 500)
    played = np.array(arm.commands)
    # Every trajectory gives at least 100 ms for at most the whole range, and two periods' worth at its splice.
    assert np.all(np.abs(np.diff(played, axis=0)) <= 2 * np.array([0.2, 0.4]) + 1e-9)
    assert np.all(np.abs(played) <= np.array([1.0, 2.0]) + 1e-12)


def test_forwarded_values_stay_until_the_next():
    gripper = ForwardController('gripper', {'a': LIMITS['a']})
    gripper.accept([0.5])
    for bad, said in (([float('inf')], 'not finite'), ([0.1, 0.2], 'got 2 numbers'), ([1.2], 'outside')):
        with pytest.raises(SimError, match=said):
            gripper.accept(bad)
    assert gripper.command[0] == 0.5


def test_the_base_stops_when_its_commands_stop():
    base = TwistController('base', [0.5, 0.5, 1.0], timeout_ns=500 * MS)
    base.accept([0.2, 0.0, 0.1], 0)
    assert np.allclose(base.sample(500 * MS), [0.2, 0.0, 0.1])
    assert np.allclose(base.sample(501 * MS), 0.0)


def test_a_twist_too_fast_is_slowed_in_its_own_direction():
    base = TwistController('base', [0.5, 0.5, 1.0])
    base.accept([1.0, 0.5, 0.0], 0)
    assert np.allclose(base.sample(0), [0.5, 0.25, 0.0])


def test_an_old_or_broken_twist_is_refused():
    base = TwistController('base', [0.5, 0.5, 1.0], timeout_ns=500 * MS)
    with pytest.raises(SimError, match='600 ms old'):
        base.accept([0.1, 0, 0], 1000 * MS, stamp_ns=400 * MS)
    with pytest.raises(SimError, match='not finite'):
        base.accept([float('nan'), 0, 0], 0)
    with pytest.raises(SimError, match='got 2 numbers'):
        base.accept([0.1, 0.0], 0)
    assert np.allclose(base.sample(0), 0.0)


def test_the_joint_limiter_lets_through_what_the_speed_allows():
    assert np.allclose(rate_limited(np.zeros(2), np.array([1.0, -0.01]), np.array([2.0, 2.0]), 0.1), [0.2, -0.01])
