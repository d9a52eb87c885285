"""The layout of the vocabulary: which ids belong to which kind of token.

One layout object answers every question about ids: which row is <loc0512>, which is the state bin 17, which is the
action token 3. Two layouts exist. The *Gemma* layout is that of the public checkpoints: the action ids count down from
the end of the vocabulary and share rows with the <loc> tokens and with rare text. The *small* layout, for models
trained from scratch, keeps every kind apart.
"""

from __future__ import annotations

import numpy as np
from pydantic import model_validator
from typing_extensions import Self

from ki_vla.errors import VlaError
from ki_vla.model.config import VlaConfig

GEMMA_SIZE = 257152
GEMMA_TEXT_SIZE = 256000
GEMMA_BAR = 235371
SEG_TOKENS = 128
IMAGE_TOKEN = 257152
STATE_BINS = 256
MAX_ACTION_TOKENS = 2048


class Vocabulary(VlaConfig):
    """The layout of token ids: a row of the embedding table for each token."""

    size: int
    """Rows of the embedding table."""
    text_size: int
    """Ids below this one are ordinary text (control tokens included)."""
    pad: int
    """Control id that fills a row of a batch."""
    eos: int
    """Control id that ends a text."""
    bos: int
    """Control id that begins a text."""
    bar: int
    """The id of '|', which closes the action tokens."""
    loc_start: int
    """The id of <loc0000>."""
    loc_bins: int
    """How many <loc> tokens follow each other."""
    state_start: int
    """The first special token for a state bin."""
    state_bins: int
    """How many special tokens for state bins follow each other."""
    action_end: int
    """The id of action token 0; action token t has the id action_end - t."""
    action_size: int
    """How many action tokens there are."""

    @model_validator(mode='after')
    def _ranges_fit(self) -> Self:
        ranges = {
            'text_size': ('text', 0, self.text_size),
            'loc_start': ('<loc>', self.loc_start, self.loc_start + self.loc_bins),
            'state_start': ('state', self.state_start, self.state_start + self.state_bins),
            'action_end': ('action', self.action_end - self.action_size + 1, self.action_end + 1),
        }
        for name, (kind, low, high) in ranges.items():
            if low < 0 or high > self.size or high < low:
                raise ValueError(
                    f'{name} is {getattr(self, name)}: the {kind} ids {low}..{high - 1} do not fit in a table of '
                    f'{self.size} rows'
                )
        control = (self.pad, self.eos, self.bos, self.bar)
        if len(set(control)) != len(control) or not all(0 <= i < self.text_size for i in control):
            raise ValueError(f'pad, eos, bos, bar are {control}; write four text ids, all different')
        return self

    @property
    def action_range(self) -> tuple[int, int]:
        """Lowest and highest id of an action token, both inclusive."""
        return self.action_end - self.action_size + 1, self.action_end

    def action_ids(self, tokens: np.ndarray) -> np.ndarray:
        """Action tokens (0, 1, ...) -> ids, counted down from `action_end`."""
        tokens = np.asarray(tokens, dtype=np.int64)
        if tokens.size and (tokens.min() < 0 or tokens.max() >= self.action_size):
            raise VlaError(
                f'action token {int(tokens.max())} does not fit: the vocabulary holds {self.action_size} action tokens.'
            )
        return self.action_end - tokens

    def action_tokens(self, ids: np.ndarray) -> np.ndarray:
        """Ids -> action tokens.

        Raises:
            VlaError: an id lies outside the action range; it is never mapped to something near.
        """
        ids = np.asarray(ids, dtype=np.int64)
        low, high = self.action_range
        wrong = (ids < low) | (ids > high)
        if wrong.any():
            raise VlaError(f'token id {int(ids[wrong][0])} is no action token: those are {low}..{high}.')
        return self.action_end - ids

    def state_ids(self, bins: np.ndarray) -> np.ndarray:
        """State bins -> the special tokens that stand for them."""
        bins = np.asarray(bins, dtype=np.int64)
        if bins.size and (bins.min() < 0 or bins.max() >= self.state_bins):
            raise VlaError(
                f'state bin {int(bins.max())} does not fit: the vocabulary holds {self.state_bins} state tokens.'
            )
        return self.state_start + bins

    def is_control(self, token: int) -> bool:
        """Whether an id is pad, eos or bos, which never may come out of a piece of text."""
        return token in (self.pad, self.eos, self.bos)


def gemma_vocabulary() -> Vocabulary:
    """The layout of PaliGemma and of openpi's checkpoints.

    Action token t has the id size - 1 - 128 - t: below the 128 <seg> tokens, in the rows of <loc1023>, <loc1022>, ...
    and, from token 1024 on, of rare text. The prompt tells a box from an action; constrained decoding keeps them apart.
    The special state tokens lie below the largest action vocabulary, in 256 rows of rare text, clear of all others.
    """
    action_end = GEMMA_SIZE - 1 - SEG_TOKENS
    return Vocabulary(
        size=GEMMA_SIZE,
        text_size=GEMMA_TEXT_SIZE,
        pad=0,
        eos=1,
        bos=2,
        bar=GEMMA_BAR,
        loc_start=GEMMA_TEXT_SIZE,
        loc_bins=1024,
        state_start=action_end + 1 - MAX_ACTION_TOKENS - STATE_BINS,
        state_bins=STATE_BINS,
        action_end=action_end,
        action_size=MAX_ACTION_TOKENS,
    )


def small_vocabulary(
    size: int, text_size: int, bar: int, *, loc_bins: int, action_size: int, state_bins: int = STATE_BINS
) -> Vocabulary:
    """A layout without collisions: text, <loc>, state, a gap if there is room, action tokens down from the last row."""
    needed = text_size + loc_bins + state_bins + action_size
    if needed > size:
        raise VlaError(
            f'vocabulary of {size} rows is too small: {text_size} text + {loc_bins} loc + {state_bins} state + '
            f'{action_size} action tokens need {needed}.'
        )
    return Vocabulary(
        size=size,
        text_size=text_size,
        pad=0,
        eos=1,
        bos=2,
        bar=bar,
        loc_start=text_size,
        loc_bins=loc_bins,
        state_start=text_size + loc_bins,
        state_bins=state_bins,
        action_end=size - 1,
        action_size=action_size,
    )
