"""The upper level: a model that has learned what to say says it, and only text and boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ki_robot.contract.contract import load_contract
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.objective.batch import collate
from ki_vla.objective.recipes import recipe
from ki_vla.objective.trainable import prepare
from ki_vla.policy.bundle import Bundle, write_bundle
from ki_vla.policy.model_inputs import Processing
from ki_vla.policy.processor import Processor
from ki_vla.policy.subtasks import SubtaskGenerator, generate_subtasks
from ki_vla.policy.untrained import untrained_processor

CONTRACT = load_contract('arm_single').replace(horizon=12)
SAID = {'pick up the block': 'reach for the block <loc0012><loc0034>', 'wait': 'rest'}


@pytest.fixture(scope='module')
def processor() -> Processor:
    return replace(untrained_processor(CONTRACT), processing=Processing(subtasks=True))


def moment(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    pictures = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in CONTRACT.camera_names}
    return pictures, np.zeros(len(CONTRACT.state))


@pytest.fixture(scope='module')
def taught(processor: Processor) -> KiVla:
    """A tiny model that knows two sentences by heart."""
    torch.manual_seed(0)
    model, chosen = initialise(KiVla(processor.config), torch.Generator().manual_seed(0)), recipe('pi05_first')
    prepare(model, chosen)
    batch = collate([processor.subtask_sample(*moment(), text, answer) for text, answer in SAID.items()])
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(80):
        loss = model(batch, chosen).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.05
    return model.eval()


@pytest.fixture
def bundle(taught: KiVla, processor: Processor, tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / 'bundle', name='taught', weights=taught, processor=processor)


def test_what_was_learned_is_said_for_each_moment_whatever_stands_beside_it(taught: KiVla, processor: Processor):
    asked = [processor.inputs(*moment(), text, asks='Subtask') for text in SAID]
    assert generate_subtasks(taught, processor, asked) == list(SAID.values())
    assert [generate_subtasks(taught, processor, [each])[0] for each in asked] == list(SAID.values())


def test_nothing_but_text_and_boxes_is_said(processor: Processor):
    model = KiVla(processor.config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0)
    for seed in range(5):  # a state or action token could not be decoded and would raise
        text = generate_subtasks(model, processor, [processor.inputs(*moment(seed), 'go', asks='Subtask')])[0]
        assert isinstance(text, str)


def test_a_generator_answers_from_a_bundle_of_two_levels_alone(bundle: Bundle, tmp_path: Path, taught: KiVla):
    speaker = SubtaskGenerator(bundle)
    speaker.warm_up()
    assert speaker.next(*moment(), 'wait') == 'rest'
    plain = replace(bundle.processor, processing=Processing())
    silent = SubtaskGenerator(write_bundle(tmp_path / 'plain', name='plain', weights=taught, processor=plain))
    silent.warm_up()
    assert silent.next(*moment(), 'wait') == ''
