"""Long work says how far it is, where nobody sees a bar, too."""

from __future__ import annotations

import pytest

from ki.support.progress import progress


def test_a_log_gets_a_line_for_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress('episodes', 40) as line:
        for number in range(40):
            line.advance(number)
    out, err = capsys.readouterr()
    assert out == ''
    assert err.splitlines() == [f'episodes: {done} of 40' for done in range(4, 44, 4)]


def test_few_are_told_one_by_one_and_a_jump_once(capsys: pytest.CaptureFixture[str]) -> None:
    with progress('bags') as line:
        line.to(1, 3, '/data/one.mcap')
        line.to(3, 3, '/data/three.mcap')
    assert capsys.readouterr().err.splitlines() == ['bags: 1 of 3', 'bags: 3 of 3']


def test_what_has_no_end_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress('listening') as line:
        line.advance()
    assert capsys.readouterr().err == ''
