"""The one thread that owns the engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Made = TypeVar('Made')
IDLE_S = 0.05  # the longest sleep


class InferenceThread:
    """Runs `turn` whenever it is awake and `active`.

    `call` has something else run in it (loading, warming up: an engine's graphs belong to the thread that made them).

    Args:
        turn: One look at the world; returns how long to sleep until the next one [s], which `wake` cuts short. Must not
            raise.
    """

    def __init__(self, turn: Callable[[], float]) -> None:
        self._turn = turn
        self._wake = threading.Event()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closed = False
        self.active = False
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Ends the present sleep."""
        self._wake.set()

    def call(self, function: Callable[[], Made], timeout_s: float | None = None) -> Made:
        """Runs `function` in the thread, after the turn in progress, and returns what it returns or raises."""
        future: Future[Made] = Future()
        self._calls.append((function, future))
        self._wake.set()
        return future.result(timeout_s)

    def close(self, timeout_s: float = 1.0) -> bool:
        """Ends the thread after the turn in progress; False when that takes longer than `timeout_s`."""
        self._closed = True
        self.active = False
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = IDLE_S
        while not self._closed:
            self._wake.wait(pause)
            self._wake.clear()
            while self._calls:
                function, future = self._calls.popleft()
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            pause = self._turn() if self.active else IDLE_S
