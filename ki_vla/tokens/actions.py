"""Action tokens inside the model's vocabulary: chunk <-> ids, and what may come next while they are decoded.

A chunk is written as the codec's tokens (FAST or naive), each moved to its row of the vocabulary, then '|'. Decoding is
constrained: `ActionStream` knows at every step which ids can still lead to a chunk of the right length, so that a model
that decodes under it always ends in a valid chunk, and a stream from elsewhere that is not valid is an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ki_common.errors import shown
from ki_common.files import read_json
from ki_vla.errors import VlaError
from ki_vla.tokens.fast import FastCodec
from ki_vla.tokens.naive import NaiveCodec
from ki_vla.tokens.vocabulary import Vocabulary

ActionCodec = FastCodec | NaiveCodec


def save_codec(codec: ActionCodec, path: str | Path) -> None:
    """Write fast.json."""
    Path(path).write_text(json.dumps(codec.to_dict(), ensure_ascii=True) + '\n', encoding='utf-8')


def load_codec(path: str | Path) -> ActionCodec:
    """Read fast.json.

    Raises:
        VlaError: no JSON, of neither kind, or a field that does not fit.
    """
    data = read_json(Path(path), VlaError)
    if data.get('kind') == 'fast':
        return FastCodec.from_dict(data, str(path))
    if data.get('kind') == 'naive':
        return NaiveCodec.from_dict(data, str(path))
    raise VlaError(f'{path}: kind is {shown(data.get("kind"))}; write fast or naive.')


@dataclass(frozen=True)
class ActionTokens:
    """A codec placed in a vocabulary."""

    codec: ActionCodec
    vocabulary: Vocabulary
    # Row p: what token t does to a stream with p bytes of a character still missing. starts < 0: not allowed there.
    _starts: np.ndarray = field(init=False, repr=False, compare=False)
    _after: np.ndarray = field(init=False, repr=False, compare=False)
    _longest: int = field(init=False, repr=False, compare=False)  # values that one whole token holds at most

    def __post_init__(self) -> None:
        """Check that the codec fits and work out what each token does to a stream."""
        if self.codec.size > self.vocabulary.action_size:
            raise VlaError(
                f'the codec has {self.codec.size} action tokens, the vocabulary {self.vocabulary.action_size}.'
            )
        pieces = self.codec.pieces()
        table = np.array([[_scan(piece, pending) for piece in pieces] for pending in (0, 1)], dtype=np.int64)
        object.__setattr__(self, '_starts', table[:, :, 0])
        object.__setattr__(self, '_after', table[:, :, 1])
        object.__setattr__(self, '_longest', int(max(table[0, :, 0][table[0, :, 1] == 0], default=1)))

    def encode(self, actions_HD: np.ndarray, *, clip: bool = False) -> list[int]:
        """A normalised chunk -> ids of the vocabulary, '|' at the end."""
        tokens = np.asarray(self.codec.encode(actions_HD, clip=clip))
        return [*self.vocabulary.action_ids(tokens).tolist(), self.vocabulary.bar]

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Ids as `encode` writes them, EOS after '|' allowed -> the normalised chunk [H, D].

        Raises:
            VlaError: truncated, over-long, or with ids that are no action tokens.
        """
        stream = self.stream()
        ids = [int(token) for token in ids]
        if ids and ids[-1] == self.vocabulary.eos:
            ids = ids[:-1]
        for token in ids:
            stream.push(token)
        return stream.chunk()

    def stream(self) -> ActionStream:
        """A checker for one chunk, to be fed id by id."""
        return ActionStream(self)


class ActionStream:
    """The state of one chunk while it is decoded token by token."""

    def __init__(self, tokens: ActionTokens) -> None:
        self._tokens = tokens
        self._remaining = tokens.codec.values
        self._pending = 0
        self._ids: list[int] = []
        self.complete = False

    def allowed(self, left: int | None = None) -> np.ndarray:
        """Ids that may come next, int64; empty once the closing '|' has come.

        Args:
            left: how many tokens there is room for, this one among them: those that would not let the chunk end within
                them are left out. As many as it takes unless given.
        """
        vocabulary = self._tokens.vocabulary
        if self.complete:
            return np.zeros(0, dtype=np.int64)
        if self._remaining == 0 and self._pending == 0:
            return np.array([vocabulary.bar], dtype=np.int64)
        starts = self._tokens._starts[self._pending]
        fits = (starts >= 0) & (starts <= self._remaining)
        if left is not None:
            # The longest tokens, then one for each value: so many always lead to the end.
            after, longest = self._remaining - starts, max(1, self._tokens._longest)
            needed = after // longest + after % longest + self._tokens._after[self._pending]
            fits = fits & (needed < left) if (fits & (needed < left)).any() else fits
        tokens = np.flatnonzero(fits)
        if tokens.size == 0:
            raise VlaError('the action codec has no token that continues this stream.')
        return vocabulary.action_ids(tokens)

    def push(self, token: int) -> None:
        """Take the next id.

        Raises:
            VlaError: it is not one of `allowed()`.
        """
        vocabulary = self._tokens.vocabulary
        if self.complete:
            raise VlaError(f"action stream: id {token} after the closing '|'.")
        if token == vocabulary.bar:
            if self._remaining or self._pending:
                raise VlaError(f"action stream is truncated: '|' came with {self._remaining} values missing.")
            self.complete = True
            return
        index = int(vocabulary.action_tokens(np.array([token]))[0])
        starts = int(self._tokens._starts[self._pending, index]) if index < self._tokens.codec.size else -1
        if starts < 0:
            raise VlaError(f'action stream: id {token} cannot follow here.')
        if starts > self._remaining:
            raise VlaError(
                f'action stream is too long: id {token} holds {starts} values, {self._remaining} are missing.'
            )
        self._pending = int(self._tokens._after[self._pending, index])
        self._remaining -= starts
        self._ids.append(int(token))

    @property
    def last(self) -> int:
        """The id that was pushed last."""
        return self._ids[-1]

    def chunk(self) -> np.ndarray:
        """The normalised chunk [H, D].

        Raises:
            VlaError: the stream is not complete.
        """
        if not self.complete:
            raise VlaError(f"action stream is truncated: {self._remaining} values and the closing '|' are missing.")
        return self._tokens.codec.decode(self._tokens.vocabulary.action_tokens(np.array(self._ids)).tolist())


def _scan(piece: bytes, pending: int) -> tuple[int, int]:
    """What a piece does to a stream with `pending` bytes missing: (characters begun, bytes missing after).

    (-1, 0) if it cannot stand there. Characters of one or two bytes only: no codec here writes longer ones.
    """
    starts = 0
    for byte in piece:
        if pending:
            if not 0x80 <= byte <= 0xBF:
                return -1, 0
            pending = 0
        elif byte < 0x80:
            starts += 1
        elif 0xC2 <= byte <= 0xDF:
            starts, pending = starts + 1, 1
        else:
            return -1, 0
    return (starts, pending) if piece else (-1, 0)
