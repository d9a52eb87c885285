"""What each rung of the ladder brings on a GPU, most valuable first, within a budget of seconds.

    benchmarks/gpu.sh --output $OUT      writes $OUT/gpu_latency.json and gpu_profile.json (default: benchmarks/results)
    benchmarks/gpu.sh --rehearse         every line of it, tiny, on a CPU: writes rehearsal_*.json

Weights are seeded noise made on the device. A rung is one engine, opened once: its chunks are compared with those of
the model itself in float32, then the same graphs are timed. One that differs by more than its precision allows, or that
breaks, is not timed, and the result says why. What was measured is written after every rung. The list of work is in
the order of its worth; what no longer fits into `--budget` is skipped and named. So a machine that is lent for a few
minutes gives the most that it can.

ONNX Runtime stands beside the ladder. Its graphs have to be exported first, which at full size takes longer than all
the rest: ask for it with `--rungs`.
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
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from latency import STEPS, exports, summary
from roofline import floor, memory_bandwidth

from ki_common.errors import KiError, first_line
from ki_vla.engine.fused import Scales, calibrate
from ki_vla.engine.graphs import capture_cuda, capture_eagerly
from ki_vla.engine.interface import Carry, Choice, Engine, Shape, example_inputs
from ki_vla.engine.kernels import HAS_TRITON
from ki_vla.engine.onnx import PROVIDERS, OnnxRunner, available_providers
from ki_vla.engine.packing import PLAIN
from ki_vla.engine.torch import INPUTS, TorchMode, TorchRunner
from ki_vla.errors import VlaError
from ki_vla.export.parity import compare, within
from ki_vla.export.source import random_weight
from ki_vla.model.config import ModelConfig, preset
from ki_vla.model.kivla import KiVla, skeleton
from ki_vla.model.summary import parameters_by_part

RESULTS = Path(__file__).resolve().parent.parent / 'results'
BUDGET_S = 450.0
PRECISION = 'bf16'
KINDS = ('plain', 'trained')  # guided is timed once, at the end: nobody is to choose it unaware of its cost
WARM_UPS = 5


class Rung(NamedTuple):
    """A way to run the model, and about how many seconds a GPU needs to open, compare and time it at full size."""

    mode: TorchMode
    seconds: float
    precision: str = PRECISION


LADDER = {
    'fused': Rung(TorchMode(graphs=True, fused=True), 75),
    'fused, fp8': Rung(TorchMode(graphs=True, fused=True, fp8=True), 60, 'fp8'),
    'compiled graphs': Rung(TorchMode(compiled=True, graphs=True, attend_prefix='sdpa'), 150),
    'packed graphs': Rung(TorchMode(graphs=True, attend_prefix='sdpa'), 25),
    'eager': Rung(TorchMode(fusions=None), 15),
    'packed graphs, no fused attention': Rung(TorchMode(graphs=True), 25),
    'graphs': Rung(TorchMode(fusions=PLAIN, graphs=True), 25),
}
ONNX = 'ONNX Runtime'
ONNX_PRECISION = {'cpu': 'fp32', 'cuda': 'bf16'}


def shapes_of(config: ModelConfig) -> list[Shape]:
    """The same for every rung, the one that counts first: a long prompt, a short one."""
    return list(dict.fromkeys(Shape(config.views, min(prompt, config.max_prompt)) for prompt in (200, 48)))


def fusable(config: ModelConfig) -> ModelConfig:
    """A tiny model in which every kernel has work, for rehearsals."""
    wide = {'width': 64, 'mlp': 128, 'head_dim': 32}
    return config.replace(backbone=config.backbone.replace(**wide), expert=config.expert.replace(**wide))


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


def scales_of(model: KiVla) -> Scales:
    """Calibrated on the noise that it is timed on: what FP8 costs a policy is asked of its task, not here."""
    shown = [example_inputs(model.config, shape) for shape in shapes_of(model.config)]
    device = model.embed.weight.device
    rows = [tuple(torch.from_numpy(getattr(each, name)).to(device) for name in INPUTS) for each in shown]
    return calibrate(model, rows)


@contextmanager
def engine_of(model: KiVla, mode: TorchMode, device: str) -> Iterator[Engine]:
    """An engine that leaves no memory behind."""
    capture = capture_cuda if device == 'cuda' else capture_eagerly
    runner = TorchRunner(model, STEPS, mode, device, capture=capture, scales=scales_of(model) if mode.fp8 else None)
    engine = Engine(runner, model.config, Choice('torch', '', device, PRECISION, ''))
    try:
        yield engine
    finally:
        engine.close()
        del runner
        gc.collect()


@contextmanager
def onnx_engine(config: ModelConfig, device: str) -> Iterator[Engine]:
    """ONNX Runtime on graphs that are exported now, and checked on the provider that runs them."""
    precision, kinds = ONNX_PRECISION[device], ('plain', 'trained')
    with tempfile.TemporaryDirectory() as folder:
        made = exports(config, [precision], Path(folder), kinds, device)[precision]
        choice = Choice('onnx', PROVIDERS[device], device, precision, '')
        with Engine(OnnxRunner(made, device), config, choice, kinds=kinds) as engine:
            yield engine


def carry_for(config: ModelConfig, kind: str) -> Carry | None:
    """Half of an old chunk; None for a chunk of its own."""
    if kind == 'plain':
        return None
    rows = np.random.default_rng(5).standard_normal((config.horizon, config.action_dim), np.float32)
    return Carry(rows, delay=2, end=max(3, config.horizon // 2), mode=kind)


def references(device: str, config: ModelConfig) -> dict[tuple[Shape, str], np.ndarray]:
    """Chunks of the model itself, in float32, for every shape and kind."""
    with engine_of(model_on(device, config, torch.float32), TorchMode(fusions=None), device) as engine:
        return {
            (shape, kind): engine.infer(example_inputs(config, shape), carry=carry_for(config, kind))
            for shape in shapes_of(config)
            for kind in KINDS
        }


def timed(engine: Engine, shape: Shape, kind: str, rounds: int) -> dict[str, Any]:
    """One shape of one engine: wall clock from numpy to numpy."""
    inputs, carry = example_inputs(engine.config, shape), carry_for(engine.config, kind)
    for _ in range(min(WARM_UPS, rounds)):
        engine.infer(inputs, carry=carry)
    times: list[float] = []
    stages: dict[str, list[float]] = {}
    for _ in range(rounds):
        begin = time.perf_counter()
        engine.infer(inputs, carry=carry)
        times.append(1e3 * (time.perf_counter() - begin))
        for stage, value in engine.times_ms.items():
            stages.setdefault(stage, []).append(value)
    found = {f'{name}_ms': value for name, value in summary(times).items()}
    found['p99_minus_p50_ms'] = round(found['p99_ms'] - found['p50_ms'], 3)
    middle = {stage: round(float(np.median(values)), 3) for stage, values in stages.items()}
    return {**found, 'stages_p50_ms': middle}


class Ladder:
    """The results so far, and the time that is left.

    Args:
        device: 'cuda', or 'cpu' for a rehearsal.
        config: of the model.
        rounds: of each timing.
        budget_s: seconds from now.
        path: of the results.
        result: what is written, with what is known already.
    """

    def __init__(
        self, device: str, config: ModelConfig, rounds: int, budget_s: float, path: Path, result: dict[str, Any]
    ) -> None:
        self.device, self.config, self.rounds, self.path, self.result = device, config, rounds, path, result
        self.ends = time.monotonic() + budget_s
        self.parts, self.gpu = parameters_by_part(skeleton(config)), str(result['machine'].get('gpu', ''))
        self.expected: dict[tuple[Shape, str], np.ndarray] = {}

    def take(self, name: str, seconds: float, work: Callable[[], Any]) -> Any:
        """Do a piece of work if it fits into what is left; whatever it raises is told and costs nothing else."""
        left = self.ends - time.monotonic()
        begin, found = time.monotonic(), None
        if seconds > left:
            self.result['skipped'][name] = f'needs about {seconds:.0f} s, {max(left, 0):.0f} s are left'
            print(f'skipped: {name}: {self.result["skipped"][name]}', flush=True)
        else:
            try:
                found = work()
            except Exception as error:  # out of memory, a compiler that fails: the next one may be well
                self.result['not_timed'][name] = broke(error)
            self.result['seconds'][name] = round(time.monotonic() - begin, 1)
        write(self.path, self.result)
        return found

    def climb(self, name: str, engine: Engine, precision: str = PRECISION) -> None:
        """Compare one rung with the model itself, then time it, at every shape and kind."""
        for shape in shapes_of(self.config):
            for kind in KINDS:
                begin = time.perf_counter()
                chunk = engine.infer(example_inputs(self.config, shape), carry=carry_for(self.config, kind))
                first_s = round(time.perf_counter() - begin, 2)
                if (shape, kind) in self.expected:
                    found = compare(chunk, self.expected[shape, kind])
                    self.result['parity'].setdefault(name, {})[f'{kind} {shape.prompt}'] = found
                    if not within(kind, found, precision):
                        raise VlaError(f'differs from the model in float32: cosine {found["cosine"]:.6f} ({kind})')
                row = {'rung': name, **shape._asdict(), 'kind': kind, 'first_s': first_s}
                row |= timed(engine, shape, kind, self.rounds) | self.floor(shape) | memory(self.device)
                self.result['ladder'].append(row)
                print(
                    f'{name:34s} {shape.prompt:3d} slots {kind:8s} p50 {row["p50_ms"]:8.2f}  p99 {row["p99_ms"]:8.2f}  '
                    f'floor {row.get("floor_ms")} ms',
                    flush=True,
                )
                write(self.path, self.result)

    def floor(self, shape: Shape) -> dict[str, float]:
        """The least that this GPU could need; nothing where it is not known."""
        bandwidth = memory_bandwidth(self.gpu)
        if bandwidth is None:
            return {}
        return {'floor_ms': floor(self.config, self.parts, shape.views, shape.prompt, bandwidth)['total_ms']}

    def best(self) -> str | None:
        """The fastest rung of torch at the first shape."""
        first = shapes_of(self.config)[0]
        rows = [
            row
            for row in self.result['ladder']
            if row['rung'] in LADDER and row['kind'] == 'plain' and (row['views'], row['prompt']) == tuple(first)
        ]
        return min(rows, key=lambda row: row['p50_ms'])['rung'] if rows else None


def profile(engine: Engine, device: str, shape: Shape) -> list[dict[str, Any]]:
    """Where the time of one chunk goes, by kernel (by operator on a CPU), largest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    on_cuda = device == 'cuda'
    inputs = example_inputs(engine.config, shape)
    for _ in range(WARM_UPS):
        engine.infer(inputs)
    with recording(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as recorded:
        engine.infer(inputs)
    key = 'self_device_time_total' if on_cuda else 'self_cpu_time_total'
    rows = sorted(recorded.key_averages(), key=lambda each: -getattr(each, key))
    return [{'name': r.key[:120], 'count': r.count, 'us': round(getattr(r, key), 1)} for r in rows[:60]]


def broke(error: Exception) -> str:
    """Why a rung could not be climbed, also said at once."""
    said = first_line(error) if isinstance(error, VlaError) else f'{type(error).__name__}: {first_line(error)}'
    print(f'broke off: {said}', flush=True)
    return said


def memory(device: str) -> dict[str, float]:
    """GPU memory: torch's peak so far, and what the whole device holds now; nothing on a CPU."""
    if device != 'cuda':
        return {}
    free, total = torch.cuda.mem_get_info()
    peak = torch.cuda.max_memory_allocated()
    return {'peak_gib': round(peak / 2**30, 2), 'device_gib': round((total - free) / 2**30, 2)}


def about(device: str) -> dict[str, Any]:
    """The machine, as far as it bears on the numbers."""
    found: dict[str, Any] = {'device': device, 'torch': torch.__version__, 'load': os.getloadavg()}
    found['triton'] = version('triton') if HAS_TRITON else None
    if device == 'cuda':
        properties = torch.cuda.get_device_properties(0)
        found |= {'gpu': properties.name, 'memory_gib': round(properties.total_memory / 2**30, 1)}
        found['cuda'] = torch.version.cuda
    return found


def onnx_missing(device: str) -> str:
    """Why ONNX Runtime cannot be measured on this device; empty where it can be."""
    try:
        there = available_providers()
    except VlaError as error:
        return str(error)
    return '' if PROVIDERS[device] in there else f'onnxruntime has no {PROVIDERS[device]} here (onnxruntime-gpu)'


def main(arguments: list[str] | None = None) -> int:
    """References, rungs, guided, ONNX Runtime: each if there is time."""
    given = parse(arguments)
    device, prefix = ('cpu', 'rehearsal') if given.rehearse else ('cuda', 'gpu')
    torch.backends.cuda.matmul.allow_tf32 = False
    config = fusable(preset('tiny')) if given.preset == 'tiny' else preset(given.preset)
    result: dict[str, Any] = {
        'machine': about(device), 'preset': given.preset, 'rounds': given.rounds, 'steps': STEPS,
        'budget_s': None if given.rehearse else given.budget,
        'parity': {}, 'not_timed': {}, 'skipped': {}, 'seconds': {}, 'ladder': [],
    }  # fmt: skip
    given.output.mkdir(parents=True, exist_ok=True)
    ladder = Ladder(device, config, given.rounds, given.budget, given.output / f'{prefix}_latency.json', result)
    ladder.expected = ladder.take('references', 30, partial(references, device, config)) or {}
    model = model_on(device, config, torch.bfloat16)
    for name in (each for each in LADDER if each in given.rungs):
        ladder.take(name, LADDER[name].seconds * given.patience, partial(one_rung, ladder, model, name))
    if given.guided and ladder.best() is not None:
        ladder.take('guided', 60 * given.patience, partial(guided, ladder, model))
    del model  # its memory is needed
    gc.collect()
    if ONNX in given.rungs:
        ladder.take(ONNX, 400 * given.patience, partial(one_onnx, ladder))
    return 0 if result['ladder'] else 1


def one_rung(ladder: Ladder, model: KiVla, name: str) -> None:
    """One engine from its opening to its last timing; where it is the fastest so far, its profile as well."""
    with engine_of(model, LADDER[name].mode, ladder.device) as engine:
        ladder.climb(name, engine, LADDER[name].precision)
        if ladder.best() == name:
            path = ladder.path.with_name(ladder.path.name.replace('latency', 'profile'))
            write(path, {'rung': name, 'rows': profile(engine, ladder.device, shapes_of(ladder.config)[0])})


def guided(ladder: Ladder, model: KiVla) -> None:
    """What guided continuation costs, once."""
    shape = shapes_of(ladder.config)[0]
    with engine_of(model, LADDER['packed graphs'].mode, ladder.device) as engine:
        row = timed(engine, shape, 'guided', max(1, ladder.rounds // 5))
    ladder.result['ladder'].append({'rung': 'packed graphs', **shape._asdict(), 'kind': 'guided', **row})


def one_onnx(ladder: Ladder) -> None:
    """ONNX Runtime, where it has a provider for this device; the parity of its graphs is checked by their export."""
    missing = onnx_missing(ladder.device)
    if missing:
        raise VlaError(missing)
    ladder.expected = {}  # of other weights: its graphs are held to torch while they are exported
    with onnx_engine(ladder.config, ladder.device) as engine:
        ladder.climb(ONNX, engine, ONNX_PRECISION[ladder.device])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        KiError: there is no GPU to measure.
    """
    parser = argparse.ArgumentParser(prog='benchmarks/gpu.sh', description='The ladder on a GPU.')
    parser.add_argument('--rehearse', action='store_true', help='every line of it at tiny size, on the CPU')
    parser.add_argument('--preset', help='size (default: full, or tiny when rehearsing)')
    parser.add_argument(
        '--rungs', nargs='+', choices=[*LADDER, ONNX], help='default: all; ONNX Runtime when rehearsing'
    )
    parser.add_argument('--rounds', type=int, help='default: 200, or 2 when rehearsing')
    parser.add_argument('--budget', type=float, help=f'seconds; default {BUDGET_S:g}, without end when rehearsing')
    parser.add_argument('--no-guided', dest='guided', action='store_false', help='leave guided continuation out')
    parser.add_argument('--output', type=Path, default=RESULTS, help='folder of the results')
    given = parser.parse_args(arguments)
    if not given.rehearse and not torch.cuda.is_available():
        raise KiError('no CUDA device here; run this on a GPU, or with --rehearse to try the script on a CPU.')
    given.patience = 0.0 if given.rehearse else 1.0  # what a CPU needs is not what is written beside the rungs
    given.rounds = given.rounds or (2 if given.rehearse else 200)
    given.preset = given.preset or ('tiny' if given.rehearse else 'full')
    given.budget = given.budget or (float('inf') if given.rehearse else BUDGET_S)
    given.rungs = given.rungs or ([*LADDER, ONNX] if given.rehearse else list(LADDER))
    return given


def write(path: Path, data: dict[str, Any]) -> None:
    """As JSON."""
    path.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KiError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
