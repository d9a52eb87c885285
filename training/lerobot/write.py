"""An index as a LeRobotDataset v3.0: parquet, mp4 and metadata that lerobot's own loader takes.

Layout: data/chunk-000/file-000.parquet (one row group an episode), videos/KEY/chunk-000/file-000.mp4 (episodes one
after the other), meta/info.json, meta/stats.json, meta/tasks.parquet (its index is the text), meta/episodes/chunk-000/
file-000.parquet (where each episode begins, in rows and in seconds of video). Stretches in which an input was stale,
or no command was known, are left out: what lies before and after become episodes of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_bags.problems import Problems
from ki_common.files import atomic_folder
from ki_common.parallel import results_of
from ki_robot.contract.contract import Contract
from ki_robot.errors import Rejected
from training.errors import TrainingError
from training.index.index import Index
from training.index.stored_images import decode_stored
from training.lerobot.read import ACTION, IMAGES, STATE
from training.lerobot.video import VideoWriter, about, check_size
from training.samples.dataset import KEPT_OUTCOMES, EpisodeDataset, driven_by_human

DATA_MB, VIDEO_MB = 100, 200
INTERVENTION = 'intervention'  # as LeRobot's own recordings of a human who takes over
FILE = 'chunk-000/file-{:03d}'
QUANTILES = {'q01': 0.01, 'q10': 0.10, 'q50': 0.50, 'q90': 0.90, 'q99': 0.99}
STATS_IMAGES = 20  # pictures of an episode that its image statistics are taken of
SHORTEST = 2
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Stretch:
    """Some steps of one episode of the index, in order; at a rate above the contract's one comes several times."""

    number: int
    rows: NDArray[np.int64]


