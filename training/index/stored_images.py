"""One image of an index, read where its camera's file holds it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from ki_robot.messages.images import decode_compressed


def decode_stored(file: Path, offset: int, length: int, side: int | None = None) -> NDArray[np.uint8]:
    """One image of a CAMERA.images file as uint8 (h, w, 3) RGB, decoded as the node does (`decode_camera`).

    Args:
        file: The images of one camera of a recording.
        offset: Of the image [bytes].
        length: Of the image [bytes].
        side: The longer side that is needed (`needed_side`); None: all of it.

    Raises:
        Rejected: The bytes are no image.
    """
    with file.open('rb', buffering=0) as stream:
        stream.seek(offset)
        data = np.frombuffer(stream.read(length), dtype=np.uint8)
    return decode_compressed(SimpleNamespace(data=data, format=''), side=side)
