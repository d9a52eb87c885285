"""How fast the trainer trains, and whether it ever waits for samples.

    python benchmarks/training.py                     the mini model on the simulator's recordings, on the CPU
    python benchmarks/training.py --device cuda       the same, then the full size on noise: samples/s, MFU, memory

Writes benchmarks/results/training.json (training_gpu.json). Variants are timed turn by turn within one run; beside wall
seconds stand CPU seconds of the process, which other work on the machine does not stretch as much. MFU counts the FLOPs
of torch's own counter, forward and backward, and is relative to --peak.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before the file training.py, which hides that room

import torch
from torch.utils.flop_counter import FlopCounterMode

from ki_vla.model.config import preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.model.summary import random_batch
from ki_vla.objective.recipes import recipe
from ki_vla.objective.trainable import prepare
from training.fit.initial_policy import begin
from training.train.config import Run
from training.train.distributed import ProcessGroup
from training.train.run import _parts, open_sources
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


def full(rounds: int, batch: int, peak: float) -> dict[str, Any]:
    """The paper's size on one GPU: noise in, block checkpointing, bf16 products, float32 weights and AdamW."""
    config = preset('full')
    model = initialise(KiVla(config).to('cuda'), torch.Generator('cuda').manual_seed(0))
    found: dict[str, Any] = {'batch': batch, 'views': config.views, 'prompt': 200, 'targets': 80}
    data = random_batch(config, batch, prompt=200, targets=80).to('cuda')
    model.checkpointing = True
    for name in ('ours', 'pi0_like_ours'):
        chosen = recipe('ours') if name == 'ours' else replace(recipe('ours'), targets='none', vlm_data=False)
        prepare(model, chosen)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)

        def step(chosen: Any = chosen, optimiser: Any = optimiser) -> None:
            with torch.autocast('cuda', torch.bfloat16):
                loss = model(data, chosen, generator=torch.Generator().manual_seed(0)).total
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            torch.cuda.synchronize()

        counter = FlopCounterMode(display=False)
        with counter:
            step()
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        rate = batch / statistics.median(seconds)
        # Recomputed blocks are work done twice, not work wanted: MFU counts one forward and one backward.
        found[name] = {
            'samples_per_s': round(rate, 2),
            'tflop_per_sample_with_recomputation': round(counter.get_total_flops() / batch / 1e12, 2),
            'hardware_use': round(counter.get_total_flops() / batch * rate / peak, 3),
            'peak_memory_gib': round(torch.cuda.max_memory_allocated() / 2**30, 1),
        }
        del optimiser
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description='Speed of training.')
    parser.add_argument('--rounds', type=int, default=8)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--threads', type=int, default=0, help='of torch; 0: as many as it likes')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--peak', type=float, default=790e12, help='FLOP/s of the GPU, measured; an H200 has 790e12')
    parser.add_argument('--out', type=Path, help='default: results/training.json, with a GPU results/training_gpu.json')
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    result: dict[str, Any] = {
        'command': f'python benchmarks/training.py --rounds {given.rounds} --batch {given.batch}'
        + f' --threads {given.threads}'
        + (f' --device {given.device}' if given.device != 'cpu' else ''),
        'machine': {'cpu': platform.machine(), 'cores': os.cpu_count(), 'torch': torch.__version__},
        'threads': torch.get_num_threads(),
        'load_before': [round(x, 2) for x in os.getloadavg()],
        'mini': mini(given.rounds, given.batch, given.device),
    }
    if given.device == 'cuda':
        result['machine']['gpu'] = torch.cuda.get_device_name()
        result['full'] = full(given.rounds, given.batch, given.peak)
    result['load_after'] = [round(x, 2) for x in os.getloadavg()]
    path = given.out or RESULTS / ('training.json' if given.device == 'cpu' else 'training_gpu.json')
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
