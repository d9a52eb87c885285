"""The one generator of motion: from a moving target to setpoints within position, speed, acceleration and jerk limits.

Whatever reaches a controller comes out of here: following, approaching, holding, stopping. A motion advances on a grid
of equal periods; between two grid points every column is one cubic, so a controller that plays the cubic through the
positions and velocities of the grid (joint_trajectory_controller does) reproduces it exactly, accelerations included.

Three properties hold for any target, reachable or not, finite or jumping (tests/ki_robot/actions/test_motion.py):

* Value, speed and acceleration keep their limits everywhere, not only at the grid points.
* From every state the column can still brake to rest inside its position limits, so it never arrives at one in motion.
* A column that starts outside a limit (a joint measured a hair beyond it) may come back, and never goes further out.

What `ruckig` does here, and what it does not. It finds the time-optimal way of a column to its target, in the frame
of the target, so that a moving target is met where it will be. It has no position limits between two states, its
accelerations switch in the middle of a period, and its jerk-limited solution, renewed every period, would need a knot
at each of up to seven switches of every column. So this module takes the speed that ruckig reaches at the end of the
period and goes there with one constant acceleration, lowers it to what still lets the column brake in time, and
bounds the jerk by averaging the motion over the last M periods: an average of motions within limits is within the
same limits, and its jerk is at most 2 * acceleration / (M * period).

N columns, K grid points. A column's value is what is commanded; `speed` and `change` bound its first and second
derivative: velocity and acceleration of a position, acceleration and jerk of a velocity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from ruckig import InputParameter, Ruckig, RuckigError, Synchronization, Trajectory

from ki_robot.actions.chunk import Matrix
from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import Limits
from ki_robot.errors import RobotError

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]
ROUNDING = 1e-9  # relative
SLOWEST = 1e-3  # of the speed limit: the least by which a column may outrun its target
MAX_AVERAGED = 1000  # periods that a jerk limit may spread an acceleration over


@dataclass(frozen=True, eq=False)
class MotionState:
    """Where a motion is at one grid point; (N,) each unless said otherwise.

    value_N, rate_N: what is commanded, and its first derivative. reach_N, pace_N: the same before the jerk is
    limited (identical for a column without a jerk limit). lower_N, upper_N: position limits in force, wider than the
    contract's only for a column that has not yet come back from outside. past_MN: `reach_N` at the last M grid points,
    oldest first; mean_MN: its mean over each of the last M periods.
    """

    value_N: Vector
    rate_N: Vector
    reach_N: Vector
    pace_N: Vector
    lower_N: Vector
    upper_N: Vector
    past_MN: Matrix
    mean_MN: Matrix


@dataclass(frozen=True, eq=False)
class Bounds:
    """The limits of N columns as arrays, all finite but `lower_N`, `upper_N` and `jerk_N`."""

    lower_N: Vector
    upper_N: Vector
    speed_N: Vector
    change_N: Vector
    jerk_N: Vector
    is_position_N: Mask


def bounds_of(names: Sequence[str], limits: Sequence[Limits], period_s: float) -> Bounds:
    """The limits of some columns, by their own derivatives.

    Where a limit is not given, the fastest change that a controller of this period can be asked for stands in: across
    the whole range in one period, and from full speed to full speed backwards in one.

    Raises:
        RobotError: A column without a speed limit and without a range.
    """

    def column(name: str, missing: float) -> Vector:
        return np.array([missing if getattr(each, name) is None else getattr(each, name) for each in limits], float)

    is_position_N = np.array([interface_of(name) == 'position' for name in names], bool)
    velocity_N, acceleration_N, jerk_N = (column(name, np.inf) for name in ('velocity', 'acceleration', 'jerk'))
    own_N = np.where(is_position_N, np.inf, velocity_N)  # the velocity limit of a velocity column bounds its value
    lower_N = np.maximum(column('lower', -np.inf), -own_N)
    upper_N = np.minimum(column('upper', np.inf), own_N)
    speed_N = np.where(is_position_N, velocity_N, acceleration_N)
    speed_N = np.where(np.isfinite(speed_N), speed_N, (upper_N - lower_N) / period_s)
    if not np.isfinite(speed_N).all():
        name = names[int(np.argmin(np.isfinite(speed_N)))]
        raise RobotError(f'{name} has neither a range nor a limit of its speed; give lower and upper, or velocity.')
    change_N = np.where(is_position_N, acceleration_N, jerk_N)
    change_N = np.minimum(change_N, 2.0 * speed_N / period_s)
    return Bounds(lower_N, upper_N, speed_N, change_N, np.where(is_position_N, jerk_N, np.inf), is_position_N)


class Motion:
    """The limits of N columns on a grid of one period; states go in and come out, nothing is kept.

    Args:
        names: Of the columns.
        limits: Theirs.
        period_ns: Of the grid.
    """

    def __init__(self, names: Sequence[str], limits: Sequence[Limits], period_ns: int) -> None:
        self.names = tuple(names)
        self.period_ns, self.period_s = period_ns, period_ns / 1e9
        self.bounds = bounds_of(names, limits, self.period_s)
        bounds, dt = self.bounds, self.period_s
        averaged_N = np.ones(len(names), int)
        smooth_N = np.isfinite(bounds.jerk_N)
        averaged_N[smooth_N] = np.ceil(2.0 * bounds.change_N[smooth_N] / (bounds.jerk_N[smooth_N] * dt) - ROUNDING)
        if averaged_N.max(initial=1) > MAX_AVERAGED:
            name = names[int(np.argmax(averaged_N))]
            seconds = float(averaged_N.max() * dt)
            raise RobotError(f'The jerk limit of {name} would spread its acceleration over {seconds:.3g} s; raise it.')
        self._smooth_N, self._averaged_N = smooth_N, averaged_N
        self._length = int(averaged_N.max(initial=1)) if smooth_N.any() else 0
        ages = np.arange(self._length, 0, -1)[:, None]  # of each row of the past, in periods
        self._weights_MN = np.where(ages <= averaged_N, 1.0 / averaged_N, 0.0)
        self._oldest_N = self._length - averaged_N if self._length else averaged_N
        # An average lags by half of what it spans; a target that is asked for this much earlier is met on time.
        self.delay_ns_N = np.where(smooth_N, averaged_N * period_ns // 2, 0).astype(np.int64)
        self._columns_N = np.arange(len(names))
        self._solver, self._input, self._plan = Ruckig(len(names)), InputParameter(len(names)), Trajectory(len(names))
        self._input.synchronization = Synchronization.No
        self._input.max_acceleration = bounds.change_N.tolist()
        self._input.max_jerk = [float('inf')] * len(names)
        self._input.target_position = self._input.target_velocity = [0.0] * len(names)

    def rest(self, value_N: Vector) -> MotionState:
        """At rest at some values; also outside the limits."""
        value_N = np.array(value_N, dtype=np.float64)
        still_N, bounds = np.zeros_like(value_N), self.bounds
        lower_N, upper_N = np.minimum(bounds.lower_N, value_N), np.maximum(bounds.upper_N, value_N)
        past_MN = np.repeat(value_N[None], self._length, axis=0)
        return MotionState(value_N, still_N, value_N, still_N, lower_N, upper_N, past_MN, past_MN)

    def follow(
        self, state: MotionState, target_N: Vector, lead_N: Vector, speed_N: Vector | None = None
    ) -> MotionState:
        """One period towards a target that will be at `target_N`, moving at `lead_N`, when the period ends.

        A target that can be met is met exactly, one that cannot is closed in on as fast as the limits allow.

        Args:
            state: At the beginning of the period.
            target_N: Where the target will be; for a jerk-limited column, `delay_ns_N` later.
            lead_N: Its first derivative there.
            speed_N: A lower speed limit for this period, such as that of an approach.
        """
        bounds, dt = self.bounds, self.period_s
        speed_N = bounds.speed_N if speed_N is None else np.minimum(speed_N, bounds.speed_N)
        # A target that is no number is none: the column goes to rest about where it is.
        target_N = np.where(np.isfinite(target_N), target_N, state.reach_N)
        goal_N = np.minimum(np.maximum(target_N, bounds.lower_N), bounds.upper_N)
        # At a position limit the target stands still.
        lead_N = np.where((goal_N == target_N) & np.isfinite(lead_N), lead_N, 0.0)
        lead_N = np.minimum(np.maximum(lead_N, -speed_N), speed_N)
        lead_N = np.minimum(lead_N, self._stoppable(bounds.upper_N - goal_N))
        lead_N = np.maximum(lead_N, -self._stoppable(goal_N - bounds.lower_N))
        met_N = self._meets(state, goal_N, lead_N, speed_N)
        if met_N.all():
            return self._advance(state, goal_N, lead_N)
        pace_N = self._closing(state, goal_N, lead_N, speed_N, met_N)
        reach_N = state.reach_N + 0.5 * (state.pace_N + pace_N) * dt
        return self._advance(state, np.where(met_N, goal_N, reach_N), np.where(met_N, lead_N, pace_N))

    def brake(self, state: MotionState, to_zero_N: Mask | None = None) -> MotionState:
        """One period of the hardest braking, to rest where it can first stand; columns of `to_zero_N` go to 0."""
        slower_N = np.maximum(np.abs(state.pace_N) - self.bounds.change_N * self.period_s, 0.0)
        pace_N = np.where(state.pace_N < 0.0, -slower_N, slower_N)
        reach_N = state.reach_N + 0.5 * (state.pace_N + pace_N) * self.period_s
        if to_zero_N is not None and to_zero_N.any():
            still_N = np.zeros_like(reach_N)
            ending = self.follow(state, np.where(to_zero_N, 0.0, state.reach_N), still_N)
            reach_N = np.where(to_zero_N, ending.reach_N, reach_N)
            pace_N = np.where(to_zero_N, ending.pace_N, pace_N)
        return self._advance(state, reach_N, pace_N)

    def resting(self, state: MotionState, to_zero_N: Mask | None = None) -> bool:
        """Whether nothing moves any more, also by what a jerk limit has still to let through."""
        if state.rate_N.any() or state.pace_N.any() or (state.value_N != state.reach_N).any():
            return False
        return to_zero_N is None or not state.value_N[to_zero_N].any()

    def _stoppable(self, room_N: Vector) -> Vector:
        """The greatest speed from which a column stops within `room_N`: v^2 / 2a + v dt / 2 = room, solved for v.

        The second term is what braking in whole periods may need beyond braking exactly.
        """
        half_N = 0.5 * self.bounds.change_N * self.period_s
        return np.sqrt(half_N * half_N + 2.0 * self.bounds.change_N * np.maximum(room_N, 0.0)) - half_N

    def _meets(self, state: MotionState, goal_N: Vector, lead_N: Vector, speed_N: Vector) -> Mask:
        """Which columns can be at their target, at its speed, one period on, by one cubic within limits."""
        dt, change_N = self.period_s, self.bounds.change_N
        gap_N = 6.0 / dt * (goal_N - state.reach_N)
        first_N = (gap_N - 4.0 * state.pace_N - 2.0 * lead_N) / dt  # acceleration at the beginning, and at the end
        last_N = (2.0 * state.pace_N + 4.0 * lead_N - gap_N) / dt
        steady_N = first_N * last_N >= 0.0
        # Where the acceleration changes sign, the speed bulges beyond its ends by at most an eighth of that change.
        bulge_N = np.where(steady_N, 0.0, np.abs(last_N - first_N) * (dt / 8.0))
        top_N = np.maximum(np.abs(state.pace_N), np.abs(lead_N)) + bulge_N
        most_N = np.maximum(np.abs(first_N), np.abs(last_N))
        met_N = (most_N <= change_N * (1.0 + ROUNDING)) & (top_N <= speed_N * (1.0 + ROUNDING))
        # Where the speed changes sign the column turns beyond its ends, at most this far: half the period from one.
        room_N = most_N * (dt * dt / 8.0)
        low_N, high_N = np.minimum(state.reach_N, goal_N) - room_N, np.maximum(state.reach_N, goal_N) + room_N
        inside_N = (low_N >= state.lower_N) & (high_N <= state.upper_N)
        met_N &= inside_N | (steady_N & (state.pace_N * lead_N >= 0.0))
        return met_N & ~self._smooth_N

    def _closing(self, state: MotionState, goal_N: Vector, lead_N: Vector, speed_N: Vector, met_N: Mask) -> Vector:
        """The speed at the end of the period for the columns that cannot meet their target within it."""
        dt, change_N = self.period_s, self.bounds.change_N
        near_N, landing_N = self._lands(state, goal_N, lead_N)
        pace_N = lead_N + self._fastest(state, goal_N, lead_N, speed_N, met_N | near_N)
        pace_N = np.where(near_N, landing_N, pace_N)
        pace_N = np.minimum(np.maximum(pace_N, -speed_N), speed_N)
        # No faster than lets it brake before a position limit: w^2 / 2a + w dt + (v dt / 2 - room) = 0, solved for w.
        step_N = change_N * dt
        half_N = 0.5 * state.pace_N * dt
        up_N = np.maximum(state.upper_N - state.reach_N - half_N, 0.0)
        down_N = np.maximum(state.reach_N - state.lower_N + half_N, 0.0)
        pace_N = np.minimum(pace_N, np.sqrt(step_N * step_N + 2.0 * change_N * up_N) - step_N)
        pace_N = np.maximum(pace_N, step_N - np.sqrt(step_N * step_N + 2.0 * change_N * down_N))
        return np.minimum(np.maximum(pace_N, state.pace_N - step_N), state.pace_N + step_N)

    def _lands(self, state: MotionState, goal_N: Vector, lead_N: Vector) -> tuple[Mask, Vector]:
        """Which columns can meet their target in two periods of one acceleration each, and the speed between the two.

        The time-optimal way ends within the period where this is needed, and would say to stand still.
        """
        dt = self.period_s
        speeds_N = (lead_N - state.pace_N) / dt
        first_N = (goal_N + lead_N * dt - state.reach_N - 2.0 * state.pace_N * dt) / (dt * dt) - 0.5 * speeds_N
        most_N = np.maximum(np.abs(first_N), np.abs(speeds_N - first_N))
        return most_N <= self.bounds.change_N, state.pace_N + first_N * dt

    def _fastest(self, state: MotionState, goal_N: Vector, lead_N: Vector, speed_N: Vector, met_N: Mask) -> Vector:
        """Time-optimal speed relative to the target, one period on; without an answer, one that can stop there."""
        given = self._input
        gap_N = np.where(met_N, 0.0, state.reach_N - (goal_N - lead_N * self.period_s))
        ahead_N = np.where(met_N, 0.0, state.pace_N - lead_N)
        least_N = SLOWEST * speed_N
        given.current_position, given.current_velocity = gap_N.tolist(), ahead_N.tolist()
        given.max_velocity = np.maximum(speed_N - lead_N, least_N).tolist()
        given.min_velocity = np.minimum(-speed_N - lead_N, -least_N).tolist()
        try:
            if self._solver.calculate(given, self._plan) >= 0:
                found = np.array(self._plan.at_time(self.period_s)[1])
                if np.isfinite(found).all():
                    return found
        except (RuckigError, ValueError):  # the latter for a result that its Python part has no name for: hours away
            pass
        return -np.sign(gap_N) * self._stoppable(np.abs(gap_N))

    def _advance(self, state: MotionState, reach_N: Vector, pace_N: Vector) -> MotionState:
        """The state one period on, its jerk limited."""
        lower_N, upper_N = state.lower_N, state.upper_N
        if (lower_N < self.bounds.lower_N).any() or (upper_N > self.bounds.upper_N).any():
            stop_N = pace_N * np.abs(pace_N) / (2.0 * self.bounds.change_N) + 0.5 * pace_N * self.period_s
            upper_N = np.maximum(self.bounds.upper_N, np.minimum(upper_N, np.maximum(reach_N, reach_N + stop_N)))
            lower_N = np.minimum(self.bounds.lower_N, np.maximum(lower_N, np.minimum(reach_N, reach_N + stop_N)))
        if not self._length:
            return MotionState(reach_N, pace_N, reach_N, pace_N, lower_N, upper_N, state.past_MN, state.mean_MN)
        dt = self.period_s
        mean_N = 0.5 * (state.reach_N + reach_N) - (dt / 12.0) * (pace_N - state.pace_N)
        past_MN = np.concatenate([state.past_MN[1:], state.reach_N[None]])
        mean_MN = np.concatenate([state.mean_MN[1:], mean_N[None]])
        # The mean about the present value: exact at rest, where a sum of equal numbers would round.
        value_N = reach_N + (self._weights_MN * (mean_MN - reach_N)).sum(axis=0)
        rate_N = (reach_N - past_MN[self._oldest_N, self._columns_N]) / (self._averaged_N * dt)
        value_N = np.where(self._smooth_N, value_N, reach_N)
        rate_N = np.where(self._smooth_N, rate_N, pace_N)
        return MotionState(value_N, rate_N, reach_N, pace_N, lower_N, upper_N, past_MN, mean_MN)


@dataclass(frozen=True, eq=False)
class Profile:
    """A motion by its knots: cubics through `values_KN` with the first derivatives `rates_KN` at `times_ns`."""

    times_ns: NDArray[np.int64]
    values_KN: Matrix
    rates_KN: Matrix

    def at(self, time_ns: int) -> tuple[Vector, Vector]:
        """Value and first derivative at a time; at rest at the ends beyond them."""
        times = self.times_ns
        if time_ns <= times[0] or time_ns >= times[-1]:
            end = 0 if time_ns <= times[0] else -1
            return self.values_KN[end], np.zeros_like(self.values_KN[end])
        k = int(np.searchsorted(times, time_ns, side='right')) - 1
        span_s = float(times[k + 1] - times[k]) / 1e9
        part = float(time_ns - times[k]) / float(times[k + 1] - times[k])
        return hermite(self.values_KN[k], self.rates_KN[k], self.values_KN[k + 1], self.rates_KN[k + 1], span_s, part)

    def columns(self, index_n: NDArray[np.int64]) -> Profile:
        """Some columns, without the knots at which none of them changes its cubic."""
        return replace(self, values_KN=self.values_KN[:, index_n], rates_KN=self.rates_KN[:, index_n]).thinned()

    def thinned(self) -> Profile:
        """The same motion without the knots that do not change it: those between two pieces of one cubic."""
        if len(self.times_ns) < 3:
            return self
        span_K1 = (np.diff(self.times_ns) / 1e9)[:, None]
        gap_KN = 6.0 / span_K1 * np.diff(self.values_KN, axis=0)
        before_KN, after_KN = self.rates_KN[:-1], self.rates_KN[1:]
        first_KN = (gap_KN - 4.0 * before_KN - 2.0 * after_KN) / span_K1
        last_KN = (2.0 * before_KN + 4.0 * after_KN - gap_KN) / span_K1
        jerk_KN = (last_KN - first_KN) / span_K1
        scale_N = np.abs(np.concatenate([first_KN, last_KN])).max(axis=0) * ROUNDING + ROUNDING
        bent_K = (np.abs(first_KN[1:] - last_KN[:-1]) > scale_N).any(axis=1)
        bent_K |= (np.abs(np.diff(jerk_KN, axis=0)) * span_K1[1:] > scale_N).any(axis=1)
        keep = np.concatenate([[True], bent_K, [True]])
        return Profile(self.times_ns[keep], self.values_KN[keep], self.rates_KN[keep])


def hermite(
    value_N: Vector, rate_N: Vector, next_N: Vector, next_rate_N: Vector, span_s: float, part: float
) -> tuple[Vector, Vector]:
    """Value and first derivative of the cubic between two knots, `part` (0..1) of the way."""
    gap_N, left_N, right_N = next_N - value_N, rate_N * span_s, next_rate_N * span_s
    bend_N, twist_N = 3.0 * gap_N - 2.0 * left_N - right_N, left_N + right_N - 2.0 * gap_N
    found_N = value_N + part * (left_N + part * (bend_N + part * twist_N))
    return found_N, (left_N + part * (2.0 * bend_N + part * 3.0 * twist_N)) / span_s
