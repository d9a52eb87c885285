"""The robot's controllers without ROS: what they accept, what they refuse, and what they command at a moment.

They behave as the source of ros2_controllers 4 does: joint_trajectory_controller (interpolation, replacement and the
spline to the first point, stamps, rest and hold at the end, cmd_timeout), forward_command_controller, and a base
controller that stops when its commands stop. Times are integer ns. A refused command raises SimError and changes
nothing. Unlike the real ones they also refuse positions outside their joints' limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ki_sim.errors import SimError
from ki_sim.world.robot import JointLimit

Floats = npt.NDArray[np.float64]
SLACK = 1e-3  # a command this far outside a limit (rad, m) is rounding, and is clipped; further is refused
REST = float(np.finfo(np.float32).eps)  # a slower last point is at rest (rad/s)


@dataclass(frozen=True)
class Point:
    """One waypoint: time from the trajectory's start (ns) and positions, with velocities and accelerations if known."""

    time_ns: int
    positions: Sequence[float]
    velocities: Sequence[float] = ()
    accelerations: Sequence[float] = ()


@dataclass(frozen=True)
class TrajectoryCommand:
    """A trajectory_msgs/JointTrajectory as plain data; `stamp_ns` 0 means: start on arrival."""

    joints: Sequence[str]
    points: Sequence[Point]
    stamp_ns: int = 0


@dataclass(frozen=True)
class _Knot:
    time_ns: int
    q: Floats
    v: Floats | None = None
    a: Floats | None = None


