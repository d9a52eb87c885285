"""What is computed of pictures in another way than the plain one, held to the plain one."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from training.lerobot.video import _in_limited_range, _pixels
from training.lerobot.write import _column_stats, _level_stats


@pytest.mark.parametrize('count', [1, 2, 3, 1000])
def test_statistics_of_grey_levels_are_those_of_the_values(count: int) -> None:
    values = np.random.default_rng(count).integers(0, 256, count)
    plain = _column_stats(values[:, None] / 255.0)
    counted = _level_stats(np.bincount(values, minlength=256))
    assert counted == pytest.approx({name: plain[name][0] for name in counted}, abs=1e-12)


@pytest.mark.parametrize('size', [(48, 64), (46, 70)], ids=['even lines', 'lines that are filled up'])
def test_a_jpeg_becomes_video_as_swscale_would_make_it(size: tuple[int, int]) -> None:
    import av

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    done, data = cv2.imencode('.jpg', cv2.GaussianBlur(pixels, (5, 5), 0))
    assert done
    context: Any = av.CodecContext.create('mjpeg', 'r')
    [frame] = context.decode(av.Packet(data.tobytes()))
    assert frame.format.name == 'yuvj420p'
    wanted = frame.reformat(format='yuv420p', src_color_range=2, dst_color_range=1)
    for ours, theirs in zip(_in_limited_range(frame).planes, wanted.planes, strict=True):
        assert np.abs(_pixels(ours).astype(int) - _pixels(theirs)).max() <= 1
