"""Where every kind of token lives in the model's vocabulary.

One layout object answers every question about ids: which row is <loc0512>, which is the state bin 17, which is the
action token 3. Two layouts exist. The *Gemma* layout is that of the public checkpoints: the action ids count down from
the end of the vocabulary and share rows with the <loc> tokens and with rare text. The *small* layout, for models
trained from scratch, keeps every kind apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ki_vla.errors import VlaError

GEMMA_SIZE = 257152
GEMMA_TEXT_SIZE = 256000
GEMMA_BAR = 235371
SEG_TOKENS = 128
IMAGE_TOKEN = 257152
STATE_BINS = 256
MAX_ACTION_TOKENS = 2048


@dataclass(frozen=True)
class Vocabulary:
    """The layout of token ids: a row of the embedding table for each token.

    Attributes:
        size: rows of the embedding table.
        text_size: ids below this one are ordinary text (control tokens included).
        pad, eos, bos, bar: the control ids; `bar` is the id of '|', which closes the action tokens.
        loc_start, loc_bins: <loc0000> and how many of them follow.
        state_start, state_bins: the first special token for a state bin, and how many.
        action_end, action_size: action token t has the id action_end - t, for t below action_size.
    """

    size: int
    text_size: int
    pad: int
    eos: int
    bos: int
    bar: int
    loc_start: int
    loc_bins: int
    state_start: int
    state_bins: int
    action_end: int
    action_size: int

    def __post_init__(self) -> None:
        """Refuse a layout with a range outside the table or control ids that coincide."""
        ranges = {
            'text': (0, self.text_size),
            'loc': (self.loc_start, self.loc_start + self.loc_bins),
            'state': (self.state_start, self.state_start + self.state_bins),
            'action': (self.action_end - self.action_size + 1, self.action_end + 1),
        }
        for name, (low, high) in ranges.items():
            if low < 0 or high > self.size or high < low:
                raise VlaError(
                    f'vocabulary: the {name} ids {low}..{high - 1} do not fit in a table of {self.size} rows.'
                )
        control = (self.pad, self.eos, self.bos, self.bar)
        if len(set(control)) != len(control) or not all(0 <= i < self.text_size for i in control):
            raise VlaError(f'vocabulary: pad, eos, bos, bar must be four text ids, all different; got {control}.')

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

    def to_dict(self) -> dict[str, int]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Vocabulary:
        """From `to_dict`; an unknown or missing field is an error that names it."""
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise VlaError(
                f'vocabulary: missing {sorted(names - set(data))}, unexpected {sorted(set(data) - names)} fields.'
            )
        wrong = [name for name, value in data.items() if isinstance(value, bool) or not isinstance(value, int)]
        if wrong:
            raise VlaError(f'vocabulary: {wrong[0]} is {data[wrong[0]]!r}; a whole number is needed.')
        return cls(**data)


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
