"""What a recorded robot was told: the commands of a bag, by output, as values of action columns at any time."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Output
from ki_robot.messages.commands import Command, command_age_ns, command_stamp_ns, read_command, values_in_force
from ki_robot.space.robot_space import RobotSpace


@dataclass
class _Series:
    starts: list[int] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)


class Recorded:
    """The commands of a recording, by action column.

    Args:
        contract: Columns and outputs.
    """

    def __init__(self, contract: Contract) -> None:
        self._robot, self._space = contract.robot, RobotSpace(contract)
        self._series = {output.name: _Series() for output in self._robot.outputs}

    def add(self, output: Output, message: Any, log_ns: int) -> None:
        """One message to a controller; it begins at its stamp, or when it was written.

        Raises:
            Rejected: it lacks a joint, or holds values that are not finite.
        """
        command = read_command(message, output.columns)
        start_ns = command_stamp_ns(message) or log_ns
        series = self._series[output.name]
        place = bisect.bisect_right(series.starts, start_ns)
        series.starts.insert(place, start_ns)
        series.commands.insert(place, command)

    @property
    def columns(self) -> list[str]:
        """The action columns that commands were recorded for: of a hand, where those of all its joints were."""
        heard = {
            column for output in self._robot.outputs if self._series[output.name].starts for column in output.columns
        }
        return self._space.told_by(heard)

    def at(self, times_ns: np.ndarray) -> Matrix:
        """What was in force at some times: (T, N) in the contract's order, NaN where no command counts."""
        names = self._robot.action_names
        found = np.full((len(times_ns), len(names)), np.nan)
        for output in self._robot.outputs:
            series = self._series[output.name]
            if not series.starts:
                continue
            starts_ns = np.asarray(series.starts, dtype=np.int64)
            age_ns = command_age_ns(output, starts_ns, self._robot.step_ns)
            times_T = np.asarray(times_ns, dtype=np.int64)
            values, known = values_in_force(starts_ns, series.commands, times_T, max_age_ns=age_ns)
            index = [names.index(column) for column in output.columns]
            found[:, index] = np.where(known[:, None], values, np.nan)
        return self._space.actions(found)
