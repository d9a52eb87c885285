"""Small models and batches for the tests of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from ki_vla.batch import Batch
from ki_vla.config import ModelConfig, preset
from ki_vla.model import KiVla
from ki_vla.recipes import prepare, recipe
from ki_vla.summary import random_batch


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
    """A tiny model for a recipe, every weight random: fresh adaptive norms would hide the expert's paths."""

    def build(name: str = 'ours', config: ModelConfig | None = None) -> KiVla:
        chosen = recipe(name)
        model = KiVla(chosen.configure(config or preset('tiny')))
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
