"""How late chunks are: measured, and expected of the next one."""

from __future__ import annotations

from collections import deque

LATENCIES = 10  # the expectation is the largest of the last so many


class DelayEstimate:
    """Latencies from the state's stamp to the finished chunk [ns]."""

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
        return max(self._latencies_ns, default=0)

    def expected_steps(self, step_ns: int) -> int:
        """The same in steps, rounded up."""
        return -(-self.expected_ns // step_ns)
