"""Pixels of the rarer encodings as RGB: depth, 16-bit colours, Bayer mosaics and YUV.

A camera's picture means the same whether it comes raw or inside a PNG: both ways end in these functions.
Source: https://github.com/ros2/common_interfaces/blob/rolling/sensor_msgs/include/sensor_msgs/image_encodings.hpp
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

DEPTH_WHITE_MM = 10_000  # depth at and beyond this is white; 0 (no measurement) stays black

Convert = Callable[[NDArray[Any]], NDArray[np.uint8]]


def of_depth(millimetres: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Depth (h, w) in mm as grey RGB, white at `DEPTH_WHITE_MM`."""
    return of_grey(cv2.convertScaleAbs(np.minimum(millimetres, DEPTH_WHITE_MM), alpha=255.0 / DEPTH_WHITE_MM))


def of_metres(metres: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Depth (h, w) in m as grey RGB; NaN and -inf (too close) are no measurement, +inf is far (REP 118)."""
    clean = np.nan_to_num(metres, nan=0.0, posinf=DEPTH_WHITE_MM / 1000, neginf=0.0)
    return of_depth(np.rint(np.clip(clean * 1000.0, 0, DEPTH_WHITE_MM)).astype(np.uint16))


def of_grey(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey (h, w) of 8 or 16 bits as RGB."""
    return _uint8(cv2.cvtColor(_eight_bits(grey), cv2.COLOR_GRAY2RGB))


def converted(code: int) -> Convert:
    """The conversion of OpenCV that `code` names, after 16 bits became 8."""
    return lambda pixels: _uint8(cv2.cvtColor(_eight_bits(pixels), code))


# encoding -> (type of a sample without its byte order, samples per pixel, conversion to RGB)
PACKED: dict[str, tuple[str, int, Convert]] = {
    'mono16': ('u2', 1, of_grey),
    'rgb16': ('u2', 3, lambda pixels: np.ascontiguousarray(_eight_bits(pixels))),
    'bgr16': ('u2', 3, converted(cv2.COLOR_BGR2RGB)),
    'rgba16': ('u2', 4, converted(cv2.COLOR_RGBA2RGB)),
    'bgra16': ('u2', 4, converted(cv2.COLOR_BGRA2RGB)),
    '16UC1': ('u2', 1, of_depth),
    '32FC1': ('f4', 1, of_metres),
    'yuv422': ('u1', 2, converted(cv2.COLOR_YUV2RGB_UYVY)),
    'uyvy': ('u1', 2, converted(cv2.COLOR_YUV2RGB_UYVY)),
    'yuv422_yuy2': ('u1', 2, converted(cv2.COLOR_YUV2RGB_YUY2)),
    'yuyv': ('u1', 2, converted(cv2.COLOR_YUV2RGB_YUY2)),
}
# OpenCV's short names tell the second row's pixels; its long ones, like ROS, the first two of the picture.
MOSAICS: dict[str, int] = {
    'bayer_rggb': cv2.COLOR_BayerRGGB2RGB,
    'bayer_bggr': cv2.COLOR_BayerBGGR2RGB,
    'bayer_gbrg': cv2.COLOR_BayerGBRG2RGB,
    'bayer_grbg': cv2.COLOR_BayerGRBG2RGB,
}
for _name, _code in MOSAICS.items():
    PACKED[f'{_name}8'] = ('u1', 1, converted(_code))
    PACKED[f'{_name}16'] = ('u2', 1, converted(_code))
# Chroma in rows of its own below the picture, half as many.
PLANAR: dict[str, Convert] = {
    'nv12': converted(cv2.COLOR_YUV2RGB_NV12),
    'nv21': converted(cv2.COLOR_YUV2RGB_NV21),
}


def _eight_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    return _uint8(cv2.convertScaleAbs(pixels, alpha=255.0 / 65535.0))


def _uint8(array: Any) -> NDArray[np.uint8]:
    """`array` under its name: OpenCV types its results too widely to say that they are uint8."""
    image: NDArray[np.uint8] = array
    return image