class JointTrajectoryController:
    """Plays joint trajectories as ros2_controllers' joint_trajectory_controller 4 does, quirks included.

    Linear between positions, cubic with velocities, quintic with accelerations too. A message replaces the one before
    at the next update, whatever its stamp; until its first point a spline leads there. With `from_desired`
    (`interpolate_from_desired_state`) that spline begins at the last command, but at the time of the update that
    gave it, one period before the command was due: the first update after a splice then advances by two periods.
    Without, it begins at the measured state. Either is avoided by a first point that is not in the future.

    Args:
        name: Of the controller.
        limits: Of its joints, in order.
        timeout_ns: `cmd_timeout`: this long after a trajectory's end the joints hold where they are measured; 0: never.
        period_ns: Between two updates.
        from_desired: `interpolate_from_desired_state`.
    """

    def __init__(
        self,
        name: str,
        limits: Mapping[str, JointLimit],
        timeout_ns: int = 0,
        period_ns: int = 10_000_000,
        from_desired: bool = True,
    ) -> None:
        self.name, self.joints, self.timeout_ns = name, tuple(limits), timeout_ns
        self._period_ns, self._from_desired = period_ns, from_desired
        self._lower = np.array([limit.lower for limit in limits.values()])
        self._upper = np.array([limit.upper for limit in limits.values()])
        self._knots: list[_Knot] = []  # of the message in force; times count from its start
        self._start_ns: int | None = None  # None: at the next update
        self._before: _Knot | None = None  # where the spline to the first knot begins; None: at the next update
        self._commanded = _Knot(0, np.zeros(len(limits)))
        self._holding = False
        self.timed_out = False

    def activate(self, now_ns: int, measured: npt.ArrayLike) -> None:
        """Forget what was commanded and stay where the joints are."""
        self._commanded = _Knot(now_ns, np.array(measured, np.float64))
        self._hold(self._commanded.q)
        self.timed_out = False

    def accept(self, trajectory: TrajectoryCommand, now_ns: int) -> None:
        """Take a new trajectory in place of the present one, from the next update on.

        Refused as a whole, and the present one goes on, when it ends in the past or in motion, or names other joints.
        """
        if not self._knots:
            raise SimError(f'{self.name} got a trajectory before it was activated: give it a pose to hold first')
        knots = self._checked(trajectory)
        if trajectory.stamp_ns and trajectory.stamp_ns + knots[-1].time_ns < now_ns:
            late_ms = (now_ns - trajectory.stamp_ns - knots[-1].time_ns) / 1e6
            raise SimError(
                f'{self.name} got a trajectory whose last point lies {late_ms:.1f} ms in the past: send points in '
                'the future, or stamp it 0 to start on arrival'
            )
        self._knots, self._start_ns, self._before = knots, trajectory.stamp_ns or None, None
        self._holding = self.timed_out = False

    def update(self, now_ns: int, measured: npt.ArrayLike, speeds: npt.ArrayLike | None = None) -> Floats:
        """One cycle: the positions to be at one period after `now_ns`, in the order of `joints`.

        `measured` and `speeds` are the joints' positions and velocities now.
        """
        if not self._knots:
            self.activate(now_ns, measured)
        if self._before is None:
            self._begin(now_ns, np.array(measured, np.float64), None if speeds is None else np.asarray(speeds, float))
        assert self._start_ns is not None
        q, v, a = self._at(now_ns + self._period_ns)
        since_end_ns = now_ns - self._start_ns - self._knots[-1].time_ns
        if self.timeout_ns and not self._holding and since_end_ns > self.timeout_ns:
            self._hold(np.array(measured, np.float64))
            self.timed_out = True
        self._commanded = _Knot(now_ns, q, v, a)
        return q

    def shift(self, by_ns: int) -> None:
        """Go on with a clock that has jumped: the real one counts its time in periods from a trajectory's start on."""
        if self._start_ns is not None:
            self._start_ns += by_ns
        self._before = None if self._before is None else replace(self._before, time_ns=self._before.time_ns + by_ns)
        self._commanded = replace(self._commanded, time_ns=self._commanded.time_ns + by_ns)

    def _hold(self, pose: Floats) -> None:
        self._knots, self._start_ns, self._before, self._holding = [_Knot(0, pose)], None, None, True

    def _begin(self, now_ns: int, measured: Floats, speeds: Floats | None) -> None:
        """The first update with a message: fixes its start, and where the spline to its first point begins."""
        first = self._knots[0]
        before = self._commanded if self._from_desired else _Knot(now_ns, measured, speeds)
        v = _zeros(first.v) if before.v is None else before.v
        a = _zeros(first.a) if before.a is None else before.a
        self._before = replace(before, v=v, a=a)
        self._start_ns = now_ns if self._start_ns is None else self._start_ns

    def _at(self, at_ns: int) -> tuple[Floats, Floats, Floats]:
        assert self._start_ns is not None
        assert self._before is not None
        knots, offset_ns = self._knots, at_ns - self._start_ns
        if offset_ns >= knots[-1].time_ns:
            last = knots[-1]
            still = np.zeros_like(last.q)
            return last.q, still if last.v is None else last.v, still if last.a is None else last.a
        later = next(i for i, knot in enumerate(knots) if knot.time_ns > offset_ns)
        if later == 0:
            before = replace(self._before, time_ns=self._before.time_ns - self._start_ns)
            return interpolate(before, knots[0], offset_ns)
        return interpolate(knots[later - 1], knots[later], offset_ns)

    def _checked(self, trajectory: TrajectoryCommand) -> list[_Knot]:
        names = tuple(trajectory.joints)
        if sorted(names) != sorted(self.joints):
            raise SimError(
                f'{self.name} got joints {list(names)} but drives {list(self.joints)}: send each of them once'
            )
        if not trajectory.points:
            raise SimError(f'{self.name} got a trajectory without points: send at least one')
        order = [names.index(joint) for joint in self.joints]
        knots, before = [], -1
        for i, point in enumerate(trajectory.points):
            if point.time_ns <= before or point.time_ns < 0:
                raise SimError(f'{self.name} got point {i} at {point.time_ns} ns, not after the one before: sort them')
            before = point.time_ns
            q = self._numbers(point.positions, f'positions of point {i}', order, required=True)
            v = self._numbers(point.velocities, f'velocities of point {i}', order)
            a = self._numbers(point.accelerations, f'accelerations of point {i}', order)
            assert q is not None
            knots.append(_Knot(point.time_ns, within(self.name, self.joints, q, self._lower, self._upper), v, a))
        self._check_end(knots[-1])
        return knots

    def _check_end(self, last: _Knot) -> None:
        if last.v is None:
            return
        moving = np.flatnonzero(np.abs(last.v) > REST)
        if moving.size:
            i = int(moving[0])
            raise SimError(
                f'{self.name} got a last point at which {self.joints[i]} still moves at {last.v[i]:g} rad/s: '
                'let its velocities be 0, because allow_nonzero_velocity_at_trajectory_end is false'
            )

    def _numbers(self, values: Sequence[float], what: str, order: list[int], required: bool = False) -> Floats | None:
        if not len(values) and not required:
            return None
        array = np.asarray(values, np.float64)
        if array.shape != (len(self.joints),):
            raise SimError(f'{self.name} got {array.size} {what} for {len(self.joints)} joints: send one per joint')
        if not np.isfinite(array).all():
            bad = self.joints[order.index(int(np.flatnonzero(~np.isfinite(array))[0]))]
            raise SimError(f'{self.name} got a number that is not finite in the {what} ({bad}): nothing was moved')
        return array[order]


def within(name: str, joints: Sequence[str], q: Floats, lower: Floats, upper: Floats) -> Floats:
    """Positions clipped by at most `SLACK` into their limits; SimError names the first joint further outside."""
    outside = np.flatnonzero((q < lower - SLACK) | (q > upper + SLACK))
    if outside.size:
        i = int(outside[0])
        raise SimError(
            f'{name} got {joints[i]} = {q[i]:.4f}, outside its limits [{lower[i]:g}, '
            f'{upper[i]:g}]: clip it before sending'
        )
    return np.clip(q, lower, upper)


