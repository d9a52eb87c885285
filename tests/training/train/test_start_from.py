"""A run that starts from a bundle keeps what that was, unless it says otherwise, and tells what it does otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ki_robot.transforms import Stats, scaling_of
from ki_vla.errors import VlaError
from ki_vla.policy.bundle import Bundle, load_bundle
from ki_vla.policy.model_inputs import Processing
from training.errors import TrainingError
from training.fit.initial_policy import Beginning, begin, kind_of
from training.fit.start_from import changes, kept_statistics, moving_since, settled, start_weights
from training.fit.stats import compute_stats
from training.train.config import Run, Stage, load_run
from training.train.run import open_sources, train
from training.train.ship import trained_parts

MakeRun = Callable[..., Run]
MOMENTS = ('mean', 'q01', 'q99')
FIRST = {'steps': 1, 'vlm': 0.5, 'max_delay': 2, 'draws': 1, 'ema': 0.0}


@pytest.fixture(scope='module')
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first policy stays for all tests of this file."""
    return tmp_path_factory.mktemp('shelf')


@pytest.fixture
def first(run_of: MakeRun, tmp_path: Path, shelf: Path) -> Bundle:
    """A policy of two levels with choices of its own; trained once."""
    kept = shelf / 'bundle'
    if kept.is_dir():
        return load_bundle(kept)
    run = run_of(
        FIRST, out=str(tmp_path / 'first'), subtasks=True, pad_steps='keep', flow_scale='step', normalisation='zscore'
    )
    return load_bundle(shutil.copytree(train(run), kept))


@pytest.fixture
def second(run_of: MakeRun, first: Bundle, tmp_path: Path) -> Callable[..., Run]:
    """A run from it that says nothing but its recipe."""

    def make(recipe: str = 'ours', **changes: Any) -> Run:
        stage = {'recipe': recipe, 'steps': 1, 'vlm': 0.5, 'draws': 1, 'ema': 0.0}
        given = {'start': str(first.folder), 'out': str(tmp_path / 'second'), 'preset': None, 'tokens': None}
        return run_of(stage, **(given | changes))

    return make


def begun(run: Run) -> Beginning:
    sources = open_sources(run)
    assert sources.vlm is not None
    return begin(run, sources.train, [sources.vlm])


def test_it_stays_what_it_was(second: Callable[..., Run], first: Bundle) -> None:
    told: dict[str, Any] = {}
    bundle = load_bundle(train(second(), lambda kind, values: told.update({kind: values})))
    assert bundle.processor.processing == first.processor.processing
    assert bundle.processor.processing.subtasks
    assert bundle.serving == first.serving
    assert bundle.serving.max_delay == 2
    assert bundle.config == first.config
    assert np.array_equal(bundle.processor.action_stats.q01, first.processor.action_stats.q01)
    assert bundle.processor.tokenizer.vocabulary == first.processor.tokenizer.vocabulary
    assert told['begin']['start']['changes'] == ()
    assert told['begin']['start']['fresh'] == ()


def test_what_it_does_otherwise_is_told(second: Callable[..., Run]) -> None:
    run = second(subtasks=False, stats='refit', normalisation='quantile', flow_scale='column')
    made = begun(run.replace(stages=(run.stages[0].replace(max_delay=0),)))
    assert made.taken is not None
    told = ' | '.join(made.taken.changes)
    for part in (
        'statistics are those of the data',
        'processing.subtasks is False; it was True',
        'processing.normalisation is quantile; it was zscore',
        'processing.flow_scale is column; it was step',
        'serving.max_delay is 0; it was 2',
    ):
        assert part in told
    assert 'pad_steps' not in told


def test_pictures_are_decoded_as_the_bundle_was_trained_and_reduced_in_a_run_from_nothing(
    run_of: MakeRun, second: Callable[..., Run], first: Bundle
) -> None:
    assert first.processor.processing.jpeg_decode == 'reduced'
    assert first.processor.picture_size == first.config.vision.image_size
    old = replace(first, processor=replace(first.processor, processing=Processing(subtasks=True)))
    assert settled(second(), old, first.contract).jpeg_decode == 'full'
    assert settled(second(jpeg_decode='reduced'), old, first.contract).jpeg_decode == 'reduced'
    alone = run_of(FIRST)
    assert settled(alone, None, first.contract).jpeg_decode == 'reduced'
    assert settled(alone, None, first.contract, shrunk='out/index').jpeg_decode == 'full'
    with pytest.raises(TrainingError, match=r"out/index holds pictures at the model's size.*write jpeg_decode: full"):
        settled(second(), first, first.contract, shrunk='out/index')


