"""The shared memory that killed processes leave behind: Fast DDS frees its segment at the end, and SIGKILL is none.

A segment is up to 32 MiB of RAM (config/dds); a policy that is killed and started again all day would fill the machine.
Fast DDS locks a file beside each segment as long as the process lives: where nobody holds the lock, nobody lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path('/dev/shm')
LOCK = re.compile(r'((?:fastrtps|fastdds)_[0-9a-f]{16})_el')
YOUNG_S = 10.0  # a process that starts makes the file first, and locks it then


def free_abandoned(folder: Path = FOLDER, young_s: float = YOUNG_S) -> int:
    """Removes the segments of this user's processes that live no more; the memory that this frees [bytes].

    Args:
        folder: Where POSIX shared memory is.
        young_s: Locks that were made in the last seconds are left alone.
    """
    return sum(_free(lock) for lock in _locks(folder, time.time() - young_s))


def _locks(folder: Path, before_s: float) -> Iterator[Path]:
    """Those of this user that were made before a time; others come and go meanwhile."""
    for name in os.listdir(folder) if folder.is_dir() else ():
        if LOCK.fullmatch(name):
            with contextlib.suppress(OSError):
                about = os.stat(folder / name)
                if about.st_uid == os.geteuid() and about.st_mtime <= before_s:
                    yield folder / name


def _free(lock: Path) -> int:
    """The bytes of a segment that nobody owns any more, gone now; 0 where somebody does."""
    segment = lock.with_name(lock.name.removesuffix('_el'))
    try:
        with lock.open('rb') as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = segment.stat().st_blocks * 512
            segment.unlink()
            lock.unlink()
            return size
    except OSError:  # it is locked, or another process was quicker
        return 0
