"""Each stage of a run and each kept checkpoint can be run as a bundle; what only training needs stays behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ki_vla.policy.bundle import load_bundle
from ki_vla.policy.serving import Serving
from training.errors import TrainingError
from training.train.checkpoint import checkpoints, shipped_weights
from training.train.run import train
from training.train.ship import bundles_of

MakeRun = Callable[..., Any]
DENSE = {'dense': {'labels': {'colour': ['red', 'blue']}}}
STAGE = {'batch': 4, 'draws': 1, 'warmup': 1, 'ema': 0.0, 'vlm': 0.5}


def test_every_stage_and_every_kept_checkpoint_is_a_bundle_without_heads_for_training(
    run_of: MakeRun, words_file: Path
) -> None:
    thing = '{"image": "0.jpg", "answer": "a cup", "things": [{"colour": "red", "x": 0.5, "y": 0.5}]}'
    words_file.write_text(f'{words_file.read_text()}{thing}\n')
    stages = [
        {'name': 'words', 'recipe': 'pi05_first', 'steps': 2, **STAGE},
        {'name': 'acts', 'recipe': 'ours', 'steps': 5, 'max_delay': 2, **STAGE},
    ]
    run = run_of(stages=stages, model=DENSE, save_every=1, keep_every=2, keep=1, validate_every=9)
    shipped = load_bundle(train(run))
    out = Path(run.out)
    assert [path.name for path in checkpoints(out / 'acts' / 'checkpoints')] == ['00000002', '00000004', '00000005']
    assert any(name.startswith('dense.') for name in shipped_weights(checkpoints(out / 'acts' / 'checkpoints')[-1]))

    last = bundles_of(out)
    assert [(each.stage, each.step, each.samples) for each in last] == [('words', 2, 8), ('acts', 5, 28)]
    words, acts = (load_bundle(each.bundle) for each in last)
    assert words.serving.decode == 'tokens'
    assert words.trained_parts == ('backbone', 'embed', 'projector', 'vision')
    words.check_trained()
    assert acts.serving == shipped.serving
    assert acts.provenance['steps'] == {'words': 2, 'acts': 5}
    ours, theirs = acts.model().state_dict(), shipped.model().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for bundle in (words, acts, shipped):
        assert bundle.config.dense is None
        assert not any(name.startswith('dense.') for name in bundle.model().state_dict())

    curve = bundles_of(out, 2, ['acts'])
    assert [each.step for each in curve] == [2, 4, 5]
    written = curve[0].bundle.stat().st_mtime_ns
    assert bundles_of(out, 2, ['acts'])[0].bundle.stat().st_mtime_ns == written, 'what is there stays'
    with pytest.raises(TrainingError, match='has no stage act; choose of words, acts'):
        bundles_of(out, stages=['act'])


def test_a_run_says_how_its_bundle_is_to_be_served(run_of: MakeRun) -> None:
    run = run_of({'steps': 1}, served={'denoise_steps': 2, 'execute_steps': 3})
    assert load_bundle(train(run)).serving == Serving(mode='latest', execute_steps=3, denoise_steps=2)
    again = run_of(
        {'steps': 1}, start=str(Path(run.out) / 'bundle'), out=f'{run.out}_again', served={'denoise_steps': 4}
    )
    assert load_bundle(train(again)).serving == Serving(mode='latest', execute_steps=3, denoise_steps=4)
    late = run_of({'steps': 1}, out=f'{run.out}_late', served={'execute_steps': 8})
    with pytest.raises(TrainingError, match=r'served\.execute_steps is 8; a chunk has 8 steps, write at most 7'):
        train(late)
    assert not (Path(late.out) / 'vla').exists(), 'before anything is trained'


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, run_of: MakeRun) -> None:
    with pytest.raises(TrainingError, match=r'is no run of `ki train`'):
        bundles_of(tmp_path)
    with pytest.raises(TrainingError, match='keep_every is 5; write a multiple of save_every, 3'):
        run_of(keep_every=5)
