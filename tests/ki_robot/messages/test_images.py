"""Camera messages to RGB: encodings, padding, byte order, and everything that a broken camera sends."""

from __future__ import annotations

import array
import importlib.util
import struct
import timeit
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_robot.errors import Reason, Rejected
from ki_robot.messages.arrays import fill_compressed, fill_image
from ki_robot.messages.images import compressed_size, decode_compressed, decode_depth, decode_image, reduction
from ki_robot.messages.pixels import DEPTH_WHITE_MM

ENCODERS = {
    'rgb8': lambda rgb: rgb,
    'bgr8': lambda rgb: rgb[..., ::-1],
    '8UC3': lambda rgb: rgb[..., ::-1],
    'rgba8': lambda rgb: np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)]),
    'bgra8': lambda rgb: np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], 7, np.uint8)]),
    'mono8': lambda rgb: rgb[..., 0],
}


def image_message(make: Any, pixels: np.ndarray, encoding: str, padding: int = 0) -> Any:
    rows = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    msg = fill_image(make('sensor_msgs/Image'), padded, 5, 'camera', encoding)
    msg.width, msg.step = pixels.shape[1], padded.shape[1]
    return msg


@pytest.mark.parametrize('padding', [0, 13])
@pytest.mark.parametrize('encoding', ENCODERS)
def test_every_encoding_gives_the_same_rgb(make: Any, scene: np.ndarray, encoding: str, padding: int) -> None:
    msg = make.through_the_wire(image_message(make, ENCODERS[encoding](scene), encoding, padding))
    expected = np.repeat(scene[..., :1], 3, axis=2) if encoding == 'mono8' else scene
    image = decode_image(msg)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)


def test_unpadded_rgb8_is_a_read_only_view_of_the_message(make: Any, scene: np.ndarray) -> None:
    msg = image_message(make, scene, 'rgb8')
    image = decode_image(msg)
    assert np.shares_memory(image, np.frombuffer(msg.data, np.uint8))
    with pytest.raises(ValueError, match='read-only'):
        image[0, 0, 0] = 1
    msg.data[0] = 123
    assert image[0, 0, 0] == 123, 'the message itself stays writable'


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('padding', [0, 6])
def test_depth_is_read_in_both_byte_orders(make: Any, big: bool, padding: int) -> None:
    depth = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 13
    raw = depth.astype('>u2' if big else '<u2').view(np.uint8).reshape(30, 80)
    msg = image_message(make, raw, '16UC1', padding)
    msg.width, msg.is_bigendian = 40, int(big)
    msg = make.through_the_wire(msg)
    np.testing.assert_array_equal(decode_depth(msg), depth)
    grey = decode_image(msg)
    expected = np.rint(np.minimum(depth, DEPTH_WHITE_MM) * (255 / DEPTH_WHITE_MM))
    np.testing.assert_array_equal(grey, np.repeat(expected[..., None], 3, axis=2).astype(np.uint8))


@pytest.mark.parametrize('kind', ['jpeg', 'png'])
def test_a_compressed_image_comes_back_in_the_same_colours(make: Any, scene: np.ndarray, kind: str) -> None:
    msg = make.through_the_wire(fill_compressed(make('sensor_msgs/CompressedImage'), scene, 5, 'camera', kind))
    image = decode_compressed(msg)
    assert image.shape == scene.shape
    worst = np.abs(image.astype(int) - scene).mean()
    assert worst == 0 if kind == 'png' else worst < 3


def test_a_grey_jpeg_and_a_transparent_png_become_rgb(make: Any, scene: np.ndarray) -> None:
    msg = make('sensor_msgs/CompressedImage')
    for kind, pixels in (('.jpg', scene[..., 0]), ('.png', np.dstack([scene[..., ::-1], scene[..., 0]]))):
        encoded = cv2.imencode(kind, pixels)[1]
        msg.data = encoded if make.kind == 'rosbags' else encoded.tobytes()
        assert decode_compressed(msg).shape == scene.shape


def broken(change: dict[str, Any]) -> Any:
    def apply(msg: Any) -> Any:
        for field, value in change.items():
            setattr(msg, field, value)
        return msg

    return apply


