"""One image of an index, read where its camera's file holds it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from ki_robot.messages.images import decode_compressed


def decode_stored(file: Path, offset: int, length: int) -> NDArray[np.uint8]:
    """One image of a CAMERA.images file as uint8 (h, w, 3) RGB.

    Raises:
        Rejected: The bytes are no image.
    """
    with file.open('rb', buffering=0) as stream:
        stream.seek(offset)
        data = np.frombuffer(stream.read(length), dtype=np.uint8)
    return decode_compressed(SimpleNamespace(data=data, format=''))
