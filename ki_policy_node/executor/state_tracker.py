"""What is measured of the columns that are commanded, and whether it can still be trusted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of
from ki_robot.errors import Rejected
from ki_robot.observation.plausibility import StateCheck

STILL = 0.001  # of its range: less is noise
STILL_NS = 100_000_000


class Measured:
    """The newest measured value of every action column of a contract (N).

    Args:
        contract: Columns, and the streams that measure them.
        timeout_ns: Age at which a stream is stale; 0: never.
    """

    def __init__(self, contract: Contract, timeout_ns: int) -> None:
        self._names = contract.action_names
        self._timeout_ns = timeout_ns
        self.position_N = np.array([interface_of(name) == 'position' for name in self._names])
        self.value_N: Matrix = np.full(len(self._names), np.nan)
        moved = {name for name, is_position in zip(self._names, self.position_N, strict=True) if is_position}
        bounds = [column.limits for column in contract.actions]
        # Where each column stood when it was last seen to move, and when that was.
        ends = np.array([(each.lower, each.upper) for each in bounds], float)
        self._still_N = STILL * np.nan_to_num(ends[:, 1] - ends[:, 0], nan=np.inf)
        self._stood_N, self._moved_ns_N = np.full(len(bounds), np.nan), np.zeros(len(bounds), np.int64)
        # Stamp and arrival of every stream that measures what is commanded.
        self._streams = {column.source: (0, -1) for column in contract.state if column.name in moved}
        columns = {name: [column.name for column in contract.state if column.source == name] for name in self._streams}
        self._refused: dict[str, str] = {}  # stream -> why its newest state was not believed
        self._checks = {name: (listed, StateCheck(contract, listed)) for name, listed in columns.items()}

    def update(self, stream: str, values: Mapping[str, float], stamp_ns: int, steady_ns: int) -> bool:
        """Takes values by column name; False when they are no news: another stream, or a stamp that does not advance.

        Raises:
            Rejected: the robot cannot be there (`StateCheck`); what was measured before stays the newest.
        """
        if stream not in self._streams or stamp_ns <= self._streams[stream][0]:
            return False
        columns, check = self._checks[stream]
        try:
            check.check(np.array([values.get(name, np.nan) for name in columns]), stamp_ns)
        except Rejected as error:
            self._refused[stream] = str(error)
            raise
        self._refused.pop(stream, None)
        self._streams[stream] = (stamp_ns, steady_ns)
        for index, name in enumerate(self._names):
            if name in values:
                self.value_N[index] = values[name]
                if not abs(values[name] - self._stood_N[index]) <= self._still_N[index]:
                    self._stood_N[index], self._moved_ns_N[index] = values[name], steady_ns
        return True

    def on_clock_jump(self) -> None:
        """Stamps of the old clock say nothing about the new one."""
        self._streams = {stream: (0, steady_ns) for stream, (_, steady_ns) in self._streams.items()}
        self.forget()

    def forget(self) -> None:
        """Believes the next state wherever it is within the limits: nobody has looked for a while."""
        for _, check in self._checks.values():
            check.reset()

    def stale(self, steady_ns: int, now_ns: int | None = None) -> str:
        """Why the measured pose cannot be trusted; empty when it can.

        Args:
            steady_ns: Steady time, for the age since arrival.
            now_ns: ROS time, for the age by stamp: a state may come on time and still be old.
        """
        known_N = np.isfinite(self.value_N) | ~self.position_N
        if not known_N.all():
            why = next(iter(self._refused.values()), '')
            return why or f'No measured state of {self._names[int(np.argmin(known_N))]} has come yet.'
        for stream, (stamp_ns, arrived_ns) in self._streams.items():
            if self._timeout_ns and steady_ns - arrived_ns > self._timeout_ns:
                why = self._refused.get(stream, '')
                return why or f'The measured state of {stream} is older than {self._timeout_ns / 1e9:g} s.'
            if self._timeout_ns and now_ns is not None and stamp_ns and now_ns - stamp_ns > self._timeout_ns:
                late_s = (now_ns - stamp_ns) / 1e9
                return f'The measured state of {stream} is {late_s:.3f} s old by its stamp; synchronise the clocks.'
        return ''

    def moving(self, steady_ns: int) -> str:
        """Which column has moved within the last moment; empty when the robot stands."""
        recent_N = self.position_N & (steady_ns - self._moved_ns_N < STILL_NS)
        return f'{self._names[int(np.argmax(recent_N))]} still moves.' if recent_N.any() else ''

    def pose(self) -> Matrix:
        """The measured positions, NaN in the other columns."""
        return np.where(self.position_N, self.value_N, np.nan)
