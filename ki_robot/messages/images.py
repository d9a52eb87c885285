"""Camera messages as uint8 RGB arrays of shape (height, width, 3).

The same functions take rclpy messages (`data` is an `array.array`) and rosbags messages (`data` is a numpy array).
Sizes are checked against the message's own numbers and a cap before anything is allocated. An rgb8 image without
row padding comes back as a read-only view of the message: no copy, and the array keeps the message's buffer alive.
Every other encoding costs one conversion pass.
"""

from __future__ import annotations

import importlib
import math
import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ki_common.errors import shown
from ki_robot.errors import Reason, Rejected
from ki_robot.messages import pixels as px
from ki_robot.messages.compressed_label import DEPTH_HEADER_BYTES, CompressedLabel

MAX_IMAGE_BYTES = 64 << 20  # raw or decoded: a 4096 x 4096 RGB image fits, a forged header does not

MAX_SCANS = 50  # of a JPEG; encoders make ten of a progressive one

PNG_MAGIC = b'\x89PNG\r\n\x1a\n'
JPEG_BEGIN = 0xFF

Image = NDArray[np.uint8]

# encoding -> (bytes per pixel, the conversion to RGB; None when it is RGB already).
# 8UC3 names no colour order: OpenCV's, blue first, is what its publishers mean.
_COLOUR: dict[str, tuple[int, int | None]] = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    '8UC3': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    '8UC4': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
    '8UC1': (1, cv2.COLOR_GRAY2RGB),
}
ENCODINGS = (*_COLOUR, *px.PACKED, *px.PLANAR)

# Parts of its size at which a JPEG can be decoded (a scaled DCT), the smallest first.
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


def decode_image(msg: Any, max_bytes: int = MAX_IMAGE_BYTES) -> Image:
    """A sensor_msgs/Image as RGB.

    Args:
        msg: height, width, encoding, is_bigendian, step and data as rclpy or rosbags give them.
        max_bytes: Largest `data` accepted.

    Returns:
        uint8 (height, width, 3), C-contiguous; a read-only view for unpadded rgb8.
        16UC1 (depth in mm) and 32FC1 (in m) become grey, white at `pixels.DEPTH_WHITE_MM`.

    Raises:
        Rejected: The sizes contradict each other or the cap, or the encoding is unknown.
    """
    encoding = str(msg.encoding)
    if encoding in px.PACKED:
        return px.PACKED[encoding][2](_samples(msg, encoding, max_bytes))
    if encoding in px.PLANAR:
        return _planar(msg, encoding, max_bytes)
    if encoding not in _COLOUR:
        _rows(msg, 0, max_bytes)
        return _through_cv_bridge(msg, encoding, max_bytes)
    pixel_bytes, conversion = _COLOUR[encoding]
    rows = _rows(msg, pixel_bytes, max_bytes)
    height, width = int(msg.height), int(msg.width)
    pixels = rows[:, : width * pixel_bytes].reshape(height, width, pixel_bytes)
    if conversion is not None:
        return _as_image(cv2.cvtColor(pixels, conversion))
    if int(msg.step) != width * pixel_bytes:
        return np.ascontiguousarray(pixels)
    pixels.flags.writeable = False
    return pixels


def decode_depth(msg: Any, max_bytes: int = MAX_IMAGE_BYTES) -> NDArray[np.uint16]:
    """A 16UC1 sensor_msgs/Image as uint16 (height, width) in the machine's byte order; millimetres by convention."""
    if msg.encoding != '16UC1':
        raise Rejected(Reason.UNKNOWN_ENCODING, f'depth has the encoding {shown(msg.encoding)}; publish 16UC1.')
    values: NDArray[np.uint16] = _samples(msg, '16UC1', max_bytes)
    return values