BROKEN = [
    ({'height': 49}, Reason.SHORT_DATA),
    ({'step': 193}, Reason.SHORT_DATA),
    ({'step': 191}, Reason.BAD_LAYOUT),
    ({'step': 0}, Reason.BAD_LAYOUT),
    ({'width': 0}, Reason.BAD_LAYOUT),
    ({'height': 0}, Reason.BAD_LAYOUT),
    ({'width': 65}, Reason.BAD_LAYOUT),
    ({'height': 2**31, 'step': 2**31}, Reason.TOO_LARGE),
    ({'encoding': 'rgba8'}, Reason.BAD_LAYOUT),
    ({'encoding': 'RGB8'}, Reason.UNKNOWN_ENCODING),
    ({'encoding': ''}, Reason.UNKNOWN_ENCODING),
]


@pytest.mark.parametrize(('change', 'reason'), BROKEN)
def test_a_broken_image_is_refused_with_its_reason(make: Any, scene: np.ndarray, change: Any, reason: Reason) -> None:
    msg = broken(change)(image_message(make, scene, 'rgb8'))
    with pytest.raises(Rejected) as caught:
        decode_image(msg)
    assert caught.value.reason is reason
    assert len(str(caught.value)) < 400


def test_an_image_above_the_cap_is_refused_before_it_is_touched(make: Any, scene: np.ndarray) -> None:
    with pytest.raises(Rejected) as caught:
        decode_image(image_message(make, scene, 'rgb8'), max_bytes=48 * 64 * 3 - 1)
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_rare_encoding_without_cv_bridge_is_refused_by_name(make: Any, scene: np.ndarray) -> None:
    if importlib.util.find_spec('cv_bridge') is not None:
        pytest.skip('cv_bridge is installed here; its absence cannot be shown')
    with pytest.raises(Rejected, match=r"'yuv444' is not among .*cv_bridge") as caught:
        decode_image(image_message(make, scene, 'yuv444'))
    assert caught.value.reason is Reason.UNKNOWN_ENCODING


def compressed(data: bytes) -> Any:
    return type('Message', (), {'format': 'jpeg', 'data': np.frombuffer(data, np.uint8)})()


