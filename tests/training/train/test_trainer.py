"""A run is the same run whatever happens to it: stopped, cut into micro-batches, fed with nonsense."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ki_robot.transforms import load_stats, save_stats
from ki_vla.objective.recipes import RECIPES
from ki_vla.policy.bundle import load_bundle
from ki_vla.policy.serving import Serving
from training.errors import TrainingError
from training.fit.fitted_artifacts import digests
from training.train import trainer
from training.train.checkpoint import checkpoints, read_checkpoint, shipped_weights
from training.train.config import Stage
from training.train.run import train
from training.train.run_report import CURVES, read_metrics
from training.train.ship import trained_parts
from training.train.trainer import Trainer

MakeRun = Callable[..., Any]


def weights(out: str, stage: str = 'vla') -> dict[str, torch.Tensor]:
    return read_checkpoint(checkpoints(Path(out) / stage / 'checkpoints')[-1]).weights


def test_six_steps_are_three_and_three_more_to_the_last_bit(run_of: MakeRun, tmp_path: Path) -> None:
    whole = run_of(out=str(tmp_path / 'whole'))
    assert train(whole) == tmp_path / 'whole' / 'bundle'

    halves = run_of(out=str(tmp_path / 'halves'))

    def stop_at_three(kind: str, values: dict[str, Any]) -> None:
        if kind == 'step' and values['step'] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert train(halves, stop_at_three) is None
    assert signal.getsignal(signal.SIGTERM) is before
    stopped = checkpoints(tmp_path / 'halves' / 'vla' / 'checkpoints')
    assert stopped[-1].name == '00000003', 'SIGTERM ends the run after the step in hand, with a checkpoint'
    assert train(halves) is not None

    ours, theirs = (read_checkpoint(checkpoints(tmp_path / n / 'vla' / 'checkpoints')[-1]) for n in ('whole', 'halves'))
    assert ours.step == theirs.step == 6
    assert ours.state['sampler'] == theirs.state['sampler']
    assert ours.average is not None
    assert theirs.average is not None
    for name in ours.weights:
        assert torch.equal(ours.weights[name], theirs.weights[name]), name
        assert torch.equal(ours.average[name], theirs.average[name]), name
    a, b = ours.optimiser['optimiser']['state'], theirs.optimiser['optimiser']['state']
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n]['exp_avg_sq'], b[n]['exp_avg_sq']) for n in a)
    lines = [
        [{k: v for k, v in line.items() if k not in ('samples_per_s', 'waiting')} for line in read_metrics(folder)]
        for folder in (tmp_path / 'whole' / 'vla', tmp_path / 'halves' / 'vla')
    ]
    assert lines[0] == lines[1]


def test_speed_is_that_of_the_steps_also_where_a_validation_lies_between(
    run_of: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    step, validation = Trainer.one_step, Trainer.validation

    def passes(seconds: float, what: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any) -> Any:
            clock[0] += seconds
            return what(*given)

        return done

    monkeypatch.setattr(trainer, 'time', SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Trainer, 'one_step', passes(1.0, step))
    monkeypatch.setattr(Trainer, 'validation', passes(100.0, validation))
    run = run_of(log_every=2, validate_every=3)
    assert train(run) is not None
    lines = [line for line in read_metrics(Path(run.out) / 'vla') if line['kind'] == 'train']
    assert [line['samples_per_s'] for line in lines[1:]] == [run.stages[0].batch] * 2


def test_a_run_ends_with_a_bundle_of_the_averaged_weights_curves_and_its_origin(run_of: MakeRun) -> None:
    run = run_of()
    told: list[str] = []
    bundle = load_bundle(train(run, lambda kind, values: told.append(kind)))
    out = Path(run.out)
    shipped = shipped_weights(checkpoints(out / 'vla' / 'checkpoints')[-1])
    model = bundle.model()
    assert all(torch.equal(value, shipped[name]) for name, value in model.state_dict().items())
    assert bundle.provenance['steps'] == {'vla': 6}
    assert 'expert' in bundle.trained_parts
    bundle.check_trained()
    assert (out / 'vla' / CURVES).is_file()
    assert (out / 'config.yaml').is_file()
    assert {'begin', 'step', 'validation', 'saved', 'bundle'} <= set(told)
    kinds = {line['kind'] for line in read_metrics(out / 'vla')}
    assert kinds == {'train', 'validation'}

    told.clear()
    train(run, lambda kind, values: told.append(kind))
    assert 'step' not in told, 'what is finished is not trained again'


def test_delays_are_trained_by_whole_tokens(run_of: MakeRun) -> None:
    run = run_of({'steps': 1, 'max_delay': 3}).replace(model={'steps_per_token': 4})
    bundle = load_bundle(train(run))
    assert bundle.config.action_tokens == bundle.config.horizon // 4
    assert bundle.serving.max_delay == 3
    assert bundle.serving.mode == 'rtc'


def test_a_bundle_says_which_delay_it_was_trained_for_and_whether_its_head_was_trained(run_of: MakeRun) -> None:
    run = run_of({'steps': 1, 'max_delay': 3})
    assert load_bundle(train(run)).serving == Serving(mode='rtc', execute_steps=4, max_delay=3)
    words = run.stages[0].replace(name='words', recipe='pi05_first', max_delay=0)
    first = run.replace(out=run.out + '_first', stages=(words,))
    bundle = load_bundle(train(first))
    assert bundle.trained_parts == ('backbone', 'embed', 'projector', 'vision')
    assert bundle.serving.max_delay == 0
    after = run.replace(out=run.out + '_after', start=str(bundle.folder), stages=(words.replace(recipe='frozen'),))
    assert trained_parts(after, bundle.config) == ['backbone', 'embed', 'expert', 'projector', 'vision']


def test_a_stage_of_sight_learns_what_pictures_show_and_leaves_the_actions_alone(
    run_of: MakeRun, words_file: Path
) -> None:
    thing = '{"image": "0.jpg", "answer": "a cup", "things": [{"colour": "red", "x": 0.5, "y": 0.5}]}'
    words_file.write_text(f'{words_file.read_text()}{thing}\n')
    run = run_of(
        {'steps': 3, 'sight': True, 'vlm': 1}, model={'dense': {'labels': {'colour': ['red', 'blue']}}}, log_every=1
    )
    bundle = load_bundle(train(run))
    assert bundle.trained_parts == ('backbone', 'embed', 'projector', 'vision')
    lines = [line for line in read_metrics(Path(run.out) / 'vla') if line['kind'] == 'train']
    assert len(lines) == 3
    assert not any({'flow', 'fast'} & set(line) for line in lines)
    with pytest.raises(TrainingError, match='stage vla: sight needs labels to learn'):
        train(run_of({'steps': 1, 'sight': True}, out=run.out + '_blind'))
    frozen = {'steps': 1, 'sight': True, 'vlm': 1, 'recipe': 'frozen'}
    with pytest.raises(TrainingError, match='stage vla: sight needs a recipe that trains the eyes'):
        train(run_of(frozen, model={'dense': {'labels': {'colour': ['red', 'blue']}}}, out=run.out + '_frozen'))


@pytest.mark.parametrize('name', sorted(name for name, each in RECIPES.items() if not each.frozen))
def test_sight_can_begin_every_recipe_that_trains_the_eyes(name: str) -> None:
    trained = Stage(recipe=name, sight=True).trains
    assert trained.sees
    assert trained.token_loss, 'words are heard, so that the pointer has something to read'
    assert not trained.action_loss


def test_micro_batches_give_the_step_of_the_whole_batch(run_of: MakeRun, tmp_path: Path) -> None:
    for name, accumulate in (('one', 1), ('two', 2)):
        train(run_of({'accumulate': accumulate, 'steps': 3}, out=str(tmp_path / name)))
    one, two = weights(str(tmp_path / 'one')), weights(str(tmp_path / 'two'))
    for name in one:
        # Adam divides by the size of the gradient, so rounding shows where gradients are nearly nothing.
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=3e-4)
    first = [read_metrics(tmp_path / name / 'vla')[0] for name in ('one', 'two')]
    for loss in ('text', 'fast', 'flow'):
        assert first[0][loss] == pytest.approx(first[1][loss], rel=1e-5)


def test_workers_draw_what_no_workers_draw(run_of: MakeRun, tmp_path: Path) -> None:
    for name, workers in (('none', 0), ('three', 3)):
        train(run_of({'steps': 2}, workers=workers, out=str(tmp_path / name)))
    none, three = weights(str(tmp_path / 'none')), weights(str(tmp_path / 'three'))
    assert all(torch.equal(none[name], three[name]) for name in none)


def test_a_loss_that_is_not_finite_is_skipped_counted_and_leaves_no_trace(
    run_of: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.train.trainer import Trainer

    real, seen = Trainer._losses, []

    def poisoned(self: Trainer, packet: Any, index: int) -> Any:
        if self.step == 1:
            packet.batch.actions_BHA.fill_(float('nan'))
            seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        elif self.step == 2:
            seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return real(self, packet, index)

    monkeypatch.setattr(Trainer, '_losses', poisoned)
    run = run_of({'steps': 3})
    warnings = []
    train(run, lambda kind, values: warnings.append(values) if kind == 'warning' else None)
    assert len(warnings) == 1
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0]), 'the poisoned step changed weights'
    assert all(torch.isfinite(value).all() for value in weights(run.out).values())
    assert read_metrics(Path(run.out) / 'vla')[-2]['skipped'] == 1.0


def test_too_many_steps_without_a_finite_loss_end_the_run_without_a_checkpoint(run_of: MakeRun) -> None:
    run = run_of({'rate': 1e30, 'warmup': 0, 'ema': 0.0, 'steps': 40}, max_skips=3, save_every=100, validate_every=100)
    with pytest.raises(TrainingError, match=r'3 steps in a row gave no finite loss.*lower stage\.rate'):
        train(run)
    assert not checkpoints(Path(run.out) / 'vla' / 'checkpoints')


def test_stages_follow_each_other_and_the_second_starts_from_the_first(run_of: MakeRun) -> None:
    base = {'batch': 4, 'draws': 1, 'warmup': 1, 'ema': 0.0}
    stages = [
        {'name': 'vlm', 'recipe': 'pi05_first', 'steps': 2, 'actions': 0, 'vlm': 1, **base},
        {'name': 'vla', 'recipe': 'frozen', 'steps': 2, 'actions': 1, 'vlm': 0, **base},
    ]
    run = run_of(stages=stages)
    train(run)
    vlm, vla = weights(run.out, 'vlm'), weights(run.out, 'vla')
    assert all(torch.equal(vlm[name], vla[name]) for name in vlm if not name.startswith('expert.'))
    assert any(not torch.equal(vlm[name], vla[name]) for name in vlm if name.startswith('expert.'))


@pytest.mark.parametrize('name', sorted(set(RECIPES) - {'pi05_first'}))
def test_every_recipe_trains_and_its_loss_falls(name: str, run_of: MakeRun) -> None:
    stage = {'recipe': name, 'steps': 8, 'vlm': 0.5, 'draws': 1, 'rate': 3e-3, 'warmup': 1, 'actions': 1}
    run = run_of(stage, save_every=100, validate_every=100, log_every=1)
    train(run)
    lines = [line for line in read_metrics(Path(run.out) / 'vla') if line['kind'] == 'train']
    parts = ('flow',) if name == 'deaf_first' else ('fast', 'flow')  # its tokens come in later
    totals = [sum(line.get(part, 0.0) for part in parts) for line in lines]
    assert np.mean(totals[-3:]) < np.mean(totals[:2]), totals


def test_a_checkpoint_of_another_run_is_refused_by_field(run_of: MakeRun) -> None:
    train(run_of({'steps': 2}))
    with pytest.raises(TrainingError, match=r'another run: stage\.rate is 0\.001 there and 0\.002 here'):
        train(run_of({'steps': 2, 'rate': 2e-3}))
    with pytest.raises(TrainingError, match=r'another run: model\.backbone\.width is 64 there and 32 here'):
        train(run_of({'steps': 2}, model={'backbone': {'width': 32}}))
    with pytest.raises(TrainingError, match=r"another run: processing\.pad_steps is 'mask' there and 'keep' here"):
        train(run_of({'steps': 2}, pad_steps='keep'))


def test_a_batch_that_cannot_be_shared_is_refused(run_of: MakeRun) -> None:
    with pytest.raises(TrainingError, match='batch is 4; write a multiple of accumulate, 3'):
        run_of({'accumulate': 3})


def test_a_run_goes_on_with_the_vocabulary_it_was_begun_with(run_of: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    train(run_of({'steps': 2}))
    before = load_bundle(Path(run_of().out) / 'bundle').processor
    for name in ('compute_stats', 'train_tokenizer', 'fit_fast'):
        monkeypatch.setattr(f'training.fit.initial_policy.{name}', lambda *given, **named: pytest.fail('fitted again'))
    checkpoint = checkpoints(Path(run_of().out) / 'vla' / 'checkpoints')[-1]
    state = json.loads((checkpoint / 'state.json').read_text())
    train(run_of({'steps': 2}))
    after = load_bundle(Path(run_of().out) / 'bundle').processor
    assert digests(after) == digests(before) == state['identity']['parts']
    assert after.config == before.config


def test_other_words_other_parts_and_another_choice_of_samples_are_refused_by_field(
    run_of: MakeRun, words_file: Path
) -> None:
    run = run_of({'steps': 2})
    train(run)
    lines = words_file.read_text()
    words_file.write_text(lines.replace('"red"', '"crimson"'))
    with pytest.raises(TrainingError, match=r'another run: data\.vlm is'):
        train(run)
    words_file.write_text(lines)
    with pytest.raises(TrainingError, match=r'another run: data\.stride is 1 there and 2 here'):
        train(run.replace(data=run.data.replace(stride=2)))
    wider = load_stats(Path(run.out) / 'parts' / 'stats.json')
    wider['state'] = replace(wider['state'], q99=wider['state'].q99 + 1.0)
    save_stats(words_file.parent / 'stats.json', wider)
    with pytest.raises(TrainingError, match=r'another run: parts\.statistics is'):
        train(run.replace(stats=str(words_file.parent / 'stats.json')))
    (Path(run.out) / 'parts' / 'tokenizer' / 'tokenizer.json').unlink()
    with pytest.raises(TrainingError, match=r'parts is damaged .*take it from a copy'):
        train(run)
