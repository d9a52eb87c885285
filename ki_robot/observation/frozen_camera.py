"""A camera that repeats one frame under new stamps, while the robot in front of it moves."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from ki_robot.messages.images import Image

_SLABS, _SLAB_BYTES = 16, 4096


class FrozenWatch:
    """Counts equal frames in a row.

    A checksum of at most 64 KiB spread over the frame is taken on arrival (well under 0.1 ms); only when it repeats,
    which a working camera's noise prevents, is the whole frame compared with the first of the row.

    Args:
        frames: Equal frames in a row that make a camera suspect.
        motion: How far some state column must have moved meanwhile, in its own unit.
    """

    def __init__(self, frames: int, motion: float) -> None:
        self._frames = frames
        self._motion = motion
        self.clear()

    def clear(self) -> None:
        """Begins anew."""
        self.count = 0
        self.is_frozen = False
        self._checksum = -1
        self._first: Image | None = None
        self._pose: NDArray[np.float64] | None = None

    def update(self, data: Image, state: NDArray[np.float64]) -> None:
        """Takes the bytes of the next frame and the state (S,) at its arrival; NaN where nothing is known yet."""
        checksum = spread_checksum(data)
        if checksum != self._checksum or not self._equals_first(data):
            self.clear()
            self._checksum, self._first, self._pose = checksum, data, state.copy()
        self.count += 1
        if self.count >= self._frames and self._pose is not None:
            moved = np.abs(state - self._pose)
            self.is_frozen = bool((moved > self._motion).any())  # a comparison with NaN is false

    def _equals_first(self, data: Image) -> bool:
        return self._first is not None and np.array_equal(data, self._first)


def spread_checksum(data: Image) -> int:
    """CRC-32 of all bytes, or of 16 slabs of 4 KiB spread evenly over more than that."""
    if data.size <= _SLABS * _SLAB_BYTES:
        return zlib.crc32(data.data)
    stride = (data.size - _SLAB_BYTES) // (_SLABS - 1)
    checksum = 0
    for slab in range(_SLABS):
        checksum = zlib.crc32(data[slab * stride : slab * stride + _SLAB_BYTES].data, checksum)
    return checksum
