"""The programs that measure training, at their smallest, and what they say about memory."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ki_vla.model.config import ModelConfig, preset

FOLDER = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.mark.slow  # a quick one holds that the program finds what it imports; its step is that of every training test
def test_training_on_noise_reports_speed_and_use(root: Path, tmp_path: Path) -> None:
    small = ('--preset', 'tiny', '--rounds', '1', '--batch', '2', '--threads', '1', '--cases', 'everything', 'LoRA 16')
    command = (sys.executable, FOLDER / 'training.py', *small, '--output', tmp_path / 'training.json')
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'training.json').read_text())['tiny']
    for name in ('everything', 'LoRA 16'):
        assert found[name]['samples_per_s'] > 0
        assert found[name]['mfu'] >= 0


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module('training_memory')


def of_depth(vision: int, layers: int) -> ModelConfig:
    """The full model with fewer layers."""
    full = preset('full')
    return full.replace(
        vision=full.vision.replace(depth=vision),
        backbone=full.backbone.replace(depth=layers),
        expert=full.expert.replace(depth=layers),
    )


def test_a_layer_adds_its_weights_and_little_else_to_a_step(memory: Any) -> None:
    few, more = (memory.account(of_depth(1, layers), 8) for layers in (2, 3))
    layer = more['weights'] - few['weights']
    assert more['moments'] == pytest.approx(2 * more['weights'], rel=0.01)
    assert more['step'] - few['step'] == pytest.approx(4 * layer, abs=0.2), 'checkpointing keeps the input of a block'


@pytest.mark.slow
def test_the_full_model_fits_the_cards_that_it_is_said_to_fit(memory: Any) -> None:
    assert memory.account(preset('full'), 8)['step'] < 0.9 * memory.H100_GIB
    assert memory.account(preset('full'), 8, lora=16)['step'] < memory.DESKTOP_GIB
