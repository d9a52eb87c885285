"""The pictures of an episode: of a film by their times in it, or one by one from a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_robot.messages.images import decode_compressed
from training.errors import TrainingError
from training.lerobot.parquet import ParquetReader

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """Where the pictures of one camera of one episode lie: a film, and the second in it at which they begin."""

    file: Path
    start_s: float


@dataclass(frozen=True)
class Stills:
    """Where they lie one by one: a parquet file, its column, and the number of the episode."""

    file: Path
    column: str
    episode: int


def film_pictures(clip: Clip, times_s: Sequence[float], fps: float) -> Iterator[Picture]:
    """For each time since the clip's start the picture of the film that is nearest: uint8 (h, w, 3) RGB.

    Raises:
        TrainingError: The film does not decode, ends too early, or has no picture within half a step of a time.
    """
    frames = _frames(clip, fps)
    before: tuple[float, Any] | None = None
    after = next(frames, None)
    for place, time_s in enumerate(times_s):
        wanted_s = clip.start_s + float(time_s)
        while after is not None and after[0] < wanted_s:
            before, after = after, next(frames, None)
        near = min((each for each in (before, after) if each), key=lambda each: abs(each[0] - wanted_s), default=None)
        if near is None or (after is None and wanted_s - near[0] > 0.5 / fps):
            raise TrainingError(f'{clip.file} ends after {place} of {len(times_s)} pictures.')
        if abs(near[0] - wanted_s) > 0.5 / fps:
            raise TrainingError(
                f'{clip.file} has no picture for step {place} of {len(times_s)}, at {wanted_s:.3f} s; the nearest is '
                f'at {near[0]:.3f} s. Films and tables must be of one clock and of {fps:g} steps a second.'
            )
        yield np.asarray(near[1].to_ndarray(format='rgb24'), dtype=np.uint8)


def _frames(clip: Clip, fps: float) -> Iterator[tuple[float, Any]]:
    """Frames with their times in the film, from a little before the clip's start."""
    import av

    given = 0
    try:
        with av.open(str(clip.file)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # more cost a core more than they save; datasets have many episodes
            if clip.start_s > 0:
                container.seek(int((clip.start_s - 0.5 / fps) / (stream.time_base or 1)), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.time is None:
                    raise TrainingError(f'{clip.file} has a picture without a time, so it cannot be matched.')
                if frame.time >= clip.start_s - 1.0 / fps:
                    yield frame.time, frame
                    given += 1
    except (av.error.FFmpegError, OSError, IndexError, ValueError, OverflowError, MemoryError) as error:
        raise TrainingError(f'{clip.file} does not decode after {given} pictures: {error}.') from error


def still_pictures(
    clip: Stills, count: int, reader: ParquetReader, inside: Callable[[str, str], Path]
) -> Iterator[Picture]:
    """The pictures of an episode that its table holds, or names.

    Args:
        clip: Where they lie.
        count: How many there should be.
        reader: Of the table.
        inside: Makes a path of a name in the table; refuses one that leads out of the dataset.

    Raises:
        TrainingError: One does not read, or there are fewer.
    """
    given = 0
    try:
        table = reader.table(clip.file, [clip.column, 'episode_index'], ('episode_index', clip.episode))
        for cell in table[clip.column]:
            if given == count:
                return
            data = cell['bytes'].as_py()
            if data is None:
                data = inside(str(cell['path'].as_py()), clip.column).read_bytes()
            yield decode_compressed(SimpleNamespace(data=np.frombuffer(data, dtype=np.uint8), format=''))
            given += 1
    except TrainingError:
        raise
    except Exception as error:  # pyarrow raises a dozen types for a cell that is not what it should be
        raise TrainingError(
            f'{clip.file}: {clip.column} of episode {clip.episode} does not decode after {given} pictures '
            f'({type(error).__name__}: {error}).'
        ) from error
    if given < count:
        raise TrainingError(f'{clip.file} ends after {given} of {count} pictures.')
