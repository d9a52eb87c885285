"""What the model costs by arithmetic: parameters and FLOPs by part, counted and derived, and the floor of one H200.

    python benchmarks/roofline.py            writes benchmarks/results/roofline.json

Nothing is timed here. FLOPs are derived from the configuration and counted by torch on the meta device; the two must
agree. The floor is the least time that the arithmetic and the bytes of the weights need, one dependent operation
after the other.

Shape legend in names: P prefix tokens, H horizon, R draws, T target tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ki_vla.model.config import GemmaConfig, ModelConfig, preset
from ki_vla.model.gemma import Context
from ki_vla.model.kivla import KiVla, Prefix, skeleton
from ki_vla.model.summary import parameters_by_part
from ki_vla.objective.recipes import Recipe, recipe
from ki_vla.objective.trainable import prepare

RESULTS = Path(__file__).resolve().parent / 'results' / 'roofline.json'
# bf16 as measured on such a card (not the datasheet's 989), and its memory bandwidth.
PEAK, BANDWIDTH = 790e12, 4.3e12
GPUS = {'H100': 3.35e12, 'H200': 4.8e12}
VIEWS_AND_TEXT = ((1, 48), (1, 200), (2, 48), (2, 200), (3, 48), (3, 200))


def layer_weights(g: GemmaConfig) -> int:
    """Weights in the matrices of one Gemma layer."""
    return g.width * (2 * g.heads * g.head_dim + 2 * g.kv_heads * g.head_dim) + 3 * g.width * g.mlp


def key_value_weights(g: GemmaConfig) -> int:
    """Of these, the ones that make keys and values."""
    return 2 * g.width * g.kv_heads * g.head_dim


def encode_flops(c: ModelConfig, views: int) -> float:
    """Vision tower and projector."""
    v, n = c.vision, c.vision.tokens
    matrices = (
        3 * v.patch_size**2 * v.width + v.depth * (4 * v.width**2 + 2 * v.width * v.mlp) + v.width * c.backbone.width
    )
    return views * (2 * n * matrices + v.depth * 4 * n * n * v.width)


def prefill_flops(c: ModelConfig, P: int) -> float:
    """Backbone over the prefix; of the last layer only keys and values."""
    g = c.backbone
    matrices = (g.depth - 1) * layer_weights(g) + key_value_weights(g)
    return 2 * P * matrices + (g.depth - 1) * 4 * P * P * g.heads * g.head_dim


def expert_flops(c: ModelConfig, P: int, R: int = 1) -> float:
    """One evaluation of the field for R draws, with the modulations of the adaptive norms."""
    g, H = c.expert, c.horizon
    rows = 2 * H * (g.depth * layer_weights(g) + 2 * c.action_dim * g.width)
    attention = g.depth * 4 * H * (P + H) * g.heads * g.head_dim
    modulation = 2 * (2 * g.width**2 + (2 * g.depth + 1) * 3 * g.width**2)
    return R * (rows + attention + modulation)


def target_flops(c: ModelConfig, P: int, T: int) -> float:
    """Target tokens in training: the last layer at the last prefix token, T - 1 tokens after it, T rows of logits."""
    g, read = c.backbone, T - 1
    last = 2 * (layer_weights(g) - key_value_weights(g)) + 4 * P * g.heads * g.head_dim
    tokens = 2 * read * g.depth * layer_weights(g) + g.depth * 4 * read * (P + read) * g.heads * g.head_dim
    return last + tokens + 2 * T * g.width * c.vocab_size


def count(run: Callable[[], object]) -> int:
    """FLOPs that torch counts while `run` runs."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def meta_inputs(c: ModelConfig, views: int, text: int) -> dict[str, torch.Tensor]:
    """One observation without memory."""
    pixels = c.vision.image_size
    with torch.device('meta'):
        return {
            'images_BVCHW': torch.empty(1, views, 3, pixels, pixels),
            'image_mask_BV': torch.ones(1, views, dtype=torch.bool),
            'prompt_BL': torch.zeros(1, text, dtype=torch.int64),
            'prompt_mask_BL': torch.ones(1, text, dtype=torch.bool),
            'state_BS': torch.empty(1, c.state_dim),
        }


def run_prefix(model: KiVla, given: dict[str, torch.Tensor], hidden: bool) -> Prefix:
    """From images to a prefix with a graph."""
    tokens = model.encode(given['images_BVCHW'])
    return model.prefix(tokens, *(given[n] for n in list(given)[1:]), hidden=hidden)


def training_flops(model: KiVla, chosen: Recipe, views: int, text: int, T: int, R: int) -> int:
    """FLOPs of forward and backward of one sample, as torch counts them."""
    c = model.config
    prepare(model, chosen)
    given = meta_inputs(c, views, text)
    with torch.device('meta'):
        noisy, tau = torch.empty(1, R, c.horizon, c.action_dim), torch.empty(1, R)
        target, valid = torch.zeros(1, T, dtype=torch.int64), torch.ones(1, T, dtype=torch.bool)

    def step() -> None:
        prefix = run_prefix(model, given, chosen.token_loss)
        total = torch.zeros((), device='meta')
        seen: Context | None = None
        if chosen.action_loss:
            total = total + model.field(prefix, noisy, tau, chosen.insulate).sum()
        if chosen.token_loss:
            total = total + model.logits(model.token_hidden(prefix, target, valid, seen)).sum()
        total.backward()

    flops = count(step)
    model.zero_grad(set_to_none=True)
    return flops


