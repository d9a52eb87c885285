"""How long a chunk takes, by backend and stage, beside the least that the arithmetic needs.

    python benchmarks/latency.py                                   writes benchmarks/results/latency_cpu.json
    python benchmarks/latency.py --preset tiny --views 1 --prompt 48 --rounds 20 --output latency.json
    python benchmarks/latency.py --device cuda                     writes benchmarks/results/latency_cuda.json

Weights are seeded noise: time does not depend on their values. All backends are measured turn by turn in one run, so
that other work on the machine weighs on all alike: read the ratios, and the milliseconds with the load average that is
written beside them. ONNX graphs are exported to a temporary folder and checked against torch, on the provider that runs
them, before they are timed. Torch computes in what an engine computes in there: float32 on a CPU, bfloat16 with CUDA.
What each step up a GPU's ladder brings is measured by `benchmarks/gpu.sh`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from roofline import encode_flops, expert_flops, prefill_flops

from ki_common.errors import KiError
from ki_vla.engine.exported import Export
from ki_vla.engine.interface import Carry, Choice, Engine, Shape, example_inputs
from ki_vla.engine.onnx import OnnxRunner, check_provider
from ki_vla.engine.select import has_cuda
from ki_vla.engine.stages import KINDS
from ki_vla.engine.torch import DTYPES, MODES, TorchRunner
from ki_vla.export import parity
from ki_vla.export.graphs import export_graphs
from ki_vla.export.quantise import quantise
from ki_vla.export.source import of_noise
from ki_vla.model.config import ModelConfig, preset
from ki_vla.model.kivla import KiVla

RESULTS = Path(__file__).resolve().parent / 'results'
STEPS = 10
WARM_UPS = 5
TORCH = {'cpu': 'fp32', 'cuda': 'bf16'}
# By device: on a GPU the modes that serve there, and no graphs unless they are asked for.
BACKENDS = {
    'cpu': ['torch-eager', 'torch-packed', 'onnx-fp32', 'onnx-int8'],
    'cuda': ['torch-eager', 'torch-packed', 'torch-graphs'],
}
EXPORTED = {'cpu': ('fp32', 'fp16', 'int8'), 'cuda': ('fp32', 'fp16', 'bf16')}
# Sides of one large product and how often it is taken for the best time.
PRODUCT = {'cpu': (768, 20), 'cuda': (8192, 50)}


def model_of_noise(config: ModelConfig) -> KiVla:
    """The model with seeded weights, on the CPU."""
    with torch.device('meta'):
        model = KiVla(config)
    model.load_state_dict(of_noise(config).state(torch.float32), assign=True)
    return model.eval()


def exports(
    config: ModelConfig, precisions: list[str], folder: Path, kinds: tuple[str, ...], device: str = 'cpu'
) -> dict[str, Export]:
    """Graphs of noise in several precisions, checked on the provider of `device`."""
    source, found = of_noise(config), {}
    if not precisions:
        return found
    given = parity.reference(source, STEPS, kinds)
    for precision in precisions:
        target = folder / precision
        target.mkdir()
        print(f'exporting {precision} ...', file=sys.stderr, flush=True)
        token = export_graphs(source, target, DTYPES.get(precision, torch.float32), STEPS, kinds)
        if precision == 'int8':
            quantise(target, {})
        export = Export(target, precision, kinds, STEPS, token, {}, {})
        close = parity.measure(export, given, device)
        parity.check(close, precision)
        found[precision] = Export(target, precision, kinds, STEPS, token, close, {}, device)
    return found


def summary(times_ms: list[float]) -> dict[str, float]:
    """p50, p99, and how far the slow ones lie above the fastest."""
    ordered = sorted(times_ms)
    p99 = float(np.percentile(ordered, 99))
    found = {'p50': statistics.median(ordered), 'p99': p99, 'min': ordered[0], 'p99_minus_min': p99 - ordered[0]}
    return {name: round(value, 3) for name, value in found.items()}


def compare(engines: dict[str, Engine], shape: Shape, rtc: str, rounds: int) -> dict[str, Any]:
    """Time one chunk of every engine, turn by turn; ratios are taken within a round, to the first engine."""
    config = next(iter(engines.values())).config
    inputs, carry = example_inputs(config, shape), None
    if rtc != 'off':
        previous = np.zeros((config.horizon, config.action_dim), np.float32)
        carry = Carry(previous, delay=2, end=max(3, config.horizon // 2), mode=rtc)
    totals: dict[str, list[float]] = {name: [] for name in engines}
    stages: dict[str, dict[str, list[float]]] = {name: {} for name in engines}
    for index in range(WARM_UPS + rounds):
        for name, engine in engines.items():
            begin = time.perf_counter()
            engine.infer(inputs, carry=carry)
            total = 1e3 * (time.perf_counter() - begin)
            if index >= WARM_UPS:
                totals[name].append(total)
                for stage, value in engine.times_ms.items():
                    stages[name].setdefault(stage, []).append(value)
    base = totals[next(iter(engines))]
    return {
        name: {
            **{f'{key}_ms': value for key, value in summary(values).items()},
            'ratio_to_first': round(statistics.median(v / b for v, b in zip(values, base, strict=True)), 3),
            'stages_p50_ms': {stage: round(statistics.median(each), 3) for stage, each in stages[name].items()},
        }
        for name, values in totals.items()
    }


def product_gflops(threads: int, device: str = 'cpu') -> float:
    """What one large product reaches here, in this run, in torch's precision; on a CPU with so many threads."""
    torch.set_num_threads(threads)
    side, rounds = PRODUCT[device]
    one = torch.randn(side, side, device=device, dtype=DTYPES[TORCH[device]])
    best = float('inf')
    for _ in range(rounds):
        settle(device)
        begin = time.perf_counter()
        one @ one
        settle(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best / 1e9


def settle(device: str) -> None:
    """Wait for what a GPU was given to do."""
    if device == 'cuda':
        torch.cuda.synchronize()


def floor_ms(config: ModelConfig, shape: Shape, gflops: float) -> float:
    """The arithmetic of a chunk at the speed of one large product."""
    P, D, layers = shape.views * config.vision.tokens + shape.prompt, config.expert.width, config.expert.depth
    tabled = 2 * (2 * D**2 + (2 * layers + 1) * 3 * D**2)
    flops = encode_flops(config, shape.views) + prefill_flops(config, P)
    return (flops + STEPS * (expert_flops(config, P) - tabled)) / gflops / 1e6


def open_engines(
    config: ModelConfig, backends: list[str], made: dict[str, Export], threads: int, device: str
) -> dict[str, Engine]:
    """Engines by name: torch-MODE or onnx-PRECISION."""
    engines = {}
    for name in backends:
        kind, _, how = name.partition('-')
        if kind == 'torch':
            runner: Any = TorchRunner(model_of_noise(config), STEPS, MODES[how], device, DTYPES[TORCH[device]])
        else:
            runner = OnnxRunner(made[how], device, threads)
        engines[name] = Engine(runner, config, Choice(kind, how, device, how if kind == 'onnx' else TORCH[device], ''))
    return engines


def main(arguments: list[str] | None = None) -> int:
    """Export, measure, print, write."""
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    gflops = product_gflops(given.threads, given.device)
    result: dict[str, Any] = {
        'command': 'python benchmarks/latency.py ' + ' '.join(sys.argv[1:] if arguments is None else arguments),
        'machine': {
            'cpu': cpu_name(),
            'cores': os.cpu_count(),
            'threads': given.threads,
            'load': os.getloadavg(),
            **gpu(given.device),
        },
        'versions': {
            'torch': torch.__version__,
            'onnxruntime': onnxruntime_version(),
            'python': platform.python_version(),
        },
        'large_product_gflops': round(gflops, 1),
        'rounds': given.rounds,
        'steps': STEPS,
        'results': [],
    }
    kinds = ('plain', *(each for each in given.rtc if each != 'off'))
    precisions = [name.partition('-')[2] for name in given.backends if name.startswith('onnx-')]
    for size in given.preset:
        with tempfile.TemporaryDirectory() as folder:
            for views in given.views:
                config = preset(size, views=views)
                shapes = [Shape(views, min(prompt, config.max_prompt)) for prompt in given.prompt]
                target = Path(folder) / str(views)
                target.mkdir()
                made = exports(config, precisions, target, kinds, given.device)
                result['parity'] = {name: export.parity for name, export in made.items()}
                engines = open_engines(config, given.backends, made, given.threads, given.device)
                for shape in dict.fromkeys(shapes):
                    for rtc in given.rtc:
                        found = compare(engines, shape, rtc, given.rounds)
                        floor = round(floor_ms(config, shape, gflops), 3)
                        row = {'preset': size, 'views': views, 'prompt': shape.prompt, 'rtc': rtc, 'floor_ms': floor}
                        row |= gpu_memory(given.device)
                        result['results'].append({**row, 'engines': found})
                        show(row, found)
                for engine in engines.values():
                    engine.close()
    result['machine']['load_after'] = os.getloadavg()
    result['peak_rss_mb'] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    print(given.output)
    return 0


def show(row: dict[str, Any], found: dict[str, Any]) -> None:
    """A few lines for people."""
    print(' '.join(f'{name} {value}' for name, value in row.items()))
    for name, each in found.items():
        parts = ' '.join(f'{stage} {value}' for stage, value in each['stages_p50_ms'].items())
        print(
            f'  {name:15s} p50 {each["p50_ms"]:8.2f}  p99 {each["p99_ms"]:8.2f}  min {each["min_ms"]:8.2f} ms'
            f'  x{each["ratio_to_first"]:<6} {parts}',
            flush=True,
        )


def gpu(device: str) -> dict[str, Any]:
    """The GPU and what torch computes in on it; nothing on a CPU."""
    if device == 'cpu':
        return {}
    return {'gpu': torch.cuda.get_device_name(), 'cuda': torch.version.cuda, 'torch_precision': TORCH[device]}


def gpu_memory(device: str) -> dict[str, float]:
    """GPU memory while all engines of a row are open: torch's peak so far, and what the whole device holds now.

    ONNX Runtime keeps what it has taken, so its share is in the second figure alone.
    """
    if device == 'cpu':
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        'torch_peak_mb': round(torch.cuda.max_memory_allocated() / 2**20, 1),
        'device_used_mb': round((total - free) / 2**20, 1),
    }


