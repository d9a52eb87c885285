"""How far the clocks of two machines are apart, from the stamps of the messages that they send each other anyway.

A message that is stamped there and arrives here shows `travel + (here - there)`, one that goes back shows
`travel + (there - here)`. Half of the difference of the shortest of each is the offset, as in NTP; it errs by half of
what the two ways differ.
"""

from __future__ import annotations

from collections import deque

WINDOW_NS = 5_000_000_000
TOLD_NS = 20_000_000  # what the executor lets a stamp be ahead; beyond it the operator is told


class ShortestLag:
    """The shortest time from stamp to arrival of the last seconds."""

    def __init__(self) -> None:
        self._lags: deque[tuple[int, int]] = deque()  # arrival on the steady clock, lag; each lag below all after it

    def add(self, stamp_ns: int, here_ns: int, steady_ns: int) -> None:
        """A message of `stamp_ns` (there) came at `here_ns` (here)."""
        lag_ns = here_ns - stamp_ns
        while self._lags and self._lags[-1][1] >= lag_ns:
            self._lags.pop()
        self._lags.append((steady_ns, lag_ns))

    def shortest(self, steady_ns: int) -> int | None:
        """In nanoseconds; None where nothing was heard for `WINDOW_NS`."""
        while self._lags and steady_ns - self._lags[0][0] > WINDOW_NS:
            self._lags.popleft()
        return self._lags[0][1] if self._lags else None


def ahead_ns(lag_here_ns: int | None, lag_there_ns: int | None) -> int | None:
    """How far the other clock is ahead of ours, from the shortest lag here and the one that the other saw [ns]."""
    if lag_here_ns is None or lag_there_ns is None:
        return None
    return (lag_there_ns - lag_here_ns) // 2


def in_words(ahead: int | None) -> str:
    """What to do about clocks that are apart; empty where they are not, or where nobody knows."""
    if ahead is None or abs(ahead) < TOLD_NS:
        return ''
    way = 'ahead of' if ahead > 0 else 'behind'
    return f"The policy's clock is {abs(ahead) / 1e9:.3f} s {way} this one; synchronise them (chrony, PTP)."
