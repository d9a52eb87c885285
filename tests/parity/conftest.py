"""Weights for two models at once: ours, and one that somebody else wrote."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ki_vla.model.config import GemmaConfig, ModelConfig, VisionConfig
from ki_vla.model.kivla import KiVla

VISION = VisionConfig(image_size=28, patch_size=14, width=32, depth=2, mlp=48, heads=2)
BACKBONE = GemmaConfig(width=64, depth=3, mlp=96, heads=4, kv_heads=1, head_dim=16)
EXPERT = GemmaConfig(width=32, depth=3, mlp=48, heads=4, kv_heads=1, head_dim=16)

# The names that transformers gives to the parts of a layer, written out once more, apart from the importers' table: a
# slip there must not vouch for itself here.
LAYER = {
    'input_norm': 'input_layernorm',
    'mlp_norm': 'post_attention_layernorm',
    **{part: f'self_attn.{part}_proj' for part in 'qkvo'},
    **{part: f'mlp.{part}_proj' for part in ('gate', 'up', 'down')},
}
VISION_LAYER = {
    **{f'norm{number}': f'layer_norm{number}' for number in (1, 2)},
    **{part: f'self_attn.{part}_proj' for part in ('q', 'k', 'v', 'out')},
    **{f'fc{number}': f'mlp.fc{number}' for number in (1, 2)},
}


@pytest.fixture(scope='session')
def part_name() -> Callable[[str, str], str]:
    """The name in transformers' layers of one of our parts: `part_name('vision', 'fc1')`."""

    def name(room: str, part: str) -> str:
        return (VISION_LAYER if room == 'vision' else LAYER)[part]

    return name


@pytest.fixture
def small_config() -> Callable[..., ModelConfig]:
    """A structure that both sides can be built in; fields may be replaced."""

    def build(**changes: object) -> ModelConfig:
        fields = {
            'name': 'parity',
            'vision': VISION,
            'backbone': BACKBONE,
            'expert': EXPERT,
            'vocab_size': 300,
            'horizon': 6,
            'action_dim': 5,
            'state_dim': 7,
            'views': 2,
        }
        return ModelConfig(**{**fields, **changes})

    return build


@pytest.fixture
def build_ours() -> Callable[[ModelConfig], KiVla]:
    """Our model with random weights everywhere, so that every branch matters."""

    def build(config: ModelConfig) -> KiVla:
        model = KiVla(config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                std = 0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.normal_(0.0, 0.3 if name == 'embed.weight' else std, generator=generator)
        return model.eval()

    return build
