"""Pictures change as asked, the same for the same draw, and only where that means nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.samples.augment import augment
from training.train.config import Augment

NONE = Augment(crop=1.0, rotate=0.0, brightness=0.0, contrast=0.0, saturation=0.0)


def picture(seed: int = 0, size: int = 32) -> np.ndarray:
    rough = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(rough, (size, size), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)[None]


def changed(image: np.ndarray, how: Augment, seed: int = 0, fixed: bool = False) -> np.ndarray:
    return augment(image, np.array([True]), [fixed], how, np.random.default_rng(seed))


def test_nothing_asked_nothing_changed() -> None:
    assert np.array_equal(changed(picture(), NONE), picture())


@given(st.integers(0, 2**31), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_same_draw_gives_the_same_picture_and_another_another(seed: int, other: int) -> None:
    how = Augment()
    assert np.array_equal(changed(picture(), how, seed), changed(picture(), how, seed))
    if seed != other:
        assert not np.array_equal(changed(picture(), how, seed), changed(picture(), how, other))


def test_a_fixed_view_keeps_its_geometry_and_its_colours_change() -> None:
    white = np.zeros((1, 3, 32, 32), dtype=np.uint8)
    white[:, :, 10:20, 5:15] = 200
    moved = changed(white, Augment(brightness=0.3, contrast=0.0, saturation=0.0), fixed=True)
    assert np.array_equal(moved > 0, white > 0)
    assert not np.array_equal(moved, white)


def test_a_missing_view_stays_black_and_does_not_change_the_others() -> None:
    two = np.concatenate([picture(1), picture(2)])
    how, both = Augment(), np.array([True, True])
    whole = augment(two, both, [False, False], how, np.random.default_rng(0))
    half = augment(two, np.array([False, True]), [False, False], how, np.random.default_rng(0))
    assert np.array_equal(half[1], whole[1])
    assert np.array_equal(half[0], two[0])


def test_crop_shows_a_part_of_the_picture_that_size() -> None:
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, None, None, :] * 2, (1, 3, 100, 100)).copy()
    how = Augment(crop=0.8, rotate=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
    for seed in range(10):
        row = changed(ramp, how, seed)[0, 0, 50].astype(float)
        assert row[-1] - row[0] == pytest.approx(0.8 * 198, abs=3.0)
        assert row.min() > 0 or row[0] == 0
        assert row.max() <= 198


def test_colour_factors_are_what_they_say() -> None:
    grey = np.full((1, 3, 8, 8), 100, dtype=np.uint8)
    bright = Augment(crop=1.0, rotate=0.0, brightness=0.3, contrast=0.0, saturation=0.0)
    values = np.array([int(changed(grey, bright, seed)[0, 0, 0, 0]) for seed in range(200)])
    assert values.min() >= 70
    assert values.max() <= 130
    assert values.std() > 10
    saturated = Augment(crop=1.0, rotate=0.0, brightness=0.0, contrast=0.0, saturation=1.0)
    assert np.array_equal(changed(grey, saturated, 3), grey), 'grey has no colour to lose'
    contrast = Augment(crop=1.0, rotate=0.0, brightness=0.0, contrast=0.9, saturation=0.0)
    assert np.array_equal(changed(grey, contrast, 3), grey), 'one tone has no contrast'
