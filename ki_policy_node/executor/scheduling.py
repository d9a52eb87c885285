"""The executor's own scheduling: real-time priority for its threads, and when Python may collect garbage.

No ROS here. Nothing is required: where the system permits less, the executor runs with what is permitted and says so.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NICE = -10  # where SCHED_FIFO is not permitted
THREADS = Path('/proc/self/task')
HOW = (
    'To permit it, give the user `rtprio 98` in /etc/security/limits.d and log in again, a systemd unit '
    'LimitRTPRIO=98 or AmbientCapabilities=CAP_SYS_NICE, a container --cap-add SYS_NICE --ulimit rtprio=98; '
    'or set priority to 0.'
)
COLLECT_S = 1.0  # between two collections of garbage
LATEST_S = 10.0  # after which it is collected even if the next tick is near, so that it does not pile up
SPARE = 0.5  # of a period: what must be left of it to collect garbage
LONG_NS = 1_000_000  # a collection that took longer leaves its survivors alone from then on


@dataclass(frozen=True)
class Granted:
    """What the system has permitted.

    Attributes:
        policy: `SCHED_FIFO 40`, `nice -10`, or `default`.
        advice: What is missing and how to permit it, one line; empty where nothing is.
        nice: The nice value before.
    """

    policy: str
    advice: str = ''
    nice: int = 0


def raise_priority(priority: int) -> Granted:
    """Asks for SCHED_FIFO for every thread of this process, or else for a better `nice`.

    The thread that ticks shares the interpreter with the others: one that holds the lock of the interpreter and waits
    for a core would keep the tick waiting. So they all get a priority, one below that of the tick (`lead`).

    Args:
        priority: Of the tick, 1 to 98; 0 asks for nothing.
    """
    if not priority:
        return Granted('default')
    try:
        _schedule(0, os.SCHED_FIFO, priority)  # a limit may permit the others' and not that of the tick
        _of_each_thread(lambda thread: _schedule(thread, os.SCHED_FIFO, max(1, priority - 1)))
    except (AttributeError, OSError) as error:
        refused = f'SCHED_FIFO is not permitted ({_reason(error)})'
    else:
        return Granted(f'SCHED_FIFO {priority}')
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        _of_each_thread(lambda thread: os.setpriority(os.PRIO_PROCESS, thread, NICE))
    except OSError as error:
        refused += f', nor is nice {NICE} ({_reason(error)}): ticks come late where other programs are busy.'
        return Granted('default', f'{refused} {HOW}')
    return Granted(f'nice {NICE}', f'{refused}; the executor runs with nice {NICE}. {HOW}', before)


def lead(priority: int, granted: Granted) -> None:
    """Puts the calling thread, the one that ticks, before the others of the process; a thread inherits the rest."""
    if granted.policy.startswith('SCHED_FIFO'):
        _schedule(0, os.SCHED_FIFO, priority)


def lower_priority(granted: Granted) -> None:
    """Takes back what was granted."""
    if granted.policy.startswith('SCHED_FIFO'):
        _of_each_thread(lambda thread: _schedule(thread, os.SCHED_OTHER, 0))
    elif granted.policy.startswith('nice'):
        _of_each_thread(lambda thread: os.setpriority(os.PRIO_PROCESS, thread, granted.nice))


class QuietCollector:
    """Garbage is collected between two ticks, and only what was made since: never in a tick, never all of the heap.

    A collection of the whole heap of the executor takes a tenth of a second, in which nothing ticks. What lives when
    the ticks begin is therefore frozen: it is looked at no more, and a collection takes microseconds.

    Args:
        period_ns: Between two ticks.
    """

    def __init__(self, period_ns: int) -> None:
        self._spare_ns = round(SPARE * period_ns)
        self._last_ns = 0
        self.longest_ns = 0

    def begin(self) -> None:
        """Takes garbage collection over from the interpreter."""
        gc.collect()
        gc.freeze()
        gc.disable()
        self._last_ns, self.longest_ns = time.monotonic_ns(), 0

    def end(self) -> None:
        """Gives it back."""
        gc.enable()
        gc.unfreeze()

    def collect(self, due_ns: int) -> bool:
        """Collects if that is due and the next tick, at `due_ns` (steady), is far enough away; whether it did.

        Where a tick leaves no spare time for `LATEST_S`, it collects all the same.
        """
        now_ns = time.monotonic_ns()
        since_s = (now_ns - self._last_ns) / 1e9
        if since_s < COLLECT_S or (due_ns - now_ns < self._spare_ns and since_s < LATEST_S):
            return False
        gc.collect()
        self._last_ns = time.monotonic_ns()
        taken_ns = self._last_ns - now_ns
        self.longest_ns = max(self.longest_ns, taken_ns)
        if taken_ns > LONG_NS:
            gc.freeze()
        return True


def _of_each_thread(act: Callable[[int], None]) -> None:
    """For every thread of this process, those of DDS too."""
    for thread in [int(each.name) for each in THREADS.iterdir()] if THREADS.exists() else [0]:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            act(thread)


def _schedule(thread: int, policy: int, priority: int) -> None:
    os.sched_setscheduler(thread, policy, os.sched_param(priority))


def _reason(error: Exception) -> str:
    return (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)).lower()
