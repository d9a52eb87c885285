"""Statistics describe what is normalised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ki_robot.contract.contract import Contract
from ki_robot.transforms import load_stats, quantile_scaling, save_stats
from training.fit.stats import compute_stats
from training.index.index import index_bags
from training.samples.dataset import EpisodeDataset

MakeBag = Callable[..., Path]
START_NS = 1_700_000_000_000_000_000


def test_actions_are_counted_after_the_delta_transform(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    data = EpisodeDataset(index_bags(make_bag(seconds=3.0), toy, tmp_path / 'index'))
    stats = compute_stats(data)
    rows = []
    for position in range(len(data)):
        sample = data[position]
        reference = np.array([sample.state_S[0], sample.state_S[1], 0.0, 0.0])
        rows.append((sample.actions_HN - reference)[sample.action_mask_H])
    every = np.concatenate(rows)
    assert stats['actions'].count == len(every)
    np.testing.assert_allclose(stats['actions'].mean, every.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(stats['actions'].q99, np.quantile(every, 0.99, axis=0), atol=1e-12)
    states = np.stack([data[position].state_S for position in range(len(data))])
    np.testing.assert_allclose(stats['state'].q01, np.quantile(states, 0.01, axis=0), atol=1e-12)
    scaling = quantile_scaling(stats['actions'])
    assert scaling.floored == ('base/linear/x/velocity',), 'the base is told one speed throughout'
    normal = scaling.apply(every)
    assert 0.97 < (np.abs(normal) <= 1.0 + 1e-6).mean() <= 1.0


def test_statistics_say_where_they_come_from(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    index = index_bags(make_bag(), toy, tmp_path / 'index')
    stats = compute_stats(EpisodeDataset(index))
    save_stats(tmp_path / 'stats.json', stats)
    found = load_stats(tmp_path / 'stats.json')['actions'].provenance
    assert found['data_hash'] == index.hash
    assert found['contract_hash'] == toy.hash
    assert found['bags'] == [{'name': 'bag', 'sha256': index.entries[0].sha256}]
    assert found['units'] == ['rad', 'rad', 'm', 'm/s']
    assert found['representation'] == ['delta', 'delta', 'absolute', 'absolute']
    assert json.loads((tmp_path / 'stats.json').read_text())['state']['names'] == list(toy.state_names)


def test_any_number_of_processes_gives_the_same_statistics(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('training.fit.stats.BLOCK', 1)  # so that three episodes are three jobs
    for name in ('a', 'b', 'c'):
        make_bag(name, seconds=1.0, task=name)
    data = EpisodeDataset(index_bags(tmp_path / 'bags', toy, tmp_path / 'index'), kept={0: (0, 15), 2: (3, 15)})
    one, two = compute_stats(data), compute_stats(data, workers=2)
    for name, stats in one.items():
        assert stats.count == two[name].count > 0
        for field in ('mean', 'std', 'q01', 'q99'):
            np.testing.assert_array_equal(getattr(stats, field), getattr(two[name], field))
    np.testing.assert_array_equal(one['actions'].step_mean_HN, two['actions'].step_mean_HN)
    monkeypatch.undo()  # all in one block
    whole = compute_stats(data)['actions']
    np.testing.assert_allclose(one['actions'].mean, whole.mean, atol=1e-12)
    np.testing.assert_allclose(one['actions'].std, whole.std, atol=1e-12)
    np.testing.assert_array_equal(one['actions'].q99, whole.q99)
