"""Recordings of the simulator as arrays (.npz) -> an index like that of bags, for machines without ROS and bag readers.

A file is an episode, or moments with a chunk each (`training.index.moments`). It is read once into a folder of its own
beside the index: one episode, and one file of pictures a camera, as `training.index.index` lays them out. What reads
samples does not know the difference.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_bags.problems import Problem
from ki_common.files import atomic_folder, sha256_of
from ki_robot.contract.contract import Contract
from ki_robot.space.robot_space import RobotSpace
from training.errors import TrainingError
from training.index.index import Entry, EpisodeInfo, Index
from training.index.moments import is_moments, moment_arrays, read_moments

EPISODE = 'episode_000.npz'
FORMAT = 2  # of the folders


def index_arrays(source: Path, contract: Contract, out: Path) -> Index:
    """An index of every .npz of the simulator at or below `source`; only new and changed files are read.

    Raises:
        TrainingError: there is no file, or not one of them can be used.
    """
    files = sorted(path for path in source.rglob('*.npz') if out.resolve() not in path.resolve().parents)
    if not files:
        raise TrainingError(f'{source} holds no recording (.npz); make some with `ki sim record --format npz`.')
    entries = tuple(_entry(path, contract, out) for path in files)
    if not any(entry.episodes for entry in entries):
        raise TrainingError(f'{source} holds no usable recording; the first one: {entries[0].problems[0].text}')
    return Index(out, contract, {'source': 'arrays'}, entries)


def _entry(path: Path, contract: Contract, out: Path) -> Entry:
    digest = sha256_of(path)
    key = hashlib.sha256(f'{FORMAT} {digest} {contract.hash}'.encode()).hexdigest()[:16]
    folder = out / 'arrays' / key
    try:
        if not folder.is_dir():
            _convert(path, contract, folder)
        about = json.loads((folder / 'about.json').read_text(encoding='utf-8'))
    except TrainingError as error:
        problem = Problem(str(path), '', 'refused', str(error))
        return Entry(str(path), key, digest, folder, (), {}, (problem,), {}, 0)
    steps, texts = about['steps'], tuple(about['texts'])
    episode = EpisodeInfo(EPISODE, steps, about['start_ns'], about['outcome'], texts, runs=((0, steps),))
    return Entry(str(path), key, digest, folder, (episode,), {}, (), about['files'], about['steps'])


def _convert(path: Path, contract: Contract, folder: Path) -> None:
    """One file into a folder, whole or not at all."""
    if is_moments(path):
        found = read_moments(path, contract)
        arrays, about = moment_arrays(found, contract)
    else:
        found = _read(path, contract)
        arrays, about = _episode_arrays(found, contract)
    blob, offset, cameras = found['jpeg'].tobytes(), found['offset'], [str(name) for name in found['cameras']]
    with atomic_folder(folder) as partial:
        for camera in contract.camera_names:
            view = cameras.index(camera)
            lengths = (offset[:, view + 1] - offset[:, view]).astype(np.int64)
            pieces = [blob[int(row[view]) : int(row[view + 1])] for row in offset]
            (partial / f'{camera}.images').write_bytes(b''.join(pieces))
            arrays[f'{camera}.stamp'] = arrays['stamps']
            arrays[f'{camera}.offset'] = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
            arrays[f'{camera}.length'] = lengths
        np.savez(partial / EPISODE, **arrays)
        about['files'] = {each.name: sha256_of(each) for each in sorted(partial.iterdir())}
        (partial / 'about.json').write_text(json.dumps(about), encoding='utf-8')


def _episode_arrays(found: dict[str, NDArray[Any]], contract: Contract) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays of an episode without its pictures, and what is said of it."""
    meta, steps, space = json.loads(str(found['meta'])), len(found['state']), RobotSpace(contract)
    texts = [str(meta['instruction']), *(str(text) for text in found['subtasks'])]
    arrays: dict[str, Any] = {
        'stamps': found['time_ns'].astype(np.int64),
        'state': space.state(_picked(found, 'state', contract.robot.state_names)),
        'actions': space.actions(_picked(found, 'action', contract.robot.action_names)),
        'valid': np.ones(steps, dtype=bool),
        'action_valid': np.ones(steps, dtype=bool),
        'text': np.zeros(steps, dtype=np.int64),
        'subtask': found['subtask'].astype(np.int64) + 1,
    }
    about: dict[str, Any] = {'steps': steps, 'start_ns': int(arrays['stamps'][0]), 'texts': texts}
    about['outcome'] = 'success' if meta.get('success', True) else 'failure'
    return arrays, about


def _read(path: Path, contract: Contract) -> dict[str, NDArray[Any]]:
    """The arrays of a file, checked against the contract."""
    wanted = ('meta', 'state', 'action', 'time_ns', 'subtask', 'subtasks', 'jpeg', 'offset', 'cameras', 'columns')
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in wanted}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(f'{path} is no recording of the simulator ({error}); record it again.') from error
    columns, cameras = tuple(map(str, found['columns'])), set(map(str, found['cameras']))
    strange = {*contract.robot.action_names, *contract.robot.state_names} - set(columns)
    if strange:
        raise TrainingError(f'{path} lacks {sorted(strange)[0]} of {contract.name}; it is of another robot.')
    missing = sorted(set(contract.camera_names) - cameras)
    if missing:
        raise TrainingError(f'{path}: there are no pictures of {", ".join(missing)}.')
    if not len(found['state']) or not np.isfinite(found['state']).all() or not np.isfinite(found['action']).all():
        raise TrainingError(f'{path}: there are no steps, or a number is not finite; record it again.')
    return found


def _picked(found: dict[str, NDArray[Any]], name: str, columns: tuple[str, ...]) -> NDArray[np.float64]:
    """Some columns of an array of the file, in the order that is asked for."""
    there = [str(each) for each in found['columns']]
    return found[name].astype(np.float64)[:, [there.index(column) for column in columns]]
