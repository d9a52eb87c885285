"""Ten Euler steps in one graph, or one graph run ten times? Export time, size, and time of a chunk on this CPU.

    python benchmarks/loop_or_step.py            writes benchmarks/results/loop_or_step.json

Both are exported from the same packed expert and run turn by turn in ONNX Runtime, so that the ratio holds on a busy
machine. What came of it: `export/graphs.py` writes one step.
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
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from ki_vla.engine.onnx import CACHED, open_session
from ki_vla.engine.packing import Fusions
from ki_vla.engine.stages import ActionStage, Loop, Step
from ki_vla.export.graphs import OPSET, make_contiguous, silence_exporter, step_example
from ki_vla.export.source import of_noise
from ki_vla.model.config import preset

RESULTS = Path(__file__).resolve().parent / 'results' / 'loop_or_step.json'
STEPS, PREFIX = 10, 204


def written(module: nn.Module, tensors: tuple[torch.Tensor, ...], names: list[str], path: Path) -> dict[str, Any]:
    """Export with weights inside; how long it took and what came out."""
    begin = time.perf_counter()
    with silence_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tensors,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=['next_actions'],
            verbose=False,
        )
        program.save(str(path), external_data=False)
    seconds = time.perf_counter() - begin
    nodes = len(onnx.load(path).graph.node)
    return {'export_s': round(seconds, 1), 'nodes': nodes, 'bytes': path.stat().st_size}


def main() -> int:
    """Export both, check that they agree, time them."""
    parser = argparse.ArgumentParser(prog='python benchmarks/loop_or_step.py', description='One graph or ten runs.')
    parser.add_argument('--preset', default='mini')
    parser.add_argument('--rounds', type=int, default=60)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--output', type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.manual_seed(0)
    config = preset(given.preset)
    stage = make_contiguous(ActionStage(of_noise(config).part('action'), STEPS, Fusions()))
    (_, row, k, _, cos, sin, _), _ = step_example(config, torch.float32, 'plain', False)
    shape = (k.shape[0], PREFIX, *k.shape[2:])
    cached = (torch.randn(shape), torch.randn(shape), cos, sin, torch.zeros(1, PREFIX + config.horizon))
    noise = torch.randn(config.horizon, config.action_dim)
    names = list(CACHED[: len(cached)])
    with tempfile.TemporaryDirectory() as folder:
        loop_path, step_path = Path(folder) / 'loop.onnx', Path(folder) / 'step.onnx'
        found = {
            'loop': written(Loop(stage), (noise, *cached), ['noisy_actions', *names], loop_path),
            'step': written(Step(stage), (noise, row, *cached), ['noisy_actions', 'row', *names], step_path),
        }
        sessions = [open_session(path, threads=given.threads) for path in (loop_path, step_path)]
    feed = {name: value.numpy() for name, value in zip(names, cached, strict=True)}

    def loop() -> np.ndarray:
        return sessions[0].run(None, {'noisy_actions': noise.numpy(), **feed})[0]

    def step() -> np.ndarray:
        actions = noise.numpy()
        for index in range(STEPS):
            actions = sessions[1].run(None, {'noisy_actions': actions, 'row': np.array([index]), **feed})[0]
        return actions

    np.testing.assert_allclose(loop(), step(), atol=1e-4)
    times = turn_by_turn({'loop': loop, 'step': step}, given.rounds)
    for name, values in times.items():
        found[name] |= {'p50_ms': round(statistics.median(values), 2), 'min_ms': round(min(values), 2)}
    ratio = statistics.median(s / o for s, o in zip(times['step'], times['loop'], strict=True))
    result = {'preset': given.preset, 'threads': given.threads, 'load': os.getloadavg(), **found}
    result['step_to_loop'] = round(ratio, 3)
    given.output.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(result, indent=1))
    return 0


def turn_by_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every function in every round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return times


if __name__ == '__main__':
    sys.exit(main())