def decode_compressed(msg: Any, max_bytes: int = MAX_IMAGE_BYTES, side: int | None = None) -> Image:
    """A sensor_msgs/CompressedImage (JPEG or PNG, told by its bytes) as RGB, read as its `format` says.

    Depth becomes grey as in `decode_image`: a 16UC1 PNG, or compressedDepth (PNG) of 16UC1 or 32FC1.

    Args:
        msg: format and data as rclpy or rosbags give them.
        max_bytes: Largest size accepted, compressed or of the whole picture decoded.
        side: The longer side that is needed: a JPEG is decoded at a half, a quarter or an eighth of its size where that
            is at least as long. None: at its size.

    Returns:
        uint8 (height, width, 3); of a JPEG, divided by its `reduction` and rounded up. Transparency is dropped, and an
        EXIF rotation is not applied: cameras do not turn.

    Raises:
        Rejected: Neither JPEG nor PNG, truncated, larger than `max_bytes` once decoded, or not decodable; or the label
            does not say what 16-bit pixels are, or says that it is depth in a JPEG.
    """
    data = as_bytes(msg.data)
    if data.size > max_bytes:
        raise Rejected(Reason.TOO_LARGE, f'compressed image has {data.size} bytes; at most {max_bytes} are accepted.')
    text = str(msg.format)
    label = CompressedLabel.parse(text)
    if label.depth:
        return _compressed_depth(data, label, text, max_bytes)
    if needs_label(data, text):
        return _by_encoding(_unpacked(data, text, cv2.IMREAD_UNCHANGED, max_bytes), label.encoding, text)
    decoded = _unpacked(data, text, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, max_bytes, side)
    return _as_image(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, dst=decoded))


def reduction(width: int, height: int, side: int | None) -> int:
    """By how much a JPEG of this size is decoded smaller where a longer side of `side` will do: 1, 2, 4 or 8."""
    longer = max(width, height)
    return next((factor for factor in _REDUCED if side is not None and longer >= factor * side), 1)


def needs_label(data: Image, text: str) -> bool:
    """Whether the bytes alone do not tell the picture: 16-bit pixels, depth, a Bayer mosaic."""
    label = CompressedLabel.parse(text)
    if label.depth or label.encoding in ('16UC1', '32FC1') or label.encoding.startswith('bayer_'):
        return True
    return data.size > 24 and data[:8].tobytes() == PNG_MAGIC and int(data[24]) == 16


def _unpacked(data: Image, text: str, mode: int, max_bytes: int, side: int | None = None) -> Any:
    """A JPEG or PNG as OpenCV gives it, after its size was checked."""
    width, height = compressed_size(data, text)
    if width * height * 3 > max_bytes:
        raise Rejected(
            Reason.TOO_LARGE,
            f'compressed image decodes to {width} x {height} pixels; at most {max_bytes} bytes are accepted.',
        )
    factor = 1 if data[0] != JPEG_BEGIN else reduction(width, height, side)
    if factor > 1:
        mode = _REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION
        width, height = math.ceil(width / factor), math.ceil(height / factor)
    try:
        decoded = cv2.imdecode(data, mode)
    except cv2.error as error:
        raise Rejected(Reason.UNDECODABLE, f'compressed image of {data.size} bytes does not decode.') from error
    if decoded is None or decoded.shape[:2] != (height, width):
        raise Rejected(Reason.UNDECODABLE, f'compressed image of {data.size} bytes does not decode.')
    return decoded


def _by_encoding(decoded: Any, encoding: str, text: str) -> Image:
    """Pixels as OpenCV unpacked them, under the encoding that the label names."""
    single, deep = decoded.ndim == 2, decoded.dtype == np.uint16
    if single and encoding in px.PACKED and px.PACKED[encoding][0] == ('u2' if deep else 'u1'):
        return px.PACKED[encoding][2](decoded)
    if not single and not encoding.endswith('C1'):
        # OpenCV gives every colour picture blue first, with transparency last, whatever the label calls it.
        return px.PACKED['bgra16' if decoded.shape[2] == 4 else 'bgr16'][2](decoded)
    found = f'{decoded.dtype.itemsize * 8} bits of {"grey" if single else "colour"}'
    raise Rejected(
        Reason.UNKNOWN_ENCODING,
        f'compressed image ({shown(text)}) holds {found}, and its format does not say what they mean; publish depth as '
        "'16UC1; png compressed' or compressedDepth, grey as 'mono16; png compressed'.",
    )