def memory_bandwidth(gpu: str) -> float | None:
    """Bytes a second of a GPU's memory by its data sheet, found by its name; None for one that is not listed."""
    return next((value for name, value in GPUS.items() if name in gpu), None)


def floor(
    c: ModelConfig, parts: dict[str, int], views: int, text: int, bandwidth: float = BANDWIDTH
) -> dict[str, float]:
    """Least milliseconds of one inference in bf16 with 10 Euler steps, modulations tabled."""
    P, g = views * c.vision.tokens + text, c.expert
    weights = {
        'encode': parts['vision'] + parts['projector'],
        'prefill': (c.backbone.depth - 1) * layer_weights(c.backbone) + key_value_weights(c.backbone),
        'expert': g.depth * layer_weights(g) + 2 * c.action_dim * g.width,
    }
    modulation = 2 * (2 * g.width**2 + (2 * g.depth + 1) * 3 * g.width**2)
    flops = {
        'encode': encode_flops(c, views),
        'prefill': prefill_flops(c, P),
        'expert': expert_flops(c, P) - modulation,
    }
    times = {name: max(flops[name] / PEAK, 2 * weights[name] / bandwidth) * 1e3 for name in flops}
    times['expert'] *= 10
    return {
        'views': views,
        'text': text,
        'prefix_tokens': P,
        **{f'{n}_ms': round(t, 3) for n, t in times.items()},
        'total_ms': round(sum(times.values()), 2),
        'tflop': round((flops['encode'] + flops['prefill'] + 10 * flops['expert']) / 1e12, 3),
    }


def inference(model: KiVla, views: int, text: int) -> dict[str, dict[str, float]]:
    """FLOPs of one inference by part, derived and counted."""
    c, given = model.config, meta_inputs(model.config, views, text)
    P = views * c.vision.tokens + text
    with torch.no_grad():
        prefix = run_prefix(model, given, hidden=False)
        tokens = model.encode(given['images_BVCHW'])
        with torch.device('meta'):
            noisy, tau = torch.empty(1, c.horizon, c.action_dim), torch.empty(1)
        counted = {
            'encode': count(lambda: model.encode(given['images_BVCHW'])),
            'prefill': count(lambda: model.prefix(tokens, *(given[n] for n in list(given)[1:]))),
            'expert_step': count(lambda: model.field(prefix, noisy, tau)),
        }
    derived = {
        'encode': encode_flops(c, views),
        'prefill': prefill_flops(c, P),
        'expert_step': expert_flops(c, P),
    }
    return {n: {'derived_gflop': derived[n] / 1e9, 'counted_gflop': counted[n] / 1e9} for n in derived}


def training(model: KiVla, views: int, text: int, T: int) -> dict[str, object]:
    """FLOPs of one training sample by recipe, and by number of draws."""
    names = {'ours': 'ours', 'joint': 'joint', 'action_tokens_only': 'pi05_first', 'frozen': 'frozen'}
    flow_only = Recipe('flow_only', '', targets='none', vlm_data=False, insulate=False)
    recipes = {**{label: recipe(name) for label, name in names.items()}, 'flow_only': flow_only}
    tflop = {label: training_flops(model, r, views, text, T, 1) / 1e12 for label, r in recipes.items()}
    draws = {str(R): training_flops(model, recipe('ours'), views, text, T, R) / 1e12 for R in (1, 2, 4, 8)}
    return {
        'views': views,
        'text': text,
        'targets': T,
        'tflop_per_sample': tflop,
        'ours_relative_to': {label: tflop['ours'] / value for label, value in tflop.items()},
        'ours_tflop_by_draws': draws,
        'draws_relative_to_one': {R: value / draws['1'] for R, value in draws.items()},
    }


def main() -> None:
    """Derive, count, compare, write."""
    parser = argparse.ArgumentParser(description='Parameters, FLOPs and floors, derived by hand and counted by torch.')
    parser.add_argument('--out', type=Path, default=RESULTS)
    given = parser.parse_args()
    model = skeleton(preset('full'))
    c, parts = model.config, parameters_by_part(model)
    by_part = inference(model, 3, 200)
    for name, value in by_part.items():
        if abs(value['derived_gflop'] / value['counted_gflop'] - 1.0) > 0.01:
            raise SystemExit(
                f'{name}: derived {value["derived_gflop"]} and counted {value["counted_gflop"]} GFLOP differ.'
            )
    result = {
        'command': 'python benchmarks/roofline.py',
        'peak_flops': PEAK,
        'bandwidth': BANDWIDTH,
        'parameters': {**parts, 'total': sum(parts.values())},
        'inference_3_views_200_text': by_part,
        'floor_h200_bf16': [floor(c, parts, views, text) for views, text in VIEWS_AND_TEXT],
        'training': [training(model, *shape) for shape in ((1, 48, 40), (2, 100, 60), (3, 200, 80))],
    }
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
