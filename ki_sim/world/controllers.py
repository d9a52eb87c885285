"""The robot's controllers without ROS: what they accept, what they refuse, and what they command at a moment.

They behave as ros2_controllers' user documentation describes: joint_trajectory_controller (interpolation, replacement,
stamps in the past, rest and hold at the end, cmd_timeout), forward_command_controller, and a base controller that
stops when its commands stop. Times are integer ns. A refused command raises SimError and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
class Trajectory:
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
    """Follows joint trajectories: linear between positions, cubic with velocities, quintic with accelerations too.

    `timeout_ns` is the documented cmd_timeout: this long after a trajectory's end without a new one, the joints hold
    where they are measured; 0 holds the last point for ever.
    """

    def __init__(self, name: str, limits: Mapping[str, JointLimit], timeout_ns: int = 0) -> None:
        self.name, self.joints, self.timeout_ns = name, tuple(limits), timeout_ns
        self._lower = np.array([limit.lower for limit in limits.values()])
        self._upper = np.array([limit.upper for limit in limits.values()])
        self._knots: list[_Knot] = []
        self.timed_out = False

    def hold(self, now_ns: int, measured: npt.ArrayLike) -> None:
        """Forget what was commanded and stay at a pose."""
        self._knots = [_Knot(now_ns, np.array(measured, np.float64))]
        self.timed_out = False

    def accept(self, trajectory: Trajectory, now_ns: int) -> None:
        """Replace what is left of the present trajectory by the useful part of a new one.

        Points not later than now are dropped; when none is left the command is refused and the present one goes on.
        Until the new trajectory's start the present one is followed.
        """
        if not self._knots:
            raise SimError(f'{self.name} got a trajectory before it was activated: give it a pose to hold first')
        knots = self._checked(trajectory, now_ns)
        useful = [knot for knot in knots if knot.time_ns > now_ns]
        if not useful:
            late_ms = (now_ns - knots[-1].time_ns) / 1e6
            raise SimError(
                f'{self.name} got a trajectory whose last point lies {late_ms:.1f} ms in the past: send points in '
                'the future, or stamp it 0 to start on arrival'
            )
        start = trajectory.stamp_ns or now_ns
        join_ns = max(start, now_ns)
        kept = [knot for knot in self._knots if knot.time_ns <= now_ns][-1:]
        kept += [knot for knot in self._knots if now_ns < knot.time_ns < join_ns]
        if useful[0].time_ns > join_ns:
            q, v = self._at(join_ns)
            kept.append(_Knot(join_ns, q, v if useful[0].v is not None else None, _zeros(useful[0].a)))
        self._knots = kept + useful
        self.timed_out = False

    def sample(self, now_ns: int, measured: npt.ArrayLike) -> Floats:
        """Desired positions at a time, in the order of `joints`; `measured` is where the joints are now."""
        if not self._knots:
            self.hold(now_ns, measured)
        end = self._knots[-1].time_ns
        if self.timeout_ns and len(self._knots) > 1 and now_ns - end > self.timeout_ns:
            self.hold(now_ns, measured)
            self.timed_out = True
        return self._at(now_ns)[0]

    @property
    def end_ns(self) -> int:
        """When the last commanded point is due."""
        return self._knots[-1].time_ns if self._knots else 0

    def _at(self, now_ns: int) -> tuple[Floats, Floats]:
        knots = self._knots
        if now_ns >= knots[-1].time_ns:
            return knots[-1].q, np.zeros_like(knots[-1].q)
        later = next(i for i, knot in enumerate(knots) if knot.time_ns > now_ns)
        if later == 0:
            return knots[0].q, np.zeros_like(knots[0].q)
        return interpolate(knots[later - 1], knots[later], now_ns)

    def _checked(self, trajectory: Trajectory, now_ns: int) -> list[_Knot]:
        names = tuple(trajectory.joints)
        if sorted(names) != sorted(self.joints):
            raise SimError(
                f'{self.name} got joints {list(names)} but drives {list(self.joints)}: send each of them once'
            )
        if not trajectory.points:
            raise SimError(f'{self.name} got a trajectory without points: send at least one')
        order = [names.index(joint) for joint in self.joints]
        start, knots, before = trajectory.stamp_ns or now_ns, [], -1
        for i, point in enumerate(trajectory.points):
            if point.time_ns <= before or point.time_ns < 0:
                raise SimError(f'{self.name} got point {i} at {point.time_ns} ns, not after the one before: sort them')
            before = point.time_ns
            q = self._numbers(point.positions, f'positions of point {i}', order, required=True)
            v = self._numbers(point.velocities, f'velocities of point {i}', order)
            a = self._numbers(point.accelerations, f'accelerations of point {i}', order)
            assert q is not None
            knots.append(
                _Knot(start + point.time_ns, within(self.name, self.joints, q, self._lower, self._upper), v, a)
            )
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


def interpolate(one: _Knot, two: _Knot, now_ns: int) -> tuple[Floats, Floats]:
    """Position and velocity between two knots, by the richest spline that both carry."""
    T, t = (two.time_ns - one.time_ns) * 1e-9, (now_ns - one.time_ns) * 1e-9
    d = two.q - one.q
    if one.v is None or two.v is None:
        return one.q + d * (t / T), d / T
    if one.a is None or two.a is None:
        c2 = (3 * d - (2 * one.v + two.v) * T) / T**2
        c3 = (-2 * d + (one.v + two.v) * T) / T**3
        return one.q + one.v * t + c2 * t**2 + c3 * t**3, one.v + 2 * c2 * t + 3 * c3 * t**2
    c2 = one.a / 2
    c3 = (20 * d - (8 * two.v + 12 * one.v) * T - (3 * one.a - two.a) * T**2) / (2 * T**3)
    c4 = (-30 * d + (14 * two.v + 16 * one.v) * T + (3 * one.a - 2 * two.a) * T**2) / (2 * T**4)
    c5 = (12 * d - 6 * (two.v + one.v) * T + (two.a - one.a) * T**2) / (2 * T**5)
    position = one.q + one.v * t + c2 * t**2 + c3 * t**3 + c4 * t**4 + c5 * t**5
    return position, one.v + 2 * c2 * t + 3 * c3 * t**2 + 4 * c4 * t**3 + 5 * c5 * t**4


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

    def accept(self, twist: Sequence[float], now_ns: int, stamp_ns: int = 0) -> None:
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
