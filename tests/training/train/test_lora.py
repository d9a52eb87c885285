"""Adapters change the backbone by a product of low rank, train the expert whole, and are gone from the bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ki_vla.policy.bundle import load_bundle
from training.errors import TrainingError
from training.train.checkpoint import checkpoints, read_checkpoint
from training.train.run import train

RANK = 2


def test_a_lora_run_ships_merged_weights_of_low_rank(run_of: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip('peft')
    first = load_bundle(train(run_of({'steps': 1}, out=str(tmp_path / 'first'))))
    stage = {'steps': 6, 'ema': 0.0, 'rate': 1e-2}
    run = run_of(stage, start=str(first.folder), preset=None, tokens=None, lora=RANK, out=str(tmp_path / 'lora'))
    tuned = load_bundle(train(run))
    before, after = first.model().state_dict(), tuned.model().state_dict()
    assert before.keys() == after.keys()
    assert torch.equal(before['embed.weight'], after['embed.weight'])
    for name in ('backbone.layers.0.q.weight', 'backbone.layers.1.down.weight', 'vision.layers.0.fc1.weight'):
        change = after[name] - before[name]
        assert change.abs().max() > 0
        assert int((torch.linalg.svdvals(change) > 1e-5).sum()) <= RANK, name
    assert not torch.equal(before['expert.action_in.weight'], after['expert.action_in.weight'])

    stored = read_checkpoint(checkpoints(Path(run.out) / 'vla' / 'checkpoints')[-1])
    moments = stored.optimiser['optimiser']['state']
    assert not any('base_layer' in name for name in moments), 'the optimiser holds nothing for what stands still'


def test_without_peft_the_fix_is_named(run_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(TrainingError, match='pip install peft'):
        train(run_of({'steps': 1}, lora=RANK))
