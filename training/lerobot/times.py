"""The `timestamp` column of an episode against the rate that the dataset claims: when each step was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError

RATE_SHARE = 0.05  # by how much the steps may be slower or quicker than fps says
SNAP_SHARE = 0.1  # of a step; times that near to the grid are on it, as float32 cannot hold every multiple of 1 / fps
GAP_STEPS = 1.5


@dataclass(frozen=True)
class StepTimes:
    """When the steps of one episode were.

    Attributes:
        since_start_ns: Nanoseconds since the first step, rising.
        gaps: How many pauses there are between two steps.
        longest_gap_s: The longest, seconds.
    """

    since_start_ns: NDArray[np.int64]
    gaps: int = 0
    longest_gap_s: float = 0.0


def step_times(timestamps: NDArray[np.float64], fps: float, step_ns: int) -> StepTimes:
    """The times of steps.

    Args:
        timestamps: Seconds, of each step.
        fps: Steps a second, as the dataset says.
        step_ns: A step in whole nanoseconds, of the grid that the times are brought to.

    Raises:
        TrainingError: They fall, stand still, are not finite, or go at another rate than `fps`.
    """
    if not np.isfinite(timestamps).all():
        raise TrainingError('its timestamps are not finite.')
    steps_s = np.diff(timestamps)
    falls = np.flatnonzero(steps_s <= 0)
    if len(falls):
        at = int(falls[0]) + 1
        raise TrainingError(
            f'its timestamps fall back at step {at}, from {timestamps[at - 1]:.3f} s to {timestamps[at]:.3f} s; '
            'cut the episode there.'
        )
    if len(steps_s) and abs(float(np.median(steps_s)) * fps - 1) > RATE_SHARE:
        rate = 1 / float(np.median(steps_s))
        raise TrainingError(
            f'its timestamps go at {rate:.4g} steps a second, but fps is {fps:g}; correct the one or the other.'
        )
    in_steps = (timestamps - timestamps[:1]) * fps
    near = np.rint(in_steps)
    on_grid = np.abs(in_steps - near) <= SNAP_SHARE
    exact = np.rint(in_steps * (1e9 / fps)).astype(np.int64)
    since_start_ns = np.where(on_grid, near.astype(np.int64) * step_ns, exact)
    gaps = steps_s[steps_s * fps > GAP_STEPS]
    return StepTimes(since_start_ns, len(gaps), float(gaps.max(initial=0.0)))
