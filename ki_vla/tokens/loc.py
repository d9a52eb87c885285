"""Boxes in text: four <loc> tokens, y0 x0 y1 x1, over the picture the model sees."""

from __future__ import annotations

import re

import numpy as np

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
