"""Observations of a policy's own tasks, for calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki.simulation.simulated_inputs import simulated_inputs
from ki_common.errors import KiError
from ki_robot.contract.contract import load_contract
from ki_sim.record.sim_bags import DEMO_ROBOT
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.policy.bundle import Bundle, write_bundle
from ki_vla.policy.untrained import tiny_for, untrained_processor


def bundle_for(folder: Path, tasks: list[str]) -> Bundle:
    contract = load_contract(DEMO_ROBOT)
    config = tiny_for(contract).changed({'max_prompt': 200, 'vision': {'image_size': 48, 'patch_size': 8}})
    gemma: dict[str, Any] = {'width': 64, 'mlp': 128, 'head_dim': 32}
    config = config.replace(backbone=config.backbone.replace(**gemma), expert=config.expert.replace(**gemma))
    return write_bundle(
        folder,
        name='small',
        weights=initialise(KiVla(config)),
        processor=untrained_processor(contract, config),
        provenance={'run': {'simulate': {'tasks': tasks}}},
    )


def test_every_task_is_shown_and_the_same_again(tmp_path: Path) -> None:
    bundle = bundle_for(tmp_path / 'bundle', ['touch', 'push'])
    found = simulated_inputs(bundle, 5)
    assert len(found) == 5
    assert {each.images_VHWC.shape for each in found} == {(1, 48, 48, 3)}
    assert len({each.images_VHWC.tobytes() for each in found}) > 3
    again = simulated_inputs(bundle, 5)
    assert all(np.array_equal(a.prompt_L, b.prompt_L) for a, b in zip(found, again, strict=True))


def test_tasks_without_a_law_need_recordings(tmp_path: Path) -> None:
    with pytest.raises(KiError, match='the simulator has no law for its tasks; name recordings of it: --bags'):
        simulated_inputs(bundle_for(tmp_path / 'bundle', ['hand_over']), 4)


def test_fp8_is_calibrated_on_scenes_and_says_that_nothing_was_played(tmp_path: Path, ki: Any) -> None:
    bundle = bundle_for(tmp_path / 'bundle', ['touch'])
    done = ki('export', bundle.folder, '--precision', 'fp8', '--observations', 4, '--scenes', 0, '--steps', 2)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((bundle.folder / 'torch/fp8.json').read_text())
    assert said['task'] == {'compared': 'nothing, as asked'}
    assert said['observations'] == 4
