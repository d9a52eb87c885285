"""What each rung of the ladder brings on a GPU: parity first, then times, then one profile.

    benchmarks/gpu.sh                 writes benchmarks/results/gpu_latency.json and gpu_profile.json
    benchmarks/gpu.sh --rehearse      tiny, on the CPU, graphs without CUDA: writes results/rehearsal_*.json

Weights of the full size are seeded noise made on the device. A rung that differs from the model as it is by more than
its precision allows is not timed. ONNX Runtime is measured where its CUDA provider is installed; where it is not, that
is said and torch alone is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency import STEPS, summary
from roofline import floor

from ki_robot.errors import KiError
from ki_vla.config import ModelConfig, preset
from ki_vla.engine.graphs import capture_cuda, capture_nothing
from ki_vla.engine.interface import Carry, Choice, Engine, Shape, example_inputs
from ki_vla.engine.packing import PLAIN
from ki_vla.engine.torch import DTYPES, TorchMode, TorchRunner
from ki_vla.export.parity import TOLERANCES, compare
from ki_vla.export.source import random_weight
from ki_vla.model import KiVla
from ki_vla.summary import parameters_by_part, skeleton

RESULTS = Path(__file__).resolve().parent.parent / 'results'
# Cumulative, in the order in which they are climbed.
LADDER = {
    'eager': TorchMode(rungs=None),
    'stages': TorchMode(rungs=PLAIN),
    'compiled': TorchMode(rungs=PLAIN, compiled=True),
    'graphs': TorchMode(rungs=PLAIN, graphs=True),
    'packed graphs': TorchMode(graphs=True),
    'packed graphs, sdpa': TorchMode(graphs=True, attend='sdpa'),
    'packed compiled graphs': TorchMode(compiled=True, graphs=True),
    'packed compiled graphs, sdpa': TorchMode(compiled=True, graphs=True, attend='sdpa'),
}
SHAPES = [Shape(views, prompt) for views in (1, 2, 3) for prompt in (48, 200)]
WARM_UPS = 5


def model_on(device: str, config: ModelConfig, dtype: torch.dtype) -> KiVla:
    """Seeded noise, made where it is used, one weight at a time."""
    with torch.device('meta'):
        model = KiVla(config)
    state = {
        name: random_weight(name, tuple(value.shape), device=device).to(dtype)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


@contextmanager
def engine_of(model: KiVla, mode: TorchMode, device: str, views: int, precision: str) -> Iterator[Engine]:
    """An engine that leaves no memory behind."""
    capture = capture_cuda if device == 'cuda' else capture_nothing
    runner = TorchRunner(model, STEPS, mode, device, capture=capture)
    engine = Engine(runner, model.config, Choice('torch', '', device, precision, ''), views)
    try:
        yield engine
    finally:
        engine.close()
        gc.collect()


def carry_for(config: ModelConfig) -> Carry:
    """Half of an old chunk."""
    rows = np.random.default_rng(5).standard_normal((config.horizon, config.action_dim), np.float32)
    return Carry(rows, delay=2, end=max(3, config.horizon // 2))


def agreement(model: KiVla, device: str, precision: str, names: list[str]) -> dict[str, Any]:
    """Chunks of every rung, plain and guided, against the model as it is on the same device."""
    config, found = model.config, {}
    inputs, carry = example_inputs(config, Shape(config.views, config.max_prompt)), carry_for(config)
    with engine_of(model, LADDER['eager'], device, config.views, precision) as engine:
        expected = {'plain': engine.infer(inputs), 'guided': engine.infer(inputs, carry=carry)}
    allowed = TOLERANCES[precision]
    for name in names:
        with engine_of(model, LADDER[name], device, config.views, precision) as engine:
            each = {'plain': compare(engine.infer(inputs), expected['plain'])}
            if not LADDER[name].compiled:  # compiling a backward pass as well takes minutes
                each['guided'] = compare(engine.infer(inputs, carry=carry), expected['guided'])
        passed = all(
            c['cosine'] >= allowed.cosine and c['max_error'] <= allowed.max_error * max(1.0, c['max_value'])
            for c in each.values()
        )
        found[name] = {**each, 'passed': passed}
        cosines = ' '.join(f'{kind} {c["cosine"]:.6f}' for kind, c in each.items())
        print(f'{precision} {name:30s} cosine {cosines} {"passed" if passed else "FAILED"}', flush=True)
    return found


def timed(engine: Engine, shape: Shape, rounds: int, guided: bool = False) -> dict[str, Any]:
    """One shape of one engine: wall clock from numpy to numpy."""
    inputs, carry = example_inputs(engine.config, shape), carry_for(engine.config) if guided else None
    begin = time.perf_counter()
    engine.infer(inputs, carry=carry)
    first_s = time.perf_counter() - begin
    for _ in range(min(WARM_UPS, rounds)):
        engine.infer(inputs, carry=carry)
    times, stages = [], {}
    for _ in range(rounds):
        begin = time.perf_counter()
        engine.infer(inputs, carry=carry)
        times.append(1e3 * (time.perf_counter() - begin))
        for stage, value in engine.times_ms.items():
            stages.setdefault(stage, []).append(value)
    middle = {stage: round(float(np.median(values)), 3) for stage, values in stages.items()}
    return {**{f'{k}_ms': v for k, v in summary(times).items()}, 'first_s': round(first_s, 2), 'stages_p50_ms': middle}


def climb(model: KiVla, device: str, names: list[str], shapes: list[Shape], rounds: int) -> list[dict[str, Any]]:
    """Every rung at every shape, the last one with guided chunks as well; the floor is that of an H200.

    What is compiled is compiled for one shape, which takes minutes: those rungs are measured at the last shape only.
    """
    parts, rows = parameters_by_part(skeleton(model.config)), []
    for name in names:
        wanted = shapes[-1:] if LADDER[name].compiled else shapes
        for views in sorted({shape.views for shape in wanted}):
            with engine_of(model, LADDER[name], device, views, 'bf16') as engine:
                for shape in (each for each in wanted if each.views == views):
                    if device == 'cuda':
                        torch.cuda.reset_peak_memory_stats()
                    row = {'rung': name, **shape._asdict(), 'rtc': 'off', **timed(engine, shape, rounds)}
                    row['floor_h200_ms'] = floor(model.config, parts, views, shape.prompt)['total_ms']
                    if device == 'cuda':
                        row['peak_gib'] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
                    rows.append(row)
                    if shape == shapes[-1] and not LADDER[name].compiled:
                        rows.append(
                            {'rung': name, **shape._asdict(), 'rtc': 'guided', **timed(engine, shape, rounds, True)}
                        )
                    print(
                        f'{name:30s} {views} views {shape.prompt:3d} slots  p50 {row["p50_ms"]:8.2f}  p99 '
                        f'{row["p99_ms"]:8.2f} ms  floor {row["floor_h200_ms"]} ms',
                        flush=True,
                    )
    return rows


def profile(model: KiVla, device: str, name: str, shape: Shape) -> list[dict[str, Any]]:
    """Where the time of one chunk goes, by kernel (by operator on a CPU), largest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    on_cuda = device == 'cuda'
    with engine_of(model, LADDER[name], device, shape.views, 'bf16') as engine:
        inputs = example_inputs(model.config, shape)
        for _ in range(WARM_UPS):
            engine.infer(inputs)
        activities = [ProfilerActivity.CUDA] if on_cuda else [ProfilerActivity.CPU]
        with recording(activities=activities) as recorded:
            engine.infer(inputs)
    key = 'self_device_time_total' if on_cuda else 'self_cpu_time_total'
    rows = sorted(recorded.key_averages(), key=lambda each: -getattr(each, key))
    return [{'name': r.key[:120], 'count': r.count, 'us': round(getattr(r, key), 1)} for r in rows[:40]]


