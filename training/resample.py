"""Streams of any rate onto the grid of a contract: newest-before, interpolated or held. Pure functions.

Letters: T grid steps, M messages, N columns. Times are integer nanoseconds, rising.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.streams import Command

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


def command_values(
    starts_M: Times, commands: Sequence[Command], grid_T: Times, timeout_ns: int | None = None
) -> tuple[Values, NDArray[np.bool_]]:
    """What a controller was told at each step.

    A setpoint is in force until the next one. Within a trajectory the value is interpolated between its points; before
    the first point, and after the last, that point is meant.

    Args:
        starts_M: When each command began.
        commands: Those commands.
        grid_T: The steps.
        timeout_ns: Commands older than this are 0 (a base that hears nothing stands still); None: never.

    Returns:
        values (T, N), and whether a command was in force (T,): False before the first, unless there is a time-out.
    """
    row_T = newest_before(starts_M, grid_T)
    safe_T = np.maximum(row_T, 0)
    if all(len(command.times_ns) == 1 for command in commands):
        values = np.concatenate([command.values for command in commands])[safe_T]
    else:
        values = np.empty((len(grid_T), commands[0].values.shape[1]))
        for row in np.unique(safe_T):
            steps = safe_T == row
            command = commands[row]
            after = (grid_T[steps] - starts_M[row]).astype(np.float64)
            times = command.times_ns.astype(np.float64)
            values[steps] = np.stack([np.interp(after, times, column) for column in command.values.T], axis=1)
    known_T = row_T >= 0
    if timeout_ns is not None:
        old_T = (grid_T - starts_M[safe_T] > timeout_ns) | ~known_T
        values = np.where(old_T[:, None], 0.0, values)
        known_T = np.ones(len(grid_T), dtype=bool)
    return values, known_T
