"""FAST: an action chunk as a short string of tokens (arXiv 2501.09747; paper, section 3).

A chunk [H, D] goes through an orthonormal DCT-II over time, is rounded to multiples of 1 / scale, flattened row by row
(the lowest frequency of every column first) and compressed by byte-pair encoding.

The error is that of the rounding alone. With E the error of the DCT coefficients, |E| <= 1 / (2 scale) each, and the
transform being orthonormal, every column obeys |x - x'|_2 = |E|_2 <= sqrt(H) / (2 scale). Hence the root mean square
over a column is at most 1 / (2 scale), and no single value is off by more than sqrt(H) / (2 scale).

Legend: H steps of the chunk, D columns, V tokens of the codec.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from typing_extensions import Self

from ki_vla.errors import VlaError
from ki_vla.model.config import VlaConfig
from ki_vla.tokens.bpe import read_bpe

# Two-byte UTF-8 and no surrogates: what both kinds of alphabet can hold.
MAX_SYMBOLS = 0x800
MIN_FREQUENCY = 2
MAX_TOKEN_LENGTH = 10000


@lru_cache(maxsize=8)
def dct_matrix(steps: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix [H, H]: coefficients = matrix @ values, values = matrix.T @ coefficients."""
    k, t = np.arange(steps)[:, None], np.arange(steps)[None, :]
    matrix: np.ndarray = np.sqrt(2.0 / steps) * np.cos(np.pi * (t + 0.5) * k / steps)
    matrix[0] /= np.sqrt(2.0)
    matrix.setflags(write=False)
    return matrix


def error_bound(steps: int, scale: float) -> float:
    """The most a single decoded value may be off: sqrt(H) / (2 scale), plus room for float64 rounding."""
    return float(np.sqrt(steps) / (2.0 * scale)) + 1e-9


@dataclass(frozen=True)
class CodecRoundTrip:
    """What encoding and decoding cost on a set of chunks, in units of the normalised action."""

    chunks: int
    rmse: float
    max_error: float
    bound: float
    tokens_mean: float
    tokens_max: int
    values_per_token: float


class FastFile(VlaConfig):
    """A `FastCodec` as plain JSON."""

    kind: Literal['fast']
    """Tells it from a naive codec."""
    scale: float = Field(gt=0)
    """Coefficients are rounded to multiples of 1 / scale."""
    min_token: int
    """The smallest rounded coefficient that can be written."""
    max_token: int
    """The largest."""
    horizon: PositiveInt
    """Steps of a chunk."""
    columns: PositiveInt
    """Columns of an action."""
    tokenizer: dict[str, Any]
    """A tokenizer.json of byte-pair encoding."""

    @model_validator(mode='after')
    def _range_is_not_empty(self) -> Self:
        if self.max_token < self.min_token:
            raise ValueError(f'max_token is {self.max_token}, below min_token {self.min_token}; swap or correct them')
        return self


