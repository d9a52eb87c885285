"""Moments of the simulator become samples with a chunk, things and a point each; what does not fit is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ki.simulation.simulated_data import load_triton_before_mesa
from ki_robot.contract.contract import Contract, load_contract
from ki_sim.moments.shards import MomentSettings, part, write
from training.errors import TrainingError
from training.fit.fast_fit import fit_fast
from training.fit.stats import compute_stats
from training.index.simulator_arrays import index_arrays
from training.samples.dataset import EpisodeDataset

HORIZON = 12


@pytest.fixture(scope='module')
def contract() -> Contract:
    return load_contract('bimanual_mobile')


@pytest.fixture(scope='module')
def settings(contract: Contract) -> MomentSettings:
    return MomentSettings(
        contract.name, contract.state_names, contract.action_names, contract.camera_names, HORIZON, ('put_in_bin',), 32
    )


@pytest.fixture(scope='module')
def folder(settings: MomentSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    load_triton_before_mesa()  # tests that run after these in one process may need it
    out = tmp_path_factory.mktemp('moments')
    write(out, 24, settings, workers=1)
    return out


@pytest.fixture(scope='module')
def dataset(folder: Path, contract: Contract) -> EpisodeDataset:
    return EpisodeDataset(index_arrays(folder, contract, folder / 'index'), HORIZON)


def test_every_moment_is_a_sample_with_its_own_chunk(dataset: EpisodeDataset, folder: Path) -> None:
    assert len(dataset) == 24
    with np.load(next(folder.glob('*.npz'))) as stored:
        actions, texts, places = stored['action'], stored['texts'], stored['text']
        points, words = stored['points'], stored['thing_word']
    for place in (0, 7, 23):
        sample = dataset[place]
        assert np.allclose(sample.actions_HN, actions[place])
        assert sample.action_mask_H.all()
        assert sample.instruction == texts[places[place]]
        assert sample.task == 'put_in_bin'
        assert sample.things is not None
        assert {thing.words['kind'] for thing in sample.things} <= set(words[:, 1])
        for point, found in zip(points[place], sample.points, strict=True):
            if np.isfinite(point).all():
                assert found == pytest.approx(tuple(point))
                assert any((thing.x, thing.y) == pytest.approx(found) for thing in sample.things)
            else:
                assert found is None
        assert sample.images['head'].shape == (224, 224, 3)


def test_statistics_and_tokens_are_fitted_on_moments(dataset: EpisodeDataset) -> None:
    stats = compute_stats(dataset)
    assert stats['actions'].count == 24 * HORIZON
    codec, report = fit_fast(dataset, stats, size=600)
    assert codec.horizon == HORIZON
    assert report.fitted + report.tested == 24


def test_a_longer_chunk_than_was_made_is_refused(folder: Path, contract: Contract) -> None:
    with pytest.raises(TrainingError, match=r'chunks of 12 steps, and 50 are asked for'):
        EpisodeDataset(index_arrays(folder, contract, folder / 'index'))


def test_moments_of_another_robot_and_damaged_ones_are_told(
    settings: MomentSettings, contract: Contract, tmp_path: Path
) -> None:
    other = dataclasses.replace(settings, state=settings.state[:-1])
    stored = part(0, 2, settings)
    np.savez(tmp_path / 'a.npz', **{**stored, 'columns': np.array(other.state)})
    np.savez(tmp_path / 'b.npz', **{name: value for name, value in stored.items() if name != 'points'})
    np.savez(tmp_path / 'c.npz', **{**stored, 'state': np.full_like(stored['state'], np.nan)})
    np.savez(tmp_path / 'd.npz', **stored)
    index = index_arrays(tmp_path, contract, tmp_path / 'index')
    told = ' '.join(problem.text for problem in index.problems)
    assert 'a.npz: its columns are not those of bimanual_mobile' in told
    assert 'b.npz holds no whole moments' in told
    assert 'c.npz: there are no moments, or a number is not finite' in told
    assert len(index.episodes) == 1
