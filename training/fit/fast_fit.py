"""FAST fitted on a dataset, with what it costs: vocabulary, scale, compression, error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ki_robot.policy_values import policy_actions
from ki_robot.transforms import Normalisation, ScalingRules, Stats, scaling_of
from ki_vla.tokens.fast import FastCodec, fit
from training.errors import TrainingError
from training.samples.dataset import EpisodeDataset


@dataclass(frozen=True)
class FastReport:
    """What a codec does to held-out chunks, in normalised units and in SI.

    Attributes:
        fitted: Chunks it was fitted on.
        tested: Other chunks that the figures are of.
        size: Tokens in its vocabulary.
        scale: Steps per unit of a normalised coefficient.
        tokens_mean, tokens_max: Length of a chunk.
        values_per_token: Compression: numbers of a chunk per token.
        rmse, max_error: Of normalised values.
        rmse_si: The same per column, in the column's unit.
        clipped: Share of coefficients of held-out chunks beyond the fitted range.
    """

    fitted: int
    tested: int
    size: int
    scale: float
    tokens_mean: float
    tokens_max: int
    values_per_token: float
    rmse: float
    max_error: float
    rmse_si: dict[str, float]
    clipped: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def fit_fast(
    dataset: EpisodeDataset,
    stats: Mapping[str, Stats],
    size: int = 1024,
    scale: float = 10.0,
    most: int = 20_000,
    normalisation: Normalisation = 'quantile',
    rules: ScalingRules = 'ki',
    seed: int = 0,
) -> tuple[FastCodec, FastReport]:
    """Fits on whole chunks drawn from a dataset; every tenth one is held out for the report.

    Args:
        dataset: Where chunks come from.
        stats: `actions` after the delta transform.
        size: Tokens wanted.
        scale: Steps per unit.
        most: Chunks to use at most.
        normalisation: as the policy will have it.
        rules: as the policy will have them.
        seed: Which chunks, where there are more.

    Raises:
        TrainingError: Fewer than two whole chunks in the data.
        VlaError: The coefficients do not fit into `size` tokens.
    """
    chunks, scaling = [], scaling_of(stats['actions'], normalisation, rules)
    starts = dataset.starts()
    order = np.random.default_rng(seed).permutation(len(starts))
    for place in order:
        number, step = (int(each) for each in starts[place])
        actions, mask = dataset.chunk(number, step)
        if mask.all():
            said = policy_actions(dataset.contract, actions, dataset.arrays(number)['state'][step])
            chunks.append(scaling.apply(said))
            if len(chunks) >= most:
                break
    if len(chunks) < 2:
        raise TrainingError(
            f'{dataset.index.folder} holds {len(chunks)} chunks of {dataset.horizon} known steps; '
            'FAST needs at least 2: record longer episodes, or train with a shorter horizon.'
        )
    held = chunks[::10] if len(chunks) >= 20 else chunks
    fitted = [chunk for place, chunk in enumerate(chunks) if place % 10] if len(chunks) >= 20 else chunks
    codec = fit(fitted, size=size, scale=scale)
    return codec, _report(codec, fitted, held, scaling)


def _report(codec: FastCodec, fitted: list[Any], held: list[Any], scaling: Any) -> FastReport:
    streams = [codec.encode(chunk, clip=True) for chunk in held]
    errors = np.stack([codec.decode(stream) for stream in streams]) - np.stack(held)
    lengths = [len(stream) for stream in streams]
    per_column = np.sqrt(np.mean(errors**2, axis=(0, 1))) * scaling.scale_N
    return FastReport(
        fitted=len(fitted),
        tested=len(held),
        size=codec.size,
        scale=codec.scale,
        tokens_mean=float(np.mean(lengths)),
        tokens_max=max(lengths),
        values_per_token=codec.values * len(held) / sum(lengths),
        rmse=float(np.sqrt(np.mean(errors**2))),
        max_error=float(np.abs(errors).max()),
        rmse_si=dict(zip(scaling.names, per_column.tolist(), strict=True)),
        clipped=sum(codec.beyond(chunk) for chunk in held) / (codec.values * len(held)),
    )
