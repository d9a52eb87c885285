"""Messages of openpi's policy protocol: msgpack, with arrays as openpi's clients write them. No pickle anywhere.

An array is a map with the keys `__ndarray__`, `data`, `dtype` and `shape`, as bytes. A picture may also be a map with
the keys `__jpeg__` and `data`, which only this project's client sends.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import msgpack
import numpy as np

from ki_common.errors import first_line
from ki_robot.messages.images import Image
from ki_vla.errors import VlaError

MAX_BYTES = 64 * 2**20  # of one message; four raw pictures of 1920 x 1080 are 25 MB
KINDS = 'biufU'  # of numpy: booleans, whole and floating numbers, text
MAX_PIXELS = 64 * 2**20


def pack(message: object) -> bytes:
    """A message of maps, lists, numbers, text and arrays as bytes.

    Raises:
        VlaError: it holds something else.
    """
    try:
        return bytes(msgpack.packb(message, default=_plain))
    except (TypeError, ValueError) as error:
        raise VlaError(f'cannot be sent: {first_line(error)}.') from error


def unpack(data: bytes) -> Any:
    """What `pack`, or a client of openpi, made of a message. A refused message harms nothing.

    Raises:
        VlaError: not such a message, or an array that is no array of numbers or text.
    """
    try:
        return msgpack.unpackb(data, object_hook=_revived, max_bin_len=MAX_BYTES, max_str_len=2**20)
    except VlaError:
        raise
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise VlaError(
            f'not a message of the policy protocol ({first_line(error) or type(error).__name__}).'
        ) from error


def jpeg(image: Image, quality: int) -> dict[bytes, object]:
    """A picture, RGB, as a JPEG on the wire."""
    done, data = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise VlaError(f'a picture of shape {image.shape} cannot be written as JPEG.')
    return {b'__jpeg__': True, b'data': data.tobytes()}


def _plain(value: object) -> object:
    """What msgpack does not know, as it knows it."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in KINDS:
        raise TypeError(f'an array of {value.dtype}')
    if isinstance(value, np.ndarray):
        return {b'__ndarray__': True, b'data': value.tobytes(), b'dtype': value.dtype.str, b'shape': value.shape}
    if isinstance(value, np.generic):
        return {b'__npgeneric__': True, b'data': value.item(), b'dtype': value.dtype.str}
    raise TypeError(f'a {type(value).__name__}')


def _revived(table: dict[Any, Any]) -> object:
    """An array, a number of numpy or a picture, where a map stands for one."""
    if b'__ndarray__' in table:
        kind, shape, data = _dtype(table), table.get(b'shape'), table.get(b'data')
        if not isinstance(data, bytes) or not isinstance(shape, list | tuple) or not all(
            isinstance(n, int) and n >= 0 for n in shape
        ):  # fmt: skip
            raise VlaError('an array on the wire has no data or no shape.')
        if math.prod(shape) * kind.itemsize != len(data):
            raise VlaError(f'an array on the wire has {len(data)} bytes; {kind} {tuple(shape)} has another number.')
        return np.frombuffer(data, dtype=kind).reshape(shape)
    if b'__npgeneric__' in table:
        return _dtype(table).type(table.get(b'data'))
    if b'__jpeg__' in table:
        return _picture(table.get(b'data'))
    return table


def _dtype(table: dict[Any, Any]) -> np.dtype[Any]:
    try:
        kind: np.dtype[Any] = np.dtype(table[b'dtype'])
    except (KeyError, TypeError, ValueError) as error:
        raise VlaError('an array on the wire has no dtype that is known.') from error
    if kind.kind not in KINDS or kind.subdtype is not None:
        raise VlaError(f'an array on the wire has the dtype {kind}; numbers and text are read.')
    return kind


def _picture(data: object) -> Image:
    """A JPEG as RGB."""
    buffer = np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else np.empty(0, dtype=np.uint8)
    try:
        decoded = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if buffer.size else None
    except cv2.error:
        decoded = None
    if decoded is None or decoded.size > 3 * MAX_PIXELS:
        raise VlaError('a picture on the wire is no JPEG that can be read.')
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)
