"""Naive action tokens: one bin per value, dense or with a stride of 5 (paper, section 3 and figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from ki_vla.errors import VlaError
from ki_vla.model.config import VlaConfig


class NaiveFile(VlaConfig):
    """A `NaiveCodec` as plain JSON."""

    kind: Literal['naive']
    """Tells it from FAST."""
    horizon: PositiveInt
    """Steps of a chunk."""
    columns: PositiveInt
    """Columns of an action."""
    bins: PositiveInt
    """Tokens, one a bin."""
    stride: PositiveInt
    """Every how many steps are written."""


@dataclass(frozen=True)
class NaiveCodec:
    """Bins over [-1, 1], one token for each column of every `stride`-th step.

    Attributes:
        horizon, columns: the shape of every chunk.
        bins: how many bins, hence tokens.
        stride: 1 writes every step, 5 every fifth (0, 5, 10, ...).
    """

    horizon: int
    columns: int
    bins: int = 256
    stride: int = 1

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be."""
        if min(self.horizon, self.columns, self.bins, self.stride) < 1:
            raise VlaError(f'naive codec: every number must be at least 1, got {asdict(self)}.')

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.bins

    @property
    def steps(self) -> np.ndarray:
        """The steps that are written."""
        return np.arange(0, self.horizon, self.stride)

    @property
    def values(self) -> int:
        """Tokens in a chunk."""
        return len(self.steps) * self.columns

    def encode(self, actions_HD: np.ndarray, *, clip: bool = True) -> list[int]:
        """A normalised chunk -> tokens; values beyond [-1, 1] fall into the outermost bin unless clip is False.

        Raises:
            VlaError: wrong shape, or a value that is not finite or (without clip) beyond [-1, 1].
        """
        actions = np.asarray(actions_HD, dtype=np.float64)
        if actions.shape != (self.horizon, self.columns):
            raise VlaError(
                f'naive codec for chunks of {self.horizon} x {self.columns} got an array of shape {actions.shape}.'
            )
        if not np.isfinite(actions).all():
            raise VlaError('naive codec got a chunk with a value that is not finite.')
        if not clip and np.abs(actions).max() > 1.0:
            raise VlaError(f'naive codec: {float(np.abs(actions).max()):.3g} is beyond [-1, 1].')
        bins = np.floor((actions[self.steps] + 1.0) * (self.bins / 2.0))
        return [int(bin_) for bin_ in np.clip(bins, 0, self.bins - 1).reshape(-1)]

    def beyond(self, actions_HD: np.ndarray) -> int:
        """How many written values of a chunk lie beyond [-1, 1]."""
        return int(np.count_nonzero(np.abs(np.asarray(actions_HD, dtype=np.float64)[self.steps]) > 1.0))

    def decode(self, tokens: Sequence[int]) -> np.ndarray:
        """Tokens -> the normalised chunk [H, D]: bin centres, straight lines between strided steps, the last one held.

        Raises:
            VlaError: a token out of range, or a stream too short or too long.
        """
        tokens_n = np.asarray(list(tokens), dtype=np.int64)
        if tokens_n.size and (tokens_n.min() < 0 or tokens_n.max() >= self.bins):
            wrong = tokens_n[(tokens_n < 0) | (tokens_n >= self.bins)][0]
            raise VlaError(f'naive action token {int(wrong)} is out of range 0..{self.bins - 1}.')
        if tokens_n.size != self.values:
            raise VlaError(f'naive action stream holds {tokens_n.size} values, a chunk has {self.values}.')
        centres = ((tokens_n + 0.5) * (2.0 / self.bins) - 1.0).reshape(-1, self.columns)
        steps = np.arange(self.horizon)
        return np.stack([np.interp(steps, self.steps, column) for column in centres.T], axis=1)

    def pieces(self) -> list[bytes]:
        """For every token the UTF-8 bytes it stands for: one value each."""
        return [b'\0'] * self.bins

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {'kind': 'naive', **asdict(self)}

    @classmethod
    def from_dict(cls, data: object, where: str = 'naive codec') -> NaiveCodec:
        """From `to_dict`; a missing or malformed field is an error that names it."""
        said = NaiveFile.parse(data, where)
        return cls(said.horizon, said.columns, said.bins, said.stride)
