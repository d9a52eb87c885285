"""The shared memory that killed processes leave behind: Fast DDS frees its segment at the end, and SIGKILL is none.

A segment is up to 32 MiB of RAM (config/dds); a policy that is killed and started again all day would fill the machine.
Fast DDS locks a file beside each segment as long as the process lives: where nobody holds the lock, nobody lives.

A killed process also leaves the port at which it was reached. Its successor gets the same number, removes the port and
makes a new one, and whoever still has the old one open may write to that for ever: the two hear nothing of each other
(eProsima/Fast-DDS#5053). A number is therefore left alone while a living process has it open.
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
PORT_LOCK = re.compile(r'(?:fastrtps|fastdds)_port(\d+)_el')
PORT_MAP = re.compile(rb'/dev/shm/(?:fastrtps|fastdds)_port(\d+)\b')
LOCKS = Path('/proc/locks')


@contextlib.contextmanager
def ghosts_avoided(folder: Path = FOLDER) -> Iterator[tuple[int, ...]]:
    """While a participant is made in here, it gets no port that a killed process had and a living one still has open.

    Fast DDS takes the first numbers that nobody has locked, and these are locked.

    Args:
        folder: Where POSIX shared memory is.

    Yields:
        The ports that are avoided.
    """
    left = dict(_abandoned_ports(folder))
    opened = _open_ports() if left else set()
    with contextlib.ExitStack() as taken:
        avoided = []
        for port, lock in left.items():
            if port in opened:
                with contextlib.suppress(OSError):  # somebody has taken it meanwhile
                    held = taken.enter_context(lock.open('rb'))
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    avoided.append(port)
        yield tuple(avoided)


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


def _abandoned_ports(folder: Path) -> Iterator[tuple[int, Path]]:
    """Ports whose owner lives no more, and their locks.

    The locks are looked at, not tried: who starts just now must find them free.
    """
    names = os.listdir(folder) if folder.is_dir() else ()
    held = {line.split()[5] for line in LOCKS.read_text().splitlines() if 'FLOCK' in line} if LOCKS.is_file() else set()
    for name in names:
        if found := PORT_LOCK.fullmatch(name):
            with contextlib.suppress(OSError):
                about = os.stat(folder / name)
                device = f'{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}'
                if f'{device}:{about.st_ino}' not in held:
                    yield int(found[1]), folder / name


def _open_ports() -> set[int]:
    """Ports that living processes have open, as far as this user may see."""
    ports: set[int] = set()
    for maps in Path('/proc').glob('[0-9]*/maps'):
        with contextlib.suppress(OSError):
            ports.update(map(int, PORT_MAP.findall(maps.read_bytes())))
    return ports
