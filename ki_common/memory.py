"""Memory of the process: blocks that are kept for the next image, and when Python looks for garbage."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

KEEP_BYTES = 256 << 20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Tells glibc not to give freed blocks back to the kernel one by one; does nothing elsewhere.

    Pictures are a megabyte each and live for a moment: given back and fetched anew, the kernel zeroes every page of
    every one of them, which costs a third of the time of decoding three 640 x 480 JPEGs.
    """
    if sys.platform.startswith('linux'):
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL('libc.so.6').mallopt
            mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
            mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """For a block that makes many small objects which stay: the collector would go through all of them again and again.

    Opening 10^5 recordings takes 1.8 times as long with it, and more than in proportion to their number.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
