"""The summary: real numbers, measured gradients, no memory."""

from __future__ import annotations

import pytest

from ki_vla import summary
from ki_vla.config import preset
from ki_vla.recipes import recipe


def test_full_is_summarised_without_memory(capsys: pytest.CaptureFixture) -> None:
    assert summary.main(['full']) == 0
    out = capsys.readouterr().out
    assert '3,353,433,872 parameters' in out
    assert 'layers  x 27' in out
    rows = {line.split()[1]: line.split('│')[4:7] for line in out.splitlines() if line.count('│') == 7}
    assert [c.strip() for c in rows['backbone']] == ['moves', 'moves', '0']
    assert [c.strip() for c in rows['expert']] == ['0', '0', 'moves']


def test_nothing_of_the_full_size_is_allocated() -> None:
    assert all(p.is_meta for p in summary.skeleton(preset('full')).parameters())


def test_measured_gradients_differ_between_recipes() -> None:
    assert summary.gradient_flow(recipe('ours'))['flow']['backbone'] is False
    assert summary.gradient_flow(recipe('joint'))['flow']['backbone'] is True
    assert set(summary.gradient_flow(recipe('frozen'))) == {'flow'}
    assert 'flow' not in summary.gradient_flow(recipe('pi0_fast'))


def test_unknown_names_are_one_sentence(capsys: pytest.CaptureFixture) -> None:
    assert summary.main(['enormous']) == 2
    assert 'enormous' in capsys.readouterr().err
