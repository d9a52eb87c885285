"""What `benchmarks/evidence/policy.py` says of a policy is what was played, and how long its making took."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

from ki_sim.evaluate.closed_loop import EvaluationReport, SceneOutcome

POLICY: dict[str, Any] = runpy.run_path(str(Path(__file__).resolve().parents[3] / 'benchmarks/evidence/policy.py'))


def outcome(seed: int, success: bool, followed: bool = True, goal_seed: int | None = None) -> SceneOutcome:
    goal = seed if goal_seed is None else goal_seed
    time_s = 2.0 if success else 20.0
    return SceneOutcome('touch', seed, goal, 'touch the cup', success, float(success), time_s, 'a cup', followed)


def write_reports(out: Path) -> None:
    for task, successes in (('touch', 2), ('push', 1)):
        for steps in (4, 8):
            settings = {'execute_steps': steps, 'delay_steps': 0}
            outcomes = [outcome(seed, seed < successes) for seed in range(3)]
            EvaluationReport(task, settings, outcomes).save(out / f'played/steps/{task}-steps{steps}.json')
    pair = [outcome(5, True, goal_seed=0), outcome(5, False, followed=False, goal_seed=1)]
    EvaluationReport('touch', {'execute_steps': 8, 'delay_steps': 0}, pair).save(out / 'played/paired/touch.json')
    late = {'execute_steps': 8, 'delay_steps': 2}
    EvaluationReport('touch', late, [outcome(1, True)]).save(out / 'played/delays/touch-delay2.json')


def test_every_question_is_told_by_task_and_for_all_together(tmp_path: Path) -> None:
    for name in ('steps', 'paired', 'delays'):
        (tmp_path / 'played' / name).mkdir(parents=True)
    write_reports(tmp_path)
    found = POLICY['played'](tmp_path)
    assert set(found) == {
        'every 4 steps',
        'every 8 steps',
        'every 8 steps, two instructions a scene',
        'every 8 steps, an inference takes 2 steps',
    }
    assert found['every 8 steps']['push'] == {
        'success': [1, 3],
        'followed': [3, 3],
        'pairs_followed': [0, 0],
        'time_s': 2.0,
        'failed_seeds': [[1, 1], [2, 2]],
    }
    assert found['every 4 steps']['success of all'] == [3, 6]
    assert found['every 8 steps, two instructions a scene']['pairs_followed of all'] == [0, 1]
    assert found['every 8 steps, two instructions a scene']['touch']['failed_seeds'] == [[5, 1]]


def test_a_part_is_done_once_and_its_minutes_are_told(tmp_path: Path) -> None:
    do = POLICY['do']
    do('data', ['ki', '--help'], tmp_path)
    do('data', ['ki', '--help'], tmp_path)  # it is done: nothing runs
    with pytest.raises(SystemExit, match='give another --out'):
        do('data', ['ki', 'train', 'other.yaml'], tmp_path)
    with pytest.raises(SystemExit):
        do('train', ['ki', 'nonsense'], tmp_path)
    do('train', ['ki', '--help'], tmp_path)
    begun = {'data': 100.0, 'train': 160.0}
    for name, lives in (('data', 1), ('train', 2)):
        path = tmp_path / 'timed' / f'{name}.json'
        assert json.loads(path.read_text())['lives'] == lives
        path.write_text(json.dumps(json.loads(path.read_text()) | {'begun': begun[name], 'ended': begun[name] + 200}))
    curves = tmp_path / 'acts' / 'curves.png'
    curves.parent.mkdir()
    curves.touch()
    os.utime(curves, (280.0, 280.0))
    found = POLICY['minutes'](tmp_path, ['acts'])
    told = found.pop('interrupted')
    assert 'after' in told
    assert found == {'moments and questions': 3.3, 'acts': 2.0, 'bundle': 1.3, 'sum': 6.7}
    path = tmp_path / 'timed' / 'data.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'there': True}))
    assert 'not in these minutes' in POLICY['minutes'](tmp_path, ['acts'])['data']


def test_commands_are_those_that_a_user_would_type() -> None:
    parts = POLICY['commands'](Path('config/train/demo.yaml'), 1, Path('out/demo1'), 2)
    assert ' '.join(parts['data']) == 'ki train config/train/demo.yaml --seed 1 --out out/demo1 --data-only'
    assert ' '.join(parts['train']).startswith('torchrun --nproc-per-node 2 --max-restarts 3 -m ki.main train config/')
    assert all(each[:3] == ['ki', 'eval', 'sim'] and each[3] == 'out/demo1/bundle' for each in list(parts.values())[2:])
