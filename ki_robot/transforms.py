"""Raw values <-> what the model sees: deltas, normalisation, padding, image size. Pure functions, exact inverses.

Letters in names: N columns, M padded columns; `...` any leading axes (batch, horizon). Values are SI before and of
order 1 after normalisation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AllowInfNan, Field

from ki_common.configuration.model import Config
from ki_common.errors import shown
from ki_common.files import read_json
from ki_robot.errors import RobotError
from ki_robot.messages.images import Image

Array = NDArray[np.floating[Any]]
Vector = NDArray[np.float64]
Pixel = TypeVar('Pixel', bound=np.generic)

EPSILON = 1e-6  # openpi adds it to every span
MIN_SPAN = 1e-2  # rad, m or their rates: below this a column did not move, and its noise must not fill [-1, 1]
_MOMENTS = ('mean', 'std', 'q01', 'q99')
LEROBOT_EPSILON = 1e-8

Normalisation = Literal['quantile', 'zscore', 'identity']
ScalingRules = Literal['ki', 'openpi', 'lerobot']


Moments = tuple[Annotated[float, AllowInfNan(True)], ...]  # `Stats` names the column that is not finite


class StatsFile(Config):
    """`Stats` as plain JSON."""

    raises = RobotError

    names: tuple[str, ...]
    """Names of the columns."""
    mean: Moments
    """Mean of every column, in its unit."""
    std: Moments
    """Standard deviation of every column, in its unit."""
    q01: Moments
    """What 1 % of the values of a column lie below, in its unit."""
    q99: Moments
    """What 99 % of the values of a column lie below, in its unit."""
    count: int = Field(ge=1)
    """Values of each column."""
    step_mean: tuple[Moments, ...] | None = None
    """Of actions: mean of every column (inner list) at every step of a chunk, in its unit; left out where unknown."""
    step_std: tuple[Moments, ...] | None = None
    """The standard deviations to `step_mean`."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Where the data come from: bags, hash, units."""


