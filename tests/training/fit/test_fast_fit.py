"""FAST fitted on recordings says what it costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ki_robot.contract.contract import Contract
from ki_vla.tokens.fast import FastCodec, error_bound
from training.errors import TrainingError
from training.fit.fast_fit import fit_fast
from training.fit.stats import compute_stats
from training.index.index import index_bags
from training.samples.dataset import EpisodeDataset

MakeBag = Callable[..., Path]


def test_a_codec_is_fitted_and_measured_on_other_chunks(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    data = EpisodeDataset(index_bags(make_bag(seconds=6.0), toy, tmp_path / 'index'))
    codec, report = fit_fast(data, compute_stats(data), size=256, scale=10.0)
    assert report.fitted + report.tested == len(data) - 7
    assert report.size == codec.size <= 256
    assert report.values_per_token > 2.0
    assert report.rmse <= 1 / (2 * 10.0) + 1e-9
    assert report.max_error <= error_bound(8, 10.0)
    assert report.rmse_si['joint1/position'] < 0.02
    assert report.clipped == 0.0
    assert FastCodec.from_dict(codec.to_dict()).size == codec.size
    assert fit_fast(data, compute_stats(data), size=256)[1] == report


def test_episodes_shorter_than_a_chunk_are_told(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    data = EpisodeDataset(index_bags(make_bag(seconds=0.3), toy, tmp_path / 'index'))
    with pytest.raises(TrainingError, match='FAST needs at least 2'):
        fit_fast(data, compute_stats(data))