def _compressed_depth(data: Image, label: CompressedLabel, text: str, max_bytes: int) -> Image:
    """compressedDepth: 16UC1 as it is; 32FC1 as inverse depth, depth = a / (value - b) metres, 0 for none."""
    if label.codec != 'png' or label.encoding not in ('16UC1', '32FC1') or data.size <= DEPTH_HEADER_BYTES:
        raise Rejected(
            Reason.UNKNOWN_ENCODING,
            f'depth image ({shown(text)}) of {data.size} bytes cannot be read; set compressedDepth to the format png.',
        )
    _, a, b = struct.unpack('<iff', data[:DEPTH_HEADER_BYTES].tobytes())
    values = _unpacked(data[DEPTH_HEADER_BYTES:], text, cv2.IMREAD_UNCHANGED, max_bytes)
    if values.ndim != 2 or values.dtype != np.uint16:
        raise Rejected(Reason.BAD_LAYOUT, f'depth image ({shown(text)}) does not hold 16-bit depth.')
    if label.encoding == '16UC1':
        return px.of_depth(values)
    with np.errstate(divide='ignore', invalid='ignore'):
        metres = np.where(values > 0, np.float32(a) / (values.astype(np.float32) - np.float32(b)), np.float32(np.nan))
    return px.of_metres(metres)


def compressed_size(data: Image, label: str = '') -> tuple[int, int]:
    """Width and height in the header of a JPEG or PNG, read without decoding it.

    A file without its end marker is refused here: decoders fill the missing part with grey and say nothing.
    """
    head = data[:24].tobytes()
    if head[:8] == PNG_MAGIC and len(head) == 24:
        _check_png_chunks(data.tobytes())
        return int.from_bytes(head[16:20], 'big'), int.from_bytes(head[20:24], 'big')
    if head[:3] == b'\xff\xd8\xff':
        return _jpeg_size(data)
    what = 'is empty, thus neither' if not data.size else 'is neither'
    raise Rejected(
        Reason.UNKNOWN_ENCODING, f'compressed image ({shown(label)}) {what} JPEG nor PNG; publish one of them.'
    )


def _check_png_chunks(data: bytes) -> None:
    """Refuses a PNG that does not end, or with a chunk longer than the file.

    Decoders allocate what a chunk says of its length before they read it: one damaged byte would cost 2 GiB.
    """
    if b'IEND' not in data[-64:]:
        raise Rejected(Reason.UNDECODABLE, f'PNG of {len(data)} bytes has no end: it was cut off.')
    at, kind = len(PNG_MAGIC), b''
    while kind != b'IEND':
        length, kind = int.from_bytes(data[at : at + 4], 'big'), data[at + 4 : at + 8]
        at += 12 + length  # length, kind and checksum take four bytes each
        if at > len(data):
            raise Rejected(Reason.UNDECODABLE, f'PNG of {len(data)} bytes has a chunk of {length}: it was damaged.')


def as_bytes(data: Any) -> Image:
    """`data` of a message as a flat uint8 view: array.array, numpy array, bytes or memoryview."""
    if isinstance(data, np.ndarray):
        return data.reshape(-1).view(np.uint8)
    try:
        return np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise Rejected(Reason.BAD_LAYOUT, f'image data is a {type(data).__name__}; a byte buffer is needed.') from error


def _samples(msg: Any, encoding: str, max_bytes: int) -> Any:
    """Pixels (height, width[, samples]) in the machine's byte order."""
    kind, count, _ = px.PACKED[encoding]
    width, pixel_bytes = int(msg.width), np.dtype(kind).itemsize * count
    rows = np.ascontiguousarray(_rows(msg, pixel_bytes, max_bytes)[:, : width * pixel_bytes])
    values = rows.view(('>' if msg.is_bigendian else '<') + kind).astype(kind, copy=False)
    if encoding.startswith(('yuv', 'uyvy', 'yuyv')) and width % 2:
        raise Rejected(
            Reason.BAD_LAYOUT, f'{encoding} image is {width} pixels wide; two share a colour, so it is even.'
        )
    return values if count == 1 else values.reshape(len(rows), width, count)


