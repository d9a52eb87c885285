"""The matrix from data to page, tiny: trained, judged at every point, and gone on with."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.slow
def test_a_tiny_matrix_is_run_and_gone_on_with(ki, tmp_path: Path) -> None:
    data = tmp_path / 'data'
    made = {'out': str(data), 'tasks': ['touch', 'push'], 'episodes': 0, 'moments': 30, 'scenes': 3, 'held_scenes': 2}
    words = {f'vlm{held}': [str(data / f'vqa/{name}.jsonl')] for held, name in (('', 'train'), ('_held', 'heldout'))}
    run = {
        'preset': 'tiny',
        'simulate': {**made, 'image_size': 16, 'workers': 1},
        'data': {'arrays': str(data / 'moments'), 'validation': 0.0, **words},
        'stages': [{'steps': 2, 'batch': 4, 'vlm': 0.3, 'draws': 1, 'warmup': 1, 'kinds': ['colour', 'exists']}],
        'validate_batches': 0,
        'workers': 0,
        'device': 'cpu',
    }
    (tmp_path / 'run.yaml').write_text(yaml.safe_dump(run))
    matrix = tmp_path / 'matrix.yaml'
    matrix.write_text(yaml.safe_dump(FIELDS))
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
