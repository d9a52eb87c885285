"""How many kernels a chunk launches, stage by stage and mode by mode, counted without a GPU.

    python benchmarks/launches.py            writes benchmarks/results/launches.json

Stages run on tensors without memory; every operation that is not a mere view counts as one launch. That is what an
eager GPU does, nearly: a copy or two hides in some library calls, and CUDA graphs replay the same kernels without the
host. A compiled stage launches fewer, which only a GPU's compiler can say.

Beside the counts stands an estimate of the time on an H100, to be replaced by measurements: the floor of `roofline.py`
by `REACHED` of what the card can do, and `RAMP_S` for each launch, in which it fills and drains.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from roofline import GPUS, floor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ki_vla.engine.fused import FusedActionStage, FusedPrefixStage, FusedVisionStage, quantise
from ki_vla.engine.packing import PLAIN, Fusions
from ki_vla.engine.stages import ActionStage, Cached, PrefixStage, VisionStage
from ki_vla.model.config import ModelConfig, preset
from ki_vla.model.kivla import KiVla, skeleton
from ki_vla.model.summary import parameters_by_part

RESULTS = Path(__file__).resolve().parent / 'results' / 'launches.json'
STEPS = 10
FUSED = ('fused', 'fp8')
REACHED, RAMP_S = 0.7, 1.9e-6
# The goal of a full-size model on three views and 200 prompt slots; of the expert for one step.
GOAL = {'vision': 200, 'prefix': 200, 'expert step': 120}
VIEWS = {
    '_reshape_alias', '_unsafe_view', 'alias', 'as_strided', 'chunk', 'detach', 'diagonal', 'empty', 'empty_like',
    'empty_strided', 'expand', 'expand_as', 'flatten', 'lift_fresh', 'narrow', 'new_empty', 'permute', 'reshape',
    'select', 'slice', 'split', 'split_with_sizes', 'squeeze', 't', 'transpose', 'unbind', 'unflatten', 'unsqueeze',
    'view',
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts operations that launch a kernel, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in VIEWS and any(isinstance(each, Tensor) for each in tree_leaves(found)):
            self.names[name] += 1
        return found


def launches(function: Callable[[], Any]) -> tuple[Any, Counter[str]]:
    """What a function gives, and the kernels it launches by name."""
    with torch.no_grad(), Launches() as counted:
        found = function()
    return found, counted.names


def stages(config: ModelConfig, mode: str) -> dict[str, Counter[str]]:
    """Launches of a chunk by stage, for a mode: 'plain', 'packed', 'guided' (packed), 'fused' or 'fp8'."""
    V, L, pixels = config.views, config.max_prompt, config.vision.image_size
    with torch.device('meta'):
        model = KiVla(config).to(torch.bfloat16).eval().requires_grad_(False)
        images = torch.empty(V, pixels, pixels, 3, dtype=torch.uint8)
        prompt = torch.zeros(L, dtype=torch.int64), torch.ones(L, dtype=torch.bool), torch.empty(config.state_dim)
        noise = torch.empty(config.horizon, config.action_dim)
        vision: Any
        prefix: Any
        if mode in FUSED:
            vision, prefix, fused = FusedVisionStage(model), FusedPrefixStage(model), FusedActionStage(model, STEPS)
            if mode == 'fp8':
                ones = {'vision': config.vision.depth, 'prefix': config.backbone.depth - 1}
                quantise(vision, prefix, {stage: [(1.0, 1.0, 1.0)] * depth for stage, depth in ones.items()})
        else:
            fusions = PLAIN if mode == 'plain' else Fusions()
            vision, prefix = VisionStage(model, fusions), PrefixStage(model, fusions)
            action = ActionStage(model, STEPS, fusions)
        tokens, in_vision = launches(lambda: vision(images))
        found, in_prefix = launches(lambda: prefix(tokens, torch.ones(V, dtype=torch.bool), *prompt))
        cached = Cached(*found)
        if mode in FUSED:
            _, in_loop = launches(lambda: fused(cached, noise))
        elif mode == 'guided':
            weights, row = torch.empty(config.horizon), torch.zeros(1, dtype=torch.int64)
            _, one = launches(lambda: action.guided(cached, noise, row, noise, weights))
            in_loop = Counter({name: STEPS * count for name, count in one.items()})
        else:
            _, one = launches(lambda: action.plain(cached, noise, 0))
            in_loop = Counter({name: STEPS * count for name, count in one.items()})
    return {'vision': in_vision, 'prefix': in_prefix, 'loop': in_loop}


def estimate_ms(config: ModelConfig, launched: dict[str, int]) -> float:
    """What a chunk might take on an H100: see the head of this file."""
    least = floor(config, parameters_by_part(skeleton(config)), config.views, config.max_prompt, GPUS['H100'])
    return round(least['total_ms'] / REACHED + 1e3 * RAMP_S * launched['chunk'], 1)


def totals(config: ModelConfig, mode: str) -> dict[str, int]:
    """Launches by stage; of the expert for all steps, and for one on average."""
    found = {name: sum(names.values()) for name, names in stages(config, mode).items()}
    loop = found.pop('loop')
    return {**found, 'expert': loop, 'expert step': -(-loop // STEPS), 'chunk': sum(found.values()) + loop}


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description='Kernels that a chunk launches, counted without a GPU.')
    parser.add_argument('--preset', default='full')
    parser.add_argument('--out', type=Path, default=RESULTS)
    given = parser.parse_args()
    config = preset(given.preset)
    result: dict[str, Any] = {
        'command': 'python benchmarks/launches.py', 'preset': given.preset, 'views': config.views,
        'prompt': config.max_prompt, 'steps': STEPS, 'goal': GOAL,
        'modes': {mode: totals(config, mode) for mode in ('plain', 'packed', 'guided', *FUSED)},
    }  # fmt: skip
    estimated = {mode: found for mode, found in result['modes'].items() if mode != 'fp8'}  # whose floor is another
    result['estimate_h100_ms'] = {mode: estimate_ms(config, found) for mode, found in estimated.items()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