@dataclass(frozen=True, eq=False)
class Stats:
    """Statistics of N columns over `count` values each; `provenance` says of which data (bags, hash, units).

    `step_mean_HN` and `step_std_HN`, of actions only, are of every step of a chunk apart: the first steps of a chunk of
    deltas are near 0, the last ones far.
    """

    names: tuple[str, ...]
    mean: Vector
    std: Vector
    q01: Vector
    q99: Vector
    count: int
    provenance: dict[str, Any] = field(default_factory=dict)
    step_mean_HN: Vector | None = None
    step_std_HN: Vector | None = None

    def __post_init__(self) -> None:
        self._check_steps()
        for name in _MOMENTS:
            values = getattr(self, name)
            if values.shape != (len(self.names),):
                raise RobotError(f'stats.{name} has shape {values.shape}; {len(self.names)} columns are named.')
            if not np.isfinite(values).all():
                column = self.names[int(np.argmin(np.isfinite(values)))]
                raise RobotError(f'stats.{name} is not finite in column {column}; compute the statistics anew.')
        for name, values in (('std', self.std), ('q99 - q01', self.q99 - self.q01)):
            if (values < 0).any():
                raise RobotError(f'stats {name} is negative in column {self.names[int(np.argmin(values))]}.')
        if self.count < 1:
            raise RobotError(f'stats.count is {self.count}; statistics need at least one value.')

    def _check_steps(self) -> None:
        """Both of the moments by step or none, finite, one row a step."""
        mean, std = self.step_mean_HN, self.step_std_HN
        if mean is None and std is None:
            return
        if mean is None or std is None or mean.shape != std.shape or mean.ndim != 2:
            raise RobotError('stats.step_mean and step_std must be there both, with as many steps; compute them anew.')
        if mean.shape[1] != len(self.names):
            raise RobotError(f'stats.step_mean has {mean.shape[1]} columns; {len(self.names)} are named.')
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()):
            raise RobotError('stats.step_mean and step_std must be finite, deviations not negative; compute them anew.')

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` and JSON take back without loss."""
        moments = {name: getattr(self, name).tolist() for name in _MOMENTS}
        if self.step_mean_HN is not None and self.step_std_HN is not None:
            moments |= {'step_mean': self.step_mean_HN.tolist(), 'step_std': self.step_std_HN.tolist()}
        return {'names': list(self.names), **moments, 'count': self.count, 'provenance': self.provenance}

    @classmethod
    def from_dict(cls, data: object, where: str = 'stats') -> Stats:
        """The statistics in plain data; every flaw is a RobotError that begins with `where`."""
        said = StatsFile.parse(data, where)
        moments = {name: np.asarray(getattr(said, name), dtype=np.float64) for name in _MOMENTS}
        mean, std = (_table(getattr(said, name), f'{where}: stats.{name}') for name in ('step_mean', 'step_std'))
        try:
            return cls(
                said.names, **moments, count=said.count, provenance=said.provenance, step_mean_HN=mean, step_std_HN=std
            )
        except RobotError as error:
            raise RobotError(f'{where}: {error}') from error

    def check(self, names: Sequence[str], what: str = 'columns') -> None:
        """Refuses statistics of other columns: those of another robot, or in another order."""
        if self.names == tuple(names):
            return
        wanted = set(names)
        for name in self.names:
            if name not in wanted:
                raise RobotError(f'stats.names has {name!r}, which is none of the {what}: they are of another robot.')
        for name in names:
            if name not in self.names:
                raise RobotError(f'stats.names lacks {name!r}, one of the {what}: they are of another robot.')
        raise RobotError(f'stats.names has the {what} in another order ({shown(self.names)}); compute them anew.')


def _table(rows: Sequence[Sequence[float]] | None, where: str) -> Vector | None:
    """Rows of one length as an array."""
    if rows is None:
        return None
    if len({len(row) for row in rows}) != 1:
        raise RobotError(f'{where} has rows of different lengths or none; compute the statistics anew.')
    return np.asarray(rows, dtype=np.float64)


def save_stats(path: Path, stats: Mapping[str, Stats]) -> None:
    """Writes named statistics (`state`, `actions`) as one JSON file."""
    path.write_text(json.dumps({name: each.to_dict() for name, each in stats.items()}, indent=1, allow_nan=False))


def load_stats(path: Path) -> dict[str, Stats]:
    """Reads what `save_stats` wrote."""
    data = read_json(path, RobotError, 'compute the statistics anew')
    return {name: Stats.from_dict(each, f'{path}: {name}') for name, each in data.items()}


@dataclass(frozen=True, eq=False)
class Scaling:
    """y = (x - centre) / scale per column, and back; shapes (..., N) with N = len(names).

    Where centre and scale are (H, N), each step of a chunk has its own: values are (..., H, N), or (..., P, N) for the
    first P steps. `floored` names the columns that hardly move in the statistics.
    """

    names: tuple[str, ...]
    centre_N: Vector
    scale_N: Vector
    floored: tuple[str, ...] = ()

    def apply(self, values: Array) -> Array:
        """Raw to model space; float32 stays float32."""
        centre, scale = self._for(values)
        return ((values - centre) / scale).astype(values.dtype, copy=False)

    def invert(self, values: Array) -> Array:
        """Model space to raw."""
        centre, scale = self._for(values)
        return (values * scale + centre).astype(values.dtype, copy=False)

    def _for(self, values: Array) -> tuple[Vector, Vector]:
        if self.centre_N.ndim == 1:
            return self.centre_N, self.scale_N
        steps = values.shape[-2]
        return self.centre_N[:steps], self.scale_N[:steps]


def quantile_scaling(stats: Stats, min_span: float = MIN_SPAN) -> Scaling:
    """q01 .. q99 to -1 .. 1: (x - q01) / (q99 - q01 + 1e-6) * 2 - 1, the formula of openpi.

    A column whose span is below `min_span` is scaled by `min_span` around the middle of its span instead (a constant
    becomes 0), and is named in `floored`: openpi's formula turns its sensor noise into thousands.
    """
    span = stats.q99 - stats.q01
    flat = span < min_span
    scale = np.where(flat, min_span, span + EPSILON) / 2.0
    centre = np.where(flat, stats.q01 + span / 2.0, stats.q01 + scale)
    return Scaling(stats.names, centre, scale, _named(stats.names, flat))


def zscore_scaling(stats: Stats, min_std: float = MIN_SPAN / 4.0) -> Scaling:
    """(x - mean) / (std + 1e-6); a deviation below `min_std` counts as `min_std`, and its column is `floored`."""
    flat = stats.std < min_std
    scale = np.where(flat, min_std, stats.std + EPSILON)
    return Scaling(stats.names, stats.mean.copy(), scale, _named(stats.names, flat))


def step_scaling(stats: Stats, min_std: float = MIN_SPAN / 4.0) -> Scaling:
    """By mean and deviation of each step and column; a deviation below `min_std` counts as `min_std`.

    Raises:
        RobotError: the statistics have no moments by step.
    """
    if stats.step_mean_HN is None or stats.step_std_HN is None:
        raise RobotError(
            'stats.step_mean is missing, which a scale for each step of a chunk needs; compute the statistics anew '
            '(ki data stats), or write flow_scale: column.'
        )
    return Scaling(stats.names, stats.step_mean_HN.copy(), np.maximum(stats.step_std_HN, min_std))


def scaling_of(stats: Stats, normalisation: Normalisation, rules: ScalingRules = 'ki') -> Scaling:
    """How a policy scales its columns.

    A policy must be shown numbers as those that trained it did. openpi and lerobot have no floor under a column that
    hardly moves: their formulas are taken as they are.

    Args:
        stats: Of the columns.
        normalisation: By quantiles, by mean and deviation, or not at all.
        rules: Whose formula: `ki`, with a floor (`quantile_scaling`, `zscore_scaling`); openpi's, which adds 1e-6 to
            every span; or lerobot's, which puts 1e-8 in the place of a span that is 0, and adds it to deviations.
    """
    if normalisation == 'identity':
        return Scaling(stats.names, np.zeros(len(stats.names)), np.ones(len(stats.names)))
    if rules == 'ki':
        return quantile_scaling(stats) if normalisation == 'quantile' else zscore_scaling(stats)
    if normalisation == 'zscore':
        return Scaling(stats.names, stats.mean.copy(), stats.std + (EPSILON if rules == 'openpi' else LEROBOT_EPSILON))
    span = stats.q99 - stats.q01
    half = (span + EPSILON if rules == 'openpi' else np.where(span == 0.0, LEROBOT_EPSILON, span)) / 2.0
    return Scaling(stats.names, stats.q01 + half, half)


def _named(names: tuple[str, ...], chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(names[index] for index in np.flatnonzero(chosen))


def pad(values: Array, size: int) -> tuple[Array, NDArray[np.bool_]]:
    """`values` (..., N) with zeros up to (..., size), and the mask (size,) of columns that are real."""
    width = values.shape[-1]
    if width > size:
        raise RobotError(f'{width} columns do not fit into {size}; choose a model with as many action dimensions.')
    padded = np.zeros((*values.shape[:-1], size), dtype=values.dtype)
    padded[..., :width] = values
    return padded, np.arange(size) < width


def unpad(values: Array, size: int) -> Array:
    """The first `size` of the padded columns."""
    if values.shape[-1] < size:
        raise RobotError(f'the model gives {values.shape[-1]} columns; the robot needs {size}.')
    return values[..., :size]


def cropped(image: NDArray[Pixel], crop: tuple[float, float, float, float] | None) -> NDArray[Pixel]:
    """The part of an image that a camera's `crop` leaves: (left, top, width, height), shares of the image."""
    if crop is None:
        return image
    height, width = image.shape[:2]
    left, top = round(crop[0] * width), round(crop[1] * height)
    right, bottom = round((crop[0] + crop[2]) * width), round((crop[1] + crop[3]) * height)
    return np.ascontiguousarray(image[top : max(bottom, top + 1), left : max(right, left + 1)])


def placement(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Where an image lands in a square of `size`: (top, left, new height, new width), its shape kept."""
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    return (size - new_height) // 2, (size - new_width) // 2, new_height, new_width


def needed_side(crop: Sequence[float] | None, size: int | None) -> int | None:
    """The longer side that a whole picture must have so that its crop still fills a square of `size`; None for None.

    Args:
        crop: Left, top, width and height of what is shown, as shares of the picture; None: all of it.
        size: Of the square [pixels].
    """
    return None if size is None else math.ceil(size / (1.0 if crop is None else min(crop[2], crop[3])))


def resize_with_pad(image: Image, size: int) -> Image:
    """`image` in a black square of `size`, its shape kept: uint8 (h, w, 3) to uint8 (size, size, 3).

    Shrinking averages areas: plain linear interpolation reads 4 pixels of every patch, and thin things flicker. The
    integer part of the factor is averaged first (a fast path of OpenCV), the rest after: twice as fast as one
    INTER_AREA at 640 x 480 and nearer to the antialiased triangle filter that openpi's JAX resize uses.
    Enlarging is linear.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise RobotError(f'image is {image.dtype} {image.shape}; uint8 (height, width, 3) is needed.')
    height, width = image.shape[:2]
    if height == width == size:
        return image
    top, left, new_height, new_width = placement(height, width, size)
    factor = min(height // new_height, width // new_width)
    shrunk: Any = image
    if factor >= 2:
        shrunk = cv2.resize(image, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
    kind = cv2.INTER_AREA if max(height, width) > size else cv2.INTER_LINEAR
    square = np.zeros((size, size, 3), dtype=np.uint8)
    square[top : top + new_height, left : left + new_width] = cv2.resize(
        shrunk, (new_width, new_height), interpolation=kind
    )
    return square
