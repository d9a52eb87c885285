"""Controllers: what joint_trajectory_controller documents, and refusals that change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_sim.errors import SimError
from ki_sim.world.controllers import (
    ForwardController,
    JointTrajectoryController,
    Point,
    Trajectory,
    TwistController,
    rate_limited,
)
from ki_sim.world.robot import JointLimit

MS = 1_000_000
LIMITS = {'a': JointLimit(-1.0, 1.0, 1.0, 1.0), 'b': JointLimit(-2.0, 2.0, 1.0, 1.0)}
AT = [0.0, 0.0]


def controller(timeout_ns: int = 0) -> JointTrajectoryController:
    made = JointTrajectoryController('arm', LIMITS, timeout_ns)
    made.hold(0, AT)
    return made


def trajectory(*points: tuple[int, list[float]], stamp_ms: int = 0, joints: tuple[str, ...] = ('a', 'b')) -> Trajectory:
    return Trajectory(joints, [Point(ms * MS, q) for ms, q in points], stamp_ms * MS)


def test_positions_alone_are_joined_by_straight_lines():
    arm = controller()
    arm.accept(trajectory((100, [1.0, -1.0]), (200, [0.0, 0.0])), 0)
    assert np.allclose(arm.sample(50 * MS, AT), [0.5, -0.5])
    assert np.allclose(arm.sample(150 * MS, AT), [0.5, -0.5])


def test_velocities_make_a_cubic_that_meets_them():
    arm = controller()
    rest = [0.0, 0.0]
    points = [Point(1000 * MS, [0.9, 0.0], rest), Point(2000 * MS, rest, [0.2, 0.0]), Point(3000 * MS, rest, rest)]
    arm.accept(Trajectory(('a', 'b'), points), 0)
    assert np.allclose(arm.sample(500 * MS, AT), [0.45, 0.0])  # half way of a rest-to-rest cubic
    assert arm.sample(100 * MS, AT)[0] < 0.1  # starts from rest, unlike a straight line
    before, end = arm.sample(1999 * MS, AT), arm.sample(2000 * MS, AT)
    assert (end - before)[0] / 1e-3 == pytest.approx(0.2, abs=0.02)


def test_accelerations_make_a_quintic():
    arm = controller()
    points = [Point(1000 * MS, [1.0, 0.0], [0.0, 0.0], [0.0, 0.0])]
    arm.accept(Trajectory(('a', 'b'), points), 0)
    s = 0.25
    assert arm.sample(250 * MS, AT)[0] == pytest.approx(s**3 * (10 - 15 * s + 6 * s * s))


def test_the_last_point_is_held():
    arm = controller()
    arm.accept(trajectory((100, [0.7, 0.3])), 0)
    assert np.allclose(arm.sample(10_000 * MS, AT), [0.7, 0.3])


def test_joints_are_matched_by_name():
    arm = controller()
    arm.accept(trajectory((100, [2.0, 1.0]), joints=('b', 'a')), 0)
    assert np.allclose(arm.sample(100 * MS, AT), [1.0, 2.0])


def test_points_in_the_past_are_dropped_and_later_ones_followed():
    arm = controller()
    arm.accept(trajectory((10, [1.0, 0.0]), (200, [0.5, 0.0]), stamp_ms=1000), 1100 * MS)
    assert np.allclose(arm.sample(1100 * MS, AT), AT)
    assert np.allclose(arm.sample(1150 * MS, AT), [0.25, 0.0])
    assert np.allclose(arm.sample(1200 * MS, AT), [0.5, 0.0])


def test_a_trajectory_all_in_the_past_is_refused_and_the_present_one_goes_on():
    arm = controller()
    arm.accept(trajectory((400, [0.8, 0.0])), 0)
    with pytest.raises(SimError, match='in the past'):
        arm.accept(trajectory((10, [-1.0, 0.0]), stamp_ms=50), 100 * MS)
    assert np.allclose(arm.sample(400 * MS, AT), [0.8, 0.0])


def test_a_trajectory_with_a_later_start_lets_the_present_one_run_until_then():
    arm = controller()
    arm.accept(trajectory((100, [0.4, 0.0]), (300, [0.8, 0.0])), 0)
    arm.accept(trajectory((100, [0.0, 1.0]), stamp_ms=200), 50 * MS)
    assert np.allclose(arm.sample(100 * MS, AT), [0.4, 0.0])
    assert np.allclose(arm.sample(200 * MS, AT), [0.6, 0.0])
    assert np.allclose(arm.sample(250 * MS, AT), [0.3, 0.5])
    assert np.allclose(arm.sample(300 * MS, AT), [0.0, 1.0])
    assert np.allclose(arm.sample(500 * MS, AT), [0.0, 1.0])


def test_replacement_on_arrival_starts_from_where_the_old_one_had_come():
    arm = controller()
    arm.accept(trajectory((100, [1.0, 0.0])), 0)
    arm.accept(trajectory((100, [0.0, 0.0])), 50 * MS)
    assert np.allclose(arm.sample(50 * MS, AT), [0.5, 0.0])
    assert np.allclose(arm.sample(100 * MS, AT), [0.25, 0.0])


def test_after_the_timeout_the_measured_pose_is_held():
    arm = controller(timeout_ns=100 * MS)
    arm.accept(trajectory((100, [1.0, 0.0])), 0)
    assert np.allclose(arm.sample(200 * MS, [0.9, 0.0]), [1.0, 0.0])
    assert not arm.timed_out
    assert np.allclose(arm.sample(201 * MS, [0.9, 0.0]), [0.9, 0.0])
    assert arm.timed_out
    arm.accept(trajectory((100, [0.0, 0.0])), 300 * MS)
    assert not arm.timed_out


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
            Trajectory(('b', 'a'), [Point(100 * MS, AT, [0.2, 0.1]), Point(200 * MS, AT, [-0.2, 0.0])]),
            'a last point at which b still moves at -0.2 rad/s: .*allow_nonzero_velocity_at_trajectory_end is false',
        ),
    ],
)
def test_a_refused_trajectory_says_why_and_changes_nothing(bad, said):
    arm = controller()
    arm.accept(trajectory((100, [0.5, 0.5])), 0)
    with pytest.raises(SimError, match=said):
        arm.accept(bad, 10 * MS)
    assert np.allclose(arm.sample(100 * MS, AT), [0.5, 0.5])


def test_rounding_beyond_a_limit_is_clipped():
    arm = controller()
    arm.accept(trajectory((100, [1.0005, 0.0])), 0)
    assert arm.sample(100 * MS, AT)[0] == 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 300), st.floats(-1, 1), st.floats(-2, 2)), min_size=1, max_size=6
    )
)
def test_replacements_never_jump_and_stay_inside_the_limits(commands):
    arm = controller()
    now, before = 0, np.zeros(2)
    for wait, start, a, b in commands:
        for _ in range(wait // 10):
            now += 10 * MS
            here = arm.sample(now, AT)
            # Every trajectory gives at least 100 ms for at most the whole range.
            assert np.all(np.abs(here - before) <= np.array([0.2, 0.4]) + 1e-9)
            assert -1 <= here[0] <= 1
            assert -2 <= here[1] <= 2
            before = here
        arm.accept(Trajectory(('a', 'b'), [Point(100 * MS, [a, b])], now + start * MS), now)
        assert np.allclose(arm.sample(now, AT), before, atol=1e-12) or now == 0


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
