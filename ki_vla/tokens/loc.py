"""Boxes in text: four <loc> tokens, y0 x0 y1 x1, in the image as the model sees it."""

from __future__ import annotations

import re

import numpy as np

from ki_robot.transforms import placement
from ki_vla.errors import VlaError

_BOX = re.compile(r'<loc(\d{4})>' * 4)


def box_text(box: np.ndarray, bins: int = 1024) -> str:
    """A box (y0, x0, y1, x1), each 0..1 of the picture's height or width, -> '<loc0123>' four times.

    Raises:
        VlaError: a coordinate outside 0..1 or not finite, or a box turned inside out.
    """
    box = np.asarray(box, dtype=np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or box.min() < 0.0 or box.max() > 1.0:
        raise VlaError(f'a box is four numbers y0 x0 y1 x1 within 0..1, got {box.tolist()}.')
    if box[0] > box[2] or box[1] > box[3]:
        raise VlaError(f'a box must have y0 <= y1 and x0 <= x1, got {box.tolist()}.')
    steps = np.minimum((box * bins).astype(np.int64), bins - 1)
    return ''.join(f'<loc{step:04d}>' for step in steps)


def read_boxes(text: str, bins: int = 1024) -> np.ndarray:
    """Every group of four <loc> tokens in a text -> boxes [n, 4] in 0..1, the middle of each step.

    Raises:
        VlaError: a <loc> number that is not below `bins`.
    """
    steps = np.array([[int(value) for value in match] for match in _BOX.findall(text)], dtype=np.float64).reshape(-1, 4)
    if steps.size and steps.max() >= bins:
        raise VlaError(f'<loc{int(steps.max()):04d}> lies beyond the {bins} steps of this vocabulary.')
    return (steps + 0.5) / bins


def from_pixels(box: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """A box in pixels of a camera image -> 0..1 of the padded square that the model sees.

    Args:
        box: y0, x0, y1, x1 in pixels; what lies beyond the image is cut off.
        height: of the camera image.
        width: of the camera image.
        size: of the square, as `resize_with_pad` makes it.
    """
    top, left, new_height, new_width = placement(height, width, size)
    limits = np.array([height, width, height, width], dtype=np.float64)
    inside = np.clip(np.asarray(box, dtype=np.float64), 0.0, limits) / limits
    return (np.array([top, left, top, left]) + inside * [new_height, new_width, new_height, new_width]) / size


def to_pixels(box: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """The inverse of `from_pixels`, for boxes that the model has said; cut off at the image's edges."""
    top, left, new_height, new_width = placement(height, width, size)
    inside = (np.asarray(box, dtype=np.float64) * size - [top, left, top, left]) / [
        new_height, new_width, new_height, new_width
    ]  # fmt: skip
    return np.clip(inside, 0.0, 1.0) * [height, width, height, width]
