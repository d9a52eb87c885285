"""Messages to controllers read back as action columns: what a recorded robot was told, and what was in force when.

Duck-typed like `messages`, so that rclpy's classes and what a bag holds are the same here.
Letters: M commands, P points of one command, T times, n columns of one output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.names import joint_of
from ki_robot.contract.parts import Output
from ki_robot.errors import Reason, Rejected
from ki_robot.messages.arrays import NS, joint_values, stamp_ns, time_ns, twist_values
from ki_robot.messages.poses import pose_values

COMMAND_PERIODS = 5  # of a streamed command, until it is no longer what the robot is told
SLOWEST_PERIOD_NS = 200_000_000  # commands that come less often are goals, each on its own

Times = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Command:
    """One message to a controller: points (P, n) at `times_ns` (P,) after its start; a single point is a setpoint."""

    times_ns: Times
    values: Values


def read_command(message: Any, columns: Sequence[str]) -> Command:
    """A message to a controller as values in the order of an output's columns.

    It is a JointTrajectory, Float64MultiArray, Float64, JointState, Twist, TwistStamped, PoseStamped or GripperCommand.

    Raises:
        Rejected: It lacks a joint, has another layout, or holds a value that is not finite.
        RobotError: A column is no part of what the message can say.
    """
    if hasattr(message, 'points'):
        command = _trajectory(message, columns)
    elif hasattr(message, 'data'):
        command = _array(message, columns)
    elif hasattr(message, 'name'):
        command = _setpoint(joint_values(message, columns))
    elif hasattr(message, 'max_effort'):
        command = _setpoint(np.array([message.position], dtype=np.float64))
    elif hasattr(message, 'pose'):
        # The frame in which it is said, is the output's: a controller takes what it is told.
        command = _setpoint(pose_values(message, columns, str(message.header.frame_id)))
    else:
        command = _setpoint(twist_values(getattr(message, 'twist', message), columns))
    if not np.isfinite(command.values).all():
        raise Rejected(Reason.NON_FINITE, 'a command is not finite.')
    return command


def command_stamp_ns(message: Any) -> int | None:
    """When a command begins by its own stamp; None where it begins on arrival, as a controller reads stamp 0."""
    stamp = stamp_ns(message.header) if hasattr(message, 'header') else 0
    return stamp if stamp > 0 else None


def command_age_ns(output: Output, starts_M: Times, step_ns: int) -> int | None:
    """How long a command to a controller counts after its last point, ns; None: until the next one.

    Args:
        output: The controller. Where its contract leaves max_command_age_s out: a few periods of its commands.
        starts_M: When each of its commands began, in order.
        step_ns: A step of the contract: no stream is held to a shorter period.
    """
    if output.has_goals:
        return None
    if output.max_command_age_s is not None:
        return round(output.max_command_age_s * NS)
    gaps = np.diff(starts_M)
    period = int(np.median(gaps)) if len(gaps) else 0
    return COMMAND_PERIODS * max(step_ns, min(period, SLOWEST_PERIOD_NS))


def values_in_force(
    starts_M: Times,
    commands: Sequence[Command],
    times_T: Times,
    timeout_ns: int | None = None,
    max_age_ns: int | None = None,
) -> tuple[Values, NDArray[np.bool_]]:
    """What a controller was told at some times.

    A setpoint is in force until the next one. Within a trajectory the value is interpolated between its points; before
    the first point, and after the last, that point is meant.

    Args:
        starts_M: When each command began, in order.
        commands: Those commands, at least one.
        times_T: The times that are asked for.
        timeout_ns: Commands older than this are 0 (a base that hears nothing stands still); None: never.
        max_age_ns: Commands whose last point is older than this are no longer in force; None: never.

    Returns:
        values (T, n), and whether a command was in force (T,): False before the first, unless there is a time-out.
    """
    row_T = np.searchsorted(starts_M, times_T, side='right') - 1
    # Only the commands of these times are looked at: a recording asks once for each of its many episodes.
    rows_R, place_T = np.unique(np.maximum(row_T, 0), return_inverse=True)
    meant, starts_T = [commands[row] for row in rows_R.tolist()], starts_M[rows_R][place_T]
    columns = commands[0].values.shape[1]
    if all(len(command.times_ns) == 1 for command in meant):
        values = np.array([command.values[0] for command in meant]).reshape(-1, columns)[place_T]
    else:
        values = np.empty((len(times_T), columns))
        order = np.argsort(place_T, kind='stable')
        for command, steps in zip(meant, np.split(order, np.flatnonzero(np.diff(place_T[order])) + 1), strict=True):
            after = (times_T[steps] - starts_T[steps]).astype(np.float64)
            times = command.times_ns.astype(np.float64)
            values[steps] = np.stack([np.interp(after, times, column) for column in command.values.T], axis=1)
    known_T = row_T >= 0
    if timeout_ns is not None:
        old_T = (times_T - starts_T > timeout_ns) | ~known_T
        values = np.where(old_T[:, None], 0.0, values)
        known_T = np.ones(len(times_T), dtype=bool)
    if max_age_ns is not None:
        lasts_R = np.array([int(command.times_ns[-1]) for command in meant], dtype=np.int64)
        known_T &= times_T - (starts_T + lasts_R[place_T]) <= max_age_ns
    return values, known_T


def _trajectory(message: Any, columns: Sequence[str]) -> Command:
    row = {name: index for index, name in enumerate(message.joint_names)}
    joints = [joint_of(column) for column in columns]
    for joint in joints:
        if joint not in row:
            raise Rejected(Reason.MISSING_NAME, f'a trajectory lacks {joint!r}; it has {", ".join(sorted(row))[:200]}.')
    if not len(message.points):
        raise Rejected(Reason.BAD_LAYOUT, 'a trajectory has no points.')
    picked = [row[joint] for joint in joints]
    values = np.empty((len(message.points), len(columns)))
    times = np.empty(len(message.points), dtype=np.int64)
    for index, point in enumerate(message.points):
        positions = np.asarray(point.positions, dtype=np.float64)
        if positions.size != len(row):
            raise Rejected(Reason.BAD_LAYOUT, f'a trajectory point has {positions.size} positions, {len(row)} joints.')
        values[index] = positions[picked]
        times[index] = time_ns(point.time_from_start)
    if (np.diff(times) <= 0).any():
        raise Rejected(Reason.BAD_LAYOUT, 'the times of a trajectory do not rise.')
    return Command(times, values)


def _array(message: Any, columns: Sequence[str]) -> Command:
    values = np.atleast_1d(np.asarray(message.data, dtype=np.float64))
    if values.shape != (len(columns),):
        raise Rejected(Reason.BAD_LAYOUT, f'a command has {values.size} values; the contract has {len(columns)}.')
    return _setpoint(values)


def _setpoint(values: Values) -> Command:
    return Command(np.zeros(1, dtype=np.int64), values[None])
