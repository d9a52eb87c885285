"""How fast the trainer trains, and whether it ever waits for samples.

    python benchmarks/training.py                     the mini model on the simulator's recordings, on the CPU
    python benchmarks/training.py --preset full --device cuda       the paper's size on noise: samples/s, MFU, memory

Writes benchmarks/results/training.json (training_gpu.json). Variants are timed turn by turn within one run; beside wall
seconds stand CPU seconds of the process, which other work on the machine does not stretch as much. MFU counts the FLOPs
of torch's own counter, forward and backward, and is relative to --peak. What memory to expect: training_memory.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before the file training.py, which hides that room

import torch
from roofline import training_flops
from torch.utils.flop_counter import FlopCounterMode

from ki_common.errors import first_line
from ki_vla.model.config import PRESETS, ModelConfig, preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla, skeleton
from ki_vla.model.summary import random_batch
from ki_vla.objective.recipes import OURS
from ki_vla.objective.trainable import prepare
from training.fit.initial_policy import begin
from training.train.config import Run, Stage
from training.train.distributed import ProcessGroup
from training.train.lora import add_lora, freeze_base
from training.train.run import _parts, open_sources
from training.train.schedule import make_optimiser, step_where
from training.train.trainer import Trainer

RESULTS = Path(__file__).resolve().parent / 'results'
VARIANTS = {
    'ours, 8 draws, bf16': {'recipe': 'ours', 'draws': 8, 'bf16': True},
    'ours, 8 draws, fp32': {'recipe': 'ours', 'draws': 8, 'bf16': False},
    'ours, 1 draw, bf16': {'recipe': 'ours', 'draws': 1, 'bf16': True},
    'flow only (pi0), 1 draw, bf16': {'recipe': 'pi0', 'draws': 1, 'bf16': True},
    'frozen backbone, 8 draws, bf16': {'recipe': 'frozen', 'draws': 8, 'bf16': True},
}


def simulated(folder: Path, device: str) -> Run:
    """A run of the mini model on a few recordings and pictures that are made now."""
    from ki_sim.record.batch import jobs, record
    from ki_sim.vqa.vqa_data import write

    record(jobs(['demo'], 3, folder / 'arrays', format='npz'), workers=1)
    write(folder / 'words', 30, workers=1)
    return Run.parse(
        {
            'out': str(folder / 'run'),
            'preset': 'mini',
            'pad_steps': 'keep',
            'data': {'arrays': str(folder / 'arrays'), 'vlm': str(folder / 'words' / 'train.jsonl'), 'validation': 0.0},
            'tokens': {'text': 768, 'boxes': 64, 'actions': 512},
            'device': device,
        }
    )


def trainer_of(run: Run, folder: Path, steps: int, batch: int, chosen: dict[str, Any], world: ProcessGroup) -> Trainer:
    """A trainer of one variant, ready to step."""
    stage = run.stages[0].replace(recipe=chosen['recipe'], draws=chosen['draws'], batch=batch, steps=steps, vlm=0.25)
    if chosen['recipe'] in ('pi0', 'frozen'):
        stage = stage.replace(vlm=0.0)
    run = run.replace(stages=(stage,), bf16=chosen['bf16'], save_every=10**6, log_every=steps)
    sources = open_sources(run, world)
    made = begin(run, sources.train, [sources.vlm])
    return Trainer(run, stage, made.model, made.processor, _parts(stage, sources), [], folder, world)


def step_of(trainer: Trainer) -> Callable[[], None]:
    """One step on one batch that is already there: no loader in the way."""
    packet = next(iter(trainer.loader))

    def step() -> None:
        trainer.one_step([packet])
        if trainer.world.device.type == 'cuda':
            torch.cuda.synchronize()

    return step


def compare(steps: dict[str, Callable[[], None]], batch: int, rounds: int) -> dict[str, Any]:
    """Each variant turn by turn: samples/s at the median step, and the ratio to the first variant in CPU seconds."""
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            t, c = time.perf_counter(), time.process_time()
            step()
            wall[name].append(time.perf_counter() - t)
            cpu[name].append(time.process_time() - c)
    base = next(iter(steps))
    return {
        name: {
            'samples_per_s': round(batch / statistics.median(wall[name]), 2),
            'samples_per_s_best': round(batch / min(wall[name]), 2),
            'cpu_ms_per_sample': round(1e3 * statistics.median(cpu[name]) / batch, 1),
            'relative_cpu': round(statistics.median(a / b for a, b in zip(cpu[name], cpu[base], strict=True)), 3),
        }
        for name in steps
    }


def loader(trainer: Trainer, batches: int) -> dict[str, float]:
    """What the loader alone gives."""
    packets = iter(trainer.loader)
    next(packets)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(packets)
    count = batches * trainer.stage.batch
    found = {
        'samples_per_s': round(count / (time.perf_counter() - began), 1),
        'cpu_ms_per_sample': round(1e3 * (time.process_time() - cpu) / count, 2),
    }
    packets.close()
    return found


def whole_run(trainer: Trainer) -> dict[str, float]:
    """The trainer's own report over its last stretch, loader and all."""
    lines: list[dict[str, Any]] = []
    trainer.tell = lambda kind, values: lines.append(values) if kind == 'step' else None
    trainer.fit()
    return {name: round(lines[-1][name], 4) for name in ('samples_per_s', 'waiting')}


