"""The benchmark of the first run goes on where it was, and counts what the reports say. No demonstration is run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ki_common.errors import KiError

NUMBERS = {
    'outcomes': [
        {'success': True, 'speed': 1.0, 'error': ''},
        {'success': False, 'speed': 0.5, 'error': 'late'},
    ],
    'episodes': [
        {'executor_lateness_p99_ms': 3.0, 'chunk_age_ms': {'p50': 100.0}},
        {'executor_lateness_p99_ms': None, 'chunk_age_ms': {}},
    ],
}


@pytest.fixture
def program(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(root / 'benchmarks')
    return importlib.import_module('first_run')


def test_only_what_is_missing_is_run_and_every_run_is_kept(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'first_run.json'
    given: list[Any] = []

    def run(arguments: Any) -> dict[str, Any]:
        given.append(arguments)
        if len(given) == 2:
            raise KeyboardInterrupt
        return {'status': 0, 'seconds': 60.0} | program.said(NUMBERS, True)

    monkeypatch.setattr(program, 'first_run', run)
    call = ['--runs', '3', '--conditions', 'idle', '--out', str(out), '--demo', '--expert']
    with pytest.raises(KeyboardInterrupt):
        program.main(call)
    assert len(json.loads(out.read_text())['runs']['idle']) == 1
    assert program.main(call) == 0
    assert given == [['--expert']] * 4
    found = json.loads(out.read_text())['summary']['idle']
    assert (found['runs'], found['with_report'], found['stepped']) == (3, 3, 3)
    assert (found['success']['k'], found['success']['n']) == (3, 6)
    assert found['lateness_p99_ms'] == {'median': 3.0, 'max': 3.0}
    with pytest.raises(KiError, match='holds runs with --demo --expert; give another --out'):
        program.main(['--out', str(out)])


def test_a_demonstration_without_a_report_counts_as_none(program: ModuleType) -> None:
    runs = [{'status': 2, 'seconds': 9.0} | program.said({}, False)]
    found = program.summary(runs)
    assert (found['with_report'], found['success']['n'], found['lateness_p99_ms']) == (0, 0, {})


def test_without_the_program_that_loads_the_machine_one_sentence_says_how_to_get_it(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('PATH', '')
    with pytest.raises(KiError, match='apt-get install stress-ng'), program.beside('loaded'):
        pass
