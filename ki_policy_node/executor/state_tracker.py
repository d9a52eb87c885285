"""What is measured of the columns that are commanded, and whether it can still be trusted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of

MARGIN = 0.05  # of its range: a joint measured further outside its limits is not believed
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
        self._lower_N = np.array([-np.inf if each.lower is None else each.lower for each in bounds])
        self._upper_N = np.array([np.inf if each.upper is None else each.upper for each in bounds])
        # Where each column stood when it was last seen to move, and when that was.
        self._still_N = STILL * (self._upper_N - self._lower_N)
        self._stood_N, self._moved_ns_N = np.full(len(bounds), np.nan), np.zeros(len(bounds), np.int64)
        self._margin_N = MARGIN * (self._upper_N - self._lower_N)
        # Stamp and arrival of every stream that measures what is commanded.
        self._streams = {column.source: (0, -1) for column in contract.state if column.name in moved}

    def update(self, stream: str, values: Mapping[str, float], stamp_ns: int, steady_ns: int) -> bool:
        """Takes values by column name; False when they are no news: another stream, or a stamp that stands still."""
        if stream not in self._streams or stamp_ns == self._streams[stream][0]:
            return False
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

    def stale(self, steady_ns: int) -> str:
        """Why the measured pose cannot be trusted; empty when it can."""
        known_N = np.isfinite(self.value_N) | ~self.position_N
        if not known_N.all():
            return f'No measured state of {self._names[int(np.argmin(known_N))]} has come yet.'
        for stream, (_, arrived_ns) in self._streams.items():
            if self._timeout_ns and steady_ns - arrived_ns > self._timeout_ns:
                return f'The measured state of {stream} is older than {self._timeout_ns / 1e9:g} s.'
        return ''

    def moving(self, steady_ns: int) -> str:
        """Which column has moved within the last moment; empty when the robot stands."""
        recent_N = self.position_N & (steady_ns - self._moved_ns_N < STILL_NS)
        return f'{self._names[int(np.argmax(recent_N))]} still moves.' if recent_N.any() else ''

    def implausible(self) -> str:
        """Why the measured pose cannot be where the robot is; empty when it can."""
        with np.errstate(invalid='ignore'):
            beyond_N = np.maximum(self.value_N - self._upper_N, self._lower_N - self.value_N)
        worst = int(np.argmax(np.where(self.position_N, beyond_N - self._margin_N, -np.inf)))
        if not self.position_N[worst] or not beyond_N[worst] > self._margin_N[worst]:
            return ''
        return (
            f'{self._names[worst]} is measured at {self.value_N[worst]:.4g}, {beyond_N[worst]:.3g} beyond its limits.'
        )

    def pose(self) -> Matrix:
        """The measured positions, NaN in the other columns."""
        return np.where(self.position_N, self.value_N, np.nan)
