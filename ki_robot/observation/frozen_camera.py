"""A camera that repeats one frame under new stamps, while the robot in front of it moves."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_robot.messages.images import Image

_SLABS, _SLAB_BYTES = 16, 4096


class NewestState:
    """What was measured last, column by column.

    Attributes:
        values: (S,), NaN where nothing is known yet.
        measured_ns: (S,) when.
    """

    def __init__(self, columns: int) -> None:
        self.values = np.full(columns, np.nan)
        self.measured_ns = np.zeros(columns, np.int64)

    def take(self, places: Any, values: NDArray[np.float64], stamp_ns: int) -> None:
        """Some columns were measured anew."""
        self.values[places], self.measured_ns[places] = values, stamp_ns

    def clear(self) -> None:
        """Nothing is known any more."""
        self.values[:], self.measured_ns[:] = np.nan, 0


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
        self._seen = FrameWatch()
        self._since_ns = 0
        self._pose: NDArray[np.float64] | None = None

    def update(self, data: Image, stamp_ns: int, state: NewestState) -> None:
        """Takes the next frame by its bytes; see `see`."""
        self.see(self._seen.repeats(data), stamp_ns, state)

    def see(self, is_repeat: bool, stamp_ns: int, state: NewestState) -> None:
        """Takes the next frame.

        Args:
            is_repeat: Whether it equals the one before it.
            stamp_ns: When it was seen.
            state: At its arrival. A frame may arrive before the state of its own time: what a column did before the
                first frame of a row is no motion in front of it.
        """
        if self._pose is None or not is_repeat:
            self.count, self.is_frozen, self._since_ns = 0, False, stamp_ns
            self._pose = np.full(len(state.values), np.nan)
        begins = np.isnan(self._pose) & (state.measured_ns >= self._since_ns)
        self._pose[begins] = state.values[begins]
        self.count += 1
        if self.count >= self._frames:
            moved = np.abs(state.values - self._pose)
            self.is_frozen = bool((moved > self._motion).any())  # a comparison with NaN is false


class FrameWatch:
    """Tells frames that equal the one before."""

    def __init__(self) -> None:
        self._checksum = -1
        self.first: Image | None = None
        self.last: Image | None = None

    def repeats(self, data: Image) -> bool:
        """Takes the bytes of the next frame; whether they are those of the frame before."""
        checksum = spread_checksum(data)
        if checksum == self._checksum and self.last is not None and np.array_equal(data, self.last):
            return True
        self._checksum, self.last = checksum, data
        if self.first is None:
            self.first = data
        return False


def spread_checksum(data: Image) -> int:
    """CRC-32 of all bytes, or of 16 slabs of 4 KiB spread evenly over more than that."""
    if data.size <= _SLABS * _SLAB_BYTES:
        return zlib.crc32(data.data)
    stride = (data.size - _SLAB_BYTES) // (_SLABS - 1)
    checksum = 0
    for slab in range(_SLABS):
        checksum = zlib.crc32(data[slab * stride : slab * stride + _SLAB_BYTES].data, checksum)
    return checksum