def interpolate(one: _Knot, two: _Knot, at_ns: int) -> tuple[Floats, Floats, Floats]:
    """Position, velocity and acceleration between two knots, by the richest spline that both carry."""
    T, t = (two.time_ns - one.time_ns) * 1e-9, (at_ns - one.time_ns) * 1e-9
    d = two.q - one.q
    if one.v is None or two.v is None:
        return one.q + d * (t / T), d / T, np.zeros_like(d)
    if one.a is None or two.a is None:
        c2 = (3 * d - (2 * one.v + two.v) * T) / T**2
        c3 = (-2 * d + (one.v + two.v) * T) / T**3
        position = one.q + one.v * t + c2 * t**2 + c3 * t**3
        return position, one.v + 2 * c2 * t + 3 * c3 * t**2, 2 * c2 + 6 * c3 * t
    c2 = one.a / 2
    c3 = (20 * d - (8 * two.v + 12 * one.v) * T - (3 * one.a - two.a) * T**2) / (2 * T**3)
    c4 = (-30 * d + (14 * two.v + 16 * one.v) * T + (3 * one.a - 2 * two.a) * T**2) / (2 * T**4)
    c5 = (12 * d - 6 * (two.v + one.v) * T + (two.a - one.a) * T**2) / (2 * T**5)
    position = one.q + one.v * t + c2 * t**2 + c3 * t**3 + c4 * t**4 + c5 * t**5
    velocity = one.v + 2 * c2 * t + 3 * c3 * t**2 + 4 * c4 * t**3 + 5 * c5 * t**4
    return position, velocity, 2 * c2 + 6 * c3 * t + 12 * c4 * t**2 + 20 * c5 * t**3


def _zeros(like: Floats | None) -> Floats | None:
    return None if like is None else np.zeros_like(like)


class ForwardController:
    """Forwards the newest values to the joints, as forward_command_controller does, and keeps them until the next."""

    def __init__(self, name: str, limits: Mapping[str, JointLimit]) -> None:
        self.name, self.joints = name, tuple(limits)
        self._lower = np.array([limit.lower for limit in limits.values()])
        self._upper = np.array([limit.upper for limit in limits.values()])
        self.command = np.zeros(len(self.joints))

    def hold(self, measured: npt.ArrayLike) -> None:
        """Stay at a pose."""
        self.command = np.array(measured, np.float64)

    def accept(self, values: Sequence[float]) -> None:
        """Take one number per joint, in the order of `joints`."""
        array = np.asarray(values, np.float64)
        if array.shape != self.command.shape:
            raise SimError(f'{self.name} got {array.size} numbers for {list(self.joints)}: send one per joint')
        if not np.isfinite(array).all():
            raise SimError(f'{self.name} got a number that is not finite: nothing was moved')
        self.command = within(self.name, self.joints, array, self._lower, self._upper)


class TwistController:
    """Drives the base by the newest twist (base frame: m/s, m/s, rad/s), and stops it when none came for `timeout_ns`.

    Faster twists than the base can drive are slowed as a whole, so that it keeps its direction.
    """

    def __init__(self, name: str, speeds: Sequence[float], timeout_ns: int = 500_000_000) -> None:
        self.name, self.speeds, self.timeout_ns = name, np.asarray(speeds, np.float64), timeout_ns
        self._command, self._time_ns = np.zeros(3), -(10**18)

    def accept(self, twist: npt.ArrayLike, now_ns: int, stamp_ns: int = 0) -> None:
        """Take a twist; one that was stamped longer ago than the timeout is refused."""
        array = np.asarray(twist, np.float64)
        if array.shape != (3,):
            raise SimError(f'{self.name} got {array.size} numbers: send linear x, linear y and angular z')
        if not np.isfinite(array).all():
            raise SimError(f'{self.name} got a twist that is not finite: the base was not moved')
        if stamp_ns and now_ns - stamp_ns > self.timeout_ns:
            raise SimError(f'{self.name} got a twist {(now_ns - stamp_ns) / 1e6:.0f} ms old: check the clocks')
        self._command = array / max(1.0, float(np.max(np.abs(array) / self.speeds)))
        self._time_ns = now_ns

    def stop(self) -> None:
        """Stand still until the next twist."""
        self._command = np.zeros(3)

    def sample(self, now_ns: int) -> Floats:
        """The twist in force."""
        return self._command if now_ns - self._time_ns <= self.timeout_ns else np.zeros(3)


def rate_limited(before: Floats, wanted: Floats | float, speed: Floats | float, dt_s: float) -> Floats:
    """What a joint limiter lets through: `wanted`, at most speed * dt away from `before`."""
    step = speed * dt_s
    return before + np.clip(wanted - before, -step, step)
