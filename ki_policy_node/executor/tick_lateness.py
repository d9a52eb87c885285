"""How late the executor's ticks are, and whether the machine is too slow for it. No ROS here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WINDOW_S = 10.0  # what is judged
LEAST_S = 1.0  # of ticks before anything is judged
LATE = 0.5  # of a period: a tick that comes later is a late one
MOST_LATE = 0.01  # share of late ticks that is no cause for a warning


@dataclass(frozen=True)
class Lateness:
    """Of the last `WINDOW_S` of ticks, how late they came: percentiles [ns], and the share of late ones."""

    ticks: int = 0
    p50_ns: int = 0
    p99_ns: int = 0
    worst_ns: int = 0
    late_share: float = 0.0


class TickLateness:
    """Keeps how late each tick was, in memory that is taken once.

    Args:
        rate: Of the ticks [Hz].
        limit_ns: A single tick later than this is too late; 0: however late.
    """

    def __init__(self, rate: float, limit_ns: int) -> None:
        self._late_ns, self._limit_ns = LATE * 1e9 / rate, limit_ns
        self._least = round(LEAST_S * rate)
        self._ring = np.zeros(max(1, round(WINDOW_S * rate)), np.int64)
        self._count = 0

    def add(self, late_ns: int) -> None:
        """One more tick came `late_ns` after it was due."""
        self._ring[self._count % len(self._ring)] = max(0, late_ns)
        self._count += 1

    def figures(self) -> Lateness:
        """The figures now."""
        ticks = min(self._count, len(self._ring))
        if not ticks:
            return Lateness()
        kept = self._ring[:ticks].copy()
        p50, p99 = np.percentile(kept, [50, 99], method='inverted_cdf')
        return Lateness(ticks, int(p50), int(p99), int(kept.max()), float((kept > self._late_ns).mean()))

    def complaint(self, advice: str = '') -> str:
        """That the machine is too slow, with the figures and what to do; empty where it keeps up.

        Args:
            advice: How to permit a better scheduling, where that is not permitted.
        """
        seen = self.figures()
        too_late = 0 < self._limit_ns < seen.worst_ns
        if seen.ticks < self._least or not (too_late or seen.late_share > MOST_LATE):
            return ''
        return (
            f'The machine is too slow for the executor: of the ticks of the last {WINDOW_S:g} s '
            f'{100 * seen.late_share:.1f} % came more than {self._late_ns / 1e6:g} ms late '
            f'(p99 {seen.p99_ns / 1e6:.1f} ms, worst {seen.worst_ns / 1e6:.1f} ms). End other programs, leave the '
            f'executor a core (taskset, isolcpus), or lower its parameter rate. {advice}'
        ).rstrip()
