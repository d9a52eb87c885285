"""A few threads that decode pictures while whoever needs them does something else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable

COUNT = 2  # pictures of three cameras take two turns, and a third thread would want a third core


class DecodeThreads:
    """Runs work in threads of its own; of each key the newest alone waits, so what waits is bounded by the keys.

    Args:
        count: Threads.
    """

    def __init__(self, count: int = COUNT) -> None:
        self._waiting: dict[Hashable, Callable[[], object]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name=f'decode{k}', daemon=True) for k in range(count)]
        for thread in self._threads:
            thread.start()

    def ask(self, key: Hashable, work: Callable[[], object]) -> None:
        """Has `work` done soon; it replaces what waits under the same key.

        An exception in it ends nothing and is told by nobody: who needs the result does the work again, and hears it.
        """
        with self._changed:
            if not self._closed:
                self._waiting[key] = work
                self._changed.notify()

    def close(self) -> None:
        """Ends the threads after the work in progress."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(1.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                work = self._waiting.pop(next(iter(self._waiting)))
            with contextlib.suppress(Exception):
                work()
