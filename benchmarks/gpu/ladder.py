"""What each rung of the ladder brings on a GPU: parity first, then times, then one profile.

    benchmarks/gpu.sh                 writes benchmarks/results/gpu_latency.json and gpu_profile.json
    benchmarks/gpu.sh --rehearse      tiny, on the CPU, graphs without CUDA: writes results/rehearsal_*.json

Weights of the full size are seeded noise made on the device. A rung that differs from the model as it is by more than
its precision allows, or that breaks, is not timed, and the result says why; what was measured is written after every
rung. ONNX Runtime is a rung beside the ladder where its CUDA provider is installed: its graphs are exported to a
temporary folder and checked against torch on the CPU (for the full size some minutes, 16 GiB of memory and 8 GB of
disk). Where it is not installed, that is said and torch alone is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency import STEPS, exports, summary
from roofline import floor

from ki_common.errors import KiError, first_line
from ki_vla.engine.graphs import capture_cuda, capture_eagerly
from ki_vla.engine.interface import Carry, Choice, Engine, Shape, example_inputs
from ki_vla.engine.onnx import PROVIDERS, OnnxRunner, available_providers
from ki_vla.engine.packing import PLAIN
from ki_vla.engine.torch import DTYPES, TorchMode, TorchRunner
from ki_vla.errors import VlaError
from ki_vla.export.parity import compare, within
from ki_vla.export.source import random_weight
from ki_vla.model.config import ModelConfig, preset
from ki_vla.model.kivla import KiVla, skeleton
from ki_vla.model.summary import parameters_by_part

RESULTS = Path(__file__).resolve().parent.parent / 'results'
# Cumulative, in the order in which they are climbed.
LADDER = {
    'eager': TorchMode(fusions=None),
    'stages': TorchMode(fusions=PLAIN),
    'compiled': TorchMode(fusions=PLAIN, compiled=True),
    'graphs': TorchMode(fusions=PLAIN, graphs=True),
    'packed graphs': TorchMode(graphs=True),
    'packed graphs, sdpa': TorchMode(graphs=True, attend_prefix='sdpa', attend_action='sdpa'),
    'packed compiled graphs': TorchMode(compiled=True, graphs=True),
    'packed compiled graphs, sdpa': TorchMode(compiled=True, graphs=True, attend_prefix='sdpa'),
}
ONNX = 'ONNX Runtime'  # beside the ladder
ONNX_PRECISION = {'cpu': 'fp32', 'cuda': 'bf16'}
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
    capture = capture_cuda if device == 'cuda' else capture_eagerly
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
    for name in names:
        try:
            with engine_of(model, LADDER[name], device, config.views, precision) as engine:
                each = {'plain': compare(engine.infer(inputs), expected['plain'])}
                if not LADDER[name].compiled:  # compiling a backward pass as well takes minutes
                    each['guided'] = compare(engine.infer(inputs, carry=carry), expected['guided'])
        except Exception as error:  # a rung that breaks must not take the others with it
            found[name] = {'passed': False, 'reason': f'{precision}: {broke(error)}'}
            continue
        passed = all(within(kind, c, precision) for kind, c in each.items())
        cosines = ' '.join(f'{kind} {c["cosine"]:.6f}' for kind, c in each.items())
        found[name] = {**each, 'passed': passed}
        if not passed:
            errors = ' '.join(f'{kind} {c["max_error"]:.1e}' for kind, c in each.items())
            found[name]['reason'] = f'{precision}: differs from the model as it is: cosine {cosines}, error {errors}'
        print(f'{precision} {name:30s} cosine {cosines} {"passed" if passed else "FAILED"}', flush=True)
    return found


def broke(error: Exception) -> str:
    """Why a rung could not be climbed, also said at once."""
    said = first_line(error) if isinstance(error, VlaError) else f'{type(error).__name__}: {first_line(error)}'
    print(f'broke off: {said}', flush=True)
    return said


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


# Name and rows, measured as they are asked for
Rungs = Iterator[tuple[str, Iterator[dict[str, Any]]]]
# (views) -> an engine that leaves no memory behind
Opened = Callable[[int], AbstractContextManager[Engine]]


def climb(
    name: str, opened: Opened, config: ModelConfig, device: str, shapes: list[Shape], rounds: int, guided: bool
) -> Iterator[dict[str, Any]]:
    """One rung at every shape, at the last one with guided chunks as well; the floor is that of an H200."""
    parts = parameters_by_part(skeleton(config))
    for views in sorted({shape.views for shape in shapes}):
        with opened(views) as engine:
            for shape in (each for each in shapes if each.views == views):
                if device == 'cuda':
                    torch.cuda.reset_peak_memory_stats()
                row = {'rung': name, **shape._asdict(), 'rtc': 'off', **timed(engine, shape, rounds)}
                row['floor_h200_ms'] = floor(config, parts, views, shape.prompt)['total_ms']
                if device == 'cuda':
                    free, total = torch.cuda.mem_get_info()
                    # ONNX Runtime's memory is not torch's: the whole device shows both.
                    row['peak_gib'] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
                    row['device_gib'] = round((total - free) / 2**30, 2)
                print(
                    f'{name:30s} {views} views {shape.prompt:3d} slots  p50 {row["p50_ms"]:8.2f}  p99 '
                    f'{row["p99_ms"]:8.2f} ms  floor {row["floor_h200_ms"]} ms',
                    flush=True,
                )
                yield row
                if guided and shape == shapes[-1]:
                    yield {'rung': name, **shape._asdict(), 'rtc': 'guided', **timed(engine, shape, rounds, True)}


def torch_rungs(model: KiVla, device: str, names: list[str], shapes: list[Shape], rounds: int) -> Rungs:
    """Name and rows of every rung of torch.

    What is compiled is compiled for one shape, which takes minutes: those rungs are measured at the last shape only.
    """
    for name in names:
        mode = LADDER[name]
        wanted = shapes[-1:] if mode.compiled else shapes
        opened = partial(_torch_engine, model, mode, device)
        yield name, climb(name, opened, model.config, device, wanted, rounds, not mode.compiled)


def _torch_engine(model: KiVla, mode: TorchMode, device: str, views: int) -> AbstractContextManager[Engine]:
    return engine_of(model, mode, device, views, 'bf16')


def onnx_rows(config: ModelConfig, device: str, shapes: list[Shape], rounds: int) -> Iterator[dict[str, Any]]:
    """ONNX Runtime at every shape: graphs of the same structure, checked on the provider that runs them."""
    precision, kinds = ONNX_PRECISION[device], ('plain', 'guided')
    with tempfile.TemporaryDirectory() as folder:
        made = exports(config, [precision], Path(folder), kinds, device)[precision]

        @contextmanager
        def opened(views: int) -> Iterator[Engine]:
            choice = Choice('onnx', PROVIDERS[device], device, precision, '')
            with Engine(OnnxRunner(made, device), config, choice, views, kinds) as engine:
                yield engine

        for row in climb(ONNX, opened, config, device, shapes, rounds, True):
            yield {**row, 'precision': precision, 'parity': made.parity['chunk']}


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


def onnx_missing(device: str) -> str:
    """Why ONNX Runtime is not measured on this device; empty where it can be."""
    try:
        there = available_providers()
    except VlaError as error:
        return str(error)
    if PROVIDERS[device] not in there:
        return f'onnxruntime has no {PROVIDERS[device]} here (onnxruntime-gpu); torch alone was measured'
    return ''


def main(arguments: list[str] | None = None) -> int:
    """Parity, ladder, profile, ONNX Runtime."""
    given = parse(arguments)
    device, prefix = ('cpu', 'rehearsal') if given.rehearse else ('cuda', 'gpu')
    torch.backends.cuda.matmul.allow_tf32 = False
    missing = onnx_missing(device)
    if missing:
        print(missing)
    default = [name for name in LADDER if not (given.rehearse and 'compiled' in name)]
    wanted = given.rungs or (default if missing or given.rehearse else [*default, ONNX])
    names = [name for name in wanted if name != ONNX]
    result: dict[str, Any] = {'machine': about(device), 'preset': given.preset, 'rounds': given.rounds, 'steps': STEPS}
    result['onnx'] = missing or ('measured' if ONNX in wanted else 'not asked for')
    result |= {'parity': {}, 'not_timed': {ONNX: missing} if missing and ONNX in wanted else {}, 'ladder': []}
    given.output.mkdir(parents=True, exist_ok=True)
    path, small = given.output / f'{prefix}_latency.json', preset('tiny' if given.rehearse else 'mini')
    result['parity']['fp32'] = agreement(model_on(device, small, torch.float32), device, 'fp32', names)
    write(path, result)
    model = model_on(device, preset(given.preset), DTYPES['bf16'])
    config = model.config
    result['parity']['bf16'] = agreement(model, device, 'bf16', names)
    for found in result['parity'].values():
        result['not_timed'] |= {name: each['reason'] for name, each in found.items() if not each['passed']}
    sound = [name for name in names if name not in result['not_timed']]
    shapes = list(dict.fromkeys(Shape(s.views, min(s.prompt, config.max_prompt)) for s in SHAPES))
    measure(torch_rungs(model, device, sound, shapes, given.rounds), result, path)
    timed_rows = [row for row in result['ladder'] if row['rtc'] == 'off']
    if timed_rows:
        best = min(timed_rows, key=lambda row: row['p50_ms'])['rung']
        rows = profile(model, device, best, shapes[-1])
        write(given.output / f'{prefix}_profile.json', {'rung': best, 'rows': rows})
    if ONNX in wanted and not missing:
        del model  # its memory is needed
        gc.collect()
        torch.cuda.empty_cache()
        measure(iter([(ONNX, onnx_rows(config, device, shapes, given.rounds))]), result, path)
    return 0 if timed_rows else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        KiError: there is no GPU to measure.
    """
    parser = argparse.ArgumentParser(prog='benchmarks/gpu.sh', description='The ladder on a GPU.')
    parser.add_argument('--rehearse', action='store_true', help='tiny size, on the CPU')
    parser.add_argument('--preset', help='size (default: full, or tiny when rehearsing)')
    parser.add_argument(
        '--rungs', nargs='+', choices=[*LADDER, ONNX], help='default: all (when rehearsing none that take minutes)'
    )
    parser.add_argument('--rounds', type=int, help='default: 100, or 3 when rehearsing')
    parser.add_argument('--output', type=Path, default=RESULTS, help='folder of the results')
    given = parser.parse_args(arguments)
    if not given.rehearse and not torch.cuda.is_available():
        raise KiError('no CUDA device here; run this on a GPU, or with --rehearse to try the script on a CPU.')
    given.rounds = given.rounds or (3 if given.rehearse else 100)
    given.preset = given.preset or ('tiny' if given.rehearse else 'full')
    return given


def measure(rungs: Rungs, result: dict[str, Any], path: Path) -> None:
    """Take every row of every rung; a rung that breaks off is told with what it gave until then."""
    for name, rows in rungs:
        try:
            for row in rows:
                result['ladder'].append(row)
        except Exception as error:  # out of memory, a compiler that fails: the next rung may be well
            result['not_timed'][name] = broke(error)
        write(path, result)


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
