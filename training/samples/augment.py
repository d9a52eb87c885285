"""Pictures changed a little, differently for every sample: crop, rotation, colours (openpi's values).

A crop and a rotation are one affine map, so pictures are resampled once. Wrist cameras keep their geometry: where the
gripper is in their picture never changes on the robot. Pictures whose boxes are asked for keep it too.

Legend: V views, C colours, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from training.train.config import Augment

Picture = NDArray[np.uint8]
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def augment(
    images_VCHW: Picture,
    mask_V: NDArray[np.bool_],
    fixed_V: Sequence[bool],
    how: Augment,
    rng: np.random.Generator,
) -> Picture:
    """New uint8 pictures of the same shape; views that are not there are left alone.

    Args:
        images_VCHW: RGB.
        mask_V: which views are there.
        fixed_V: which views keep their geometry.
        how: how far.
        rng: decides everything; it is drawn from equally, whatever the views are.
    """
    out: Picture = images_VCHW.copy()
    for view in range(len(images_VCHW)):
        shift, angle, factors = rng.uniform(-1, 1, 2), rng.uniform(-1, 1), rng.uniform(-1, 1, 3)
        if not mask_V[view]:
            continue
        image = np.ascontiguousarray(images_VCHW[view].transpose(1, 2, 0))
        if not fixed_V[view]:
            image = _move(image, shift, angle, how)
        out[view] = _colour(image, factors, how).transpose(2, 0, 1)
    return out


def _move(image: Picture, shift: NDArray[np.float64], angle: float, how: Augment) -> Picture:
    """Cut out `crop` of the picture, anywhere, scale it back, and turn it about its middle."""
    if how.crop >= 1.0 and how.rotate <= 0.0:
        return image
    height, width = image.shape[:2]
    middle = (0.5 * (width - 1), 0.5 * (height - 1))
    turn = np.asarray(cv2.getRotationMatrix2D(middle, how.rotate * angle, 1.0 / how.crop), dtype=np.float64)
    turn[:, 2] += 0.5 * (1.0 / how.crop - 1.0) * shift * (width, height)
    moved = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(moved, dtype=np.uint8)


def _colour(image: Picture, factors: NDArray[np.float64], how: Augment) -> Picture:
    """Brightness, contrast about the mean, saturation about grey, in this order."""
    bright, contrast, saturation = (1.0 + factors * (how.brightness, how.contrast, how.saturation)).astype(np.float32)
    if bright == 1.0 and contrast == 1.0 and saturation == 1.0:
        return image
    # One 3 x 3 matrix and an offset do all three.
    mean = float(bright) * float(np.dot(cv2.mean(image)[:3], GREY))
    matrix = saturation * np.eye(3, dtype=np.float32) + (1.0 - saturation) * GREY[None, :]
    matrix = bright * contrast * matrix
    offset = (1.0 - float(contrast)) * mean
    changed = cv2.transform(image.astype(np.float32), np.column_stack([matrix, np.full(3, offset, np.float32)]))
    return np.asarray(np.clip(changed + 0.5, 0.0, 255.0), dtype=np.uint8)
