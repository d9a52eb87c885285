"""Who drove, from the recording to the samples, the draws of a run, and LeRobot's column."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_bags import message_builders
from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract
from training.errors import TrainingError
from training.index.index import Index, index_bags
from training.samples.dataset import EpisodeDataset, driven_by_human, split_episodes
from training.train.config import Data, Interventions
from training.train.run import Sources, correction_share, open_sources

START_NS = 1_700_000_000_000_000_000
HOLD, POLICY, HUMAN = range(3)
# From the start, and at every later second of the recording.
DROVE = ((0.0, POLICY), (0.6, HOLD), (0.7, HUMAN), (1.3, HOLD), (1.4, POLICY))


@pytest.fixture
def record(tmp_path: Path, scribe: Any) -> Callable[..., Path]:
    """Writes an episode of two seconds, and who drove when; gives the folder of all."""

    def make(name: str, drove: Sequence[tuple[float, int]], begin_ns: int = START_NS) -> Path:
        with BagWriter(tmp_path / 'bags' / name) as bag:
            writer = scribe(bag)
            writer.marker(begin_ns, 0, 0, 'lift the cup')
            for seconds, source in drove:
                at_ns = begin_ns + round(seconds * 1e9)
                message_builders.put(bag, '/control_source', at_ns, message_builders.control_source(at_ns, source))
            writer.stretch(2.0, base_ns=begin_ns)
            writer.marker(begin_ns + 2_000_000_000, 1, 0, 'lift the cup', 1)
        return tmp_path / 'bags'

    return make


@pytest.fixture
def index(toy: Contract, tmp_path: Path, record: Callable[..., Path]) -> Index:
    return index_bags(record('one', DROVE), toy, tmp_path / 'index')


def test_every_step_says_who_drove(index: Index) -> None:
    data = EpisodeDataset(index)
    arrays = data.arrays(0)
    seconds = (arrays['stamps'] - START_NS) / 1e9
    for begin, source in DROVE:
        after = arrays['driver'][seconds >= begin]
        assert after[0] == source, f'at {begin} s'
    assert driven_by_human(arrays).sum() == 12


def test_corrections_alone_end_where_the_policy_goes_on(index: Index) -> None:
    data = EpisodeDataset(index, human=True)
    assert len(data) == 12
    _, mask_H = data.chunk(*(int(each) for each in data.starts()[0]))
    assert mask_H.all(), 'the human drives on for longer than a chunk'
    _, mask_H = data.chunk(*(int(each) for each in data.starts()[-1]))
    assert mask_H.tolist() == [True] + [False] * 7


@pytest.mark.parametrize('weight', [1.0, 3.0, 10.0])
def test_a_correction_is_drawn_as_often_as_its_weight_says(index: Index, weight: float) -> None:
    every, human = EpisodeDataset(index), EpisodeDataset(index, human=True)
    sources = Sources(index, every, (), None, None, None, None, human, weight)
    share = correction_share(sources)
    of_a_correction = (1 - share) / len(every) + share / len(human)
    of_another = (1 - share) / len(every)
    assert of_a_correction == pytest.approx(weight * of_another)


def test_corrections_alone_are_held_out_alone(record: Callable[..., Path], run_of: Callable[..., Any]) -> None:
    for place, name in enumerate(('one', 'two')):
        bags = record(name, DROVE, START_NS + place * 10_000_000_000)
    data = {'bags': str(bags), 'validation': 0.5, 'interventions': {'only': True}}
    sources = open_sources(run_of({'vlm': 0}, data=data))
    assert sources.held is not None
    assert (len(sources.train), len(sources.held)) == (12, 12), 'what a failing policy did is no measure'
    assert set(sources.train.episode_numbers).isdisjoint(sources.held.episode_numbers)


def test_an_episode_without_a_correction_is_not_held_out_of_corrections_alone(
    record: Callable[..., Path], run_of: Callable[..., Any], toy: Contract, tmp_path: Path
) -> None:
    record('one', DROVE)
    bags = record('two', ((0.0, POLICY),), START_NS + 10_000_000_000)
    index = index_bags(bags, toy, tmp_path / 'index')
    without = [about.human for _, about in index.episodes].index(())
    seed = next(seed for seed in range(50) if split_episodes(index, 0.5, seed)[1] == [without])
    data = {'bags': str(bags), 'validation': 0.5, 'split_seed': seed, 'interventions': {'only': True}}
    sources = open_sources(run_of({'vlm': 0}, data=data))
    assert len(sources.train) == 12
    assert sources.held is None


def test_recordings_without_a_human_are_refused_by_name(
    make_bag: Callable[..., Path], toy: Contract, tmp_path: Path
) -> None:
    index = index_bags(make_bag(), toy, tmp_path / 'index')
    assert 'driver' not in EpisodeDataset(index).arrays(0)
    with pytest.raises(
        TrainingError, match='no usable step that a human drove; record them with the topic control_source'
    ):
        EpisodeDataset(index, human=True)


def test_the_run_file_says_how_corrections_count() -> None:
    data = Data.parse({'bags': 'b', 'interventions': {'weight': 3, 'only': False}})
    assert data.interventions == Interventions(weight=3.0)
    with pytest.raises(TrainingError, match='weight'):
        Data.parse({'bags': 'b', 'interventions': {'weight': 0.5}})


def test_lerobot_gets_a_column(index: Index, tmp_path: Path) -> None:
    parquet = pytest.importorskip('pyarrow.parquet')
    from training.lerobot.write import to_lerobot

    to_lerobot(index, tmp_path / 'lerobot')
    features = json.loads((tmp_path / 'lerobot' / 'meta' / 'info.json').read_text())['features']
    assert features['intervention'] == {'dtype': 'bool', 'shape': [1], 'names': None}
    table = parquet.read_table(next((tmp_path / 'lerobot' / 'data').rglob('*.parquet')))
    drove = driven_by_human(EpisodeDataset(index).arrays(0))
    np.testing.assert_array_equal(table['intervention'].to_numpy(zero_copy_only=False), drove)


def test_a_human_s_steps_come_back_from_a_lerobot_dataset(index: Index, toy: Contract, tmp_path: Path) -> None:
    pytest.importorskip('pyarrow.parquet')
    from training.lerobot.to_bags import from_lerobot
    from training.lerobot.write import to_lerobot

    to_lerobot(index, tmp_path / 'lerobot', 'copy')
    contract, problems = from_lerobot(tmp_path / 'lerobot', tmp_path / 'again')
    assert contract == toy
    assert [str(each) for each in problems] == []
    back = EpisodeDataset(index_bags(tmp_path / 'again', contract, tmp_path / 'index2'))
    np.testing.assert_array_equal(driven_by_human(back.arrays(0)), driven_by_human(EpisodeDataset(index).arrays(0)))
