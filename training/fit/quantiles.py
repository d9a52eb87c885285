"""Mean, spread and quantiles of columns that do not fit into memory: exact while they are few, a histogram after.

Letters: M rows of one update, N columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EXACT_ROWS = 1 << 18
BINS = 8192

Values = NDArray[np.float64]


class Running:
    """Statistics of N columns over rows that arrive in pieces.

    Up to `exact_rows` rows are kept, and quantiles are those of numpy. Beyond, each column has a histogram of 8192
    bins whose range doubles when a value falls outside; a quantile is then off by at most `resolution` (one bin, at
    most 2 / 8192 of the column's range where the first rows span at least half of it, and never more than
    that of the range the bins cover).
    """

    def __init__(self, columns: int, exact_rows: int = EXACT_ROWS) -> None:
        self.count = 0
        self.mean = np.zeros(columns)
        self._squares = np.zeros(columns)
        self.low = np.full(columns, np.inf)
        self.high = np.full(columns, -np.inf)
        self._exact_rows = exact_rows
        self._kept: list[Values] | None = []
        self._bins = np.zeros((columns, BINS), dtype=np.int64)
        self._first = np.zeros(columns)
        self._width = np.zeros(columns)
        self._rough = np.zeros(columns)  # how far off values are that came as a histogram

    def update(self, rows_MN: NDArray[np.floating]) -> None:
        """Takes more rows; all must be finite."""
        rows = np.asarray(rows_MN, dtype=np.float64)
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        squares = ((rows - mean) ** 2).sum(axis=0)
        self._take_moments(len(rows), mean, squares, rows.min(axis=0), rows.max(axis=0))
        if self._kept is not None:
            self._kept.append(rows)
            if self.count > self._exact_rows:
                kept, self._kept = self._kept, None
                self._begin_bins()
                for piece in kept:
                    self._fill(piece)
        else:
            self._fill(rows)

    def _take_moments(self, count: int, mean: Values, squares: Values, low: Values, high: Values) -> None:
        delta = mean - self.mean
        total = self.count + count
        # Chan's way of merging variances: no cancellation, whatever the order.
        self._squares += squares + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total
        self.low = np.minimum(self.low, low)
        self.high = np.maximum(self.high, high)

    def merge(self, other: Running) -> None:
        """Takes what another one has taken, as rows that came after its own; that one must not be used any more.

        Where one of the two has a histogram already, quantiles are off by half a bin of the other besides.
        """
        if not other.count:
            return
        self._take_moments(other.count, other.mean, other._squares, other.low, other.high)
        if self._kept is not None and other._kept is not None and self.count <= self._exact_rows:
            self._kept += other._kept
            return
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self._begin_bins()
            for piece in kept:
                self._fill(piece)
        for piece in other._kept or ():
            self._fill(piece)
        if other._kept is None:
            self._fill_bins(other)

    def _fill_bins(self, other: Running) -> None:
        """Adds a histogram: each of its bins as values in its middle."""
        self._rough = np.maximum(self._rough, np.maximum(other._rough, other._width / 2))
        for column, counts in enumerate(other._bins):
            middles = other._first[column] + (np.arange(BINS) + 0.5) * other._width[column]
            values = np.clip(middles, other.low[column], other.high[column])[counts > 0]
            self._reach(column, float(values.min()), float(values.max()))
            place = ((values - self._first[column]) / self._width[column]).astype(np.int64)
            np.add.at(self._bins[column], np.clip(place, 0, BINS - 1), counts[counts > 0])

    @property
    def std(self) -> Values:
        """Standard deviation of the population."""
        return np.sqrt(self._squares / max(self.count, 1))

    @property
    def resolution(self) -> Values:
        """How far off a quantile may be, per column; 0 while exact."""
        return np.zeros(len(self.mean)) if self._kept is not None else self._width + self._rough

    def quantile(self, share: float) -> Values:
        """The value below which `share` of the rows lie, per column (N,)."""
        if self._kept is not None:
            return np.quantile(np.concatenate(self._kept), share, axis=0)
        found = np.empty(len(self.mean))
        for column, bins in enumerate(self._bins):
            filled = np.cumsum(bins)
            target = share * filled[-1]
            place = int(np.searchsorted(filled, target, side='left'))
            before = filled[place - 1] if place else 0
            inside = (target - before) / max(bins[place], 1)
            found[column] = self._first[column] + (place + inside) * self._width[column]
        return np.clip(found, self.low, self.high)

    def _begin_bins(self) -> None:
        span = self.high - self.low
        self._first = self.low.copy()
        self._width = np.where(span > 0, span, np.maximum(np.abs(self.low), 1.0) * 1e-9) * (1 + 1e-9) / BINS

    def _fill(self, rows: Values) -> None:
        for column in range(rows.shape[1]):
            values = rows[:, column]
            self._reach(column, float(values.min()), float(values.max()))
            place = ((values - self._first[column]) / self._width[column]).astype(np.int64)
            np.add.at(self._bins[column], np.clip(place, 0, BINS - 1), 1)

    def _reach(self, column: int, low: float, high: float) -> None:
        """Doubles the range, toward the value outside, until all fit: two old bins become one."""
        bins = self._bins[column]
        while low < self._first[column] or high >= self._first[column] + BINS * self._width[column]:
            pairs = bins.reshape(-1, 2).sum(axis=1)
            bins[:] = 0
            if low < self._first[column]:
                bins[BINS // 2 :] = pairs
                self._first[column] -= BINS * self._width[column]
            else:
                bins[: BINS // 2] = pairs
            self._width[column] *= 2


class RunningSteps:
    """Mean and spread of every step of chunks (H, N) that arrive in pieces; steps that are not known do not count."""

    def __init__(self, horizon: int, columns: int) -> None:
        self._count_H1 = np.zeros((horizon, 1))
        self.mean_HN = np.zeros((horizon, columns))
        self._squares_HN = np.zeros((horizon, columns))

    def update(self, chunks_nHN: NDArray[np.floating], known_nH: NDArray[np.bool_]) -> None:
        """Takes more chunks; known steps must be finite."""
        known = known_nH[..., None]
        rows = np.where(known, np.asarray(chunks_nHN, dtype=np.float64), 0.0)
        count = known.sum(axis=0)
        mean = rows.sum(axis=0) / np.maximum(count, 1)
        self._take(count, mean, np.where(known, (rows - mean) ** 2, 0.0).sum(axis=0))

    def merge(self, other: RunningSteps) -> None:
        """Takes what another one has taken."""
        self._take(other._count_H1, other.mean_HN, other._squares_HN)

    def _take(self, count: Values, mean: Values, spread: Values) -> None:
        total = np.maximum(self._count_H1 + count, 1)
        delta = np.where(count > 0, mean - self.mean_HN, 0.0)
        self._squares_HN += spread + delta**2 * (self._count_H1 * count / total)
        self.mean_HN = self.mean_HN + delta * (count / total)
        self._count_H1 = self._count_H1 + count

    @property
    def std_HN(self) -> Values:
        """Standard deviation of the population; 0 at a step that was never known."""
        return np.sqrt(self._squares_HN / np.maximum(self._count_H1, 1))
