"""Recordings of any kind by the folder they lie in: bags, arrays of the simulator, or an index of bags."""

from __future__ import annotations

from pathlib import Path

from ki_robot.contract import Contract
from training.arrays import index_arrays
from training.bags import INDEX, Index, Progress, index_bags, load_index
from training.episodes import Options
from training.errors import TrainingError


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
    if (place / INDEX).is_file():
        return load_index(place)
    if not data.exists():
        raise TrainingError(f'{data} does not exist; name a folder of recordings, or an index.')
    return index_bags(data, contract, place, Options(task=task), progress=progress)
