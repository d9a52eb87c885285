"""Recordings of any kind by the folder they lie in: bags, arrays of the simulator, or an index of bags."""

from __future__ import annotations

import warnings
from pathlib import Path

from ki_bags.reader import find_bags
from ki_robot.contract.contract import Contract
from training.errors import TrainingError
from training.index.episodes import IndexOptions
from training.index.index import INDEX, Index, Progress, index_bags, load_index, read_top, rows_of, signature
from training.index.simulator_arrays import index_arrays


def index_folder(data: Path) -> Path:
    """The index itself, or where it lies: DATA/index for a folder of recordings, DATA.index beside a single one."""
    if (data / INDEX).is_file():
        return data
    if data.is_file() or (data / 'metadata.yaml').is_file():
        return data.with_name(f'{data.name}.index')
    return data / 'index'


def is_arrays(data: Path) -> bool:
    """Whether a folder holds recordings that the simulator wrote without ROS."""
    return not (data / INDEX).is_file() and any(data.glob('*.npz'))


def open_recordings(data: Path, contract: Contract, task: str = '', progress: Progress | None = None) -> Index:
    """The index of recordings, made where there is none.

    An index is taken as it is. A folder of recordings that holds one is indexed again where that one is behind: a
    recording is new or another, or the contract was edited. What was read before is not read again.

    Args:
        data: bags, arrays, or an index of bags; an index has a contract of its own.
        contract: of recordings without an index.
        task: instruction of bags that carry none.
        progress: told of bags that are read.

    Raises:
        TrainingError: nothing there, or nothing that can be used.
    """
    if is_arrays(data):
        return index_arrays(data, contract, data / 'index')
    place = index_folder(data)
    if place == data:
        return load_index(place)
    if (place / INDEX).is_file():
        there = load_index(place)
        if there.contract.name != contract.name:
            warnings.warn(
                f'{place} was made for {there.contract.name}, and {contract.name} is not used; `ki data index` makes '
                'another (--robot, --out).',
                stacklevel=2,
            )
            contract = there.contract
        options = IndexOptions(**{**there.options, 'task': task or there.options.get('task', '')})
        same = there.contract.hash == contract.hash and options.to_dict() == there.options
        if same and is_current(place, data):
            return there
        return index_bags(data, contract, place, options, progress=progress)
    if not data.exists():
        raise TrainingError(f'{data} does not exist; name a folder of recordings, or an index.')
    return index_bags(data, contract, place, IndexOptions(task=task), progress=progress)


def is_current(folder: Path, data: Path) -> bool:
    """Whether an index knows every recording at or below `data` as it is; one that is gone takes nothing from it."""
    known = {Path(row['path']).resolve(): row['signature'] for row in rows_of(folder, read_top(folder))}
    there = (path for path in find_bags(data) if folder.resolve() not in path.resolve().parents)
    return all(known.get(path.resolve()) == signature(path) for path in there)
