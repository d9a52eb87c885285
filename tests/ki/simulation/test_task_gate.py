"""int8 has to do the task, not only to be close in numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ki.simulation import task_gate
from ki.simulation.task_gate import Trial, chance, check_does_it, compared, in_scenes, on_recording
from ki_common.errors import KiError
from ki_sim.evaluate.closed_loop import EvaluationReport, SceneOutcome
from ki_vla.policy.bundle import load_bundle

DEMO = Path('bundles/demo')


def scenes(succeeded: int, of: int = 50) -> list[bool]:
    return [index < succeeded for index in range(of)]


def test_as_many_successes_pass_and_are_written_down() -> None:
    found = in_scenes(scenes(40), scenes(39), 'demo')
    assert found == {'task': 'demo', 'scenes': 50, 'before': 40, 'after': 39, 'lost': 1, 'won': 0, 'chance': 0.5}


@pytest.mark.parametrize(('before', 'after'), [(40, 20), (40, 34), (8, 0)])
def test_a_policy_that_loses_its_task_is_refused_however_close_its_numbers_are(before: int, after: int) -> None:
    with pytest.raises(KiError, match=f'{before} of 50 scenes succeed as trained, {after} as exported'):
        in_scenes(scenes(before), scenes(after), 'demo')


def test_scenes_that_come_out_differently_both_ways_are_no_loss() -> None:
    before = [True] * 25 + [False] * 25
    after = [True] * 20 + [False] * 25 + [True] * 5
    assert in_scenes(before, after, 'demo')['lost'] == 5
    assert chance(5, 5) == pytest.approx(0.623, abs=1e-3)
    assert chance(0, 0) == 1.0


def test_a_policy_that_never_succeeds_has_nothing_to_compare() -> None:
    with pytest.raises(KiError, match=r'0 of 50 .* nothing can be compared; name a --task'):
        check_does_it(scenes(0), 'stack')


def test_a_recording_allows_five_per_cent() -> None:
    assert on_recording(0.02, 0.0209, Path('x/bag')) == {'bag': 'bag', 'before': 0.02, 'after': 0.0209}
    with pytest.raises(KiError, match=r'0\.02 as trained and 0\.03 as exported, above 1\.05 times'):
        on_recording(0.02, 0.03, Path('bag'))


def test_another_robot_needs_a_recording_and_no_scenes_are_noted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(root / DEMO, verify=False)
    engine: Any = SimpleNamespace()
    assert compared(bundle, engine, Trial(scenes=0), print) == {'compared': 'nothing, as asked'}
    monkeypatch.setattr(task_gate, 'is_simulated', lambda bundle: False)
    with pytest.raises(KiError, match='which the simulator does not have; name a recording of it: --compare-on'):
        compared(bundle, engine, Trial(scenes=1), print)


def test_the_shipped_policy_is_of_the_simulated_robot_and_is_played_scene_by_scene(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(root / DEMO, verify=False)
    assert task_gate.is_simulated(bundle)
    played: list[tuple[str, list[int]]] = []
    fails = ''

    def evaluate(loop: Any, task: str, seeds: range, settings: Any) -> Any:
        played.append((loop.policy_id, list(seeds)))
        scenes = [SceneOutcome(task, seed, seed, 'go', success=seed % 2 == 0, error=fails) for seed in seeds]
        return EvaluationReport(task, {}, scenes)

    monkeypatch.setattr('ki_sim.evaluate.closed_loop.evaluate', evaluate)
    from ki_vla.engine.select import open_engine

    with open_engine(bundle, 'torch', device='cpu') as engine:
        found = compared(bundle, engine, Trial(scenes=10), lambda line: None)
        assert (found['before'], found['after'], found['scenes']) == (5, 5, 10)
        shared_out = [(bundle.policy_id, [1_000_000 + task, 1_000_005 + task]) for task in range(5)]
        assert played == shared_out * 2
        fails = 'no camera is there'
        with pytest.raises(KiError, match='touch: each of its 2 episodes ended with an error'):
            compared(bundle, engine, Trial(scenes=10), lambda line: None)
