"""What a training step costs: ours against its parts and against joint-training, and what more draws cost.

    python benchmarks/model.py               writes benchmarks/results/model.json

Everything is compared within one run, turn by turn, in CPU seconds of one thread, so that other work on the machine
weighs on all alike: the figures are medians of ratios. Step: forward, backward and AdamW of a batch of 8 with 3 views
and the prompts and targets of `SIZES`. The share of FLOPs of the full size stands beside it (see roofline.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from roofline import training

from ki_vla.model.config import preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla, skeleton
from ki_vla.model.summary import random_batch
from ki_vla.objective.recipes import Recipe, recipe
from ki_vla.objective.trainable import prepare

RESULTS = Path(__file__).resolve().parent / 'results' / 'model.json'
FLOW_ONLY = Recipe(
    'flow_only', 'as ours, flow loss alone, gradient through', targets='none', vlm_data=False, insulate=False
)
SIZES = {'tiny': (8, 40, 30), 'mini': (8, 60, 50)}
DRAWS = (1, 4, 8)


def stepper(name: str, chosen: Recipe, draws: int) -> Callable[[], None]:
    """One training step of a fresh model, ready to be called."""
    size, prompt, targets = SIZES[name]
    model = initialise(KiVla(preset(name)), torch.Generator().manual_seed(0))
    prepare(model, chosen)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch = random_batch(model.config, size, prompt=prompt, targets=targets)

    def step() -> None:
        optimiser.zero_grad()
        model(batch, chosen, draws=draws).total.backward()
        optimiser.step()

    return step


def compare(steps: dict[str, Callable[[], None]], base: str, rounds: int) -> dict[str, dict[str, float]]:
    """Time the steps turn by turn (CPU seconds); for each, the median of its ratio to `base` in the same round."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    found = {}
    for name, values in seconds.items():
        ratios = sorted(v / b for v, b in zip(values, seconds[base], strict=True))
        found[name] = {
            'relative': round(statistics.median(ratios), 3),
            'relative_quartiles': [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
            'best_cpu_ms': round(min(values) * 1e3, 1),
        }
    return found


def measure(name: str, rounds: int) -> dict[str, object]:
    """All comparisons of one size."""
    recipes = {
        'ours': recipe('ours'),
        'joint': recipe('joint'),
        'action_tokens_only': recipe('pi05_first'),
        'flow_only': FLOW_ONLY,
        'frozen': recipe('frozen'),
    }
    size, prompt, targets = SIZES[name]
    return {
        'batch': {'size': size, 'views': preset(name).views, 'prompt': prompt, 'targets': targets},
        'recipes': compare({n: stepper(name, r, 1) for n, r in recipes.items()}, 'ours', rounds),
        'draws': compare({str(d): stepper(name, recipe('ours'), d) for d in DRAWS}, '1', rounds),
    }


def main() -> None:
    """Measure both sizes and write the result."""
    parser = argparse.ArgumentParser(description='Cost of a training step, as ratios within one run.')
    parser.add_argument('--rounds', type=int, default=30)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = os.getloadavg()
    result = {
        'command': f'python benchmarks/model.py --rounds {given.rounds} --threads {given.threads}',
        'machine': {
            'cpu': platform.processor() or platform.machine(),
            'cores': os.cpu_count(),
            'torch': torch.__version__,
        },
        'load_before': [round(x, 2) for x in load],
        **{name: measure(name, given.rounds) for name in SIZES},
        'load_after': [round(x, 2) for x in os.getloadavg()],
        'full_by_flops': training(skeleton(preset('full')), 3, 200, 80),
    }
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