def cpu_name() -> str:
    """As the system calls it."""
    lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.processor())


def onnxruntime_version() -> str:
    """Of the runtime that is measured."""
    import onnxruntime

    return onnxruntime.__version__


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog='python benchmarks/latency.py', description='How long a chunk takes.')
    parser.add_argument('--preset', nargs='+', default=['mini'], help='sizes (default: mini)')
    parser.add_argument('--views', nargs='+', type=int, default=[1, 3])
    parser.add_argument('--prompt', nargs='+', type=int, default=[48, 96], help="prompt slots; at most the preset's")
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda', 'auto'], help='auto: CUDA where it is')
    parser.add_argument('--backends', nargs='+', help='torch-MODE, onnx-PRECISION; ratios are to the first')
    parser.add_argument('--rtc', nargs='+', default=['off', 'guided'], choices=['off', *KINDS[1:]])
    parser.add_argument('--rounds', type=int, default=60)
    parser.add_argument('--threads', type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument('--output', type=Path, help='default: results/latency_DEVICE.json')
    given = parser.parse_args(arguments)
    if given.device == 'auto':
        given.device = 'cuda' if has_cuda() else 'cpu'
    if given.device == 'cuda' and not has_cuda():
        raise KiError('--device cuda: torch sees no CUDA device here; take cpu, or check driver and torch (ki doctor).')
    given.backends = given.backends or BACKENDS[given.device]
    given.output = given.output or RESULTS / f'latency_{given.device}.json'
    modes = [name for name, mode in MODES.items() if given.device == 'cuda' or not mode.graphs]
    known = [*(f'torch-{mode}' for mode in modes), *(f'onnx-{each}' for each in EXPORTED[given.device])]
    for name in given.backends:
        if name not in known:
            parser.error(f'--backends {name}: on {given.device} there are {", ".join(known)}')
    if any(name.startswith('onnx-') for name in given.backends):
        check_provider(given.device)
    return given


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KiError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
