"""How late chunks are: measured, and expected of the next one."""

from __future__ import annotations

from collections import deque

LATENCIES = 10  # that the expectation rests on


class DelayEstimate:
    """Latencies from the state's stamp to the finished chunk [ns].

    The expectation is the second largest of the last ten: nearly every inference is as fast, and one that was slow for
    once is not what the next ten are planned for.
    """

    def __init__(self) -> None:
        self._latencies_ns: deque[int] = deque(maxlen=LATENCIES)
        self._cold = True

    def add(self, latency_ns: int) -> None:
        """One more; the first inference of a policy is cold, and must not make every later one plan far ahead."""
        if self._cold:
            self._cold = False
        else:
            self._latencies_ns.append(max(0, latency_ns))

    @property
    def expected_ns(self) -> int:
        """Of the next chunk [ns]; 0 before anything was measured."""
        return next(iter(sorted(self._latencies_ns)[-2:]), 0)

    def expected_steps(self, step_ns: int) -> int:
        """The same in steps, rounded up."""
        return -(-self.expected_ns // step_ns)
