"""SIGINT and SIGTERM: a request to stop, which never interrupts the shutdown itself, or held until work is whole."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS_TO_END = 3


class StopRequest:
    """Set by the first SIGINT or SIGTERM; the third ends the process at once.

    Not the second: Ctrl-C in the terminal of a `ros2 launch` reaches a node twice, from the terminal and from launch,
    and the robot must still be brought to rest, the recording finished. Make it in the main thread.

    Args:
        wake: Called at every signal, for a loop that sleeps.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._wake = wake
        self._event = threading.Event()
        self._signals = 0
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals >= SIGNALS_TO_END:
            os._exit(128 + number)
        self._event.set()
        self._wake()

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self._event.is_set()

    def release(self) -> None:
        """Restores the handlers from before; does nothing once a signal has come, since the stop is still under way."""
        if not self.is_set():
            for number, handler in self._before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """For the length of a `with` block SIGINT and SIGTERM wait; what they do is done at its end.

    A spin of rclpy needs it. Where KeyboardInterrupt comes between taking a message and its callback, the callback
    group counts as busy for ever: nothing of that node is heard again, no answer of a service either, and a command
    that Ctrl-C should end waits for one. In threads other than the main one, which gets no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before: dict[int, Callable[[int, Any], Any]] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if callable(handler):  # else nothing in Python is interrupted
            before[number] = handler
            signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for held, handler in before.items():
            signal.signal(held, handler)
        for held in dict.fromkeys(came):
            before[held](held, None)