def mini(rounds: int, batch: int, device: str) -> dict[str, Any]:
    """The mini model on real samples."""
    world = ProcessGroup(device=torch.device(device))
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        folder = Path(name)
        run = simulated(folder, device)
        made = {each: trainer_of(run, folder / 'x', rounds, batch, row, world) for each, row in VARIANTS.items()}
        first = next(iter(made.values()))
        found: dict[str, Any] = {'batch': batch, 'parameters': sum(p.numel() for p in first.model.parameters())}
        counter = FlopCounterMode(display=False)
        with counter:
            step_of(first)()
        found['gflop_per_sample'] = round(counter.get_total_flops() / batch / 1e9, 3)
        found['loader'] = loader(
            trainer_of(run, folder / 'y', rounds, batch, VARIANTS['ours, 8 draws, bf16'], world), 8
        )
        found['steps'] = compare({each: step_of(trainer) for each, trainer in made.items()}, batch, rounds)
        row = VARIANTS['ours, 8 draws, bf16']
        found['run_with_loader'] = whole_run(trainer_of(run, folder / 'z', 3 * rounds, batch, row, world))
    return found


def on_noise(
    config: ModelConfig, device: str, rounds: int, batch: int, peak: float, lora: int = 0, compiled: bool = False
) -> dict[str, float]:
    """Steps of the recipe `ours` on noise: block checkpointing, bf16 products, float32 weights, the trainer's AdamW.

    MFU counts what one forward and one backward pass need, not the blocks that are computed again.
    """
    generator = torch.Generator(device).manual_seed(0)
    model, stage = initialise(KiVla(config).to(device), generator), Stage()
    if lora:
        add_lora(model, lora, small=True)
        model.to(device)
    prepare(model, OURS)
    if lora:
        freeze_base(model)
    model.checkpointing = True
    targets = min(80, config.max_targets)
    data = random_batch(config, batch, prompt=config.max_prompt, targets=targets).to(device)
    noise = torch.randn(batch, 1, config.horizon, config.action_dim, device=device)
    tau = torch.rand(batch, 1, device=device)
    optimiser = make_optimiser(model, stage)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = forward(data, OURS, 1, noise, tau).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], stage.clip, foreach=True)
        step_where(optimiser, torch.isfinite(loss.detach()))
        optimiser.zero_grad(set_to_none=True)

    began = time.perf_counter()
    step()
    settle(device)
    first_s = time.perf_counter() - began
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(rounds):
        step()
    settle(device)  # once: the host runs ahead, as in training
    rate = batch * rounds / (time.perf_counter() - began)
    flops = training_flops(skeleton(config), OURS, config.views, config.max_prompt, targets, 1)
    found = {
        'batch': batch,
        'first_step_s': round(first_s, 1),
        'samples_per_s': round(rate, 2),
        'tflop_per_sample': round(flops / 1e12, 3),
        'mfu': round(flops * rate / peak, 3),
    }
    if device == 'cuda':
        found['peak_memory_gib'] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    return found


def settle(device: str) -> None:
    """Wait for what a GPU was given to do."""
    if device == 'cuda':
        torch.cuda.synchronize()


# What is tried at a size, the most valuable first.
ON_NOISE: dict[str, dict[str, Any]] = {'everything': {}, 'LoRA 16': {'lora': 16}, 'compiled': {'compiled': True}}


def write(path: Path, result: dict[str, Any]) -> None:
    """As JSON, after every case: a machine may be taken away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + '\n')


def main(arguments: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description='Speed of training.')
    parser.add_argument('--preset', choices=PRESETS, default='mini', help='mini: on real samples; others: on noise')
    parser.add_argument('--cases', nargs='+', choices=ON_NOISE, default=list(ON_NOISE), help='on noise')
    parser.add_argument('--rounds', type=int, default=8)
    parser.add_argument('--batch', type=int, help='default: 16 for mini, 8 for other sizes')
    parser.add_argument('--threads', type=int, default=0, help='of torch; 0: as many as it likes')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--peak', type=float, default=790e12, help='FLOP/s of the GPU, measured; an H200 has 790e12')
    parser.add_argument(
        '--output', type=Path, help='default: results/training.json, with a GPU results/training_gpu.json'
    )
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    batch = given.batch or (16 if given.preset == 'mini' else 8)
    result: dict[str, Any] = {
        'command': 'python benchmarks/training.py ' + ' '.join(sys.argv[1:] if arguments is None else arguments),
        'machine': {'cpu': platform.machine(), 'cores': os.cpu_count(), 'torch': torch.__version__},
        'threads': torch.get_num_threads(),
        'load_before': [round(x, 2) for x in os.getloadavg()],
    }
    path = given.output or RESULTS / ('training.json' if given.device == 'cpu' else 'training_gpu.json')
    if given.device == 'cuda':
        result['machine']['gpu'] = torch.cuda.get_device_name()
    if given.preset == 'mini':
        result['mini'] = mini(given.rounds, batch, given.device)
    else:
        result[given.preset] = {}
        for name in given.cases:
            try:
                found: Any = on_noise(
                    preset(given.preset), given.device, given.rounds, batch, given.peak, **ON_NOISE[name]
                )
            except Exception as error:  # out of memory, a compiler that fails: the next case may be well
                found = f'{type(error).__name__}: {first_line(error)}'
            gc.collect()
            if given.device == 'cuda':
                torch.cuda.empty_cache()
            result[given.preset][name] = found
            write(path, result)
    result['load_after'] = [round(x, 2) for x in os.getloadavg()]
    write(path, result)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
