"""The messages of one clock epoch as arrays, made once; each of its episodes looks only at its own stretch of them.

Letters: M messages, T grid steps. Times are integer nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.index.resample import newest_before
from training.index.stream_clocks import StreamClock

Times = NDArray[np.int64]


@dataclass(frozen=True)
class Timeline:
    """One stream in the order of its stamps.

    Attributes:
        stamps: (M,), rising.
        logs: (M,), when each message arrived, on the clock of the stamps; in any order.
        rows: M rows: an array where they are numbers, else a list.
    """

    stamps: Times
    logs: Times
    rows: Any

    def __len__(self) -> int:
        return len(self.stamps)

    @cached_property
    def _arrived(self) -> Times:
        """The latest arrival up to each message."""
        return np.maximum.accumulate(self.logs)

    def stamped_before(self, grid_T: Times) -> Times:
        """Row of the newest message by stamp at each step; -1 where there is none yet."""
        return newest_before(self.stamps, grid_T)

    def arrived_before(self, grid_T: Times) -> Times:
        """Row of the newest message that had arrived at each step; -1 where none had."""
        return newest_before(self._arrived, grid_T)

    def around(self, grid_T: Times) -> slice:
        """The messages that matter to a stretch of time: from the one before it to the one after it."""
        first, last = newest_before(self.stamps, grid_T[[0, -1]]).tolist()
        return slice(max(first, 0), last + 2)


EMPTY = Timeline(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), [])


@dataclass(frozen=True)
class Epoch:
    """What one recording holds between two jumps of its clock; rows as in `training.index.streams.Collected`.

    Attributes:
        command_ages: By output; how long its commands count, ns, None for as long as no other comes.
        clocks: By camera, stream or output; what its stamps showed against arrival.
    """

    cameras: Mapping[str, Timeline]
    states: Mapping[str, Timeline]
    state_columns: Mapping[str, tuple[str, ...]]
    commands: Mapping[str, Timeline]
    command_ages: Mapping[str, int | None]
    markers: Timeline
    instructions: Timeline
    subtasks: Timeline
    drivers: Timeline
    clocks: Mapping[str, StreamClock]
