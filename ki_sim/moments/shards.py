"""Moments on disk: files like recordings, each whole or absent, the same bytes for the same settings.

A file is read by `training.index.simulator_arrays` as one recording whose every row begins a chunk of its own. Arrays,
M rows, H steps, S and N columns, V cameras, K things: `state` (M, S), `action` (M, H, N), `text` (M,) into `texts`,
`subtask` (M,) into `subtasks`, `task` (M,) into `tasks`, `held` (M,), `point` (M, 2), NaN where hidden; `thing_word`
(K, 2) and `thing_at` (K, 2), cut at `thing_offset` (M + 1,); pictures in `jpeg`, cut at `offset` (M, V + 1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ki_common.files import atomic_file
from ki_common.parallel import results_of
from ki_sim.errors import SimError
from ki_sim.expert.situation import tasks_with_laws
from ki_sim.moments.columns import MomentColumns
from ki_sim.moments.maker import MomentMaker, SimMoment
from ki_sim.tasks.tasks import SUITE, Bias
from ki_sim.world.render import check_size
from ki_sim.world.robot import ALL_CAMERAS

PART = 2000  # moments of one file
FORMAT = 12
TWO_THINGS = ('next_to', 'stack')  # tasks in which a second thing must be found, and reached by what is held
SHARES = (2, 3)  # scenes of any other task, and of one of these
QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
HEADS = ('colour', 'kind')  # what is said of a thing
SEEDS = 100_000  # scenes of one file begin so far from those of the one before; no file uses as many


@dataclass(frozen=True)
class MomentSettings:
    """What moments are made of; another value of any field gives other files.

    Attributes:
        robot: name of the contract.
        state, actions: its columns.
        cameras: its cameras, in its order.
        horizon: steps of a chunk.
        tasks: of `SUITE` or longer ones; those of `TWO_THINGS` have half as many scenes again as the others.
        image_size: rows and columns of the pictures.
        nearest: see `ki_sim.tasks.tasks.Bias`.
        first_seed: scenes are drawn from it on.
    """

    robot: str
    state: tuple[str, ...]
    actions: tuple[str, ...]
    cameras: tuple[str, ...]
    horizon: int
    tasks: tuple[str, ...] = SUITE
    image_size: int = 96
    nearest: float = 0.85
    first_seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what no moment can be made of."""
        for task in self.tasks:
            if task not in tasks_with_laws():
                raise SimError(f"task '{task}' has no reactive expert: use one of {', '.join(tasks_with_laws())}")
        for camera in self.cameras:
            if camera not in ALL_CAMERAS:
                raise SimError(f"there is no camera '{camera}': use one of {', '.join(ALL_CAMERAS)}")
        if not self.tasks:
            raise SimError('tasks is empty: name at least one')
        if not 0 <= self.nearest <= 1:
            raise SimError(f'bias is {self.nearest}: use a share from 0 to 1')
        if not 1 <= self.horizon <= 1000:
            raise SimError(f'horizon is {self.horizon}: use 1 to 1000 steps')
        check_size(self.image_size, self.image_size)
        MomentColumns(self.state, self.actions)

    @property
    def digest(self) -> str:
        """Names the files."""
        text = json.dumps([FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def write(
    out: str | Path,
    moments: int,
    settings: MomentSettings,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """At least `moments` labelled moments, in files of `PART`; those that are there are kept.

    Args:
        out: Folder of the files. It may hold no moments of other settings, which would be read as well.
        moments: How many; the last file is filled up.
        settings: What they are made of.
        workers: Processes; 0: one per core.
        progress: Told of every so many moments that are there.

    Raises:
        SimError: settings that mean nothing, or a folder with moments of other settings.
    """
    if moments < 1:
        raise SimError(f'{moments} moments were asked for: ask for at least 1')
    out = Path(out)
    strangers = [path for path in sorted(out.glob('*.npz')) if not path.name.startswith(f'moments-{settings.digest}-')]
    if strangers:
        raise SimError(f'{out} holds {strangers[0].name}, made with other settings: remove it, or use another folder')
    out.mkdir(parents=True, exist_ok=True)
    count = -(-moments // PART)
    work = [(str(out), number, min(PART, moments), settings) for number in range(count)]
    for made in results_of(_write_part, work, workers):
        if progress is not None:
            progress(made)
    return [_path(out, number, settings) for number in range(count)]


def _path(out: Path, number: int, settings: MomentSettings) -> Path:
    return out / f'moments-{settings.digest}-{number:05d}.npz'


def _write_part(work: tuple[str, int, int, MomentSettings]) -> int:
    out, number, size, settings = Path(work[0]), *work[1:]
    path = _path(out, number, settings)
    if not path.exists():
        with atomic_file(path) as file:
            np.savez(file, **part(number, size, settings))
    return size


def part(number: int, size: int, settings: MomentSettings) -> dict[str, Any]:
    """The arrays of one file."""
    maker = MomentMaker(
        MomentColumns(settings.state, settings.actions),
        settings.horizon,
        settings.cameras,
        settings.image_size,
        Bias(settings.nearest),
    )
    rows: list[SimMoment] = []
    seed, turns = settings.first_seed + number * SEEDS, task_turns(settings.tasks)
    while len(rows) < size:
        task = turns[seed % len(turns)]
        rows += maker.moments(task, seed)
        seed += 1
    return arrays(rows[:size], settings)


def task_turns(tasks: Sequence[str]) -> list[str]:
    """The tasks of scenes in a row, again and again."""
    return [task for task in tasks for _ in range(SHARES[task in TWO_THINGS])]


def arrays(rows: Sequence[SimMoment], settings: MomentSettings) -> dict[str, Any]:
    """Moments as arrays; a picture that several rows share is stored once for each."""
    texts, subtasks = _numbered(row.instruction for row in rows), _numbered(row.subtask for row in rows)
    tasks = _numbered(row.task for row in rows)
    pictures = [[_jpeg(row.images[name]) for name in settings.cameras] for row in rows]
    sizes = np.array([[len(picture) for picture in each] for each in pictures], np.int64)
    ends = np.cumsum(sizes).reshape(sizes.shape)
    starts = np.concatenate([[0], ends[:-1, -1]])
    things = [thing for row in rows for thing in row.things]
    hidden = (float('nan'), float('nan'))
    meta = {'split': 'train', 'success': True, 'moments': len(rows), **asdict(settings)}
    return {
        'state': np.array([row.state for row in rows], np.float32),
        'action': np.array([row.actions for row in rows], np.float32),
        'text': _places(texts, (row.instruction for row in rows)),
        'texts': np.array(texts),
        'subtask': _places(subtasks, (row.subtask for row in rows)),
        'subtasks': np.array(subtasks),
        'task': _places(tasks, (row.task for row in rows)),
        'tasks': np.array(tasks),
        'held': np.array([row.held for row in rows], np.uint8),
        'points': np.array([[point or hidden for point in row.points] for row in rows], np.float32),
        'thing_word': np.array([(thing.colour, thing.kind) for thing in things]).reshape(-1, len(HEADS)),
        'thing_at': np.array([(thing.x, thing.y) for thing in things], np.float32).reshape(-1, 2),
        'thing_offset': np.cumsum([0, *(len(row.things) for row in rows)]),
        'thing_heads': np.array(HEADS),
        'jpeg': np.frombuffer(b''.join(picture for each in pictures for picture in each), np.uint8),
        'offset': np.concatenate([starts[:, None], ends], axis=1),
        'cameras': np.array(settings.cameras),
        'columns': np.array(settings.state),
        'action_columns': np.array(settings.actions),
        'meta': np.array(json.dumps(meta, sort_keys=True)),
    }


def _numbered(texts: Any) -> list[str]:
    return list(dict.fromkeys(texts))


def _places(known: list[str], texts: Any) -> npt.NDArray[np.int64]:
    place = {text: i for i, text in enumerate(known)}
    return np.array([place[text] for text in texts], np.int64)


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    """Without the subsampling of colour that a small object does not survive."""
    done, data = cv2.imencode('.jpg', image[..., ::-1], list(QUALITY))
    if not done:
        raise SimError(f'a picture of shape {image.shape} cannot be written as JPEG: give height x width x 3 bytes')
    return bytes(data)
