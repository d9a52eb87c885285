"""Streams of any rate onto the grid of a contract: newest-before, interpolated or held. Pure functions.

Letters: T grid steps, M messages, N columns. Times are integer nanoseconds, rising.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64]
Values = NDArray[np.float64]


def newest_before(stamps_M: Times, grid_T: Times) -> Times:
    """Row of the newest message at or before each grid step; -1 where there is none yet."""
    return np.searchsorted(stamps_M, grid_T, side='right') - 1


def hold(stamps_M: Times, values_MN: Values, grid_T: Times) -> Values:
    """The newest value at or before each step, as the live node sees it; the first one before that."""
    return values_MN[np.maximum(newest_before(stamps_M, grid_T), 0)]


def interpolate(stamps_M: Times, values_MN: Values, grid_T: Times) -> Values:
    """Linear in time; beyond either end the last value is held."""
    # Relative to the first stamp: nanoseconds since 1970 do not fit the 53 bits of a float64.
    base = stamps_M[0]
    at, known = (grid_T - base).astype(np.float64), (stamps_M - base).astype(np.float64)
    return np.stack([np.interp(at, known, column) for column in values_MN.T], axis=1)


def rising(stamps: Sequence[int] | Times) -> NDArray[np.bool_]:
    """Which messages to keep so that stamps rise strictly: one that is not newer than all before it is late."""
    stamps_M = np.asarray(stamps, dtype=np.int64)
    keep = np.ones(len(stamps_M), dtype=bool)
    if len(stamps_M) > 1:
        keep[1:] = stamps_M[1:] > np.maximum.accumulate(stamps_M)[:-1]
    return keep
