"""Muon moves the matrices of layers along orthogonal directions; everything around it is as with AdamW."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import TrainingError
from training.train import muon
from training.train.checkpoint import checkpoints, read_checkpoint
from training.train.config import Stage
from training.train.muon import RMS, MuonAdamW, orthogonal
from training.train.run import train

MakeRun = Callable[..., Any]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 40), columns=st.integers(2, 40), size=st.floats(1e-6, 1e6), seed=st.integers(0, 999))
def test_a_direction_keeps_its_rows_and_columns_and_gets_singular_values_of_about_one(
    rows: int, columns: int, size: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    turned, _ = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=generator))
    between = torch.linspace(0.2, 1.0, min(rows, columns))
    matrix = size * turned * between
    matrix = matrix if rows >= columns else matrix.mT
    other = torch.randn(rows, columns, generator=generator)
    found, beside = orthogonal([matrix, other])
    assert found.shape == (rows, columns)
    values = torch.linalg.svdvals(found)
    assert 0.65 < float(values.min()) <= float(values.max()) < 1.25
    torch.testing.assert_close(beside, orthogonal([other])[0], msg='matrices of one shape do not mix')
    assert float((found * matrix).sum()) > 0


def test_a_matrix_moves_by_the_rate_whatever_its_gradient_is_and_a_vector_as_with_adamw() -> None:
    matrix, vector = (torch.nn.Parameter(torch.zeros(size)) for size in ((32, 16), (8,)))
    optimiser = MuonAdamW(
        [
            {'params': [matrix], 'muon': True, 'weight_decay': 0.0},
            {'params': [vector], 'weight_decay': 0.0},
        ],
        lr=0.01,
        fused=True,
    )
    plain = torch.nn.Parameter(torch.zeros(8))
    alone = torch.optim.AdamW([plain], lr=0.01, weight_decay=0.0, fused=True)
    for scale in (1e-3, 1e3):
        before = matrix.detach().clone()
        matrix.grad, vector.grad = scale * torch.randn(32, 16), scale * torch.randn(8)
        plain.grad = vector.grad.clone()
        optimiser.step()
        alone.step()
        step = float((matrix.detach() - before).square().mean().sqrt())
        assert step == pytest.approx(0.01 * RMS, rel=0.25)
    assert torch.equal(vector, plain)
    assert 'momentum' in optimiser.state[matrix]
    assert len(optimiser.param_groups) == 2


def test_matrices_step_alike_together_and_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for most in (muon.WHOLE, 30):
        monkeypatch.setattr(muon, 'WHOLE', most)
        generator = torch.Generator().manual_seed(0)
        matrices = [torch.nn.Parameter(torch.zeros(size)) for size in ((6, 4), (4, 6), (8, 8), (6, 4))]
        optimiser = muon.MuonAdamW([{'params': matrices, 'muon': True}], lr=0.1, fused=True)
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimiser.step()
        moved.append([matrix.detach() for matrix in matrices])
    for together, alone in zip(*moved, strict=True):
        torch.testing.assert_close(together, alone)


def test_a_step_that_is_not_finite_changes_neither_weights_nor_momentum() -> None:
    matrix = torch.nn.Parameter(torch.ones(6, 4))
    optimiser = MuonAdamW([{'params': [matrix], 'muon': True}], lr=0.1, fused=True)
    matrix.grad = torch.randn(6, 4)
    optimiser.step()
    held, momentum = matrix.detach().clone(), optimiser.state[matrix]['momentum'].clone()
    matrix.grad = torch.full((6, 4), float('nan'))
    optimiser.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimiser.step()
    torch.testing.assert_close(matrix.detach(), held)
    torch.testing.assert_close(optimiser.state[matrix]['momentum'], momentum)
    matrix.grad = torch.randn(6, 4)
    optimiser.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    optimiser.step()
    assert torch.isfinite(matrix).all()
    assert not torch.equal(matrix.detach(), held)


def test_six_steps_are_three_and_three_more_to_the_last_bit(run_of: MakeRun, tmp_path: Path) -> None:
    whole, halves = (run_of({'optimiser': 'muon'}, out=str(tmp_path / name)) for name in ('whole', 'halves'))
    train(whole)

    def stop_at_three(kind: str, values: dict[str, Any]) -> None:
        if kind == 'step' and values['step'] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(halves, stop_at_three) is None
    train(halves)
    ours, theirs = (read_checkpoint(checkpoints(Path(run.out) / 'vla' / 'checkpoints')[-1]) for run in (whole, halves))
    assert ours.step == theirs.step == 6
    for name in ours.weights:
        assert torch.equal(ours.weights[name], theirs.weights[name]), name
    held = ours.optimiser['optimiser']['state']
    kept = {name for name, state in held.items() if 'momentum' in state}
    assert any('backbone.layers' in name for name in kept)
    assert any('expert.layers' in name for name in kept)
    assert not any('embed' in name or 'norm.weight' in name for name in kept)


def test_a_checkpoint_of_adamw_is_not_gone_on_from_with_muon(run_of: MakeRun, tmp_path: Path) -> None:
    run = run_of({'steps': 2}, out=str(tmp_path / 'run'))
    train(run)
    stage = run.stages[0]
    assert isinstance(stage, Stage)
    with pytest.raises(TrainingError, match='optimiser'):
        train(run.replace(stages=(stage.replace(optimiser='muon', steps=3),)))
