"""What a recorded robot was told: commands of a bag as values of action columns at any time.

T times, n columns of one output.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ki_robot.chunk import Matrix
from ki_robot.contract import Contract, Output
from ki_robot.errors import Reason, Rejected
from ki_robot.messages import odometry_values, stamp_ns, time_ns
from ki_robot.names import joint_of

TYPES = {
    'joint_trajectory': ('trajectory_msgs/msg/JointTrajectory',),
    'forward_command': ('std_msgs/msg/Float64MultiArray',),
    'gripper': ('std_msgs/msg/Float64MultiArray',),
    'twist': ('geometry_msgs/msg/Twist', 'geometry_msgs/msg/TwistStamped'),
    'twist_stamped': ('geometry_msgs/msg/TwistStamped', 'geometry_msgs/msg/Twist'),
}


@dataclass(frozen=True)
class _Command:
    """Points (P, n) at absolute times (P,)."""

    times_ns: np.ndarray
    values_Pn: Matrix  # noqa: N815


class _Twist:
    """A twist where an odometry message has it, so that one reader serves both."""

    def __init__(self, twist: Any) -> None:
        self.twist = self
        self.linear, self.angular = twist.linear, twist.angular


@dataclass
class _Series:
    starts: list[int] = field(default_factory=list)
    commands: list[_Command] = field(default_factory=list)


class Recorded:
    """The commands of a recording, by action column.

    Args:
        contract: Columns and outputs.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._series = {output.name: _Series() for output in contract.outputs}

    def add(self, output: Output, message: Any, log_ns: int) -> None:
        """One message to a controller.

        Raises:
            Rejected: it lacks a joint, or holds values that are not finite.
        """
        start_ns = log_ns
        if output.kind == 'joint_trajectory':
            start_ns = stamp_ns(message.header) or log_ns
            command = _trajectory(output, message, start_ns)
        elif output.kind in ('twist', 'twist_stamped'):
            twist = message.twist if hasattr(message, 'twist') else message
            command = _Command(np.array([start_ns]), odometry_values(_Twist(twist), output.columns)[None])
        else:
            values = np.asarray(message.data, dtype=np.float64)
            if values.shape != (len(output.columns),):
                raise Rejected(Reason.BAD_LAYOUT, f'{output.topic} has {len(values)} values for {len(output.columns)}.')
            command = _Command(np.array([start_ns]), values[None])
        if not np.isfinite(command.values_Pn).all():
            raise Rejected(Reason.NON_FINITE, f'{output.topic} carries a value that is not finite.')
        series = self._series[output.name]
        place = bisect.bisect_right(series.starts, start_ns)
        series.starts.insert(place, start_ns)
        series.commands.insert(place, command)

    @property
    def columns(self) -> list[str]:
        """The action columns that commands were recorded for."""
        return [
            column for output in self._contract.outputs if self._series[output.name].starts for column in output.columns
        ]

    def at(self, times_ns: np.ndarray) -> Matrix:
        """What was in force at some times: (T, N) in the contract's order, NaN where nothing was commanded yet."""
        names = self._contract.action_names
        found = np.full((len(times_ns), len(names)), np.nan)
        for output in self._contract.outputs:
            series = self._series[output.name]
            index = [names.index(column) for column in output.columns]
            for row, time in enumerate(times_ns.tolist()):
                place = bisect.bisect_right(series.starts, time) - 1
                if place >= 0:
                    command = series.commands[place]
                    offset = (command.times_ns - command.times_ns[0]).astype(np.float64)
                    at = float(time - command.times_ns[0])
                    found[row, index] = [np.interp(at, offset, values) for values in command.values_Pn.T]
        return found


def _trajectory(output: Output, message: Any, start_ns: int) -> _Command:
    joints = [joint_of(column) for column in output.columns]
    names = list(message.joint_names)
    missing = [joint for joint in joints if joint not in names]
    if missing or not len(message.points):
        raise Rejected(Reason.MISSING_NAME, f'{output.topic} lacks {missing[0] if missing else "points"}.')
    order = [names.index(joint) for joint in joints]
    values_Pn = np.array([np.asarray(point.positions, dtype=np.float64)[order] for point in message.points])
    times = np.array([start_ns + time_ns(point.time_from_start) for point in message.points], dtype=np.int64)
    return _Command(times, values_Pn)
