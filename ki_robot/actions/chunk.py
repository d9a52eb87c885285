"""Chunks of future commands: absolute SI values on a clock.

Step i is in force from `start_ns + i * step_ns` until the next one. Letters in names: H steps, N columns, T times,
d steps of delay. Nothing here reads a clock: the time is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ki_common.errors import shown
from ki_robot.errors import RobotError

Matrix = NDArray[np.float64]
MAX_STEPS = 10_000


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """H steps of N columns, checked on construction.

    `observation_ns` is the oldest stamp among the inputs; `frozen_prefix` counts the steps at the front that the chunk
    before had already fixed.
    """

    start_ns: int
    step_ns: int
    names: tuple[str, ...]
    data_HN: Matrix
    observation_ns: int = 0
    chunk_id: int = 0
    frozen_prefix: int = 0
    policy_id: str = ''
    instruction_id: str = ''

    def __post_init__(self) -> None:
        shape = self.data_HN.shape
        if self.data_HN.ndim != 2 or shape[1] != len(self.names) or not 0 < shape[0] <= MAX_STEPS:
            raise RobotError(f'chunk {self.chunk_id} has data of shape {shape}; {len(self.names)} columns are named.')
        if len(set(self.names)) != len(self.names):
            raise RobotError(f'chunk {self.chunk_id} names a column twice: {shown(self.names)}.')
        if self.step_ns <= 0:
            raise RobotError(f'chunk {self.chunk_id} has a step of {self.step_ns} ns; a step lasts longer than 0.')
        if self.start_ns <= 0:
            raise RobotError(f'chunk {self.chunk_id} starts at stamp {self.start_ns}; a stamp is above 0.')
        if not 0 <= self.frozen_prefix <= shape[0]:
            raise RobotError(f'chunk {self.chunk_id} has frozen_prefix {self.frozen_prefix} of {shape[0]} steps.')
        if not np.isfinite(self.data_HN).all():
            step, column = np.argwhere(~np.isfinite(self.data_HN))[0]
            value = self.data_HN[step, column]
            raise RobotError(
                f'chunk {self.chunk_id} has {value} in column {self.names[column]} at step {step}; values are finite.'
            )

    @property
    def horizon(self) -> int:
        """H, the number of steps."""
        return int(self.data_HN.shape[0])

    @property
    def end_ns(self) -> int:
        """When the last step ends, and with it the chunk."""
        return self.start_ns + self.horizon * self.step_ns

    @property
    def times_ns(self) -> NDArray[np.int64]:
        """When each step begins, shape (H,)."""
        return self.start_ns + self.step_ns * np.arange(self.horizon, dtype=np.int64)

    def index_at(self, now_ns: int) -> int:
        """The step in force at `now_ns`; negative before the start, >= H after the end."""
        return (now_ns - self.start_ns) // self.step_ns

    def columns(self, names: Sequence[str]) -> Matrix:
        """The values of some columns by name, shape (H, len(names))."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise RobotError(f'chunk {self.chunk_id} has no column {missing[0]!r}; it has {shown(self.names)}.')
        return self.data_HN[:, [self.names.index(name) for name in names]]


def first_step_due(chunk: ActionChunk, now_ns: int) -> int:
    """The first step that a consumer at `now_ns` may still use: the one in force; H when all is past."""
    return min(max(chunk.index_at(now_ns), 0), chunk.horizon)


def skip_past(chunk: ActionChunk, now_ns: int) -> ActionChunk | None:
    """`chunk` without the steps that ended before `now_ns`, their time unchanged; None when nothing is left."""
    return slice_steps(chunk, first_step_due(chunk, now_ns), chunk.horizon)


def slice_steps(chunk: ActionChunk, first: int, last: int) -> ActionChunk | None:
    """Steps first .. last-1 at their own times; None when there are none."""
    first, last = max(first, 0), min(last, chunk.horizon)
    if first >= last:
        return None
    return replace(
        chunk,
        start_ns=chunk.start_ns + first * chunk.step_ns,
        data_HN=chunk.data_HN[first:last],
        frozen_prefix=min(max(chunk.frozen_prefix - first, 0), last - first),
    )


