"""Small models and batches for the tests of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ki_robot.contract.contract import load_contract
from ki_vla.model.config import ModelConfig, preset
from ki_vla.model.kivla import KiVla
from ki_vla.model.summary import random_batch
from ki_vla.objective.batch import Batch
from ki_vla.objective.recipes import recipe
from ki_vla.objective.trainable import prepare
from ki_vla.policy.bundle import Bundle, write_bundle
from ki_vla.policy.untrained import tiny_for, untrained_processor


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One torch thread and a fixed seed, so that numbers are the same in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_model() -> Callable[..., KiVla]:
    """A tiny model for a recipe, every weight random: fresh adaptive norms would hide the expert's paths.

    A configuration without a recipe is built as it is.
    """

    def build(name: str | None = None, config: ModelConfig | None = None) -> KiVla:
        chosen = recipe(name or 'ours')
        as_it_is = config is not None and name is None
        model = KiVla(config if config is not None and as_it_is else chosen.configure(config or preset('tiny')))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                std = 0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.normal_(0.0, std, generator=generator)
        prepare(model, chosen)
        return model

    return build


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch of noise: action samples, language samples, a missing camera, padding."""

    def build(model: KiVla, **changes: int) -> Batch:
        return random_batch(model.config, **changes)

    return build


def noise_bundle(folder: Path, **changes: Any) -> Bundle:
    """A policy of noise for the bimanual robot, small even for `tiny`; every norm open, so that all paths are seen."""
    from ki_vla.export.source import of_noise

    contract = load_contract('bimanual_mobile')
    tiny = tiny_for(contract)
    config = tiny.replace(
        vision=tiny.vision.replace(depth=1),
        backbone=tiny.backbone.replace(depth=2),
        expert=tiny.expert.replace(depth=2),
        **changes,
    )
    state = of_noise(config).state(torch.float32)
    return write_bundle(folder, name='noise', weights=state, processor=untrained_processor(contract, config))


@pytest.fixture(scope='session')
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A policy of noise on disk, without exports. Not to be written to."""
    return noise_bundle(tmp_path_factory.mktemp('plain') / 'bundle')


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """A policy of noise whose model has some fields changed."""
    return lambda **changes: noise_bundle(tmp_path / 'bundle', **changes)


@pytest.fixture(scope='session')
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same policy with float32 ONNX graphs, exported and checked for real. Not to be written to."""
    from ki_vla.export.write import export_onnx

    made = noise_bundle(tmp_path_factory.mktemp('exported') / 'bundle')
    export_onnx(made, 'fp32')
    return made
