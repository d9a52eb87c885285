"""Several robots train one policy: each with its own columns, cameras and statistics, none with another's loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ki_robot.contract.contract import load_contract
from ki_vla.policy.bundle import load_bundle
from training.errors import TrainingError
from training.fit.initial_policy import begin
from training.fit.start_from import settled
from training.samples.collator import Collator
from training.samples.mixture import Draw
from training.train.config import Run
from training.train.run import open_sources, train

MakeRun = Callable[..., Any]


@pytest.fixture
def small(tmp_path: Path, toy_contract: dict[str, Any], make_bag: Callable[..., Path]) -> dict[str, Any]:
    """The toy robot's arm alone, with one camera: the table of an embodiment, and its recordings."""
    plain = copy.deepcopy(toy_contract)
    plain['name'] = 'arm_alone'
    plain['cameras'] = plain['cameras'][:1]
    plain['state'], plain['actions'] = plain['state'][:2], plain['actions'][:2]
    plain['state_streams'] = [plain['state_streams'][0] | {'extra_joints': 'allow'}]
    plain['outputs'] = plain['outputs'][:1]
    (tmp_path / 'arm_alone.yaml').write_text(yaml.safe_dump(plain), encoding='utf-8')
    folder = tmp_path / 'arm_bags'
    make_bag(folder=folder, task='wave with the arm')
    return {'robot': str(tmp_path / 'arm_alone.yaml'), 'bags': str(folder), 'weight': 3.0}


def test_padded_columns_and_absent_cameras_carry_no_loss(run_of: MakeRun, small: dict[str, Any]) -> None:
    run = run_of(embodiments=[small])
    sources = open_sources(run)
    ((other, weight),) = sources.others
    made = begin(run, sources.train, [], others=[other])
    assert (weight, set(made.others)) == (3.0, {'arm_alone'})
    config, theirs = made.processor.config, made.others['arm_alone']
    assert (config.action_dim, config.views) == (4, 2), 'room for the widest robot'
    assert theirs.action_stats.names == ('joint1/position', 'joint2/position'), 'statistics of its own'

    collator = Collator(made.processor, seed=0, draws=2, others=made.others)
    draws = [Draw('actions', 0, sources.train[0], 0), Draw('actions of arm_alone', 0, other[0], 1)]
    batch = collator(draws).batch
    assert batch.action_mask_BHA[0].all()
    assert batch.action_mask_BHA[1].all(dim=0).tolist() == [True, True, False, False]
    assert not batch.actions_BHA[1, :, 2:].any()
    assert batch.image_mask_BV.tolist() == [[True, True], [True, False]]
    ours = collator(draws[:1]).batch
    assert torch.equal(ours.actions_BHA[0], batch.actions_BHA[0]), 'the first robot is what it is without the second'

    ids = theirs.action_tokens.encode(np.zeros((config.horizon, 2)))
    assert theirs.action_tokens.decode(ids).shape == (config.horizon, 2), 'one vocabulary, columns of its own'


def test_a_run_of_two_robots_learns_from_both_goes_on_and_ships_for_the_first(
    run_of: MakeRun, small: dict[str, Any], tmp_path: Path
) -> None:
    run = run_of({'vlm': 0.0}, embodiments=[small])
    drawn: list[str] = []
    shown: dict[str, Any] = {}

    def tell(kind: str, values: dict[str, Any]) -> None:
        drawn.append(kind)
        if kind == 'begin':
            shown.update(values)

    bundle = load_bundle(train(run, tell))
    assert shown['others'] == {'arm_alone': len(open_sources(run).others[0][0])}
    assert bundle.contract.name == 'toy'
    assert set(bundle.provenance['others']) == {'arm_alone'}
    assert Run.parse(bundle.provenance['run']) == settled(run, None, bundle.contract), 'every choice is written down'
    assert train(run) is not None, 'finished: nothing is done again'
    alone = run_of({'vlm': 0.0})
    with pytest.raises(TrainingError, match='the run was begun with arm_alone and now has none'):
        train(alone)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'bags': None}, r'embodiments\[0\]\.bags and arrays are both left out; name the one that there is'),
        ({'weight': 0.0}, r'embodiments\[0\]\.weight is 0\.0; write a number above 0'),
        ({'robt': 'x'}, r"embodiments\[0\] has the unknown field 'robt'; did you mean 'robot'"),
    ],
)
def test_a_mistake_in_an_embodiment_is_named(
    run_of: MakeRun, small: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    with pytest.raises(TrainingError, match=says):
        run_of(embodiments=[small | change])


def test_robots_that_do_not_go_together_are_refused(run_of: MakeRun, small: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match='the robots are arm_alone, arm_alone; each may be there once'):
        train(run_of(embodiments=[small, small]))
    plain = yaml.safe_load(Path(small['robot']).read_text(encoding='utf-8')) | {'horizon': 9}
    Path(small['robot']).write_text(yaml.safe_dump(plain), encoding='utf-8')
    assert load_contract(small['robot']).horizon == 9
    with pytest.raises(TrainingError, match=r"chunks must have one length; the horizons are .*'arm_alone': 9"):
        train(run_of(embodiments=[small]))


def test_further_recordings_of_the_own_robot_share_its_statistics(run_of: MakeRun, arrays_folder: Path) -> None:
    run = run_of({'vlm': 0.0})
    more = run_of({'vlm': 0.0}, embodiments=[{'robot': run.robot, 'arrays': str(arrays_folder), 'weight': 2.0}])
    sources = open_sources(more)
    ((other, weight),) = sources.others
    made = begin(more, sources.train, [], others=[other])
    assert weight == 2.0
    assert made.others['toy'].action_stats == made.processor.action_stats
    assert made.others['toy'].state_stats == made.processor.state_stats
    bundle = load_bundle(train(more))
    assert set(bundle.provenance['others']) == {'toy'}
    assert train(more) is not None, 'finished: nothing is done again'


def test_another_robot_of_the_same_name_is_refused(run_of: MakeRun, arrays_folder: Path, tmp_path: Path) -> None:
    run = run_of()
    changed = yaml.safe_load(Path(run.robot).read_text(encoding='utf-8'))
    changed['sync_tolerance_s'] = 0.3
    (tmp_path / 'other.yaml').write_text(yaml.safe_dump(changed), encoding='utf-8')
    with pytest.raises(TrainingError, match='is of another toy than that of this run: the contracts differ'):
        train(run_of(embodiments=[{'robot': str(tmp_path / 'other.yaml'), 'arrays': str(arrays_folder)}]))
