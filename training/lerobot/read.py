"""LeRobot datasets on disk, v2.1 and v3.0: numbers, tasks and pictures of one episode at a time.

Layout v2.1: one parquet and one mp4 a camera per episode; meta/episodes.jsonl, meta/tasks.jsonl. Layout v3.0: many
episodes in one parquet and one mp4 (chunk-000/file-000 ...), found through meta/episodes/*/*.parquet, and
meta/tasks.parquet. A camera of dtype `image` has no mp4: its pictures are a column of the parquet, as bytes or as names
of files. Episodes that the metadata names and the disk lacks are left out and counted.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_bags.problems import Problems
from ki_common.errors import KiError
from ki_common.files import is_lfs_pointer
from training.errors import TrainingError
from training.lerobot.info import IMAGES, INTERVENTIONS, DatasetInfo
from training.lerobot.parquet import ParquetReader
from training.lerobot.pictures import Clip, Picture, Stills, film_pictures, still_pictures

STATE, ACTION = 'observation.state', 'action'
# What datasets call the state and the action, the usual name first.
STATES, ACTIONS = (STATE, 'state'), (ACTION, 'actions')
PLACE = re.compile(r'\{(?P<name>\w+)(:0?(?P<width>\d{1,2})d)?\}')  # {episode_index:06d}
MAX_TASK = 10_000  # characters
__all__ = ['ACTION', 'IMAGES', 'STATE', 'Clip', 'LerobotDataset', 'LerobotEpisode', 'Stills', 'dataset_folders']


@dataclass(frozen=True)
class LerobotEpisode:
    """One episode.

    Attributes:
        number: Its index in the dataset.
        values: By feature, float64 (T, n) as stored.
        state, action: The two usual ones.
        timestamps: Seconds, (T,).
        tasks: Per step, (T,).
        clips: By camera.
        human: Which steps a human drove, (T,); None where the dataset does not say.
    """

    number: int
    values: dict[str, NDArray[np.float64]]
    state: NDArray[np.float64]
    action: NDArray[np.float64]
    timestamps: NDArray[np.float64]
    tasks: tuple[str, ...]
    clips: dict[str, Clip | Stills]
    human: NDArray[np.bool_] | None = None

    @property
    def steps(self) -> int:
        """T."""
        return len(self.timestamps)


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
        info: Its metadata.
        fps: Steps a second.
        cameras: Names without the prefix `observation.images.`.
        state_key, action_key: The features of state and action; empty where the dataset calls them otherwise.
        state_names, action_names: Of their columns; empty where the metadata does not name each of them.
        numbers: The episodes that are on disk.
        problems: Episodes that are not, and files that do not read.

    Raises:
        TrainingError: Not a dataset of a known version, or metadata that does not read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.problems = Problems()
        self.info = DatasetInfo.read(self.folder)
        self.fps = self.info.fps
        self._cameras = self.info.cameras
        self.cameras = tuple(self._cameras)
        self.state_key = next((key for key in STATES if key in self.info.numbers), '')
        self.action_key = next((key for key in ACTIONS if key in self.info.numbers), '')
        self.state_names = self._names(self.state_key)
        self.action_names = self._names(self.action_key)
        self._reader = ParquetReader()
        self._tasks = self._read_tasks()
        self._rows = self._read_rows()
        self.numbers = self._find()

    def episode(self, number: int) -> LerobotEpisode:
        """The numbers of one episode.

        Raises:
            TrainingError: Its parquet file does not read, or lacks a column.
        """
        path = self._data_path(number)
        features = self.info.numbers
        try:
            # v3 files hold many episodes; the filter skips row groups of others by their statistics.
            human_key = next((key for key in INTERVENTIONS if key in self.info.features), None)
            columns = [*features, 'timestamp', 'task_index', 'episode_index', *filter(None, [human_key])]
            table = self._reader.table(path, columns, ('episode_index', number))
            if not len(table):
                raise ValueError('no row has this episode_index')
            values = {key: _column(table, key, features[key].size) for key in features if key in table.column_names}
            times = _column(table, 'timestamp', 1)[:, 0]
            tasks = tuple(self._tasks.get(int(each), '') for each in table['task_index'].to_numpy())
            human = _column(table, human_key, 1)[:, 0] > 0.5 if human_key and human_key in table.column_names else None
            nothing = np.zeros((len(table), 0))
            state, action = (values[key] if key else nothing for key in (self.state_key, self.action_key))
        except Exception as error:  # pyarrow raises a dozen types for a damaged file
            why = str(error) if isinstance(error, KiError) else f'{type(error).__name__}: {error}'
            raise TrainingError(f'{path}: episode {number} cannot be read ({why}).') from error
        clips = {camera: self._clip(number, camera) for camera in self.cameras}
        return LerobotEpisode(number, values, state, action, times, tasks, clips, human)

    def only(self, number: int) -> LerobotDataset:
        """The same with one episode alone, which is little to send to another process."""
        found = copy.copy(self)
        found.problems, found._rows, found.numbers = Problems(), {number: self._rows[number]}, (number,)
        return found

    def promised_steps(self, number: int) -> int | None:
        """How many steps the metadata says that an episode has; None when it does not say."""
        length = self._rows[number].get('length')
        return int(length) if isinstance(length, (int, float)) and np.isfinite(length) else None

    def frames(self, clip: Clip | Stills, times_s: Sequence[float] | NDArray[np.float64]) -> Iterator[Picture]:
        """A picture for each time since the episode's start, uint8 (h, w, 3) RGB.

        Of a film, the nearest within half a step; of single pictures, one after the other.

        Raises:
            TrainingError: The file does not decode, ends too early, or has no picture at one of the times.
        """
        if isinstance(clip, Clip):
            return film_pictures(clip, [float(each) for each in times_s], self.fps)
        return still_pictures(clip, len(times_s), self._reader, self._inside)

    def _names(self, key: str) -> tuple[str, ...]:
        return self.info.features[key].elements if key else ()

    def _read_tasks(self) -> dict[int, str]:
        try:
            if self.info.codebase_version != 'v3.0':
                rows = self._lines('meta/tasks.jsonl')
                return {int(row['task_index']): str(row['task'])[:MAX_TASK] for row in rows}
            table = self._reader.table(self.folder / 'meta/tasks.parquet').to_pydict()
            texts = table.get('task', table.get('__index_level_0__'))
            return {int(each): str(text) for each, text in zip(table['task_index'], texts, strict=True)}
        except (KiError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            self.problems.add(self.folder, 'meta/tasks', 'tasks_lost', f'the tasks cannot be read: {error}')
            return {}

    def _read_rows(self) -> dict[int, dict[str, Any]]:
        try:
            if self.info.codebase_version != 'v3.0':
                rows = self._lines('meta/episodes.jsonl')
            else:
                rows = []
                for path in sorted((self.folder / 'meta/episodes').glob('*/*.parquet')):
                    rows += self._reader.table(path, ['!stats/']).to_pylist()
            return {int(row['episode_index']): row for row in rows}
        except (KiError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise TrainingError(
                f'{self.folder}/meta: the list of episodes cannot be read: {str(error).rstrip(".")}.'
            ) from error

    def _lines(self, name: str) -> list[Any]:
        text = (self.folder / name).read_text(encoding='utf-8')
        return [json.loads(line) for line in text.splitlines() if line.strip()]

    def _find(self) -> tuple[int, ...]:
        """The episodes that are on disk; others, and those whose metadata is broken, are counted."""
        found, broken = [], None
        for number in sorted(self._rows):
            try:
                missing = self._missing(number)
            except TrainingError as error:
                broken = broken or error
                self.problems.add(self.folder, 'meta', 'bad_metadata', str(error))
                continue
            if missing is None:
                found.append(number)
            elif missing.is_file():
                text = f'an episode is only pointers of git-lfs ({missing}); run `git lfs pull` in {self.folder}'
                self.problems.add(self.folder, 'meta', 'lfs_pointer', text)
            else:
                text = f'an episode of the metadata is not on disk: {missing} is missing; copy the whole dataset'
                self.problems.add(self.folder, 'meta', 'absent_episode', text)
        if broken is not None and not found:
            raise broken
        return tuple(found)

    def _missing(self, number: int) -> Path | None:
        """The first file of an episode that is not there, or that git-lfs has left a note for."""
        files = [self._data_path(number), *(self._clip(number, camera).file for camera in self.cameras)]
        return next((file for file in files if not file.is_file() or is_lfs_pointer(file)), None)

    def _data_path(self, number: int) -> Path:
        if self.info.codebase_version == 'v3.0':
            values = {name: self._cell(number, f'data/{name}') for name in ('chunk_index', 'file_index')}
        else:
            values = {'episode_chunk': number // self.info.chunks_size, 'episode_index': number}
        return self._filled('data_path', values)

    def _clip(self, number: int, camera: str) -> Clip | Stills:
        key = self._cameras[camera]
        if self.info.features[key].dtype == 'image':
            return Stills(self._data_path(number), key, number)
        values: dict[str, Any] = {'video_key': key}
        if self.info.codebase_version != 'v3.0':
            values |= {'episode_chunk': number // self.info.chunks_size, 'episode_index': number}
            return Clip(self._filled('video_path', values), 0.0)
        values |= {name: self._cell(number, f'videos/{key}/{name}') for name in ('chunk_index', 'file_index')}
        start_s = float(self._cell(number, f'videos/{key}/from_timestamp'))
        return Clip(self._filled('video_path', values), start_s)

    def _cell(self, number: int, name: str) -> Any:
        """A number of an episode's line in meta/episodes."""
        value = self._rows[number].get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise TrainingError(f'{self.folder}/meta/episodes: {name} of episode {number} is {value!r}, no number.')
        return value

    def _filled(self, field: str, values: dict[str, Any]) -> Path:
        """A path template of the metadata, filled in."""
        template = getattr(self.info, field)
        try:
            # Only whole fields and widths: a template could name attributes, or a width of gigabytes.
            name = PLACE.sub(lambda place: _place(place, values), template or '')
            if not name or '{' in name or '\0' in name:
                raise KeyError(template)
        except (KeyError, ValueError, TypeError) as error:
            raise TrainingError(f'{self.folder}/meta/info.json: {field} cannot be filled in ({error}).') from error
        return self._inside(name, f'meta/info.json: {field}')

    def _inside(self, name: str, where: str) -> Path:
        """A path that must not lead out of the dataset."""
        path = self.folder / name
        if self.folder.resolve() not in path.resolve().parents:
            raise TrainingError(f'{self.folder}/{where} leads out of the dataset ({path}).')
        return path


def _place(place: re.Match[str], values: dict[str, Any]) -> str:
    value, width = values[place['name']], place['width']
    return str(value) if width is None else f'{int(value):0{int(width)}d}'


def _column(table: Any, name: str, size: int) -> NDArray[np.float64]:
    """A column of numbers or of lists of them as (T, size)."""
    values = table[name].combine_chunks()
    if hasattr(values, 'flatten') and str(values.type).startswith(('list', 'large_list', 'fixed_size_list')):
        values = values.flatten()
        while str(values.type).startswith(('list', 'large_list', 'fixed_size_list')):
            values = values.flatten()
    flat = values.to_numpy(zero_copy_only=False).astype(np.float64)
    if flat.size != len(table) * size:
        raise ValueError(f'{name} holds {flat.size} numbers in {len(table)} rows; info.json says {size} a row')
    found: NDArray[np.float64] = flat.reshape(len(table), size)
    return found
