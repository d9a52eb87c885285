"""What a node publishes about itself on /diagnostics: percentiles of its times, health of its streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE
RECORDING = 'recording'  # what follows the recorder's name in the name of its status


class Durations:
    """The last durations of one kind, nanoseconds in, percentiles out."""

    def __init__(self, most: int = 1000) -> None:
        self._values: deque[int] = deque(maxlen=most)

    def add(self, value_ns: int) -> None:
        """One more; negative ones (a clock was set) count as 0."""
        self._values.append(max(0, value_ns))

    def clear(self) -> None:
        """Forgets all of them."""
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)

    def percentile_ns(self, percent: float) -> int:
        """The nearest value that `percent` of the durations do not exceed; 0 when there are none."""
        if not self._values:
            return 0
        return int(np.percentile(np.fromiter(self._values, np.int64), percent, method='inverted_cdf'))


def status(level: bytes, name: str, message: str, hardware_id: str, values: Mapping[str, object]) -> DiagnosticStatus:
    """One line of a diagnostics viewer."""
    made = DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id)
    made.values = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
    return made


def array(stamp: Any, statuses: Sequence[DiagnosticStatus]) -> DiagnosticArray:
    """What goes to /diagnostics."""
    made = DiagnosticArray(status=list(statuses))
    made.header.stamp = stamp
    return made


def _text(value: object) -> str:
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def milliseconds(value_ns: int) -> float:
    """Nanoseconds as people read them."""
    return value_ns / 1e6
