"""A chunk between its steps: values and velocities at any time, for controllers that run faster than the policy.

Letters in names: H steps, N columns, T times. Step i is a point at `start_ns + i * step_ns`; before the first point a
chunk rests on it, after the last one it rests there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ki_common.errors import shown
from ki_robot.actions.chunk import ActionChunk, Matrix
from ki_robot.errors import RobotError

KINDS = ('cubic', 'linear')
Times = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Points of N columns at absolute times, with their first derivatives (SI per second)."""

    names: tuple[str, ...]
    times_ns: Times
    positions_TN: Matrix
    velocities_TN: Matrix


def slopes(data_HN: Matrix, step_s: float) -> Matrix:
    """The first derivative at every step for a cubic that never overshoots its points: (H, N) per second.

    Inside, the harmonic mean of the two neighbouring secants where they agree in sign and zero where they do not
    (Fritsch and Butland 1984): between two points the cubic stays between their values, so that interpolation
    cannot leave a position limit that the points keep. Central differences would.
    The two ends take the secant beside them.
    """
    if len(data_HN) < 2:
        return np.zeros_like(data_HN)
    secant = np.diff(data_HN, axis=0) / step_s
    inside = np.zeros((len(secant) - 1, data_HN.shape[1]))
    before, after = secant[:-1], secant[1:]
    agree = before * after > 0.0
    # Divided by the larger one first: the plain form 2ab / (a + b) underflows for tiny slopes.
    large = np.where(np.abs(before) > np.abs(after), before, after)
    small = np.where(np.abs(before) > np.abs(after), after, before)
    ratio = np.divide(small, large, out=np.zeros_like(inside), where=agree)
    inside[agree] = (2.0 * small / (1.0 + ratio))[agree]
    return np.concatenate([secant[:1], inside, secant[-1:]])


def interpolate(
    chunk: ActionChunk, times_ns: NDArray[np.int64] | int, kind: str = 'cubic', slopes_HN: Matrix | None = None
) -> tuple[Matrix, Matrix]:
    """Values and velocities of `chunk` at some times.

    Args:
        chunk: The points.
        times_ns: One time, or (T,) of them.
        kind: `cubic` (Hermite with `slopes`: velocity is continuous) or `linear`.
        slopes_HN: What `slopes` gave for this chunk, where it is sampled again and again.

    Returns:
        (T, N) and (T, N), or (N,) and (N,) for one time. Outside the chunk the velocity is zero.
    """
    if kind not in KINDS:
        raise RobotError(f'interpolation is {shown(kind)}; write one of {", ".join(KINDS)}.')
    step_s = chunk.step_ns * 1e-9
    data = chunk.data_HN
    offset = (np.asarray(times_ns, dtype=np.int64) - chunk.start_ns) / chunk.step_ns
    place = np.clip(offset, 0.0, chunk.horizon - 1)
    low = np.minimum(place.astype(np.int64), max(chunk.horizon - 2, 0))
    high = np.minimum(low + 1, chunk.horizon - 1)
    part = (place - low)[..., None]
    gap = data[high] - data[low]
    if kind == 'linear':
        values, speeds = data[low] + part * gap, gap / step_s
    else:
        slope = slopes(data, step_s) if slopes_HN is None else slopes_HN
        left, right = slope[low] * step_s, slope[high] * step_s
        bend, twist = 3.0 * gap - 2.0 * left - right, left + right - 2.0 * gap
        values = data[low] + part * (left + part * (bend + part * twist))
        speeds = (left + part * (2.0 * bend + part * 3.0 * twist)) / step_s
    at_end = (place == chunk.horizon - 1)[..., None]
    rests = ((offset < 0.0) | (offset > chunk.horizon - 1))[..., None]
    # The last point itself, bit for bit: rounding may leave the sum a hair beside it.
    return np.where(at_end, data[-1], values), np.where(rests, 0.0, speeds)


def resample(
    chunk: ActionChunk,
    start_ns: int,
    period_ns: int,
    count: int,
    kind: str = 'cubic',
    last_velocity_zero: bool = True,
) -> Trajectory:
    """`chunk` at a controller's rate: `count` points from `start_ns`, `period_ns` apart.

    The last velocity is zero unless told otherwise: joint_trajectory_controller refuses a trajectory that ends in
    motion (unless its allow_nonzero_velocity_at_trajectory_end is set).
    """
    if period_ns <= 0 or count < 1:
        raise RobotError(f'{count} points {period_ns} ns apart cannot be made; both are at least 1.')
    times = start_ns + period_ns * np.arange(count, dtype=np.int64)
    positions, velocities = interpolate(chunk, times, kind)
    if last_velocity_zero:
        velocities[-1] = 0.0
    return Trajectory(chunk.names, times, positions, velocities)
