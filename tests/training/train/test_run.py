"""Configurations, typos, and data that a run must not learn from: one sentence each."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_common.errors import KiError
from ki_robot.contract.contract import Contract
from ki_robot.transforms import save_stats
from training.doctor.trim import trimmed, write_list
from training.errors import TrainingError
from training.fit.stats import compute_stats
from training.index.index import index_bags
from training.index.simulator_arrays import index_arrays
from training.samples.dataset import EpisodeDataset
from training.train.config import Run, Stage
from training.train.run import _parts, open_sources, train
from training.train.schedule import rate_at

MakeRun = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[3]


def test_the_rate_rises_then_falls_to_its_end() -> None:
    stage = Stage(steps=100, warmup=10, final_rate=0.1)
    rates = [rate_at(step, stage) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_no_side_of_the_split_may_be_empty(run_of: MakeRun, arrays_folder: Path) -> None:
    run = run_of()
    with pytest.raises(TrainingError, match='holds no episode with outcome failure'):
        open_sources(run.replace(data=run.data.replace(outcomes=('failure',))))
    for path in sorted(arrays_folder.glob('*.npz'))[1:]:
        path.unlink()
    sources = open_sources(run)
    assert sources.held is None, 'one episode cannot be split: all of it is trained on'


def test_a_trimmed_run_takes_the_steps_of_its_list_on_both_sides(run_of: MakeRun, tmp_path: Path) -> None:
    run = run_of()
    whole = open_sources(run)
    assert whole.held is not None
    made = trimmed(whole.index, ())
    short = made.replace(episodes=tuple(each.replace(first=2, end=7) for each in made.episodes))
    write_list(tmp_path / 'kept.yaml', short)
    sources = open_sources(run.replace(data=run.data.replace(trim=str(tmp_path / 'kept.yaml'))))
    for side in (sources.train, sources.held):
        assert side is not None
        assert set(side.starts()[:, 1].tolist()) <= set(range(2, 7))
    one = short.replace(episodes=[each for each in short.episodes if each.recording == _recording_of(whole.train)])
    write_list(tmp_path / 'kept.yaml', one)
    assert open_sources(run.replace(data=run.data.replace(trim=str(tmp_path / 'kept.yaml')))).held is None


def _recording_of(data: EpisodeDataset) -> str:
    return data.index.episodes[data.episode_numbers[0]][0].path


def test_failures_that_do_not_take_part_are_no_side_of_the_split(run_of: MakeRun, arrays_folder: Path) -> None:
    run = run_of()
    wrong = open_sources(run).held
    assert wrong is not None
    held = wrong.index.episodes[wrong.episode_numbers[0]][0].path
    arrays = dict(np.load(held))
    np.savez(held, **{**arrays, 'meta': np.array('{"instruction": "lift the red cup", "success": false}')})
    sources = open_sources(run)
    assert sources.held is not None
    assert {about.outcome for _, about in sources.index.episodes} == {'success', 'failure'}
    assert len(sources.train.episode_numbers) == len(sources.held.episode_numbers) == 1


def test_recordings_and_statistics_of_another_robot_are_refused(
    run_of: MakeRun, arrays_folder: Path, toy: Contract, tmp_path: Path
) -> None:
    run = run_of()
    with pytest.raises(TrainingError, match='of another robot'):
        open_sources(run.replace(robot='bimanual_mobile'))
    stats = compute_stats(EpisodeDataset(index_arrays(arrays_folder, toy, arrays_folder / 'index')))
    wrong = {name: replace(each, names=tuple(f'other_{n}' for n in each.names)) for name, each in stats.items()}
    save_stats(tmp_path / 'stats.json', wrong)
    with pytest.raises(TrainingError, match=r'stats\.json.*another robot than toy'):
        train(run.replace(stats=str(tmp_path / 'stats.json')))


def test_stages_that_need_different_models_are_refused(run_of: MakeRun) -> None:
    stages = [{'name': 'one', 'recipe': 'ours', 'steps': 1}, {'name': 'two', 'recipe': 'oft', 'steps': 1}]
    with pytest.raises(TrainingError, match='ours, oft need models of different structure'):
        train(run_of(stages=stages))


def test_bags_and_arrays_train_alike(
    run_of: MakeRun, make_bag: Callable[..., Path], toy: Contract, tmp_path: Path
) -> None:
    for number in range(2):
        make_bag(f'bag{number}', seconds=1.5)
    index_bags(tmp_path / 'bags', toy, tmp_path / 'bags' / 'index')
    run = run_of({'steps': 2, 'vlm': 0}, data={'bags': str(tmp_path / 'bags'), 'validation': 0.0})
    assert train(run) is not None


def test_damaged_arrays_are_counted_and_never_end_a_run(arrays_folder: Path, toy: Contract) -> None:
    (arrays_folder / 'demo-000001.npz').write_bytes(b'PK\x03\x04 nothing')
    index = index_arrays(arrays_folder, toy, arrays_folder / 'index')
    assert len(index.episodes) == 2
    assert 'is no recording of the simulator' in next(iter(index.problems)).text
    again = index_arrays(arrays_folder, toy, arrays_folder / 'index')
    assert again.hash == index.hash


def test_training_from_arrays_needs_no_bag_reader(run_of: MakeRun, tmp_path: Path) -> None:
    import yaml

    (tmp_path / 'run.yaml').write_text(yaml.safe_dump(run_of({'steps': 1}).to_dict()))
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('rosbags', 'mcap', 'rclpy', 'matplotlib', 'tensorboard', 'typer', 'rich'):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import torch
torch.set_num_threads(1)
from training.train.config import load_run
from training.train.run import train
print(train(load_run({str(tmp_path / 'run.yaml')!r})))
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_run_has_a_sensible_shape_without_a_word() -> None:
    run = Run.parse({'data': {'bags': 'somewhere'}})
    assert isinstance(run, Run)
    assert run.stages[0].recipe == 'ours'
    with pytest.raises(KiError, match='somewhere does not exist'):
        train(run)


def test_a_stage_may_draw_only_some_kinds_of_words(run_of: MakeRun) -> None:
    run = run_of({'kinds': ['box']})
    sources = open_sources(run)
    parts = {part.name: part.source for part in _parts(run.stages[0], sources)}
    assert {parts['vlm'][i].kind for i in range(len(parts['vlm']))} == {'box'}
    assert len(sources.vlm) == 5, 'the tokenizer still reads them all'
    with pytest.raises(TrainingError, match='no usable sample'):
        _parts(run_of({'kinds': ['smell']}).stages[0], sources)


def test_a_stage_may_draw_the_starts_of_episodes_more_often(run_of: MakeRun) -> None:
    run = run_of({'actions': 0.25, 'vlm': 0.0, 'starts': 0.75})
    sources = open_sources(run.replace(data=run.data.replace(start_steps=5)))
    parts = _parts(run.stages[0], sources)
    assert [(part.name, part.weight) for part in parts] == [('actions', 0.25), ('starts', 0.75)]
    starts = parts[1].source
    assert {int(step) for _, step in starts.starts()} == set(range(5))
    assert starts.episode_numbers == sources.train.episode_numbers
    assert open_sources(run_of()).starts is None
    with pytest.raises(TrainingError, match='actions, starts and vlm are all 0'):
        run_of({'actions': 0.0, 'vlm': 0.0})


def test_what_of_the_data_is_not_used_is_counted_and_shown(
    run_of: MakeRun, words_file: Path, arrays_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ki.commands.train import fit

    (words_file.parent / 'bad.jpg').write_bytes(b'no picture')
    picture = '"prompt": "what is it?", "answer": "a cup"'
    lines = ['nonsense', f'{{"image": "bad.jpg", {picture}}}', f'{{"image": "0.jpg", {picture[:-1]}{" and" * 900}"}}']
    lines.append(f'{{"image": ["0.jpg", "1.jpg", "2.jpg"], {picture}}}')
    words_file.write_text(words_file.read_text() + '\n'.join(lines) + '\n')
    (arrays_folder / 'demo-000002.npz').write_bytes(b'PK nothing')
    assert fit(run_of({'steps': 1, 'batch': 8})) is not None
    said = capsys.readouterr().out
    begin, _, end = said.partition('step 1')
    for kind, count, first in (
        ('refused', 1, 'demo-000002.npz is no recording'), ('bad_line', 2, 'train.jsonl: line 6 cannot be used'),
        ('does_not_fit', 4, 'train.jsonl: line 8 does not fit the model: an answer of'),
    ):  # fmt: skip
        [row] = [line.split(None, 2) for line in begin.splitlines() if line.startswith(f' {kind}')]
        assert row[1] == str(count), row
        assert first in row[2]
    assert 'undecodable' in end


def test_a_run_that_is_done_leaves_its_bundle_and_exports_alone(run_of: MakeRun) -> None:
    run = run_of({'steps': 1})
    bundle = train(run)
    (bundle / 'onnx').mkdir()
    (bundle / 'onnx' / 'made.json').write_text('{}')
    told: list[Any] = []
    assert train(run, lambda kind, values: told.append((kind, values.get('written')))) == bundle
    assert ('bundle', False) in told
    assert (bundle / 'onnx' / 'made.json').is_file()
    train(run.replace(name='other'), lambda kind, values: told.append((kind, values.get('written'))))
    assert ('bundle', True) in told, 'a bundle that is not this policy is written'


def test_a_run_without_a_terminal_writes_lines(run_of: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    from ki.commands.train import fit

    run = run_of(log_every=2)
    assert fit(run) is not None
    lines = capsys.readouterr().out.splitlines()
    assert any(line == f'vla: {run.stages[0].steps} steps' for line in lines), lines
    assert [line.split(':')[0] for line in lines if line.startswith('  step ') and 'samples/s' in line] == [
        '  step 2', '  step 4', '  step 6',
    ]  # fmt: skip


def test_words_that_no_training_head_knows_are_refused_before_the_first_step(run_of: MakeRun, words_file: Path) -> None:
    lines = words_file.read_text().splitlines()
    seen = ', "things": [{"colour": "teal", "x": 0.5, "y": 0.5}]}'
    words_file.write_text('\n'.join([lines[0][:-1] + seen, *lines[1:]]) + '\n')
    for labels, says in (
        ({'colour': ['red']}, r'labels\.colour is red; the data also say teal: add it'),
        ({'colour': ['teal'], 'kind': ['cup']}, r'labels has kind, and no data say it of things \(colour they do\)'),
    ):
        with pytest.raises(TrainingError, match=says):
            train(run_of({'steps': 1}, model={'dense': {'labels': labels}}))
    assert train(run_of({'steps': 1}, model={'dense': {'labels': {'colour': ['teal', 'red']}}})) is not None
