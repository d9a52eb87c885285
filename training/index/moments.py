"""Labelled moments of the simulator (`ki_sim.moments.shards`) -> an episode whose every row begins a chunk of its own.

Beside the arrays of `training.index.episodes.Episode` it has `chunks` (M, H, N), of which `actions` are the first rows,
`task` (M,) into the texts, `point` (M, 2), and things: `thing_words` (K, heads) and `thing_at` (K, 2), cut at
`thing_offset` (M + 1,), with the names of the heads in `thing_heads`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.contract import Contract
from training.errors import TrainingError

MARK = 'thing_offset'  # an array that moments have and recordings have not
WANTED = (
    *('state', 'action', 'text', 'texts', 'subtask', 'subtasks', 'task', 'tasks', 'points', 'meta', 'columns'),
    *('thing_word', 'thing_at', 'thing_offset', 'thing_heads', 'jpeg', 'offset', 'cameras', 'action_columns'),
)


def is_moments(path: Path) -> bool:
    """Whether a file holds moments rather than a recording."""
    try:
        with zipfile.ZipFile(path) as file:
            return f'{MARK}.npy' in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read_moments(path: Path, contract: Contract) -> dict[str, NDArray[Any]]:
    """The arrays of a file, checked against the contract.

    Raises:
        TrainingError: damaged, or of another robot or shorter chunks than the contract's.
    """
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in WANTED}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(f'{path} holds no whole moments ({error}); remove it, and make it again.') from error
    states, actions = (tuple(map(str, found[name])) for name in ('columns', 'action_columns'))
    if states != contract.state_names or actions != contract.action_names:
        raise TrainingError(f'{path}: its columns are not those of {contract.name}; it is of another robot.')
    missing = sorted(set(contract.camera_names) - set(map(str, found['cameras'])))
    if missing:
        raise TrainingError(f'{path}: there are no pictures of {", ".join(missing)}.')
    if not len(found['state']) or not np.isfinite(found['state']).all() or not np.isfinite(found['action']).all():
        raise TrainingError(f'{path}: there are no moments, or a number is not finite; remove it, and make it again.')
    return found


def moment_arrays(found: dict[str, NDArray[Any]], contract: Contract) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays of the episode without its pictures, and what is said of it; a row is a step of the contract's rate."""
    count = len(found['state'])
    texts = [str(text) for name in ('texts', 'subtasks', 'tasks') for text in found[name]]
    subtasks, tasks = len(found['texts']), len(found['texts']) + len(found['subtasks'])
    arrays: dict[str, Any] = {
        'stamps': np.arange(1, count + 1, dtype=np.int64) * contract.step_ns,
        'state': found['state'].astype(np.float64),
        'actions': found['action'][:, 0].astype(np.float64),
        'chunks': found['action'].astype(np.float32),
        'valid': np.ones(count, dtype=bool),
        'action_valid': np.ones(count, dtype=bool),
        'text': found['text'].astype(np.int64),
        'subtask': found['subtask'].astype(np.int64) + subtasks,
        'task': found['task'].astype(np.int64) + tasks,
        'points': found['points'].astype(np.float32),
        'thing_words': found['thing_word'],
        'thing_at': found['thing_at'].astype(np.float32),
        'thing_offset': found['thing_offset'].astype(np.int64),
        'thing_heads': found['thing_heads'],
    }
    about = {'steps': count, 'start_ns': contract.step_ns, 'texts': texts, 'outcome': 'success'}
    return arrays, about