def test_a_run_decodes_as_the_policy_that_it_trains(second: Callable[..., Run]) -> None:
    for said, size in (('full', None), ('reduced', 32)):
        sources = open_sources(second(jpeg_decode=said))
        assert sources.vlm is not None
        made = begin(second(jpeg_decode=said), sources.train, [sources.vlm])
        sources.decode_for(made.processor, made.others)
        expected = None if size is None else made.processor.config.vision.image_size
        assert sources.train.picture_size == expected
        assert made.processor.processing.jpeg_decode == said


def test_another_structure_takes_what_fits_and_begins_the_rest_anew(second: Callable[..., Run], first: Bundle) -> None:
    made = begun(second('ours', model={'state_repr': 'both'}))
    assert made.taken is not None
    assert set(made.taken.fresh) == {
        'state_proj.weight',
        'state_proj.bias',
        'expert.state_in.weight',
        'expert.state_in.bias',
    }
    before, after = first.model().state_dict(), made.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in made.taken.taken)
    assert float(after['expert.state_in.weight'].std()) > 0
    assert 'begin anew: state_proj.weight' in made.taken.lines()[1]
    assert 'model.state_repr is both; it was text' in made.taken.changes
    assert trained_parts(made.run, made.processor.config, None, made.taken) == sorted(
        {'vision', 'projector', 'embed', 'backbone', 'expert', 'state_proj'}
    )


def test_the_state_is_told_as_before_unless_tokens_would_not_hear_of_it(
    second: Callable[..., Run], tmp_path: Path
) -> None:
    for before, said, after in (
        ({'state_repr': 'both'}, {}, 'both'),
        ({'state_repr': 'continuous'}, {'state_repr': 'both'}, 'both'),
        ({'state_repr': 'suffix'}, {}, 'text'),
        ({'state_repr': 'suffix'}, {'state_repr': 'suffix'}, 'suffix'),
    ):
        name = '-'.join([*before.values(), *said.values()])
        there = train(second(model=before, out=str(tmp_path / name), subtasks=False))
        made = begun(second(model=said, start=str(there), subtasks=False))
        assert made.processor.config.state_repr == after


def test_every_head_of_another_recipe_begins_anew_and_counts_as_untrained(second: Callable[..., Run]) -> None:
    run = second('oft', subtasks=False)
    made = begun(run)
    assert made.taken is not None
    assert all(name.startswith('expert.') for name in made.taken.fresh)
    words = run.replace(stages=(Stage(recipe='pi05_first', actions=0, vlm=1),))
    assert 'expert' not in trained_parts(words, made.processor.config, None, made.taken)


def test_the_codec_follows_the_recipe_and_stays_where_it_fits(second: Callable[..., Run], first: Bundle) -> None:
    naive = begun(second('naive'))
    assert kind_of(naive.processor.codec) == 'naive'
    assert naive.taken is not None
    assert 'the action codec is fitted anew' in naive.taken.changes
    assert naive.processor.config.max_targets >= naive.processor.codec.values
    kept = begun(second('frozen'))
    assert kept.processor.codec.to_dict() == first.processor.codec.to_dict()


def test_new_tokens_bring_a_new_embedding(second: Callable[..., Run], first: Bundle) -> None:
    made = begun(second(tokens={'text': 400, 'boxes': 32, 'actions': 256}, preset='tiny'))
    assert made.processor.tokenizer.vocabulary.loc_bins == 32
    assert made.taken is not None
    assert 'embed.weight' in made.taken.fresh
    assert 'the vocabulary is fitted anew' in made.taken.changes


def test_recordings_of_another_robot_bring_their_own_statistics(
    second: Callable[..., Run], first: Bundle, tmp_path: Path
) -> None:
    robot = yaml.safe_load((tmp_path / 'toy.yaml').read_text())
    robot['name'] = 'toy2'
    robot['cameras'][0]['kind'] = 'wrist'
    (tmp_path / 'toy2.yaml').write_text(yaml.safe_dump(robot))
    run = second(robot=str(tmp_path / 'toy2.yaml'), normalisation='quantile')
    made = begun(run)
    assert made.run.stats == 'refit'
    assert made.taken is not None
    assert made.taken.changes[0] == 'statistics are those of the data'
    with pytest.raises(VlaError, match=r'does not fit the robot toy2: cameras \(kind\)'):
        begun(run.replace(stats='keep'))


