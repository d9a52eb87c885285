"""What the gate of an export is shown: observations of a real recording, as the model sees them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np

from ki.support.recorded_inputs import recorded_inputs
from ki_bags import message_builders
from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract
from ki_vla.policy.untrained import untrained_processor

START_NS = 1_700_000_000_000_000_000
JOINTS = ('joint1', 'joint2', 'gripper')


def test_observations_are_spread_over_a_recording(rigs: ModuleType, tmp_path: Path) -> None:
    small = Contract.parse(rigs.small_robot())
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    with BagWriter(tmp_path / 'lift', custom={'task': 'lift'}) as bag:
        for tick in range(300):
            now = START_NS + round(tick / 60 * 1e9)
            values = np.array([np.sin(tick / 60), np.cos(tick / 30), np.sin(tick / 20)])
            message_builders.put(bag, 'joint_states', now, message_builders.joint_state(now, JOINTS, values))
            if tick % 2 == 0:
                picture = np.roll(pixels, tick, axis=1)
                message_builders.put(bag, 'scene/image_raw/compressed', now, message_builders.picture(now, picture))
                message_builders.put(bag, 'wrist/image_raw', now, message_builders.raw(now, picture))
            for output, told in zip(small.outputs, (values[:2], values[2:], values[:1]), strict=True):
                message_builders.put(bag, output.topic, now, message_builders.command(output, now, told))
    found = recorded_inputs(untrained_processor(small), tmp_path, 3)
    assert len(found) == 3
    assert all(each.images_VHWC.any() and each.image_mask_V.all() for each in found)
    assert not np.array_equal(found[0].state_S, found[2].state_S)
