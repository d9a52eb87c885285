"""The generator of motion: whatever is asked, what comes out keeps every limit, between the grid points too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_robot.actions.motion import Motion, MotionState, Profile, hermite
from ki_robot.contract.parts import Limits
from ki_robot.errors import RobotError

DT = 0.01
PERIOD = 10_000_000
ROOM = 1.0 + 1e-6


NAMES = ('a/position', 'b/position', 'c/position', 'base/linear/x/velocity', 'base/angular/z/velocity')
LIMITS = (
    Limits(lower=-1.0, upper=1.0, velocity=2.0, acceleration=10.0),
    Limits(lower=-1.0, upper=1.0, velocity=2.0, acceleration=10.0, jerk=200.0),
    Limits(lower=-0.5, upper=2.0, velocity=1.0),
    Limits(lower=-0.5, upper=0.5, velocity=0.5, acceleration=5.0),
    Limits(lower=-0.5, upper=0.5, velocity=0.5, acceleration=5.0, jerk=50.0),
)


def motion(names=NAMES, limits=LIMITS) -> Motion:
    return Motion(names, limits, PERIOD)


def pieces(states: list[MotionState]):
    """Values, speeds, accelerations at 21 places of every period, (21, K, N), and the jerk (K, N)."""
    values, rates = np.array([each.value_N for each in states]), np.array([each.rate_N for each in states])
    gap = 6.0 / DT * np.diff(values, axis=0)
    first = (gap - 4.0 * rates[:-1] - 2.0 * rates[1:]) / DT
    last = (2.0 * rates[:-1] + 4.0 * rates[1:] - gap) / DT
    part = np.linspace(0.0, 1.0, 21)[:, None, None]
    value, rate = hermite(values[:-1], rates[:-1], values[1:], rates[1:], DT, part)
    return value, rate, first + part * (last - first), (last - first) / DT


def assert_within(made: Motion, states: list[MotionState], outside: float = 0.0) -> None:
    value, rate, change, jerk = pieces(states)
    bounds = made.bounds
    assert np.isfinite(value).all()
    room = 1e-6 * (bounds.upper_N - bounds.lower_N) + outside
    assert (value.max(axis=(0, 1)) <= bounds.upper_N + room).all()
    assert (value.min(axis=(0, 1)) >= bounds.lower_N - room).all()
    assert (np.abs(rate).max(axis=(0, 1)) <= bounds.speed_N * ROOM).all()
    assert (np.abs(change).max(axis=(0, 1)) <= bounds.change_N * ROOM).all()
    assert (np.abs(jerk).max(axis=0) <= bounds.jerk_N * ROOM).all()


def wander(made: Motion, rng: np.random.Generator, ticks: int) -> list[MotionState]:
    """From rest after targets that rest, run, swing and jump, with brakes between."""
    count = len(made.names)
    states = [made.rest(rng.uniform(-0.4, 0.4, count))]
    to_zero = ~made.bounds.is_position_N
    mode, goal, speed, pulse = 0, np.zeros(count), np.zeros(count), 1.0
    for k in range(ticks):
        if rng.random() < 0.04:
            mode, goal = int(rng.integers(0, 5)), rng.uniform(-1.5, 1.5, count)
            speed, pulse = rng.uniform(-3.0, 3.0, count), float(rng.uniform(0.0, 20.0))
        if mode == 0:
            states.append(made.brake(states[-1], to_zero))
            continue
        target, lead = goal, np.zeros(count)
        if mode == 1:
            goal = target = goal + speed * DT
            lead = speed
        elif mode == 2:
            target, lead = np.sin(pulse * k * DT) * goal, pulse * np.cos(pulse * k * DT) * goal
        elif mode == 3:
            target, lead = rng.uniform(-1e6, 1e6, count), rng.uniform(-9.0, 9.0, count)
        states.append(made.follow(states[-1], target, lead))
    return states


@pytest.mark.parametrize('seed', range(8))
def test_whatever_is_asked_every_limit_holds_everywhere(seed):
    made = motion()
    assert_within(made, wander(made, np.random.default_rng(seed), 500))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 2), min_size=1, max_size=40))
def test_numbers_that_are_none_and_numbers_beyond_all_measure_move_nothing_out_of_its_limits(targets):
    made = motion()
    states = [made.rest(np.zeros(5))]
    for value, speed in targets:
        states.append(made.follow(states[-1], np.full(5, value), np.full(5, speed)))
    assert_within(made, states)


def test_from_every_state_it_brakes_to_rest_inside_its_limits():
    made = motion()
    rng = np.random.default_rng(5)
    for state in wander(made, rng, 400)[::10]:
        states = [state]
        while not made.resting(states[-1]):
            states.append(made.brake(states[-1]))
            assert len(states) < 200
        assert_within(made, states if len(states) > 1 else [state, state])
        assert made.brake(states[-1]).value_N == pytest.approx(states[-1].value_N, abs=0.0), 'and stays'


def test_braking_takes_the_way_that_the_limit_allows_and_no_longer():
    made = motion(NAMES[:1], LIMITS[:1])
    state = made.rest(np.array([-0.9]))
    for k in range(40):
        state = made.follow(state, np.array([-0.9 + 2.0 * (k + 1) * DT]), np.array([2.0]))
    assert state.rate_N[0] == pytest.approx(2.0)
    start, count = state.value_N[0], 0
    while not made.resting(state):
        state, count = made.brake(state), count + 1
    assert count * DT == pytest.approx(2.0 / 10.0, abs=DT)
    assert state.value_N[0] - start == pytest.approx(2.0**2 / (2 * 10.0), abs=2.0 * DT)


def test_a_braking_base_goes_to_zero_not_to_a_constant_speed():
    made = motion()
    state = made.rest(np.zeros(5))
    for _ in range(50):
        state = made.follow(state, np.array([0.0, 0.0, 0.0, 0.4, -0.4]), np.zeros(5))
    states, to_zero = [state], ~made.bounds.is_position_N
    assert state.value_N[3:] == pytest.approx([0.4, -0.4])
    while not made.resting(states[-1], to_zero):
        states.append(made.brake(states[-1], to_zero))
        assert len(states) < 60
    assert states[-1].value_N[3:].tolist() == [0.0, 0.0]
    assert_within(made, states)


def test_a_target_within_limits_is_met_exactly():
    made = motion()
    state, worst = made.rest(np.zeros(5)), np.zeros(5)
    for k in range(1, 600):
        early = k * DT + made.delay_ns_N / 1e9
        state = made.follow(state, 0.4 * np.sin(2.0 * early), 0.8 * np.cos(2.0 * early))
        if k > 300:
            worst = np.maximum(worst, np.abs(state.value_N - 0.4 * np.sin(2.0 * k * DT)))
    assert worst[[0, 2, 3]] == pytest.approx(0.0, abs=1e-12)
    assert worst[1] < 1e-3, 'a limited jerk rounds the path'


def test_a_moving_target_is_caught_up_with_and_then_met_without_a_quiver():
    made = motion(NAMES[:1], LIMITS[:1])
    state = made.rest(np.array([0.0]))
    changes = []
    for k in range(1, 60):
        state, before = made.follow(state, np.array([-0.5 + 0.3 + 1.0 * k * DT]), np.array([1.0])), state
        changes.append((state.rate_N[0] - before.rate_N[0]) / DT)
    assert state.value_N[0] == pytest.approx(-0.2 + 1.0 * 59 * DT, abs=1e-12)
    assert np.abs(changes[-10:]) == pytest.approx(0.0, abs=1e-9)


def test_a_far_target_is_reached_without_overshoot_in_about_the_shortest_time():
    made = motion(NAMES[:1], LIMITS[:1])
    states = [made.rest(np.array([-0.9]))]
    for _ in range(130):
        states.append(made.follow(states[-1], np.array([0.9]), np.zeros(1)))
    values = np.array([each.value_N[0] for each in states])
    assert values.max() <= 0.9 + 2e-4
    shortest = 1.8 / 2.0 + 2.0 / 10.0
    arrived = int(np.argmax(np.abs(values - 0.9) < 1e-3)) * DT
    assert arrived == pytest.approx(shortest, abs=3 * DT)
    assert values[-1] == pytest.approx(0.9, abs=1e-9)


@pytest.mark.parametrize('share', [0.1, 0.17, 0.2, 0.24, 0.26, 0.5, 0.9, 1.1])
def test_a_target_less_than_a_period_away_is_reached(share):
    made = motion()
    gap = share * made.bounds.change_N * DT * DT
    state = made.rest(np.zeros(5))
    for _ in range(40):
        state = made.follow(state, gap, np.zeros(5))
    assert state.value_N == pytest.approx(gap, rel=1e-9)


@pytest.mark.parametrize('start', [1.0 + 1e-9, 1.2])
def test_a_start_outside_a_limit_may_come_back_and_never_goes_further_out(start):
    made = motion(NAMES[:2], LIMITS[:2])
    states = [made.rest(np.array([start, -start]))]
    for k in range(200):
        out = k < 20
        goal = np.array([5.0, -5.0]) if out else np.array([0.5, -0.5])
        states.append(made.follow(states[-1], goal, np.array([2.0, -2.0]) if out else np.zeros(2)))
    assert_within(made, states, outside=start - 1.0)
    value, *_ = pieces(states)
    assert value.max() <= start * ROOM
    assert states[-1].value_N == pytest.approx([0.5, -0.5], abs=1e-6)
    for _ in range(200):
        states.append(made.follow(states[-1], np.array([5.0, -5.0]), np.zeros(2)))
    assert states[-1].upper_N.tolist() == [1.0, 1.0], 'once inside, the limit holds again'
    assert_within(made, states[-100:])


def test_a_lower_speed_for_an_approach_is_kept():
    made = motion(NAMES[:1], LIMITS[:1])
    states = [made.rest(np.array([-0.5]))]
    for _ in range(200):
        states.append(made.follow(states[-1], np.array([0.5]), np.zeros(1), np.array([0.25])))
    assert np.abs(pieces(states)[1]).max() <= 0.25 * ROOM


def test_a_profile_without_needless_knots_is_the_same_motion():
    made = motion(NAMES[:3], LIMITS[:3])
    states = [made.rest(np.zeros(3))]
    for k in range(1, 60):
        if k < 40:
            states.append(made.follow(states[-1], np.array([0.5, 0.5, 0.5]), np.zeros(3)))
        else:
            states.append(made.brake(states[-1]))
    times = PERIOD * np.arange(60, dtype=np.int64)
    whole = Profile(times, np.array([s.value_N for s in states]), np.array([s.rate_N for s in states]))
    thin = whole.thinned()
    assert len(thin.times_ns) < 45
    one = whole.columns(np.array([0]))
    assert len(one.times_ns) < 15, 'one column alone switches seldom'
    for time in range(0, int(times[-1]), 1_234_567):
        assert thin.at(time)[0] == pytest.approx(whole.at(time)[0], abs=1e-9)
        assert thin.at(time)[1] == pytest.approx(whole.at(time)[1], abs=1e-7)
        assert one.at(time)[0][0] == pytest.approx(whole.at(time)[0][0], abs=1e-9)


def test_limits_that_leave_a_column_without_a_speed_are_refused_by_name():
    with pytest.raises(RobotError, match='c/position has neither a range nor a limit of its speed'):
        motion(('c/position',), (Limits(),))
    with pytest.raises(RobotError, match=r'jerk limit of a/position would spread .* raise it'):
        motion(('a/position',), (Limits(lower=-1.0, upper=1.0, velocity=2.0, acceleration=10.0, jerk=0.5),))


def test_a_target_that_is_hours_away_is_headed_for_all_the_same() -> None:
    names = ('joint1/position',)
    motion = Motion(names, [Limits(lower=-1e7, upper=1e7, velocity=2.0, acceleration=20.0)], 10_000_000)
    state = motion.rest(np.zeros(1))
    for _ in range(50):
        state = motion.follow(state, np.full(1, 9e6), np.zeros(1), np.full(1, 0.2))
    assert state.rate_N[0] == pytest.approx(0.2)
