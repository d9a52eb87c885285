"""Modes against delays: a row for each, of all tasks together, with the trained mode by a policy of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ki.evidence import modes
from ki.evidence.modes import DELAYS, MODES, TRAINED_MODES, measure, modes_section, save
from ki.simulation.sim_evaluation import EvaluationCell, Plays
from ki_sim.evaluate.closed_loop import EvaluationReport, SceneOutcome
from ki_vla.policy.serving import ASKED_MODES


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, EvaluationCell]]:
    """What was played, with which bundle; longer delays fail more."""
    found: list[tuple[str, EvaluationCell]] = []

    def evaluate_cells(plays: Plays, cells: Sequence[EvaluationCell], out: Path, tell: Any) -> Iterator[Any]:
        for cell in cells:
            found.append((plays.bundle.name, cell))
            outcomes = [
                SceneOutcome(cell.task, seed, seed, 'go', success=seed >= cell.delay_steps, seam=0.1 * cell.delay_steps)
                for seed in range(plays.seeds)
            ]
            for outcome in outcomes:
                tell(cell, outcome)
            yield cell, EvaluationReport(cell.task, {'policy': f'{plays.bundle.name}@1'}, outcomes)

    monkeypatch.setattr(modes, 'evaluate_cells', evaluate_cells)
    return found


def test_every_mode_meets_every_delay(tmp_path: Path, played: list[tuple[str, EvaluationCell]]) -> None:
    told: list[None] = []
    tasks = ['touch', 'push']
    rows = measure(Plays(Path('plain'), 10), Path('trained'), tasks, DELAYS, 8, tmp_path, lambda: told.append(None))
    assert [(row['mode'], row['delay_steps']) for row in rows] == [
        (mode, delay) for mode in (*MODES, *TRAINED_MODES) for delay in DELAYS
    ]
    assert {cell.mode for bundle, cell in played if bundle == 'trained'} == set(TRAINED_MODES)
    assert {cell.mode for bundle, cell in played if bundle == 'plain'} == set(MODES)
    assert len(told) == 10 * 2 * 4 * 6
    assert rows[3]['success']['k'] == 4  # delay 8: two of ten scenes in each of two tasks
    assert {*MODES, *TRAINED_MODES} <= set(ASKED_MODES)
    assert modes_section(tmp_path).endswith('DELAYS`.')
    save(rows, tmp_path)
    text = modes_section(tmp_path)
    assert text.count('\n| ') == 1 + len(rows)
    assert '| plain | latest | 8 | 4/20 = 20%' in text


def test_without_a_trained_policy_its_mode_is_left_out(tmp_path: Path, played: list[Any]) -> None:
    rows = measure(Plays(Path('plain'), 1), None, ['touch'], [0], 8, tmp_path, lambda: None)
    assert [row['mode'] for row in rows] == list(MODES)
