"""A chunk between its steps: cubic Hermite with central differences, so that speed is continuous.

Letters: H steps, N columns.
"""

from __future__ import annotations

import numpy as np

from ki_robot.chunk import ActionChunk, Matrix


def slopes(chunk: ActionChunk) -> Matrix:
    """Velocity at every step by central differences, one-sided at the ends: H x N per second."""
    if chunk.horizon == 1:
        return np.zeros_like(chunk.data_HN)
    return np.gradient(chunk.data_HN, chunk.step_ns / 1e9, axis=0)


def interpolate(chunk: ActionChunk, slope_HN: Matrix, linear_N: np.ndarray, now_ns: int) -> tuple[Matrix, Matrix]:
    """Value and velocity of a chunk at a time: cubic Hermite between steps, linear where asked; (N,) and (N,).

    Before the first step it is that step, after the last it is the last; both at rest.
    """
    position = (now_ns - chunk.start_ns) / chunk.step_ns
    last = chunk.horizon - 1
    if position <= 0 or position >= last:
        index = 0 if position <= 0 else last
        return chunk.data_HN[index], np.zeros(len(chunk.names))
    low = int(position)
    t = position - low
    step_s = chunk.step_ns / 1e9
    a_N, b_N = chunk.data_HN[low], chunk.data_HN[low + 1]
    u_N, v_N = slope_HN[low] * step_s, slope_HN[low + 1] * step_s
    d_N = b_N - a_N
    value_N = a_N + t * (u_N + t * (3 * d_N - 2 * u_N - v_N + t * (u_N + v_N - 2 * d_N)))
    speed_N = (u_N + t * (2 * (3 * d_N - 2 * u_N - v_N) + 3 * t * (u_N + v_N - 2 * d_N))) / step_s
    if linear_N.any():
        value_N = np.where(linear_N, a_N + t * d_N, value_N)
        speed_N = np.where(linear_N, d_N / step_s, speed_N)
    return value_N, speed_N