@pytest.mark.parametrize('normalisation', ['quantile', 'zscore'])
def test_a_column_that_did_not_move_before_gets_the_width_of_the_data_and_keeps_its_centre(
    second: Callable[..., Run], first: Bundle, normalisation: Any
) -> None:
    run = settled(second(normalisation=normalisation), first, first.contract)
    dataset = open_sources(run).train
    data = compute_stats(dataset)
    assert kept_statistics(run, first, dataset)['actions'] is first.processor.action_stats, 'all moved before'

    def rested(stats: Stats) -> Stats:
        """The same as if the first column had rested at 0.3."""
        assert float(stats.std[0]) > 0.01
        rest = {name: np.where(np.arange(len(stats.names)) == 0, 0.3, getattr(stats, name)) for name in MOMENTS}
        std = np.where(np.arange(len(stats.names)) == 0, 1e-4, stats.std)
        steps = {}
        if stats.step_mean_HN is not None and stats.step_std_HN is not None:
            steps = {'step_mean_HN': stats.step_mean_HN.copy(), 'step_std_HN': stats.step_std_HN.copy()}
            steps['step_mean_HN'][:, 0], steps['step_std_HN'][:, 0] = 0.3, 1e-4
        return replace(stats, **rest, **steps, std=std)

    old = {'state': rested(first.processor.state_stats), 'actions': rested(first.processor.action_stats)}
    processor = replace(first.processor, state_stats=old['state'], action_stats=old['actions'])
    start = replace(first, processor=processor)
    kept = kept_statistics(run, start, dataset)
    for part, stats in kept.items():
        before, after = (scaling_of(each[part], normalisation) for each in (old, kept))
        assert np.allclose(before.centre_N, after.centre_N, atol=1e-6)
        assert np.array_equal(before.scale_N[1:], after.scale_N[1:])
        ends = [[getattr(data[part], end)[0], *after.centre_N[1:]] for end in ('q01', 'q99')]
        assert np.abs(before.apply(np.array(ends))[:, 0]).max() > 5, 'many times what the other columns are'
        assert np.abs(after.apply(np.array(ends))[:, 0]).max() < 3
        assert stats.names[0] not in after.floored
        if part == 'actions':
            assert stats.step_std_HN is not None
            assert (stats.step_std_HN[:, 0] > 0.01).any()
            assert np.array_equal(stats.step_std_HN[:, 1:], first.processor.action_stats.step_std_HN[:, 1:])
    moving = set(moving_since(kept, start))
    assert moving == {kept['state'].names[0], kept['actions'].names[0]}
    told = changes(run, start, first.config, kept, False, False)
    assert any('as wide as the data where the old ones hardly move: ' in line for line in told)


def test_nothing_to_keep_and_nothing_that_fits_are_refused(run_of: MakeRun, first: Bundle) -> None:
    with pytest.raises(TrainingError, match='stats is keep, and start names no bundle'):
        begun(run_of(stats='keep'))
    other = first.config.changed(
        {
            'vision': {'width': 24, 'mlp': 40, 'patch_size': 8},
            'backbone': {'width': 32, 'mlp': 40},
            'expert': {'width': 24, 'mlp': 40},
        }
    )
    with pytest.raises(TrainingError, match=r'no weight of .* has the name and shape'):
        start_weights(other.replace(vocab_size=99, action_dim=9), first, 0)


def test_a_run_that_starts_from_a_bundle_can_be_stopped_and_gone_on_with(second: Callable[..., Run]) -> None:
    run = second()
    train(run)
    again: list[str] = []
    train(run, lambda kind, values: again.append(kind))
    assert 'step' not in again


def test_the_shipped_run_of_a_public_checkpoint_leaves_everything_to_it() -> None:
    run = load_run(Path(__file__).parents[3] / 'config' / 'train' / 'full_bags.yaml')
    assert run.start is not None
    assert (run.preset, run.tokens, run.stats, run.normalisation, run.subtasks) == (None,) * 5
