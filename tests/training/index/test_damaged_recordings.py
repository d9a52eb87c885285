"""Whatever happens to the bytes of a recording, indexing ends, says so, and learns nothing false."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_robot.contract.contract import Contract
from training.errors import TrainingError
from training.index.index import index_bags
from training.samples.dataset import EpisodeDataset
from training.samples.mixture import Loader, Mixture, Part, Sampler

MakeBag = Callable[..., Path]
START_NS = 1_700_000_000_000_000_000


@pytest.mark.parametrize('how', ['flip', 'cut', 'zeros'])
def test_damage_never_ends_a_run_and_never_changes_a_number(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, truth: Callable[[Any], np.ndarray], how: str
) -> None:
    path = make_bag(seconds=0.5)
    [file] = path.glob('*.mcap')
    sound = file.read_bytes()
    rng = random.Random(how)
    quiet = 0
    for number in range(25):
        data = bytearray(sound)
        place = rng.randrange(len(data))
        if how == 'flip':
            data[place] ^= 1 << rng.randrange(8)
        elif how == 'cut':
            del data[place:]
        else:
            data[place : place + 512] = bytes(len(data[place : place + 512]))
        file.write_bytes(bytes(data))
        index = index_bags(path, toy, tmp_path / f'index{number}')
        quiet += not len(index.problems)
        for position, (entry, about) in enumerate(index.episodes):
            with np.load(entry.folder / about.file) as arrays:
                seconds = (arrays['stamps'] - START_NS) / 1e9
                np.testing.assert_allclose(arrays['state'][:, :3], truth(seconds), atol=1e-12, err_msg=str(position))
    assert quiet < 10  # a flip in the free-text metadata, or of the index alone, harms nothing


def test_a_damaged_recording_among_sound_ones_costs_only_itself(
    make_bag: MakeBag, toy: Contract, tmp_path: Path
) -> None:
    for name in ('a', 'b', 'c'):
        make_bag(name, seconds=0.5)
    [file] = (tmp_path / 'bags' / 'b').glob('*.mcap')
    file.write_bytes(b'no bag at all')
    index = index_bags(tmp_path / 'bags', toy, tmp_path / 'index', workers=2)
    assert [Path(entry.path).name for entry, _ in index.episodes] == ['a', 'c']
    assert {Path(problem.where).name for problem in index.problems} == {'b'}


def test_robots_of_different_bodies_mix_in_one_run(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    smaller = toy.to_dict()
    smaller['name'] = 'armless'
    smaller['state'] = [smaller['state'][2]]  # type: ignore[index]
    smaller['state_streams'] = [{**smaller['state_streams'][0], 'extra_joints': 'allow'}]  # type: ignore[index]
    smaller['actions'] = [smaller['actions'][2]]  # type: ignore[index]
    smaller['outputs'] = [smaller['outputs'][1]]  # type: ignore[index]
    other = Contract.parse(smaller)
    path = make_bag(seconds=1.0)
    parts = [
        Part('whole', EpisodeDataset(index_bags(path, toy, tmp_path / 'one'))),
        Part('armless', EpisodeDataset(index_bags(path, other, tmp_path / 'two'))),
    ]
    seen = set()
    for draws in Loader(Sampler(Mixture(parts)), 8, list, workers=2, steps=5):
        for draw in draws:
            seen.add((draw.sample.contract.name, draw.sample.actions_HN.shape, draw.sample.state_S.shape))
    assert seen == {('toy', (8, 4), (4,)), ('armless', (8, 1), (1,))}


def test_no_room_for_the_index_stops_with_a_sentence(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(TrainingError, match=r'choose another folder with --out'):
        index_bags(make_bag(seconds=0.5), toy, tmp_path / 'file' / 'index')
