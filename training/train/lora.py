"""LoRA on backbone and vision tower, by `peft`: the expert is trained in full, all other weights are frozen.

What is checkpointed are the adapters' own names; what is shipped is merged, so a bundle never knows of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ki_vla.model.kivla import KiVla
from training.errors import TrainingError

TARGETS = r'(vision|backbone)\.layers\.\d+\.(q|k|v|o|out|gate|up|down|fc1|fc2)'
ADAPTER = re.compile(r'(.+)\.lora_([AB])\.default\.weight')


def add_lora(model: KiVla, rank: int, seed: int = 0, small: bool = False) -> None:
    """Puts adapters of a rank beside every matrix of backbone and vision tower; scale 1, as openpi has it.

    Args:
        model: changed in place; its frozen matrices get the name `base_layer`.
        rank: of the adapters.
        seed: of their first weights.
        small: keep the matrices beside them in bfloat16, which halves their memory.

    Raises:
        TrainingError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise TrainingError('lora: peft is not installed; run `pip install peft`, or write lora: 0.') from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=TARGETS), model)
    if small:
        for name, parameter in model.named_parameters():
            if '.base_layer.' in name:
                parameter.data = parameter.data.to(torch.bfloat16)


def freeze_base(model: KiVla) -> None:
    """Of what a recipe trains, leaves the adapters and the action expert."""
    for name, parameter in model.named_parameters():
        if not name.startswith('expert.') and ADAPTER.fullmatch(name) is None:
            parameter.requires_grad_(False)


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without adapters: each matrix plus the product of its two, in float32, under its own name."""
    pairs: dict[str, dict[str, Tensor]] = {}
    plain: dict[str, Tensor] = {}
    for name, value in weights.items():
        match = ADAPTER.fullmatch(name)
        if match is None:
            plain[name.replace('.base_layer.', '.')] = value
        else:
            pairs.setdefault(match[1], {})[match[2]] = value
    for owner, pair in pairs.items():
        name = f'{owner}.weight'
        plain[name] = plain[name].float() + pair['B'].float() @ pair['A'].float()
    return {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in plain.items()}
