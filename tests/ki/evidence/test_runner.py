"""The matrix from data to page, tiny: trained, judged at every point, and gone on with."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ki.evidence.cells import load_cells
from ki.evidence.matrix import load_plan

FIELDS = {
    'run': 'run.yaml',
    'recipes': ['ours', 'frozen'],
    'seeds': [0],
    'samples': [4, 8],
    'tasks': ['touch', 'push'],
    'scenes': 2,
    'curve_scenes': 1,
    'heldout_scenes': 1,
    'questions': 4,
    'execute_steps': 25,
    'image_size': 16,
}


def tiny_matrix(folder: Path, steps: int = 2, **fields: Any) -> Path:
    """A matrix of tiny runs, with moments of its own that `ki evidence run` makes first."""
    data = folder / 'data'
    made = {'out': str(data), 'tasks': ['touch', 'push'], 'episodes': 0, 'moments': 30, 'scenes': 3, 'held_scenes': 2}
    words = {f'vlm{held}': [str(data / f'vqa/{name}.jsonl')] for held, name in (('', 'train'), ('_held', 'heldout'))}
    run = {
        'preset': 'tiny',
        'simulate': {**made, 'image_size': 16, 'workers': 1},
        'data': {'arrays': str(data / 'moments'), 'validation': 0.0, **words},
        'stages': [{'steps': steps, 'batch': 4, 'vlm': 0.3, 'draws': 1, 'warmup': 1, 'kinds': ['colour', 'exists']}],
        'validate_batches': 0,
        'log_every': 1,
        'workers': 0,
        'device': 'cpu',
    }
    (folder / 'run.yaml').write_text(yaml.safe_dump(run))
    matrix = folder / 'matrix.yaml'
    matrix.write_text(yaml.safe_dump(FIELDS | fields))
    return matrix


@pytest.mark.slow
def test_a_tiny_matrix_is_run_and_gone_on_with(ki, tmp_path: Path) -> None:
    matrix = tiny_matrix(tmp_path)
    options = ('--matrix', matrix, '--out', tmp_path / 'out', '--page', tmp_path / 'page.md', '--workers', 1)
    done = ki('evidence', 'run', *options)
    assert done.returncode == 0, done.stderr
    cells = {cell.name: cell for cell in load_cells(tmp_path / 'cells', load_plan(matrix).digest)}
    assert set(cells) == {'start-0-0', *(f'{name}-0-{at}' for name in ('ours', 'frozen') for at in (4, 8))}
    assert [len(cells[f'ours-0-{at}'].episodes) for at in (4, 8)] == [2, 4]
    assert len(cells['ours-0-8'].heldout) == 1
    assert set(cells['ours-0-8'].questions['kinds']) == {'colour', 'exists'}
    assert '| `ours` | 1 |' in (tmp_path / 'page.md').read_text()

    (tmp_path / 'cells' / 'ours-0-4.json').unlink()  # as if it had been stopped there
    again = ki('evidence', 'run', *options)
    assert again.stdout.count('done') == 1
    found = {cell.name: cell for cell in load_cells(tmp_path / 'cells')}
    assert found['ours-0-4'].episodes == cells['ours-0-4'].episodes
    assert found['frozen-0-8'] == cells['frozen-0-8']


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_who_is_asked_to_stop_saves_what_it_trains_and_begins_no_other(tmp_path: Path, number: signal.Signals) -> None:
    matrix = tiny_matrix(tmp_path, questions=0, samples=[4, 4_000_000])
    out = tmp_path / 'out'
    options = ('--matrix', matrix, '--out', out, '--page', tmp_path / 'page.md', '--workers', 1)
    command = [sys.executable, '-m', 'ki.main', 'evidence', 'run', *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            end_s = time.monotonic() + 120.0
            while not (journals := list(out.glob('*/*/metrics.jsonl'))) or not journals[0].stat().st_size:
                assert time.monotonic() < end_s
                time.sleep(0.05)
            process.send_signal(number)
            said, _ = process.communicate(timeout=60.0)
        finally:
            process.kill()  # it would train for days
    assert process.returncode == 130
    assert 'the same command goes on' in said
    assert [path.name for path in out.iterdir()] == ['ours-0']
    assert list(out.glob('ours-0/*/checkpoints/*'))