def about(device: str) -> dict[str, Any]:
    """The machine, as far as it bears on the numbers."""
    found: dict[str, Any] = {'device': device, 'torch': torch.__version__, 'load': os.getloadavg()}
    if device == 'cuda':
        properties = torch.cuda.get_device_properties(0)
        found |= {'gpu': properties.name, 'memory_gib': round(properties.total_memory / 2**30, 1)}
        found['cuda'] = torch.version.cuda
    return found


def onnx_note() -> str:
    """Whether ONNX Runtime could be measured on this GPU."""
    try:
        import onnxruntime
    except ImportError:
        return 'onnxruntime is not installed; torch alone was measured'
    if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
        return 'onnxruntime has no CUDA provider here (onnxruntime-gpu); torch alone was measured'
    return 'onnxruntime has a CUDA provider: measure it with ki export --device cuda on a bundle'


def main(arguments: list[str] | None = None) -> int:
    """Parity, ladder, profile."""
    parser = argparse.ArgumentParser(prog='benchmarks/gpu.sh', description='The ladder on a GPU.')
    parser.add_argument('--rehearse', action='store_true', help='tiny size, on the CPU')
    parser.add_argument('--preset', help='size (default: full, or tiny when rehearsing)')
    parser.add_argument('--rungs', nargs='+', choices=list(LADDER), help='default: all (no compiled ones in rehearsal)')
    parser.add_argument('--rounds', type=int, help='default: 100, or 3 when rehearsing')
    parser.add_argument('--output', type=Path, default=RESULTS, help='folder of the results')
    given = parser.parse_args(arguments)
    if not given.rehearse and not torch.cuda.is_available():
        raise KiError('no CUDA device here; run this on a GPU, or with --rehearse to try the script on a CPU.')
    device = 'cpu' if given.rehearse else 'cuda'
    torch.backends.cuda.matmul.allow_tf32 = False
    default = [name for name in LADDER if not (given.rehearse and 'compiled' in name)]
    names, rounds = given.rungs or default, given.rounds or (3 if given.rehearse else 100)
    size = given.preset or ('tiny' if given.rehearse else 'full')
    prefix = 'rehearsal' if given.rehearse else 'gpu'
    given.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {'machine': about(device), 'preset': size, 'rounds': rounds, 'steps': STEPS}
    result['onnx'] = onnx_note()
    print(result['onnx'])
    small = preset('tiny' if given.rehearse else 'mini')
    result['parity'] = {'fp32': agreement(model_on(device, small, torch.float32), device, 'fp32', names)}
    model = model_on(device, preset(size), DTYPES['bf16'])
    result['parity']['bf16'] = agreement(model, device, 'bf16', names)
    sound = [name for name in names if all(each[name]['passed'] for each in result['parity'].values())]
    result['not_timed'] = sorted(set(names) - set(sound))
    longest = model.config.max_prompt
    shapes = list(dict.fromkeys(Shape(s.views, min(s.prompt, longest)) for s in SHAPES))
    result['ladder'] = climb(model, device, sound, shapes, rounds)
    write(given.output / f'{prefix}_latency.json', result)
    best = min((row for row in result['ladder'] if row['rtc'] == 'off'), key=lambda row: row['p50_ms'])['rung']
    write(given.output / f'{prefix}_profile.json', {'rung': best, 'rows': profile(model, device, best, shapes[-1])})
    return 0


def write(path: Path, data: dict[str, Any]) -> None:
    """As JSON."""
    path.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    print(path)


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KiError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
