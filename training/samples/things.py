"""What a picture shows, as data say it: for heads that only training has (`ki_vla.model.dense`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PlaceInView = tuple[float, float] | None  # in a picture, as a thing's; None where unknown


@dataclass(frozen=True)
class ShownThing:
    """One thing in the first view: its word for each label, e.g. colour and kind, and where its middle is.

    `x` to the right and `y` down, from 0 to 1 over the whole picture, before any crop; `ki_vla.objective.patch_labels`
    has them in the square that the model is shown.
    """

    words: Mapping[str, str]
    x: float
    y: float


def things_at(arrays: Mapping[str, NDArray[Any]], step: int) -> tuple[ShownThing, ...] | None:
    """The things of a step of an episode's arrays; None where nobody has looked."""
    if 'thing_offset' not in arrays:
        return None
    heads = [str(head) for head in arrays['thing_heads']]
    first, last = (int(each) for each in arrays['thing_offset'][step : step + 2])
    return tuple(
        ShownThing(dict(zip(heads, map(str, words), strict=True)), float(at[0]), float(at[1]))
        for words, at in zip(arrays['thing_words'][first:last], arrays['thing_at'][first:last], strict=True)
    )


def points_at(arrays: Mapping[str, NDArray[Any]], step: int) -> tuple[PlaceInView, PlaceInView]:
    """Where the thing is that is acted on at a step, and that which it is put on or beside."""
    if 'points' not in arrays:
        return None, None
    acted_on, other = ((float(x), float(y)) if np.isfinite((x, y)).all() else None for x, y in arrays['points'][step])
    return acted_on, other


def parse_things(value: Any) -> tuple[ShownThing, ...] | None:
    """The things of a line of a file: `[{"colour": "red", "kind": "cup", "x": 0.51, "y": 0.43}, ...]`.

    Raises:
        ValueError: no such list.
    """
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f'things is {value!r}, not a list')
    return tuple(_thing(each) for each in value)


def parse_point(value: Any) -> tuple[float, float] | None:
    """The point of a line of a file: `[0.51, 0.43]`.

    Raises:
        ValueError: no two numbers from 0 to 1.
    """
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(_share(each) for each in value):
        raise ValueError(f'point is {value!r}, not two numbers from 0 to 1')
    return float(value[0]), float(value[1])


def _thing(value: Any) -> ShownThing:
    if not isinstance(value, dict) or not all(_share(value.get(axis)) for axis in 'xy'):
        raise ValueError(f'a thing is {value!r}, without x and y from 0 to 1')
    words = {name: word for name, word in value.items() if name not in 'xy'}
    if not words or not all(isinstance(word, str) for word in words.values()):
        raise ValueError(f'a thing is {value!r}, without words')
    return ShownThing(words, float(value['x']), float(value['y']))


def _share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
