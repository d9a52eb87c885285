"""The newest picture of every camera as a JPEG that a browser shows: as it came where it is one and small enough."""

from __future__ import annotations

import threading
from typing import Any

import cv2
import numpy as np

from ki_robot.contract.parts import Camera
from ki_robot.errors import Rejected
from ki_robot.messages.images import as_bytes
from ki_robot.observation.observation import decode_camera

PASSED_BYTES = 150_000
QUALITY = 75
JPEG_START = b'\xff\xd8\xff'


class NewestPictures:
    """Keeps one message a camera, and makes a JPEG of it when one is asked for.

    Args:
        cameras: Of the contract.
        width: Larger pictures are reduced to it.
    """

    def __init__(self, cameras: tuple[Camera, ...], width: int) -> None:
        self._cameras, self._width = {camera.name: camera for camera in cameras}, width
        self._lock = threading.Lock()
        self._newest: dict[str, tuple[int, Any]] = {}
        self._made: dict[str, tuple[int, bytes]] = {}

    def store(self, camera: str, message: Any) -> None:
        """A frame has come."""
        with self._lock:
            number = self._newest.get(camera, (0, None))[0] + 1
            self._newest[camera] = number, message

    def jpeg(self, camera: str) -> tuple[int, bytes]:
        """Number and JPEG of the newest frame; 0 and nothing before the first, or where it cannot be read."""
        with self._lock:
            number, message = self._newest.get(camera, (0, None))
            made = self._made.get(camera, (0, b''))
        if made[0] == number:
            return made
        made = number, self._encoded(self._cameras[camera], message)
        with self._lock:
            self._made[camera] = made
        return made

    def _encoded(self, camera: Camera, message: Any) -> bytes:
        if camera.transport == 'compressed':
            data = as_bytes(message.data)
            if len(data) <= PASSED_BYTES and data[:3].tobytes() == JPEG_START:
                return data.tobytes()
        try:
            image = decode_camera(camera, message)
        except Rejected:
            return b''  # the state of the stream says why
        if image.shape[1] > self._width:
            height = max(1, round(image.shape[0] * self._width / image.shape[1]))
            image = np.asarray(cv2.resize(image, (self._width, height), interpolation=cv2.INTER_AREA), np.uint8)
        done, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        return data.tobytes() if done else b''
