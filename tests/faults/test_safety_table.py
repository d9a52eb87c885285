"""SAFETY.md and the tests beside this file name the same faults, and every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECTIONS = {'Without DDS': ROOT / 'tests/ki_policy_node/executor', 'Doors': ROOT}  # and where their tests lie


def test_every_row_has_its_test_and_every_test_its_row():
    text = (ROOT / 'SAFETY.md').read_text()
    rows = re.findall(r'^\|.*\| `(\w+)` \|$', text, re.MULTILINE)
    files = {path.stem.removeprefix('test_') for path in HERE.glob('test_*.py')} - {'safety_table'}
    assert len(rows) == len(set(rows))
    assert set(rows) == files


def test_every_other_row_names_a_test_that_is_there():
    faults = (ROOT / 'SAFETY.md').read_text().partition('## Faults')[2]
    for section, folder in SECTIONS.items():
        [rows] = re.findall(rf'^(?:## )?{section}.*?\n\|---[^\n]*\n(.*?)\n(?:\n|\Z)', f'{faults}\n\n', re.M | re.S)
        assert rows.count('\n') > 3
        for row in rows.splitlines():
            tests = re.findall(r'`([\w/.]+)`', row.rstrip('| ').rpartition('|')[2])
            assert tests, row
            for name in tests:
                beside = HERE / f'test_{name}.py'
                assert any(path.is_file() for path in (folder / name, ROOT / name, beside)), (
                    f'{row}\n{name} is not there'
                )


def test_every_test_that_the_words_name_is_there():
    named = re.findall(r'`(tests/[\w/.]+)`', (ROOT / 'SAFETY.md').read_text().replace('test_<row>', 'test_estop'))
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]
