"""The summary: real numbers, measured gradients, no memory."""

from __future__ import annotations

import sys

import pytest

from ki_vla.model import summary
from ki_vla.model.config import preset
from ki_vla.model.kivla import skeleton
from ki_vla.objective.recipes import RECIPES, recipe


def test_full_is_summarised_without_memory(capsys: pytest.CaptureFixture) -> None:
    assert summary.main(['full']) == 0
    out = capsys.readouterr().out
    assert '3,353,433,872 parameters' in out
    assert 'layers  x 27' in out
    rows = {line.split()[1]: line.split('│')[4:7] for line in out.splitlines() if line.count('│') == 7}
    assert [c.strip() for c in rows['backbone']] == ['moves', 'moves', '0']
    assert [c.strip() for c in rows['expert']] == ['0', '0', 'moves']


def test_nothing_of_the_full_size_is_allocated_and_no_compiler_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'torch._dynamo', None)  # its import fails
    assert all(p.is_meta for p in skeleton(preset('full')).parameters())


# Which loss moves the vision-language part, and which the expert: text, action tokens, continuous actions.
EVERYTHING, BACKBONE, EXPERT, NOTHING = (True, True), (True, False), (False, True), (False, False)
FLOWS = {
    'ours': (BACKBONE, BACKBONE, EXPERT),
    'ours_no_vlm': (NOTHING, BACKBONE, EXPERT),
    'joint': (BACKBONE, BACKBONE, EVERYTHING),
    'joint_no_vlm': (NOTHING, BACKBONE, EVERYTHING),
    'pi0': (None, None, EVERYTHING),
    'pi0_fast': (NOTHING, BACKBONE, None),
    'frozen': (None, None, EXPERT),
    'hybrid': (NOTHING, EVERYTHING, EVERYTHING),
    'transfusion': (None, None, EVERYTHING),
    'oft': (None, None, EVERYTHING),
    'naive': (BACKBONE, BACKBONE, EXPERT),
    'naive_stride5': (BACKBONE, BACKBONE, EXPERT),
    'pi05': (BACKBONE, BACKBONE, None),
    'pi05_first': (BACKBONE, BACKBONE, None),
    'ours_text_state': (BACKBONE, BACKBONE, EXPERT),
    'ours_special_state': (BACKBONE, BACKBONE, EXPERT),
    'ours_continuous_state': (BACKBONE, BACKBONE, EXPERT),
    'ours_no_fast': (BACKBONE, NOTHING, EXPERT),
    'graded': (BACKBONE, BACKBONE, EVERYTHING),
    'deaf_first': (None, None, EXPERT),
    'deaf': (None, None, EXPERT),
    'consistent': (BACKBONE, BACKBONE, EVERYTHING),
    'lower_half_frozen': (BACKBONE, BACKBONE, EVERYTHING),
}


@pytest.mark.parametrize('name', RECIPES)
def test_measured_gradients_are_those_of_the_recipe(name: str) -> None:
    measured = summary.gradient_flow(recipe(name))
    for loss, expected in zip(('text', 'fast', 'flow'), FLOWS[name], strict=True):
        if expected is None:
            assert loss not in measured
            continue
        parts = measured[loss]
        kept = {'vision', 'projector'} if recipe(name).frozen_below else set()
        assert not any(parts[part] for part in kept)
        vision_language = {part: moved for part, moved in parts.items() if part not in kept | {'expert'}}
        assert set(vision_language.values()) == {expected[0]}, (loss, vision_language)
        assert parts.get('expert', False) == expected[1], loss


def test_unknown_names_are_one_sentence(capsys: pytest.CaptureFixture) -> None:
    assert summary.main(['enormous']) == 2
    assert 'enormous' in capsys.readouterr().err