@dataclass
class _Writing:
    """What grows while episodes are added."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    data_file: int = 0
    parquet: Any = None
    interventions: bool = False  # whether the recordings say who drove


def to_lerobot(
    index: Index,
    out: Path,
    codec: str = 'h264',
    outcomes: tuple[str, ...] = KEPT_OUTCOMES,
    workers: int = 1,
    progress: Progress | None = None,
    fps: int | None = None,
    ray: str = '',
) -> Problems:
    """Writes a dataset; returns what was left out.

    Args:
        index: The episodes.
        out: The folder to make; it must not exist.
        codec: `h264`, or `copy` (JPEGs of the cameras unchanged: quick, exact and large).
        outcomes: Episodes of which outcome to take.
        workers: Films made at a time, each in a process.
        progress: Told after every film: one of a camera, of some episodes.
        fps: Steps a second of the dataset; of each of its steps the newest step of the index. None: the contract's.
        ray: Address of a Ray cluster in place of processes, see `ki_common.parallel.run_all`.

    Raises:
        TrainingError: The folder exists, the rate is no whole number and none was given, or no episode is left.
    """
    rate_hz = index.contract.rate_hz
    if fps is None and round(rate_hz) != rate_hz:
        raise TrainingError(
            f'{index.contract.name} has rate_hz {rate_hz:g}; LeRobot keeps whole frames a second: give --fps '
            f'{round(2 * rate_hz)} (steps are repeated) or --fps {int(rate_hz)} (some are left out).'
        )
    fps = fps or round(rate_hz)
    if out.exists():
        raise TrainingError(f'{out} exists already; choose another folder.')
    with atomic_folder(out) as folder:
        return _write(index, folder, fps, codec, outcomes, progress, partial(results_of, workers=workers, ray=ray))


def _write(
    index: Index,
    folder: Path,
    fps: int,
    codec: str,
    outcomes: tuple[str, ...],
    progress: Progress | None,
    made_by: Callable[[Callable[[Film], Film], Sequence[Film]], Iterator[Film]],
) -> Problems:
    contract, problems = index.contract.replace(rate_hz=float(fps)), Problems()
    (folder / 'meta').mkdir()
    data = EpisodeDataset(index, horizon=1, outcomes=outcomes, resize=False)
    stretches = list(_stretches(data, fps, problems))
    cameras = _common_cameras(data, stretches, contract, problems)
    if not stretches:
        raise TrainingError(f'{index.folder} holds no stretch of {SHORTEST} usable steps; see `ki data show`.')
    films = [film for camera in cameras for film in _films(data, stretches, camera, folder, fps, codec)]
    rows: list[dict[str, Any]] = [{} for _ in stretches]
    sizes: dict[str, tuple[int, int]] = {}
    for done, film in enumerate(made_by(make_film, films)):
        check_size(film.path, 0, film.size, sizes.setdefault(film.camera, film.size))
        for (place, _), row in zip(film.stretches, film.rows, strict=True):
            rows[place].update(row)
        if progress is not None:
            progress(done + 1, len(films), str(film.path))
    writing = _Writing(interventions=any('driver' in data.arrays(each.number) for each in stretches))
    for place, stretch in enumerate(stretches):
        row = _numbers(data, stretch, place, fps, writing, folder)
        writing.rows.append({**row, **{key: rows[place][key] for key in sorted(rows[place])}})
    writing.parquet.close()
    _write_meta(folder, contract, fps, cameras, codec, writing)
    return problems


def _stretches(data: EpisodeDataset, fps: int, problems: Problems) -> Iterator[_Stretch]:
    """Runs of steps that all have fresh inputs and known commands, at another rate."""
    rate_hz = data.contract.rate_hz
    for number in data.episode_numbers:
        arrays = data.arrays(number)
        good = np.concatenate([[False], arrays['valid'] & arrays['action_valid'], [False]])
        edges = np.flatnonzero(np.diff(good.astype(np.int8)))
        path = data.index.episodes[number][0].path
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            if last - first >= SHORTEST:
                count = int((last - first - 1) * fps / rate_hz + 1e-6) + 1
                rows = first + np.floor(np.arange(count) * (rate_hz / fps) + 1e-6).astype(np.int64)
                yield _Stretch(number, rows)
            else:
                problems.add(path, '', 'too_short', 'a single usable step is no episode')
        gaps = len(good) - 2 - int(good.sum())
        if gaps:
            problems.add(path, '', 'left_out', 'a step without fresh inputs or a command is left out', gaps)


def _common_cameras(
    data: EpisodeDataset, stretches: list[_Stretch], contract: Contract, problems: Problems
) -> tuple[str, ...]:
    """Cameras with a picture at every step: LeRobot has no way to say that one is missing."""
    kept = []
    for camera in contract.camera_names:
        holes = [
            stretch
            for stretch in stretches
            if (data.arrays(stretch.number)[f'{camera}.offset'][stretch.rows] < 0).any()
        ]
        if holes:
            path = data.index.episodes[holes[0].number][0].path
            text = f'camera {camera} lacks pictures in {len(holes)} episodes and is left out of the dataset'
            problems.add(path, camera, 'camera_left_out', text, len(holes))
        else:
            kept.append(camera)
    return tuple(kept)


@dataclass(frozen=True)
class Film:
    """One mp4 file to make: a camera in some episodes, one after the other.

    Attributes:
        path: The file.
        key: Of the feature.
        number: Of the file among those of its camera.
        camera, fps, codec: What is filmed, how many pictures a second, how.
        stretches: Of each episode its place in the dataset, and its steps.
        folders: Of each, the folder of the index with its pictures, and the file of its arrays there.
        rows: What the metadata say of each, once it is made.
        size: Width and height of its pictures, once it is made.
    """

    path: Path
    key: str
    number: int
    camera: str
    fps: int
    codec: str
    stretches: tuple[tuple[int, _Stretch], ...]
    folders: tuple[tuple[Path, str], ...]
    rows: tuple[dict[str, Any], ...] = ()
    size: tuple[int, int] = (0, 0)


def _films(
    data: EpisodeDataset, stretches: list[_Stretch], camera: str, folder: Path, fps: int, codec: str
) -> Iterator[Film]:
    """The films of one camera; a new one begins at an episode when one has grown large."""
    key, size = IMAGES + camera, 0
    groups: list[list[tuple[int, _Stretch]]] = [[]]
    for place, stretch in enumerate(stretches):
        if size > VIDEO_MB << 20:
            groups.append([])
            size = 0
        groups[-1].append((place, stretch))
        size += int(data.arrays(stretch.number)[f'{camera}.length'][stretch.rows].sum())
    for number, group in enumerate(groups):
        path = folder / 'videos' / key / f'{FILE.format(number)}.mp4'
        found = [data.index.episodes[stretch.number] for _, stretch in group]
        folders = tuple((entry.folder, about.file) for entry, about in found)
        yield Film(path, key, number, camera, fps, codec, tuple(group), folders)


def make_film(film: Film) -> Film:
    """Makes a film; returns it with where each episode lies in it and the statistics of its pictures.

    Raises:
        TrainingError: A picture does not decode, or has another size than the first.
    """
    writer, rows = VideoWriter(film.path, film.fps, film.codec), []
    for (_, stretch), (folder, arrays) in zip(film.stretches, film.folders, strict=True):
        with np.load(folder / arrays) as stored:
            offsets = stored[f'{film.camera}.offset'][stretch.rows]
            lengths = stored[f'{film.camera}.length'][stretch.rows]
        rows.append(_add_pictures(folder / f'{film.camera}.images', offsets, lengths, film, writer))
    writer.close()
    assert writer.size is not None  # a film has pictures
    return replace(film, rows=tuple(rows), size=writer.size)


def _add_pictures(
    file: Path, offsets: NDArray[np.int64], lengths: NDArray[np.int64], film: Film, writer: VideoWriter
) -> dict[str, Any]:
    """Appends one episode to a film; returns where it lies, and the statistics of its pictures."""
    start = writer.frames / film.fps
    with file.open('rb', buffering=0) as stream:
        for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
            stream.seek(offset)
            writer.add(np.frombuffer(stream.read(length), dtype=np.uint8))
    chosen = np.unique(np.linspace(0, len(offsets) - 1, STATS_IMAGES).astype(int))
    stats = _image_stats(file, offsets[chosen], lengths[chosen])
    prefix = f'videos/{film.key}'
    return {
        f'{prefix}/chunk_index': 0,
        f'{prefix}/file_index': film.number,
        f'{prefix}/from_timestamp': start,
        f'{prefix}/to_timestamp': start + len(offsets) / film.fps,
        **{f'stats/{film.key}/{name}': value for name, value in stats.items()},
    }


def _image_stats(file: Path, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> dict[str, Any]:
    """Per channel, of some pictures at a quarter of their size, 0..1; shaped (3, 1, 1) as lerobot keeps them."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
        try:
            pixels = decode_stored(file, offset, length)[::4, ::4].reshape(-1, 3)
        except Rejected as error:
            raise TrainingError(f'{file}: a picture does not decode ({error}); run `ki data check --deep`.') from error
        for channel in range(3):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    found = [_level_stats(each) for each in counts]
    shaped = {name: [[[each[name]]] for each in found] for name in found[0]}
    return {**shaped, 'count': [len(offsets)]}


