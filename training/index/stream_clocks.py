"""The clock that stamps one stream, against the arrival of its messages: how far apart, how it drifts and jumps."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

SMOOTH = 5  # messages; a late one alone is not a clock that was set
STEP_NS = 200_000_000  # ages that part by more than this between two messages, and stay apart: the clock was set
DRIFT_NS = 50_000_000  # a drift that comes to less than this over a recording harms nothing

Times = NDArray[np.int64]


@dataclass(frozen=True)
class StreamClock:
    """How the stamps of one stream lie to the arrival of its messages.

    Attributes:
        offset_s: Arrival minus stamp, the median: the latency of the stream, where the clocks are one.
        drift_ppm: How much faster than its stamps the arrivals go, in millionths; without the jumps.
        drift_s: What the drift comes to over the recording.
        jumps: How often the stamps were set to another time.
        largest_jump_s: The largest of these jumps; negative: the stamps were set forward.
    """

    offset_s: float
    drift_ppm: float
    drift_s: float
    jumps: int
    largest_jump_s: float

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, under names that tell them from rates."""
        return {f'clock_{name}': float(value) for name, value in asdict(self).items()}

    @property
    def complaints(self) -> dict[str, str]:
        """What is wrong with the clock, by kind; empty where nothing is."""
        found = {}
        if self.jumps:
            found['stream_clock_jump'] = f'its stamps jump by up to {-self.largest_jump_s:+.2f} s, {self.jumps} times'
        if abs(self.drift_s) * 1e9 > DRIFT_NS:
            found['clock_drift'] = (
                f'its stamps drift by {-self.drift_ppm:+.0f} ppm against their arrival, {-self.drift_s:+.3f} s in all'
            )
        return found


def measure_clock(stamps: Times, arrivals: Times) -> StreamClock | None:
    """Measures a stream in the order of arrival; None of fewer than `SMOOTH` messages."""
    if len(stamps) < SMOOTH:
        return None
    ages = smoothed(arrivals - stamps)
    steps = np.diff(ages)
    jumps = steps[np.abs(steps) > STEP_NS]
    without = ages - np.concatenate([[0], np.cumsum(np.where(np.abs(steps) > STEP_NS, steps, 0))])
    part = max(len(without) // 10, 1)
    # Latency only ever adds: the least of each end is nearest to the clocks themselves.
    drift = int(without[-part:].min() - without[:part].min())
    span = max(int(arrivals[-1] - arrivals[0]), 1)
    return StreamClock(
        offset_s=float(np.median(arrivals - stamps)) / 1e9,
        drift_ppm=drift / span * 1e6,
        drift_s=drift / 1e9,
        jumps=len(jumps),
        largest_jump_s=float(jumps[np.argmax(np.abs(jumps))]) / 1e9 if len(jumps) else 0.0,
    )


def smoothed(values: Times) -> Times:
    """The median of every `SMOOTH` values around each."""
    half = SMOOTH // 2
    padded = np.concatenate([np.full(half, values[0]), values, np.full(half, values[-1])])
    windows = np.lib.stride_tricks.sliding_window_view(padded, SMOOTH)
    found: Times = np.sort(windows, axis=1)[:, half]
    return found