@pytest.mark.parametrize(
    ('size', 'side', 'factor'),
    [
        ((480, 640), None, 1),
        ((480, 640), 320, 2),
        ((480, 640), 321, 1),
        ((480, 640), 224, 2),
        ((480, 640), 160, 4),
        ((640, 480), 80, 8),
        ((640, 480), 1, 8),
        ((33, 47), 23, 2),
    ],
)
def test_a_jpeg_is_decoded_as_small_as_will_do(size: tuple[int, int], side: int | None, factor: int) -> None:
    height, width = size
    assert reduction(width, height, side) == factor
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 7), 0 * x + 30], axis=-1).astype(np.uint8)
    image = decode_compressed(compressed(cv2.imencode('.jpg', pixels[..., ::-1])[1].tobytes()), side=side)
    assert image.shape == (-(-height // factor), -(-width // factor), 3)
    small = cv2.resize(pixels, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(image.astype(int) - small).mean() < 4, 'the same picture in the same colours'


def test_a_png_is_never_decoded_smaller(scene: np.ndarray) -> None:
    png = cv2.imencode('.png', scene[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_compressed(compressed(png), side=4), scene)


@pytest.mark.parametrize('kind', ['.jpg', '.png'])
def test_a_truncated_file_is_refused_at_every_length(scene: np.ndarray, kind: str) -> None:
    whole = cv2.imencode(kind, scene)[1].tobytes()
    for length in [*range(64), *range(64, len(whole) - 12, 37), len(whole) - 13]:
        with pytest.raises(Rejected):
            decode_compressed(compressed(whole[:length]))


def test_a_forged_size_is_refused_before_decoding(scene: np.ndarray) -> None:
    png = bytearray(cv2.imencode('.png', scene)[1].tobytes())
    png[16:24] = (60000).to_bytes(4, 'big') * 2
    with pytest.raises(Rejected) as caught:
        decode_compressed(compressed(bytes(png)))
    assert caught.value.reason is Reason.TOO_LARGE
    jpeg = bytearray(cv2.imencode('.jpg', scene)[1].tobytes())
    at = jpeg.find(b'\xff\xc0')
    jpeg[at + 5 : at + 9] = b'\xff\xff\xff\xff'
    assert compressed_size(np.frombuffer(bytes(jpeg), np.uint8)) == (65535, 65535)
    with pytest.raises(Rejected) as caught:
        decode_compressed(compressed(bytes(jpeg)))
    assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize('length', [2**31 - 1, 2**32 - 1, 1 << 28])
def test_a_forged_chunk_takes_no_memory(scene: np.ndarray, length: int) -> None:
    png = bytearray(cv2.imencode('.png', scene)[1].tobytes())
    at = png.find(b'IDAT') - 4
    png[at : at + 4] = length.to_bytes(4, 'big')
    with pytest.raises(Rejected, match=f'has a chunk of {length}: it was damaged') as caught:
        decode_compressed(compressed(bytes(png)))
    assert caught.value.reason is Reason.UNDECODABLE


def test_other_formats_are_refused_by_name() -> None:
    for data in (b'', b'GIF89a' + bytes(40), b'\x00' * 12 + b'\x89PNG\r\n\x1a\n'):
        with pytest.raises(Rejected, match='neither JPEG nor PNG'):
            decode_compressed(compressed(data))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_byte_gives_an_image_or_a_rejection(data: st.DataObject) -> None:
    y, x = np.mgrid[0:24, 0:32]
    pixels = np.stack([8 * x, 9 * y, x + y], axis=-1).astype(np.uint8)
    raw = bytearray(cv2.imencode(data.draw(st.sampled_from(['.jpg', '.png'])), pixels)[1].tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_compressed(compressed(bytes(raw)), max_bytes=1 << 20)
    except Rejected:
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


def test_reading_an_rgb8_image_costs_far_less_than_copying_it() -> None:
    pixels = np.zeros((720, 1280, 3), np.uint8)
    data = array.array('B')
    data.frombytes(pixels.data)
    msg = SimpleNamespace(height=720, width=1280, encoding='rgb8', is_bigendian=0, step=3840, data=data)
    target = np.empty_like(pixels)

    def best(function: Callable[[], object]) -> float:
        return min(timeit.repeat(function, number=3, repeat=15))

    copy = best(lambda: np.copyto(target, pixels))
    assert best(lambda: decode_image(msg)) < 0.6 * copy
    msg.encoding = 'bgr8'
    assert best(lambda: decode_image(msg)) < 6.0 * copy, 'one conversion pass'


def labelled(data: Any, label: str) -> Any:
    return SimpleNamespace(format=label, data=np.frombuffer(bytes(data), np.uint8))


def png(pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode('.png', pixels)[1])


def raw(pixels: np.ndarray, encoding: str) -> Any:
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    height, width = pixels.shape[:2]
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, is_bigendian=0, step=rows.shape[1], data=rows.reshape(-1)
    )


DEPTH = np.tile(np.linspace(0, 3000, 32).astype(np.uint16), (24, 1))
A, B = 1500.0, 1.0  # of compressedDepth's inverse depth


@pytest.mark.parametrize(
    ('label', 'head', 'pixels', 'encoding'),
    [
        ('16UC1; png compressed ', b'', DEPTH, '16UC1'),
        ('16UC1; compressedDepth png', bytes(12), DEPTH, '16UC1'),
        ('16UC1; compressedDepth', bytes(12), DEPTH, '16UC1'),
        ('mono16; png compressed ', b'', DEPTH * 20, 'mono16'),
        ('mono8; png compressed ', b'', DEPTH.astype(np.uint8), 'mono8'),
        ('rgb8; png compressed bgr8', b'', np.dstack([DEPTH.astype(np.uint8)] * 3), 'bgr8'),
        ('bgr16; png compressed bgr16', b'', np.dstack([DEPTH * 20, DEPTH, DEPTH * 3]), 'bgr16'),
        ('bayer_rggb8; png compressed ', b'', DEPTH.astype(np.uint8), 'bayer_rggb8'),
    ],
)
def test_the_same_scene_raw_and_compressed_gives_the_same_array(
    label: str, head: bytes, pixels: np.ndarray, encoding: str
) -> None:
    np.testing.assert_array_equal(
        decode_compressed(labelled(head + png(pixels), label)), decode_image(raw(pixels, encoding))
    )


def test_compressed_depth_in_metres_is_the_same_as_raw() -> None:
    values = np.tile(np.arange(0, 3200, 100, dtype=np.uint16), (24, 1))
    with np.errstate(divide='ignore'):
        metres = np.where(values > 0, A / (values.astype(np.float32) - B), np.nan).astype(np.float32)
    head = struct.pack('<iff', 0, A, B)
    np.testing.assert_array_equal(
        decode_compressed(labelled(head + png(values), '32FC1; compressedDepth png')),
        decode_image(raw(metres, '32FC1')),
    )


def test_a_grey_jpeg_of_a_yuv_camera_is_grey() -> None:
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (24, 1))
    data = cv2.imencode('.jpg', grey)[1]
    image = decode_compressed(labelled(data, 'yuv422_yuy2; jpeg compressed mono8'))
    assert np.abs(image.astype(int) - grey[..., None]).max() < 8
    assert (np.ptp(image, axis=2) == 0).all()


@pytest.mark.parametrize(
    ('label', 'data'),
    [
        ('png', png(DEPTH)),
        ('16UC1; jpeg compressed ', bytes(cv2.imencode('.jpg', DEPTH.astype(np.uint8))[1])),
        ('16UC1; png compressed ', png(np.dstack([DEPTH] * 3))),
        ('16UC1; compressedDepth rvl', bytes(40)),
        ('16UC1; compressedDepth png', b''),
        ('16UC1; compressedDepth png', png(DEPTH)),
    ],
)
def test_pixels_whose_meaning_the_label_does_not_tell_are_refused(label: str, data: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        decode_compressed(labelled(data, label))
    assert caught.value.reason is Reason.UNKNOWN_ENCODING


def mosaic(scene: np.ndarray, pattern: str) -> np.ndarray:
    found = np.empty(scene.shape[:2], np.uint8)
    for place, letter in enumerate(pattern):
        row, column = divmod(place, 2)
        found[row::2, column::2] = scene[row::2, column::2, 'rgb'.index(letter)]
    return found


@pytest.mark.parametrize('depth', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_a_bayer_mosaic_comes_back_in_its_colours(pattern: str, depth: int) -> None:
    flat = np.broadcast_to(np.array([200, 120, 40], np.uint8), (24, 32, 3))
    pixels = mosaic(flat, pattern)
    if depth == 16:
        pixels = pixels.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(raw(pixels, f'bayer_{pattern}{depth}')), flat)


@pytest.mark.parametrize('encoding', ['yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv', 'nv12', 'nv21'])
def test_yuv_comes_back_in_its_colours(encoding: str) -> None:
    colour = np.array([[[200, 120, 40]]], np.uint8)
    height, width = 24, 32
    luma = 0.257 * 200 + 0.504 * 120 + 0.098 * 40 + 16
    u, v = -0.148 * 200 - 0.291 * 120 + 0.439 * 40 + 128, 0.439 * 200 - 0.368 * 120 - 0.071 * 40 + 128
    if encoding.startswith('nv'):
        pixels = np.full((height * 3 // 2, width), round(luma), np.uint8)
        pixels[height:, 0::2], pixels[height:, 1::2] = (
            (round(u), round(v)) if encoding == 'nv12' else (round(v), round(u))
        )
        message = raw(pixels, encoding)
        message.height = height
    else:
        order = (u, luma, v, luma) if encoding in ('yuv422', 'uyvy') else (luma, u, luma, v)
        message = raw(
            np.tile(np.array(order).round().astype(np.uint8).reshape(1, 2, 2), (height, width // 2, 1)), encoding
        )
    image = decode_image(message)
    assert image.shape == (height, width, 3)
    assert np.abs(image.astype(int) - colour).max() <= 3


def test_metres_and_millimetres_are_the_same_depth() -> None:
    metres = (DEPTH / 1000.0).astype(np.float32)
    expected = decode_image(raw(DEPTH, '16UC1'))
    np.testing.assert_array_equal(decode_image(raw(metres, '32FC1')), expected)
    metres[0, :3] = np.nan, np.inf, -np.inf
    assert decode_image(raw(metres, '32FC1'))[0, :3, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize('encoding', ['nv12', 'yuv422'])
def test_yuv_of_an_odd_width_or_with_too_few_bytes_is_refused(encoding: str) -> None:
    with pytest.raises(Rejected):
        decode_image(raw(np.zeros((4, 7, 2), np.uint8), encoding))
    short = raw(np.zeros((4, 8, 2), np.uint8), encoding)
    short.data = short.data[:30]
    with pytest.raises(Rejected):
        decode_image(short)


def test_a_jpeg_of_endless_scans_is_refused_before_it_takes_minutes() -> None:
    """Progressive, without data in its scans: 290 kB of them take a decoder a minute."""
    done, data = cv2.imencode('.jpg', np.zeros((64, 64), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    assert done
    sound = data.tobytes()
    assert compressed_size(np.frombuffer(sound, np.uint8)) == (64, 64)
    scan = sound.rindex(b'\xff\xda')
    endless = sound[:scan] + sound[scan:-2] * 60 + sound[-2:]
    with pytest.raises(Rejected, match='more than 50 scans') as caught:
        compressed_size(np.frombuffer(endless, np.uint8))
    assert caught.value.reason is Reason.TOO_LARGE
