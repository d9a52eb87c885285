"""How long a chunk takes that is said token by token (pi0-FAST), beside one that an action expert denoises.

    python benchmarks/tokens.py                            writes benchmarks/results/tokens.json
    python benchmarks/tokens.py --preset tiny --tokens 8 --rounds 3 --output tokens.json

The same backbone, prompt and pictures for both, and weights of seeded noise. A chunk of FAST tokens is as long as the
data make it: `--tokens` is what `ki train` tells of its codec. All are measured turn by turn in one run, so that other
work on the machine weighs on all alike: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ki_vla.engine.exported import SAID, Export
from ki_vla.engine.interface import Shape, example_inputs
from ki_vla.engine.onnx import OnnxRunner
from ki_vla.engine.torch import MODES, TorchRunner
from ki_vla.export import parity
from ki_vla.export.graphs import export_graphs
from ki_vla.export.source import of_noise
from ki_vla.model.config import preset
from ki_vla.model.kivla import KiVla

RESULTS = Path(__file__).resolve().parent / 'results' / 'tokens.json'
STEPS = 10


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints a table and writes the results."""
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    config = preset(given.preset)
    shape = Shape(given.views, min(given.prompt, config.max_prompt))
    source, inputs = of_noise(config), example_inputs(config, shape)
    noise = np.random.default_rng(0).standard_normal((config.horizon, config.action_dim), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        export_graphs(source, made, torch.float32, STEPS, ('plain', SAID))
        export = Export(made, 'fp32', ('plain', SAID), STEPS, False, {}, {})
        parity.check(parity.measure(export, parity.reference(source, STEPS, export.kinds)), 'fp32')
        model = KiVla(config)
        model.load_state_dict(source.state(torch.float32))
        torch_runs, torch_says = (TorchRunner(model, STEPS, MODES['packed'], decode=d) for d in ('actions', 'tokens'))
        onnx_runs, onnx_says = (OnnxRunner(export, threads=given.threads, decode=d) for d in ('actions', 'tokens'))

        def said(runner: TorchRunner | OnnxRunner) -> None:
            left = [config.vocab_size - 200] * given.tokens
            runner.say(shape, runner.prefill(shape, inputs), lambda logits: left.pop() if left else None)

        def denoised(runner: TorchRunner | OnnxRunner) -> None:
            runner.denoise(shape, runner.prefill(shape, inputs), noise, None)

        cells: dict[str, Callable[[], None]] = {
            'torch, denoised': lambda: denoised(torch_runs),
            'torch, said': lambda: said(torch_says),
            'onnx, denoised': lambda: denoised(onnx_runs),
            'onnx, said': lambda: said(onnx_says),
        }
        times = measure(cells, given.rounds)
    found = {
        name: {'p50_ms': statistics.median(each), 'p90_ms': sorted(each)[int(0.9 * len(each))]}
        for name, each in times.items()
    }
    for name, row in found.items():
        print(f'{name:<16} p50 {row["p50_ms"]:8.1f} ms   p90 {row["p90_ms"]:8.1f} ms')
    about = {
        'preset': given.preset,
        'tokens': given.tokens,
        'steps': STEPS,
        'views': shape.views,
        'prompt': shape.prompt,
    }
    table = {**about, 'threads': given.threads, 'load': os.getloadavg()[0], 'chunks': found}
    given.output.write_text(json.dumps(table, indent=1) + '\n', encoding='utf-8')
    return 0


def measure(cells: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every cell, turn by turn, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in cells}
    for turn in range(rounds + 1):
        for name, run in cells.items():
            begin = time.perf_counter()
            run()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preset', default='mini')
    parser.add_argument('--views', type=int, default=3)
    parser.add_argument('--prompt', type=int, default=96)
    parser.add_argument('--tokens', type=int, default=48, help='of a chunk')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--output', type=Path, default=RESULTS)
    return parser.parse_args(arguments)


if __name__ == '__main__':
    sys.exit(main())
