"""Evaluation tells a policy that learned from one that did not, and says what it looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.errors import TrainingError
from training.evaluate.held_out import HeldOutSettings, _is_right, draw_report, evaluate, open_policy
from training.samples.vlm_data import VlmDataset
from training.train.run import train, unseen

MakeRun = Callable[..., Any]
FEW = HeldOutSettings(samples=8, questions=5, batch=4)


@pytest.fixture
def two_instructions(arrays_folder: Path) -> None:
    """The second half of the recordings asks for, and does, something else."""
    for path in sorted(arrays_folder.glob('*.npz'))[1:]:
        arrays = dict(np.load(path))
        arrays['meta'] = np.array('{"instruction": "open the hand", "success": true}')
        arrays['action'] = np.tile(np.float32([0.5, -0.5, 0.07, 0.0]), (len(arrays['action']), 1))
        np.savez(path, **arrays)


@pytest.mark.slow
@pytest.mark.usefixtures('two_instructions')
def test_what_is_learned_by_heart_shows_in_every_figure(run_of: MakeRun, words_file: Path, tmp_path: Path) -> None:
    still = {'crop': 1.0, 'rotate': 0.0, 'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0}
    stage = {'steps': 150, 'batch': 12, 'rate': 6e-3, 'warmup': 5, 'draws': 4, 'ema': 0.0, 'vlm': 0.6}
    run = run_of(stage, augment=still, save_every=1000, validate_every=1000, log_every=50)
    run = run.replace(data=run.data.replace(validation=0.0))
    bundle = open_policy(train(run).parent)
    data, note = unseen(bundle, Path(run.data.arrays), every=True)
    assert note.endswith('which it was trained on')
    report = evaluate(bundle, data, VlmDataset([words_file]), FEW)

    fresh = run_of(stage | {'steps': 1}, augment=still, out=str(tmp_path / 'fresh'))
    other = evaluate(open_policy(train(fresh)), data, VlmDataset([words_file]), FEW)
    for name in ('fast', 'flow'):
        assert report['losses'][name] < 0.6 * other['losses'][name]
    assert report['token_accuracy']['fast'] > other['token_accuracy']['fast'] + 0.1
    assert report['actions']['rms'] < 0.7 * other['actions']['rms']
    assert len(report['actions']['by_step']) == bundle.config.horizon
    assert set(report['actions']['by_column_si']) == set(bundle.contract.action_names)
    assert report['language']['loss_swapped'] > report['language']['loss_right']
    assert report['questions']['accuracy'] > 0.5 > other['questions']['accuracy']

    path = draw_report(report, tmp_path / 'report.png')
    assert path is not None
    assert path.stat().st_size > 5_000
    json.dumps(report, allow_nan=False)


def test_only_episodes_that_were_held_out_are_looked_at(run_of: MakeRun, tmp_path: Path) -> None:
    run = run_of({'steps': 1})
    bundle = open_policy(train(run))
    data, note = unseen(bundle, Path(run.data.arrays))
    assert note.startswith('1 held-out episodes')
    assert len(data.episode_numbers) == 1

    made = dict(np.load(Path(run.data.arrays) / 'demo-000000.npz'))
    np.savez(Path(run.data.arrays) / 'demo-000009.npz', **{**made, 'state': made['state'] + np.float32(0.01)})
    data, note = unseen(bundle, Path(run.data.arrays))
    assert note.startswith('1 held-out and 1 new episodes'), 'an episode more does not make the others unseen'
    assert len(data.episode_numbers) == 2
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (Path(run.data.arrays) / 'demo-000009.npz').rename(elsewhere / 'demo-000009.npz')
    assert unseen(bundle, elsewhere)[1] == f'all 1 episodes of {elsewhere}'
    del bundle.provenance['recordings']  # as bundles were that name the whole of their data alone
    assert unseen(bundle, Path(run.data.arrays))[1].startswith('1 held-out episodes')
    assert unseen(bundle, elsewhere)[1].endswith('nothing says whether it was trained on some of them')

    none = run_of({'steps': 1}, data={'arrays': run.data.arrays, 'validation': 0.0, 'vlm': list(run.data.vlm)})
    none = none.replace(out=str(tmp_path / 'none'))
    with pytest.raises(TrainingError, match='was trained on all of it'):
        unseen(open_policy(train(none)), Path(run.data.arrays))


def test_the_questions_are_those_that_the_run_held_out(
    run_of: MakeRun, words_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ki.support.eval_data import run as evaluate_files
    from ki.support.eval_data import show

    held = tmp_path / 'held.jsonl'
    held.write_text(words_file.read_text().replace('"image": "', '"image": "words/'), encoding='utf-8')
    run = run_of({'steps': 1})
    run = run.replace(data=run.data.replace(vlm_held=(str(held),)))
    policy = train(run)
    report = evaluate_files(policy, Path(run.data.arrays), [], False, FEW, tmp_path / 'out')
    assert report['words'] == f'held-out questions of {held}'
    assert {kind: row['asked'] for kind, row in report['questions']['kinds'].items()} == {'colour': 4, 'box': 1}
    assert json.loads((tmp_path / 'out' / 'data.json').read_text())['questions'] == report['questions']
    show(report, tmp_path / 'out')
    said = capsys.readouterr().out
    assert f'held-out questions of {held}' in said
    assert 'of tokens right' in said
    assert '% of 4' in said

    known = evaluate_files(policy, None, [words_file], False, FEW, tmp_path / 'out')
    assert known['words'].endswith('which it was trained on')
    held.unlink()
    with pytest.raises(TrainingError, match='the questions that its run held out are not here'):
        evaluate_files(policy, None, [], False, FEW, tmp_path / 'out')


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert HeldOutSettings(device='auto').device == 'cpu'
    for device, says in (('cuda', 'torch sees no GPU; write cpu or auto'), ('gpu', "device: 'gpu' is unknown")):
        with pytest.raises(TrainingError, match=says):
            HeldOutSettings(device=device)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match='holds no bundle'):
        open_policy(tmp_path)


def test_answers_are_right_word_for_word_and_boxes_by_overlap() -> None:
    assert _is_right('red', 'red', 64)
    assert not _is_right('dark red', 'red', 64)
    box = '<loc0010><loc0010><loc0030><loc0030> cup'
    assert _is_right('<loc0012><loc0010><loc0030><loc0030> cup', box, 64)
    assert not _is_right('<loc0040><loc0040><loc0050><loc0050> cup', box, 64)
    assert not _is_right('cup', box, 64)
