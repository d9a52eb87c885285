"""LeRobot datasets on disk, v2.1 and v3.0: numbers, tasks and pictures of one episode at a time.

Layout v2.1: one parquet and one mp4 a camera per episode; meta/episodes.jsonl, meta/tasks.jsonl. Layout v3.0: many
episodes in one parquet and one mp4 (chunk-000/file-000 ...), found through meta/episodes/*/*.parquet, and
meta/tasks.parquet. A camera of dtype `image` has no mp4: its pictures are a column of the parquet, as bytes or as names
of files. Episodes that the metadata names and the disk lacks are left out and counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_bags.problems import Problems
from ki_common.files import read_json
from ki_robot.messages.images import decode_compressed
from training.errors import TrainingError

VERSIONS = ('v2.0', 'v2.1', 'v3.0')
STATE, ACTION, IMAGES = 'observation.state', 'action', 'observation.images.'


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


@dataclass(frozen=True)
class LerobotEpisode:
    """One episode: state (T, S), action (T, A), float64 as stored; `tasks` per step (T,)."""

    number: int
    state: NDArray[np.float64]
    action: NDArray[np.float64]
    timestamps: NDArray[np.float64]
    tasks: tuple[str, ...]
    clips: dict[str, Clip | Stills]


def dataset_folders(folder: Path, depth: int = 4) -> list[Path]:
    """The folders of datasets at or below a folder, by their meta/info.json, down to `depth` levels."""
    found = []
    for path, folders, _ in os.walk(folder):
        here = Path(path)
        if (here / 'meta' / 'info.json').is_file():
            found.append(here)
            folders.clear()
        elif len(here.relative_to(folder).parts) >= depth:
            folders.clear()
        else:
            folders.sort()
    return found


class LerobotDataset:
    """A dataset folder.

    Attributes:
        fps: Steps a second.
        cameras: Names without the prefix `observation.images.`.
        state_names, action_names: Of the columns.
        numbers: The episodes that are on disk.
        problems: Episodes that are not, and files that do not read.

    Raises:
        TrainingError: Not a dataset of a known version, or one without names of its joints.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.problems = Problems()
        self.info = read_json(self.folder / 'meta/info.json', TrainingError, 'name the folder of a LeRobot dataset')
        self.version = str(self.info.get('codebase_version'))
        if self.version not in VERSIONS:
            raise TrainingError(
                f'{self.folder}/meta/info.json: codebase_version is {self.version}; {", ".join(VERSIONS)} can be read.'
            )
        try:
            self.fps = float(self.info['fps'])
            self.features: dict[str, Any] = dict(self.info['features'])
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(f'{self.folder}/meta/info.json lacks a usable {error}.') from error
        self.cameras = tuple(
            key.removeprefix(IMAGES) for key, each in self.features.items() if each.get('dtype') in ('video', 'image')
        )
        self.state_names = self._names(STATE)
        self.action_names = self._names(ACTION)
        self._tasks = self._read_tasks()
        self._rows = self._read_rows()
        self.numbers = tuple(number for number in sorted(self._rows) if self._is_there(number))
        absent = len(self._rows) - len(self.numbers)
        if absent:
            text = f'{absent} of {len(self._rows)} episodes of the metadata are not on disk'
            self.problems.add(self.folder, 'meta', 'absent_episode', text, absent)

    def episode(self, number: int) -> LerobotEpisode:
        """The numbers of one episode.

        Raises:
            TrainingError: Its parquet file does not read, or lacks a column.
        """
        import pyarrow.parquet as pq

        path = self._data_path(number)
        try:
            # v3 files hold many episodes; the filter skips row groups of others by their statistics.
            table = pq.read_table(path, filters=[('episode_index', '=', number)])
            if not len(table):
                raise ValueError('no row has this episode_index')
            state, action = self._column(table, STATE), self._column(table, ACTION)
            times = table['timestamp'].to_numpy().astype(np.float64)
            tasks = tuple(self._tasks.get(int(each), '') for each in table['task_index'].to_numpy())
        except Exception as error:  # pyarrow raises a dozen types for a damaged file
            raise TrainingError(
                f'{path}: episode {number} cannot be read ({type(error).__name__}: {error}).'
            ) from error
        clips = {camera: self._clip(number, camera) for camera in self.cameras}
        return LerobotEpisode(number, state, action, times, tasks, clips)

    def promised_steps(self, number: int) -> int | None:
        """How many steps the metadata says that an episode has; None when it does not say."""
        length = self._rows[number].get('length')
        return int(length) if isinstance(length, (int, float)) else None

    def frames(self, clip: Clip | Stills, count: int) -> Iterator[NDArray[np.uint8]]:
        """`count` pictures from the start of a clip, uint8 (h, w, 3) RGB.

        Raises:
            TrainingError: The file does not decode, or ends too early.
        """
        given = 0
        for picture in self._film(clip) if isinstance(clip, Clip) else self._stills(clip):
            if given == count:
                return
            given += 1
            yield picture
        if given < count:
            raise TrainingError(f'{clip.file} ends after {given} of {count} pictures.')

    def _film(self, clip: Clip) -> Iterator[NDArray[np.uint8]]:
        import av

        given = 0
        try:
            with av.open(str(clip.file)) as container:
                stream = container.streams.video[0]
                stream.thread_type = 'AUTO'
                if clip.start_s > 0:
                    container.seek(int(clip.start_s / (stream.time_base or 1)), stream=stream, backward=True)
                for frame in container.decode(stream):
                    # Half a frame of tolerance: a time base cannot hold every multiple of 1 / fps.
                    if frame.time is not None and frame.time < clip.start_s - 0.5 / self.fps:
                        continue
                    given += 1
                    yield np.asarray(frame.to_ndarray(format='rgb24'), dtype=np.uint8)
        except (av.error.FFmpegError, OSError, IndexError) as error:
            raise TrainingError(f'{clip.file} does not decode after {given} pictures: {error}.') from error

    def _stills(self, clip: Stills) -> Iterator[NDArray[np.uint8]]:
        import pyarrow.parquet as pq

        given = 0
        try:
            table = pq.read_table(clip.file, columns=[clip.column], filters=[('episode_index', '=', clip.episode)])
            for cell in table[clip.column]:
                data = cell['bytes'].as_py()
                if data is None:
                    data = self._inside(str(cell['path'].as_py()), clip.column).read_bytes()
                yield decode_compressed(SimpleNamespace(data=np.frombuffer(data, dtype=np.uint8), format=''))
                given += 1
        except TrainingError:
            raise
        except Exception as error:  # pyarrow raises a dozen types for a damaged file
            raise TrainingError(
                f'{clip.file}: {clip.column} of episode {clip.episode} does not decode after {given} pictures '
                f'({type(error).__name__}: {error}).'
            ) from error

    def _names(self, key: str) -> tuple[str, ...]:
        """Names of the columns, which datasets keep as a list, a list of a list, or a mapping of a list."""
        about = self.features.get(key)
        if about is None:
            raise TrainingError(f'{self.folder}/meta/info.json has no feature {key}; the dataset has no such numbers.')
        names = about.get('names')
        while isinstance(names, dict) and names:
            names = next(iter(names.values()))
        if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
            names = names[0]
        size = int(np.prod(about.get('shape', [0])))
        if not isinstance(names, list) or len(names) != size or not all(isinstance(each, str) for each in names):
            raise TrainingError(
                f'{self.folder}/meta/info.json: features.{key}.names does not name its {size} columns; joints are '
                'matched by name, so write their names there.'
            )
        return tuple(names)

    def _read_tasks(self) -> dict[int, str]:
        import pyarrow.parquet as pq

        try:
            if self.version != 'v3.0':
                lines = (self.folder / 'meta/tasks.jsonl').read_text(encoding='utf-8').splitlines()
                rows = [json.loads(line) for line in lines if line.strip()]
                return {int(row['task_index']): str(row['task']) for row in rows}
            table = pq.read_table(self.folder / 'meta/tasks.parquet').to_pydict()
            texts = table.get('task', table.get('__index_level_0__'))
            return dict(zip(table['task_index'], texts, strict=True))
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.problems.add(self.folder, 'meta/tasks', 'bad_metadata', f'the tasks cannot be read: {error}')
            return {}

    def _read_rows(self) -> dict[int, dict[str, Any]]:
        import pyarrow.parquet as pq

        try:
            if self.version != 'v3.0':
                lines = (self.folder / 'meta/episodes.jsonl').read_text(encoding='utf-8').splitlines()
                rows = [json.loads(line) for line in lines if line.strip()]
            else:
                rows = []
                for path in sorted((self.folder / 'meta/episodes').glob('*/*.parquet')):
                    names = [each for each in pq.read_schema(path).names if not each.startswith('stats/')]
                    rows += pq.read_table(path, columns=names).to_pylist()
            return {int(row['episode_index']): row for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f'{self.folder}/meta: the list of episodes cannot be read: {error}.') from error

    def _is_there(self, number: int) -> bool:
        files = [self._data_path(number), *(self._clip(number, camera).file for camera in self.cameras)]
        return all(file.is_file() for file in files)

    def _data_path(self, number: int) -> Path:
        if self.version == 'v3.0':
            row = self._rows[number]
            values = {'chunk_index': row['data/chunk_index'], 'file_index': row['data/file_index']}
        else:
            values = {'episode_chunk': number // int(self.info.get('chunks_size', 1000)), 'episode_index': number}
        return self._filled('data_path', values)

    def _clip(self, number: int, camera: str) -> Clip | Stills:
        key = IMAGES + camera if IMAGES + camera in self.features else camera
        if self.features[key].get('dtype') == 'image':
            return Stills(self._data_path(number), key, number)
        if self.version != 'v3.0':
            chunk = number // int(self.info.get('chunks_size', 1000))
            values = {'episode_chunk': chunk, 'episode_index': number, 'video_key': key}
            return Clip(self._filled('video_path', values), 0.0)
        row = self._rows[number]
        values = {
            'chunk_index': row[f'videos/{key}/chunk_index'],
            'file_index': row[f'videos/{key}/file_index'],
            'video_key': key,
        }
        return Clip(self._filled('video_path', values), float(row[f'videos/{key}/from_timestamp']))

    def _filled(self, field: str, values: dict[str, Any]) -> Path:
        """A path template of the metadata, filled in."""
        try:
            name = str(self.info[field]).format(**values)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise TrainingError(f'{self.folder}/meta/info.json: {field} cannot be filled in ({error}).') from error
        return self._inside(name, f'meta/info.json: {field}')

    def _inside(self, name: str, where: str) -> Path:
        """A path that must not lead out of the dataset."""
        path = self.folder / name
        if self.folder.resolve() not in path.resolve().parents:
            raise TrainingError(f'{self.folder}/{where} leads out of the dataset ({path}).')
        return path

    @staticmethod
    def _column(table: Any, name: str) -> NDArray[np.float64]:
        values = table[name].combine_chunks()
        flat = values.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        found: NDArray[np.float64] = flat.reshape(len(table), -1)
        return found