def _planar(msg: Any, encoding: str, max_bytes: int) -> Image:
    height, width = int(msg.height), int(msg.width)
    if height % 2 or width % 2:
        raise Rejected(Reason.BAD_LAYOUT, f'{encoding} image is {width} x {height}; both must be even.')
    rows = _rows(msg, 1, max_bytes, height // 2)
    return px.PLANAR[encoding](np.ascontiguousarray(rows[:, :width]))


def _rows(msg: Any, pixel_bytes: int, max_bytes: int, more: int = 0) -> Image:
    """`data` as a view of shape (height + more, step), after the message's numbers were checked against each other."""
    height, width, step = int(msg.height) + more, int(msg.width), int(msg.step)
    data = as_bytes(msg.data)
    label = f'{width} x {height} {shown(msg.encoding)} image with step {step}'
    if height <= 0 or width <= 0 or step < max(width * pixel_bytes, 1):
        raise Rejected(Reason.BAD_LAYOUT, f'{label} is impossible: a row needs {max(width * pixel_bytes, 1)} bytes.')
    if data.size > max_bytes or step * height > max_bytes:
        raise Rejected(Reason.TOO_LARGE, f'{label} has {data.size} bytes; at most {max_bytes} are accepted.')
    if data.size < step * height:
        raise Rejected(Reason.SHORT_DATA, f'{label} has {data.size} bytes of data; it needs {step * height}.')
    return data[: step * height].reshape(height, step)


def _jpeg_size(pixels: Image) -> tuple[int, int]:
    """Width and height from the frame header of a JPEG (ITU T.81, B.2.2), whose end marker must be there."""
    at, data = 2, pixels.tobytes()
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if _count_pairs(pixels[at:], 0xFF, 0xDA) > MAX_SCANS:
                raise Rejected(
                    Reason.TOO_LARGE,
                    f'JPEG of {len(data)} bytes is in more than {MAX_SCANS} scans, each of which takes its time.',
                )
            if data.rfind(b'\xff\xd9', at) < 0:
                raise Rejected(Reason.UNDECODABLE, f'JPEG of {len(data)} bytes has no end: it was cut off.')
            height, width = int.from_bytes(data[at + 5 : at + 7], 'big'), int.from_bytes(data[at + 7 : at + 9], 'big')
            return width, height
        at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    raise Rejected(Reason.UNDECODABLE, f'JPEG of {len(data)} bytes has no frame header: it was cut off or damaged.')


def _count_pairs(data: Image, first: int, second: int) -> int:
    """How often one byte follows another; in compressed pictures five times as fast as `bytes.count`."""
    return int(np.count_nonzero(data[np.flatnonzero(data[:-1] == first) + 1] == second))


def _through_cv_bridge(msg: Any, encoding: str, max_bytes: int) -> Image:
    """Encodings beyond these by ROS's own cv_bridge, where ROS 2 brings one."""
    try:
        bridge = importlib.import_module('cv_bridge').CvBridge()
    except ImportError as error:
        raise Rejected(
            Reason.UNKNOWN_ENCODING,
            f'image encoding {shown(encoding)} is not among {", ".join(ENCODINGS)}; publish one of these, or '
            "install ROS's cv_bridge (ros-<distro>-cv-bridge).",
        ) from error
    try:
        image = np.ascontiguousarray(bridge.imgmsg_to_cv2(msg, desired_encoding='rgb8'))
    except Exception as error:
        # cv_bridge raises its own type, cv2.error, TypeError and RuntimeError for encodings it does not know.
        raise Rejected(
            Reason.UNKNOWN_ENCODING, f'image encoding {shown(encoding)}: cv_bridge cannot make rgb8 of it ({error}).'
        ) from error
    if image.nbytes > max_bytes:
        raise Rejected(Reason.TOO_LARGE, f'image of {image.nbytes} bytes; at most {max_bytes} are accepted.')
    return _as_image(image)


def _as_image(array: Any) -> Image:
    """`array` under its name: OpenCV types its results too widely to say that they are uint8."""
    image: Image = array
    return image