def _level_stats(counts: NDArray[np.int64]) -> dict[str, float]:
    """What `_column_stats` finds of the values 0, 1/255 ... 1, of which each is there so many times."""
    levels, ends = np.arange(256) / 255.0, np.cumsum(counts)
    total = int(ends[-1])
    mean = float(counts @ levels) / total
    there = levels[counts > 0]

    def quantile(share: float) -> float:
        place = share * (total - 1)
        low, high = levels[np.searchsorted(ends, [int(place), min(int(place) + 1, total - 1)], side='right')].tolist()
        return float(low + (high - low) * (place - int(place)))

    return {
        'min': float(there[0]),
        'max': float(there[-1]),
        'mean': mean,
        'std': float(np.sqrt(counts @ (levels - mean) ** 2 / total)),
        **{name: quantile(share) for name, share in QUANTILES.items()},
    }


def _column_stats(values: NDArray[np.floating]) -> dict[str, Any]:
    found = {
        'min': values.min(axis=0),
        'max': values.max(axis=0),
        'mean': values.mean(axis=0),
        'std': values.std(axis=0),
        **{name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()},
    }
    return {**{name: value.tolist() for name, value in found.items()}, 'count': [len(values)]}


def _numbers(
    data: EpisodeDataset, stretch: _Stretch, place: int, fps: int, writing: _Writing, folder: Path
) -> dict[str, Any]:
    """Writes the rows of one episode; returns its line of metadata, with its statistics."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = data.arrays(stretch.number)
    part = stretch.rows
    texts = data.index.episodes[stretch.number][1].texts
    said = [texts[int(each)] for each in arrays['text'][part]]
    for text in said:
        writing.tasks.setdefault(text, len(writing.tasks))
    count = len(said)
    begin = writing.frames
    columns: dict[str, NDArray[Any]] = {
        STATE: arrays['state'][part].astype(np.float32),
        ACTION: arrays['actions'][part].astype(np.float32),
        'timestamp': (np.arange(count) / fps).astype(np.float32),
        'frame_index': np.arange(count, dtype=np.int64),
        'episode_index': np.full(count, place, dtype=np.int64),
        'index': np.arange(begin, begin + count, dtype=np.int64),
        'task_index': np.array([writing.tasks[text] for text in said], dtype=np.int64),
    }
    if writing.interventions:
        columns[INTERVENTION] = driven_by_human(arrays)[part]
    made = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        if values.ndim == 2
        else pa.array(values)
        for name, values in columns.items()
    }
    table = pa.table(made)
    if writing.parquet is not None and Path(writing.parquet.where).stat().st_size > DATA_MB << 20:
        writing.parquet.close()
        writing.parquet, writing.data_file = None, writing.data_file + 1
    if writing.parquet is None:
        path = folder / 'data' / f'{FILE.format(writing.data_file)}.parquet'
        path.parent.mkdir(parents=True, exist_ok=True)
        writing.parquet = pq.ParquetWriter(str(path), table.schema, compression='snappy', write_page_checksum=True)
    writing.parquet.write_table(table)
    writing.frames += count
    row = {
        'episode_index': place,
        'tasks': list(dict.fromkeys(said)),
        'length': count,
        'data/chunk_index': 0,
        'data/file_index': writing.data_file,
        'dataset_from_index': begin,
        'dataset_to_index': begin + count,
        'meta/episodes/chunk_index': 0,
        'meta/episodes/file_index': 0,
    }
    stats = {name: _column_stats(values.reshape(count, -1).astype(np.float64)) for name, values in columns.items()}
    return {**row, **{f'stats/{key}/{name}': value for key, each in stats.items() for name, value in each.items()}}


def _write_meta(
    folder: Path, contract: Contract, fps: int, cameras: tuple[str, ...], codec: str, writing: _Writing
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    episodes = folder / 'meta' / 'episodes' / f'{FILE.format(0)}.parquet'
    episodes.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(writing.rows), str(episodes))
    pq.write_table(_task_table(writing.tasks), str(folder / 'meta' / 'tasks.parquet'))
    info = {
        'codebase_version': 'v3.0',
        'robot_type': contract.name,
        'total_episodes': len(writing.rows),
        'total_frames': writing.frames,
        'total_tasks': len(writing.tasks),
        'chunks_size': 1000,
        'data_files_size_in_mb': DATA_MB,
        'video_files_size_in_mb': VIDEO_MB,
        'fps': fps,
        'splits': {'train': f'0:{len(writing.rows)}'},
        'data_path': 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet',
        'video_path': 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4',
        'features': _features(folder, contract, cameras, codec)
        | ({INTERVENTION: {'dtype': 'bool', 'shape': [1], 'names': None}} if writing.interventions else {}),
    }
    (folder / 'meta' / 'info.json').write_text(json.dumps(info, indent=4), encoding='utf-8')
    stats = _whole_stats(writing.rows)
    (folder / 'meta' / 'stats.json').write_text(json.dumps(stats, indent=1, allow_nan=False), encoding='utf-8')
    # Ours alone: with it, `ki data from-lerobot` gives the same robot back.
    (folder / 'meta' / 'contract.json').write_text(json.dumps(contract.to_dict(), indent=1), encoding='utf-8')


def _features(folder: Path, contract: Contract, cameras: tuple[str, ...], codec: str) -> dict[str, Any]:
    def names(columns: tuple[str, ...]) -> list[str]:
        return [column.removesuffix('/position') for column in columns]

    features: dict[str, Any] = {
        STATE: {'dtype': 'float32', 'shape': [len(contract.state)], 'names': names(contract.state_names)},
        ACTION: {'dtype': 'float32', 'shape': [len(contract.actions)], 'names': names(contract.action_names)},
    }
    for camera in cameras:
        key = IMAGES + camera
        found = about(folder / 'videos' / key / f'{FILE.format(0)}.mp4', codec)
        shape = [found['video.height'], found['video.width'], 3]
        features[key] = {'dtype': 'video', 'shape': shape, 'names': ['height', 'width', 'channels'], 'info': found}
    features['timestamp'] = {'dtype': 'float32', 'shape': [1], 'names': None}
    for name in ('frame_index', 'episode_index', 'index', 'task_index'):
        features[name] = {'dtype': 'int64', 'shape': [1], 'names': None}
    return features


def _task_table(tasks: dict[str, int]) -> Any:
    """Tasks as pandas would write them with the text as index, which is how lerobot looks them up."""
    import pyarrow as pa

    table = pa.table({'task_index': list(tasks.values()), 'task': list(tasks)})
    kinds = {'task_index': ('int64', 'int64'), 'task': ('unicode', 'object')}
    columns = [
        {'name': name, 'field_name': name, 'pandas_type': kind, 'numpy_type': stored, 'metadata': None}
        for name, (kind, stored) in kinds.items()
    ]
    pandas = {'index_columns': ['task'], 'column_indexes': [], 'columns': columns, 'pandas_version': '2.2.0'}
    return table.replace_schema_metadata({b'pandas': json.dumps(pandas).encode()})


def _whole_stats(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of all episodes from those of each: exact for min, max, mean and std, weighted means for quantiles."""
    keys = sorted({name.split('/')[1] for name in rows[0] if name.startswith('stats/')})
    found: dict[str, Any] = {}
    for key in keys:

        def of(name: str, key: str = key) -> NDArray[np.float64]:
            return np.asarray([row[f'stats/{key}/{name}'] for row in rows], dtype=np.float64)

        counts = of('count')
        weights = (counts / counts.sum()).reshape(-1, *([1] * (of('mean').ndim - 1)))
        mean = (of('mean') * weights).sum(axis=0)
        variance = ((of('std') ** 2 + (of('mean') - mean) ** 2) * weights).sum(axis=0)
        whole = {'min': of('min').min(axis=0), 'max': of('max').max(axis=0), 'mean': mean, 'std': np.sqrt(variance)}
        whole |= {name: (of(name) * weights).sum(axis=0) for name in QUANTILES}
        found[key] = {**{name: value.tolist() for name, value in whole.items()}, 'count': [int(counts.sum())]}
    return found
