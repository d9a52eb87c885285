"""LeRobot datasets as others write them, small: v2.1, with films whose pictures say their own number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

FPS, SIDE, BITS = 30, 64, 8
NAMES = ('a.pos', 'b.pos')


def picture(number: int) -> np.ndarray:
    """The number in vertical bars, bit by bit: that survives any codec."""
    bars = np.array([[220 if number >> bit & 1 else 0 for bit in range(BITS)]], np.uint8)
    return np.repeat(np.kron(bars, np.ones((SIDE, SIDE // BITS), np.uint8))[:, :, None], 3, axis=2)


def number_of(image: np.ndarray) -> int:
    """The number that a picture says."""
    bars = image.reshape(image.shape[0], BITS, -1, 3)[:, :, 2:-2].mean(axis=(0, 2, 3))
    return sum(1 << bit for bit in range(BITS) if bars[bit] > 110)


def write_film(path: Path, numbers: Sequence[int], times_s: Sequence[float], b_frames: int = 0) -> None:
    """A film with pictures at any times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = Fraction(1, FPS * 100)
    with av.open(str(path), 'w') as out:
        options = {'crf': '12', 'bf': str(b_frames), 'g': '10', 'preset': 'ultrafast'}
        stream: Any = out.add_stream('libx264', rate=FPS, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.time_base, stream.codec_context.time_base = 'yuv420p', base, base
        for number, time_s in zip(numbers, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(picture(number), format='rgb24')
            frame.time_base, frame.pts = base, round(time_s / base)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


class DatasetWriter:
    """Writes one dataset of one episode; what is left out is ordinary."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        steps: int = 30,
        names: Any = NAMES,
        times_s: Sequence[float] | None = None,
        film_numbers: Sequence[int] | None = None,
        film_times_s: Sequence[float] | None = None,
        cameras: Sequence[str] = ('observation.images.front',),
        keys: tuple[str, str] = ('observation.state', 'action'),
        values: np.ndarray | None = None,
        extra: dict[str, np.ndarray] | None = None,
        fps: float = FPS,
        b_frames: int = 0,
    ) -> Path:
        folder = self.folder
        times = np.arange(steps) / FPS if times_s is None else np.asarray(times_s)
        if values is None:
            values = np.stack([np.sin(np.arange(steps) / 30 + place) for place in range(2)], axis=1)
        numbers = range(steps) if film_numbers is None else film_numbers
        film_times = [place / FPS for place in range(len(numbers))] if film_times_s is None else film_times_s
        for camera in cameras:
            film = folder / f'videos/chunk-000/{camera}/episode_000000.mp4'
            write_film(film, numbers, film_times, b_frames)
        columns: dict[str, Any] = {key: pa.array(values.tolist(), pa.list_(pa.float32())) for key in keys}
        columns |= {key: pa.array(each) for key, each in (extra or {}).items()}
        columns |= {
            'timestamp': pa.array(times.astype(np.float32)),
            'frame_index': pa.array(np.arange(steps)),
            'episode_index': pa.array(np.zeros(steps, np.int64)),
            'index': pa.array(np.arange(steps)),
            'task_index': pa.array(np.zeros(steps, np.int64)),
        }
        (folder / 'data/chunk-000').mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / 'data/chunk-000/episode_000000.parquet')
        self._write_meta(steps, names, cameras, keys, values.shape[1], extra or {}, fps)
        return folder

    def _write_meta(
        self,
        steps: int,
        names: Any,
        cameras: Sequence[str],
        keys: Sequence[str],
        width: int,
        extra: dict[str, np.ndarray],
        fps: float,
    ) -> None:
        names = list(names) if isinstance(names, tuple) else names
        features: dict[str, Any] = {key: {'dtype': 'float32', 'shape': [width], 'names': names} for key in keys}
        features |= {key: {'dtype': 'float32', 'shape': [1], 'names': None} for key in extra}
        features |= {camera: {'dtype': 'video', 'shape': [SIDE, SIDE, 3], 'names': None} for camera in cameras}
        for key, dtype in (('timestamp', 'float32'), ('episode_index', 'int64'), ('task_index', 'int64')):
            features[key] = {'dtype': dtype, 'shape': [1], 'names': None}
        info = {
            'codebase_version': 'v2.1',
            'fps': fps,
            'chunks_size': 1000,
            'data_path': 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
            'video_path': 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4',
            'features': features,
        }
        meta = self.folder / 'meta'
        meta.mkdir()
        (meta / 'info.json').write_text(json.dumps(info))
        (meta / 'episodes.jsonl').write_text(json.dumps({'episode_index': 0, 'tasks': ['pick'], 'length': steps}))
        (meta / 'tasks.jsonl').write_text(json.dumps({'task_index': 0, 'task': 'pick'}))


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Writes the dataset `tmp_path / 'dataset'`."""
    return DatasetWriter(tmp_path / 'dataset')


@pytest.fixture
def read_number() -> Callable[[np.ndarray], int]:
    """Tells the number that a picture says."""
    return number_of
