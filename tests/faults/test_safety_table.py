"""SAFETY.md and the tests beside this file name the same faults."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_every_row_has_its_test_and_every_test_its_row():
    text = (HERE.parents[1] / 'SAFETY.md').read_text()
    rows = re.findall(r'^\|.*\| `(\w+)` \|$', text, re.MULTILINE)
    files = {path.stem.removeprefix('test_') for path in HERE.glob('test_*.py')} - {'safety_table'}
    assert len(rows) == len(set(rows))
    assert set(rows) == files
