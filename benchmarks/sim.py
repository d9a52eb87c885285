"""What the simulator costs: physics, cameras, the expert, recording, VQA data.

    python benchmarks/sim.py [--out benchmarks/results/sim.json] [--episodes 8]

One process unless a row says otherwise. Figures are of one run on one machine, whose load before the run is in the
file; rows `per_cpu` count seconds of processor time (all threads), which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from ki_sim.expert.experts import expert_steps
from ki_sim.record.batch import jobs, record
from ki_sim.vqa.vqa_data import Photographer, scene_lines
from ki_sim.world import gl
from ki_sim.world.robot import CAMERAS, TIMESTEP_NS
from ki_sim.world.world import STEP_NS, World, clipped

TASK, SEED = 'put_in_bin', 7


def rate(work: Callable[[], None], seconds: float = 3.0) -> tuple[float, float]:
    """Calls of `work` per second, and per second of processor time, after one that does not count."""
    work()
    begin, cpu, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - begin), calls / (time.process_time() - cpu)


def physics() -> dict[str, float]:
    """MuJoCo alone, and a whole control step of 50 ms with controllers and touch sensing."""
    world = World(TASK, SEED, cameras=())
    row = still(world)
    bare, bare_cpu = rate(lambda: mujoco.mj_step(world.model, world.data, 100))
    steps, steps_cpu = rate(lambda: world.step(row))
    return {
        'mj_steps_per_s': 100 * bare,
        'mj_steps_per_cpu_s': 100 * bare_cpu,
        'mj_real_time_factor': 100 * bare * TIMESTEP_NS * 1e-9,
        'control_steps_per_s': steps,
        'control_steps_per_cpu_s': steps_cpu,
        'control_real_time_factor': steps * STEP_NS * 1e-9,
    }


def cameras(size: int, shadows: bool = False) -> dict[str, float]:
    """Control steps with three pictures each, and pictures alone."""
    with World(TASK, SEED, image_size=size, shadows=shadows) as world:
        row = still(world)

        def step() -> None:
            world.observe()
            world.step(row)

        (both, both_cpu), (alone, alone_cpu) = rate(step), rate(lambda: world.observe() and None)
    return {
        'size': size,
        'shadows': shadows,
        'steps_per_s': both,
        'steps_per_cpu_s': both_cpu,
        'frames_per_s': both * len(CAMERAS),
        'frames_per_cpu_s': both_cpu * len(CAMERAS),
        'real_time_factor': both * STEP_NS * 1e-9,
        'camera_sets_per_s': alone,
        'camera_sets_per_cpu_s': alone_cpu,
    }


def expert(episodes: int) -> dict[str, float]:
    """The expert without cameras: simulated seconds per second."""
    simulated, begin = 0.0, time.perf_counter()
    for seed in range(episodes):
        world = World(TASK, seed, cameras=())
        for move in expert_steps(world):
            world.step(move.action)
        simulated += world.time_ns * 1e-9
    return {'episodes': episodes, 'real_time_factor': simulated / (time.perf_counter() - begin)}


def recording(format: str, workers: int, episodes: int) -> dict[str, Any]:
    """Offline recording of the demo task at 96 px, processes' start included."""
    with tempfile.TemporaryDirectory() as folder:
        begin, cpu = time.perf_counter(), time.process_time()
        results = record(jobs(['demo'], episodes, folder, format=format), workers)
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
        size = sum(path.stat().st_size for path in Path(folder).rglob('*') if path.is_file())
    simulated = sum(result.steps for result in results) * STEP_NS * 1e-9
    return {
        'format': format,
        'workers': workers,
        'episodes': sum(result.status == 'written' for result in results),
        'wall_s': wall,
        'simulated_s': simulated,
        'real_time_factor': simulated / wall,
        'real_time_factor_per_cpu': simulated / cpu if workers == 1 else None,
        'megabytes_per_simulated_s': size / 1e6 / simulated,
    }


def vqa(scenes: int = 20, arrangements: int = 6) -> dict[str, float]:
    """Pictures of a scene each with their lines per second, and of scenes that are arranged anew several times."""
    photographer = Photographer(96)
    list(scene_lines(0, 'train', photographer))
    found = {}
    for name, count in (('scenes', 1), ('arrangements', arrangements)):
        begin, cpu, pictures, lines = time.perf_counter(), time.process_time(), 0, 0
        for seed in range(1, scenes + 1):
            for _, about in scene_lines(seed, 'train', photographer, count):
                pictures, lines = pictures + 1, lines + len(about)
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
        found |= {f'{name}_per_s': pictures / wall, f'{name}_per_cpu_s': pictures / cpu}
    return {**found, 'lines_per_s': lines / wall}


def still(world: World) -> np.ndarray:
    row = clipped(world.observe(images=False).state)
    row[14:] = 0.0
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results' / 'sim.json')
    parser.add_argument('--episodes', type=int, default=8)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    report: dict[str, Any] = {
        'machine': {
            'cpu': platform.processor() or platform.machine(),
            'cores': os.cpu_count(),
            'load_before': load,
            'python': platform.python_version(),
            'mujoco': mujoco.__version__,
            'gl': gl.make_current(),
        },
        'physics': physics(),
        'cameras': [cameras(224), cameras(96), cameras(224, shadows=True)],
        'expert': expert(options.episodes),
        'recording': [
            recording('bag', 1, options.episodes),
            *(recording(f, 2, options.episodes) for f in ('bag', 'npz')),
        ],
        'vqa': vqa(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(report, indent=1))


if __name__ == '__main__':  # recording starts processes that import this file anew
    main()