@dataclass(frozen=True)
class FastCodec:
    """A fitted FAST codec for chunks of one shape.

    Attributes:
        tokenizer: byte-pair encoding of the string chr(coefficient - min_token).
        scale: coefficients are rounded to multiples of 1 / scale.
        min_token, max_token: the smallest and largest rounded coefficient that can be written.
        horizon, columns: the shape of every chunk.
    """

    tokenizer: Tokenizer
    scale: float
    min_token: int
    max_token: int
    horizon: int
    columns: int

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.tokenizer.get_vocab_size()

    @property
    def values(self) -> int:
        """Coefficients in a chunk."""
        return self.horizon * self.columns

    def encode(self, actions_HD: np.ndarray, *, clip: bool = False) -> list[int]:
        """A normalised chunk -> tokens 0 .. size - 1.

        Args:
            actions_HD: values of the order of 1 (quantile or z-score normalised).
            clip: write a coefficient beyond the fitted range as the nearest one within it, instead of refusing.

        Raises:
            VlaError: wrong shape, NaN or infinity, or a coefficient beyond the fitted range.
        """
        codes = quantise(actions_HD, self.scale, (self.horizon, self.columns))
        if clip:
            codes = np.clip(codes, self.min_token, self.max_token)
        low, high = int(codes.min()), int(codes.max())
        if low < self.min_token or high > self.max_token:
            raise VlaError(
                f'FAST coefficients {low}..{high} go beyond the fitted {self.min_token}..{self.max_token}: '
                'fit on data that covers this chunk, normalise it with the right statistics, or ask for clipping.'
            )
        return list(self.tokenizer.encode(_symbols(codes, self.min_token), add_special_tokens=False).ids)

    def beyond(self, actions_HD: np.ndarray) -> int:
        """How many coefficients of a chunk lie beyond the fitted range, and would be changed by clipping."""
        codes = quantise(actions_HD, self.scale, (self.horizon, self.columns))
        return int(np.count_nonzero((codes < self.min_token) | (codes > self.max_token)))

    def decode(self, tokens: Sequence[int]) -> np.ndarray:
        """Tokens -> the normalised chunk [H, D].

        Raises:
            VlaError: a token out of range, a stream too short or too long, or symbols no coefficient is written with.
                A broken stream never becomes a chunk of zeros.
        """
        tokens = [int(token) for token in tokens]
        wrong = [token for token in tokens if not 0 <= token < self.size]
        if wrong:
            raise VlaError(f'FAST token {wrong[0]} is out of range 0..{self.size - 1}.')
        text = self.tokenizer.decode(tokens, skip_special_tokens=False)
        codes = np.array([ord(symbol) for symbol in text], dtype=np.int64) + self.min_token
        if codes.size != self.values:
            raise VlaError(
                f'FAST stream holds {codes.size} coefficients; {self.horizon} x {self.columns} make {self.values}.'
            )
        if codes.max(initial=self.min_token) > self.max_token:
            raise VlaError(f'FAST stream holds the coefficient {int(codes.max())}, the largest is {self.max_token}.')
        coefficients_HD = codes.reshape(self.horizon, self.columns) / self.scale
        actions_HD: np.ndarray = dct_matrix(self.horizon).T @ coefficients_HD
        return actions_HD

    def round_trip(self, chunks: Sequence[np.ndarray]) -> CodecRoundTrip:
        """Error and length over chunks [n, H, D]."""
        streams = [self.encode(chunk) for chunk in chunks]
        errors = np.stack([self.decode(s) for s in streams]) - np.stack([np.asarray(c, float) for c in chunks])
        lengths = [len(stream) for stream in streams]
        return CodecRoundTrip(
            chunks=len(streams),
            rmse=float(np.sqrt(np.mean(errors**2))),
            max_error=float(np.abs(errors).max()),
            bound=error_bound(self.horizon, self.scale),
            tokens_mean=float(np.mean(lengths)),
            tokens_max=max(lengths),
            values_per_token=self.values * len(streams) / sum(lengths),
        )

    def pieces(self) -> list[bytes]:
        """For every token the UTF-8 bytes it stands for: what a checker of streams needs to know."""
        byte_level = _is_byte_level(self.tokenizer)
        table = _byte_of_character() if byte_level else {}
        pieces = []
        for token in range(self.size):
            text = self.tokenizer.id_to_token(token)
            if text is None:
                pieces.append(b'')
            elif byte_level and all(character in table for character in text):
                pieces.append(bytes(table[character] for character in text))
            else:
                pieces.append(text.encode('utf-8'))
        return pieces

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON, the tokenizer included."""
        return {
            'kind': 'fast',
            'scale': self.scale,
            'min_token': self.min_token,
            'max_token': self.max_token,
            'horizon': self.horizon,
            'columns': self.columns,
            'tokenizer': json.loads(self.tokenizer.to_str()),
        }

    @classmethod
    def from_dict(cls, data: object, where: str = 'FAST codec') -> FastCodec:
        """From `to_dict`; a missing or malformed field is an error that names it."""
        said = FastFile.parse(data, where)
        tokenizer = read_bpe(json.dumps(said.tokenizer), where)
        return cls(tokenizer, said.scale, said.min_token, said.max_token, said.horizon, said.columns)

    def save_public(self, folder: str | Path) -> None:
        """Write tokenizer.json and processor_config.json, the layout of physical-intelligence/fast."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / 'tokenizer.json'))
        config = {
            'action_dim': self.columns,
            'min_token': self.min_token,
            'processor_class': 'UniversalActionProcessor',
            'scale': self.scale,
            'time_horizon': self.horizon,
            'vocab_size': self.size,
        }
        (folder / 'processor_config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


def quantise(actions_HD: np.ndarray, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """Chunk -> rounded DCT coefficients, int64 [H, D].

    Raises:
        VlaError: wrong shape, or a value that is not finite.
    """
    actions = np.asarray(actions_HD, dtype=np.float64)
    if actions.shape != shape:
        raise VlaError(f'FAST codec for chunks of {shape[0]} x {shape[1]} got an array of shape {actions.shape}.')
    if not np.isfinite(actions).all():
        raise VlaError('FAST codec got a chunk with a value that is not finite.')
    return np.around(dct_matrix(shape[0]) @ actions * scale).astype(np.int64)


def fit(chunks: Sequence[np.ndarray], *, size: int = 1024, scale: float = 10.0, margin: int | None = None) -> FastCodec:
    """Fit the byte-pair encoding on normalised chunks [n, H, D].

    Every coefficient between the smallest seen - margin and the largest seen + margin has a symbol of its own, so no
    value within that range is ever lost (the public fit drops bytes it has not seen).

    Args:
        chunks: training data, after the delta transform and the normalisation.
        size: tokens wanted; fewer result when the data hold no more pairs that occur twice.
        scale: steps per unit.
        margin: how far beyond the seen coefficients the alphabet reaches; by default a quarter of their span and 8,
            but less where that would take more than half of the tokens.

    Raises:
        VlaError: no chunks, chunks of differing shape, or an alphabet that does not fit in `size`.
    """
    arrays = [np.asarray(chunk, dtype=np.float64) for chunk in chunks]
    if not arrays or arrays[0].ndim != 2:
        raise VlaError('fitting FAST needs at least one chunk [H, D].')
    horizon, columns = arrays[0].shape
    codes = [quantise(array, scale, (horizon, columns)) for array in arrays]
    low, high = min(int(code.min()) for code in codes), max(int(code.max()) for code in codes)
    if margin is None:
        margin = max(0, min(8 + (high - low) // 4, (size // 2 - (high - low + 1)) // 2))
    low, high = low - margin, high + margin
    symbols = high - low + 1
    if symbols > min(size, MAX_SYMBOLS):
        raise VlaError(
            f'FAST: coefficients {low}..{high} need {symbols} symbols, there may be {min(size, MAX_SYMBOLS)} tokens: '
            'lower the scale, raise the size, or look for outliers in the normalised actions.'
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=MIN_FREQUENCY,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=[chr(i) for i in range(symbols)],
        max_token_length=MAX_TOKEN_LENGTH,
    )
    tokenizer.train_from_iterator((_symbols(code, low) for code in codes), trainer=trainer)
    return FastCodec(tokenizer, float(scale), low, high, horizon, columns)


def load_public(folder: str | Path, *, horizon: int | None = None, columns: int | None = None) -> FastCodec:
    """Read the file layout of physical-intelligence/fast: tokenizer.json and processor_config.json.

    Args:
        folder: a local folder; nothing is downloaded.
        horizon: steps of a chunk, where the file leaves it open (the released one does).
        columns: columns of a chunk, likewise.

    Raises:
        VlaError: a file or a field is missing, or the shape is known neither from the file nor from the caller.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / 'processor_config.json').read_text(encoding='utf-8'))
        tokenizer = read_bpe((folder / 'tokenizer.json').read_text(encoding='utf-8'), str(folder / 'tokenizer.json'))
        scale, min_token = float(config['scale']), int(config['min_token'])
    except KeyError as error:
        raise VlaError(f'{folder / "processor_config.json"}: the field {error} is missing.') from error
    except (OSError, ValueError, TypeError) as error:
        raise VlaError(f'{folder}: no readable FAST tokenizer ({error}).') from error
    horizon = horizon if horizon is not None else config.get('time_horizon')
    columns = columns if columns is not None else config.get('action_dim')
    if not horizon or not columns:
        raise VlaError(f'{folder}: leaves time_horizon or action_dim open; state the horizon and the columns.')
    return FastCodec(tokenizer, scale, min_token, min_token + MAX_SYMBOLS - 1, int(horizon), int(columns))


def _symbols(codes: np.ndarray, low: int) -> str:
    """Rounded coefficients as one string, the lowest frequency of every column first."""
    return ''.join(map(chr, (codes.reshape(-1) - low).tolist()))


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether tokens are spelled in the byte alphabet, as the public codec's are."""
    return isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable bytes stand for themselves, the other ones for characters from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
