"""The weights of a model, loaded one part at a time: all of `full` would not fit in memory beside its own export.

A part is a `KiVla` with only some of its weights; the others stay on the meta device, where using them is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ki_vla.model.config import ModelConfig
from ki_vla.model.kivla import KiVla, skeleton
from ki_vla.policy.bundle import Bundle

# What each stage reads; the heads of transfusion and OpenVLA-OFT run in the backbone's own layers.
PARTS = {
    'vision': ('vision.', 'projector.'),
    'prefix': ('embed.', 'state_proj.', 'backbone.', 'pointer.', 'expert.state_in.'),
    'action': ('expert.',),
    'backbone_action': ('expert.', 'backbone.', 'embed.'),
}
# (names, dtype) -> weights by name
Read = Callable[[list[str], torch.dtype], dict[str, Tensor]]


def action_part(config: ModelConfig) -> str:
    """The name of the part that gives actions."""
    return 'action' if config.head == 'expert' else 'backbone_action'


class Source:
    """Where the weights of a model come from.

    Args:
        config: the model's structure.
        read: gives weights by name.
    """

    def __init__(self, config: ModelConfig, read: Read) -> None:
        self.config, self._read = config, read

    def state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Every weight at once."""
        names = list(skeleton(self.config).state_dict())
        return self._read(names, dtype)

    def part(self, name: str, dtype: torch.dtype = torch.float32) -> KiVla:
        """A fresh model that holds the weights of one part; frozen, on the CPU."""
        model = skeleton(self.config)
        names = [each for each in model.state_dict() if each.startswith(PARTS[name])]
        model.load_state_dict(self._read(names, dtype), strict=False, assign=True)
        return model.eval().requires_grad_(False)


def of_bundle(bundle: Bundle) -> Source:
    """Weights read from a bundle's file."""

    def read(names: list[str], dtype: torch.dtype) -> dict[str, Tensor]:
        from safetensors import safe_open

        with safe_open(str(bundle.weights), framework='pt') as file:
            return {name: file.get_tensor(name).to(dtype) for name in names}

    return Source(bundle.config, read)


def of_model(model: KiVla) -> Source:
    """Weights copied from a model in memory."""
    state = model.state_dict()
    return Source(model.config, lambda names, dtype: {n: state[n].detach().to(dtype, copy=True) for n in names})


def of_noise(config: ModelConfig, seed: int = 0) -> Source:
    """Random weights that are the same whenever they are asked for; no file and no whole model are needed."""
    shapes: dict[str, Any] = {}

    def read(names: list[str], dtype: torch.dtype) -> dict[str, Tensor]:
        if not shapes:
            shapes.update({name: value.shape for name, value in skeleton(config).state_dict().items()})
        return {name: random_weight(name, tuple(shapes[name]), seed).to(dtype) for name in names}

    return Source(config, read)


def random_weight(name: str, shape: tuple[int, ...], seed: int = 0, device: torch.device | str = 'cpu') -> Tensor:
    """One seeded weight, float32: every norm open, every product keeping the size of what goes through it."""
    digest = sum((index + 1) * byte for index, byte in enumerate(name.encode())) + 7919 * seed
    generator = torch.Generator(device).manual_seed(digest)
    weight = torch.empty(shape, device=device)
    # As in a trained model: small changes of a norm's scale, products that neither grow nor vanish.
    spread = 0.1 if len(shape) == 1 else weight[0].numel() ** -0.5
    weight.normal_(0.0, spread, generator=generator)
    if len(shape) == 1 and name.endswith(('norm1.weight', 'norm2.weight', 'vision.norm.weight')):
        weight += 1.0
    return weight


@contextmanager
def one_part(source: Source, name: str, dtype: torch.dtype) -> Iterator[KiVla]:
    """A part that is gone again afterwards."""
    import gc

    model = source.part(name, dtype)
    try:
        yield model
    finally:
        del model
        gc.collect()