def splice(old: ActionChunk | None, new: ActionChunk, delay_steps: int) -> ActionChunk:
    """What is executed when `new` arrives d steps after its start: old steps until then, new[d:] after.

    The result is on `new`'s clock and starts where `new` starts. Its first d rows are `old` at those times
    (interpolated when the two clocks are out of phase), and are counted as `frozen_prefix`. Where there is no old
    chunk, or it ends too early, the result begins at the first step that is covered: nothing is invented, nothing
    is replayed.

    Raises:
        RobotError: The columns differ, or d exceeds the horizon (the whole chunk came too late).
    """
    if not 0 <= delay_steps < new.horizon:
        raise RobotError(
            f'chunk {new.chunk_id} is {delay_steps} steps late and has {new.horizon}; drop it, or lengthen the horizon.'
        )
    head = carried_prefix(old, new, delay_steps) if old is not None else new.data_HN[:0]
    if len(head) < delay_steps:
        tail = slice_steps(new, delay_steps, new.horizon)
        assert tail is not None
        return replace(tail, frozen_prefix=0)
    return replace(new, data_HN=np.concatenate([head, new.data_HN[delay_steps:]]), frozen_prefix=delay_steps)


def carried_prefix(old: ActionChunk, new: ActionChunk, count: int) -> Matrix:
    """`old`, in absolute values, at the times of the first `count` steps of `new`: shape (k, N), k <= count.

    The rows end where `old` ends. They are what real-time chunking holds fixed or pulls towards; k < count means
    that the rest is free, never that it is zero.
    """
    return rows_at(old, new.names, new.start_ns, new.step_ns, count)


def rows_at(old: ActionChunk, names: tuple[str, ...], start_ns: int, step_ns: int, count: int) -> Matrix:
    """`old` at `start_ns + i * step_ns` for i < count, as far as it reaches: shape (k, N), k <= count.

    Steps on the same clock are copied bit for bit, others are interpolated linearly between the steps around them.
    """
    if old.names != names:
        raise RobotError(f'chunks have different columns: {shown(old.names)} and {shown(names)}.')
    if start_ns < old.start_ns:
        return old.data_HN[:0]
    offset_T = (start_ns - old.start_ns + step_ns * np.arange(count, dtype=np.int64)) / old.step_ns
    position_T = offset_T[offset_T <= old.horizon - 1]
    low_T = np.floor(position_T).astype(np.int64)
    high_T = np.minimum(low_T + 1, old.horizon - 1)
    part_T1 = (position_T - low_T)[:, None]
    rows: Matrix = old.data_HN[low_T] + part_T1 * (old.data_HN[high_T] - old.data_HN[low_T])
    return rows


def ensemble(chunks: Sequence[ActionChunk], on: ActionChunk, coefficient: float = 0.01) -> ActionChunk:
    """Temporal ensemble: each step of `on` becomes the mean over all chunks that reach it.

    Weights are exp(-coefficient * i) with i = 0 for the oldest chunk that covers the step (ACT, arXiv 2304.13705,
    section IV-B): a larger coefficient trusts new predictions less.

    Args:
        chunks: Oldest first, `on` among them or not.
        on: The chunk whose clock, columns and identity the result has.
        coefficient: ACT's m.
    """
    total_HN, weight_H = np.zeros_like(on.data_HN), np.zeros(on.horizon)
    rank_H = np.zeros(on.horizon)
    for chunk in [*(each for each in chunks if each is not on), on]:
        rows_KN = carried_prefix(chunk, on, on.horizon)
        weight_K = np.exp(-coefficient * rank_H[: len(rows_KN)])
        total_HN[: len(rows_KN)] += weight_K[:, None] * rows_KN
        weight_H[: len(rows_KN)] += weight_K
        rank_H[: len(rows_KN)] += 1
    return replace(on, data_HN=total_HN / weight_H[:, None])
