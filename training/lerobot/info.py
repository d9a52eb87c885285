"""meta/info.json of a LeRobot dataset, checked field by field: rate, layout, and what each feature is called."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from ki_common.configuration.model import Config
from ki_common.files import read_json
from training.errors import TrainingError

VERSIONS = ('v2.0', 'v2.1', 'v3.0')
IMAGES = 'observation.images.'
# Columns of every table that are no measurement and no command.
BOOKKEEPING = ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index', 'next.reward', 'next.done')
# Whether a human drove a step: ours, and the name that LeRobot's recordings with a human in the loop have.
INTERVENTIONS = ('intervention', 'complementary_info.is_intervention')
MAX_ELEMENTS = 4096


class Feature(Config):
    """One feature; what it has beyond these fields is nobody's business here."""

    raises = TrainingError
    model_config = ConfigDict(extra='ignore')

    dtype: str
    """float32, int64, video, image, string ..."""
    shape: tuple[int, ...] = ()
    """Of one step."""
    names: Any = None
    """Of its elements: a list, a list of a list, a table of groups, a table of places, or nothing."""

    @property
    def is_picture(self) -> bool:
        """Whether it is a camera."""
        return self.dtype in ('video', 'image')

    @property
    def is_number(self) -> bool:
        """Whether its elements can be columns of a robot."""
        return self.dtype.startswith(('float', 'int', 'uint'))

    @property
    def size(self) -> int:
        """How many elements it has."""
        return prod(self.shape) if self.shape else 1

    @property
    def elements(self) -> tuple[str, ...]:
        """The names of its elements; empty where the metadata does not name each of them."""
        found = _flat(self.names)
        return tuple(found) if len(found) == self.size == len(set(found)) else ()


class DatasetInfo(Config):
    """The content of meta/info.json."""

    raises = TrainingError
    model_config = ConfigDict(extra='ignore')

    codebase_version: str
    """v2.0, v2.1 or v3.0."""
    fps: float = Field(gt=0, le=1000)
    """Steps a second."""
    features: dict[str, Feature]
    """By key, such as observation.state."""
    data_path: str
    """Where the tables lie, with places to fill in."""
    video_path: str | None = None
    """Where the films lie, with places to fill in."""
    chunks_size: int = Field(default=1000, ge=1)
    """Episodes in a folder of v2."""

    @classmethod
    def read(cls, folder: Path) -> DatasetInfo:
        """That of a dataset.

        Raises:
            TrainingError: It is not there, has a field of another type, or is of an unknown version.
        """
        where = folder / 'meta/info.json'
        data = read_json(where, TrainingError, 'name the folder of a LeRobot dataset')
        version = data.get('codebase_version')
        if version not in VERSIONS:
            raise TrainingError(f'{where}: codebase_version is {version}; {", ".join(VERSIONS)} can be read.')
        found = cls.parse(data, str(where))
        for key, feature in found.features.items():
            if any(side < 0 for side in feature.shape) or (feature.is_number and feature.size > MAX_ELEMENTS):
                raise TrainingError(f'{where}: features.{key}.shape is {list(feature.shape)}, which no robot has.')
        return found

    @property
    def cameras(self) -> dict[str, str]:
        """Short name -> key of every camera; without `observation.images.` where that leaves names apart."""
        keys = [key for key, feature in self.features.items() if feature.is_picture]
        short = [key.removeprefix(IMAGES) for key in keys]
        return dict(zip(short if len(set(short)) == len(short) else keys, keys, strict=True))

    @property
    def numbers(self) -> dict[str, Feature]:
        """The features whose elements can be columns of a robot."""
        return {
            key: feature
            for key, feature in self.features.items()
            if feature.is_number and key not in (*BOOKKEEPING, *INTERVENTIONS)
        }


def _flat(names: Any) -> list[str]:
    """Names in the order of the elements, of whatever form; empty where they are none."""
    if isinstance(names, Mapping):
        places = list(names.values())
        if places and all(isinstance(place, int) and not isinstance(place, bool) for place in places):
            ordered = sorted(names, key=lambda name: int(names[name]))
            return ordered if sorted(places) == list(range(len(places))) else []
        groups = {str(group): _flat(inner) for group, inner in names.items()}
        plain = [name for inner in groups.values() for name in inner]
        if len(set(plain)) == len(plain):
            return plain
        return [f'{group}_{name}' for group, inner in groups.items() for name in inner]
    if not isinstance(names, list):
        return []
    if len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    return list(names) if all(isinstance(name, str) and name for name in names) else []
