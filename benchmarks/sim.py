"""What the simulator costs: physics, cameras, the expert, recording, knowledge data.

    python benchmarks/sim.py [--out benchmarks/results/sim.json] [--episodes 8]

One process on one core unless a row says otherwise. Figures are of one run on one machine; its load before the run is
in the file, and a busy machine makes all of them smaller.
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

from ki_sim import gl
from ki_sim.batch import jobs, record
from ki_sim.expert import Expert
from ki_sim.knowledge import Photographer, scene_lines
from ki_sim.robot import CAMERAS, TIMESTEP_NS
from ki_sim.world import STEP_NS, World, clipped

TASK, SEED = 'put_in_bin', 7


def rate(work: Callable[[], None], seconds: float = 3.0) -> float:
    """Calls of `work` per second, after one that does not count."""
    work()
    begin, calls = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - begin)


def physics() -> dict[str, float]:
    """MuJoCo alone, and a whole control step of 50 ms with controllers and touch sensing."""
    world = World(TASK, SEED, cameras=())
    row = still(world)
    bare = rate(lambda: mujoco.mj_step(world.model, world.data, 100)) * 100
    steps = rate(lambda: world.step(row))
    return {
        'mj_steps_per_s': bare,
        'mj_real_time_factor': bare * TIMESTEP_NS * 1e-9,
        'control_steps_per_s': steps,
        'control_real_time_factor': steps * STEP_NS * 1e-9,
    }


def cameras(size: int, shadows: bool = False) -> dict[str, float]:
    """Control steps with three pictures each, and pictures alone."""
    with World(TASK, SEED, image_size=size, shadows=shadows) as world:
        row = still(world)

        def step() -> None:
            world.observe()
            world.step(row)

        both, alone = rate(step), rate(lambda: world.observe() and None)
    return {
        'size': size,
        'shadows': shadows,
        'steps_per_s': both,
        'frames_per_s': both * len(CAMERAS),
        'real_time_factor': both * STEP_NS * 1e-9,
        'camera_sets_per_s': alone,
    }


def expert(episodes: int) -> dict[str, float]:
    """The expert without cameras: simulated seconds per second."""
    simulated, begin = 0.0, time.perf_counter()
    for seed in range(episodes):
        world = World(TASK, seed, cameras=())
        for move in Expert(world).moves():
            world.step(move.action)
        simulated += world.time_ns * 1e-9
    return {'episodes': episodes, 'real_time_factor': simulated / (time.perf_counter() - begin)}


def recording(format: str, workers: int, episodes: int) -> dict[str, Any]:
    """Offline recording of the demo task at 96 px, processes' start included."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        results = record(jobs(['demo'], episodes, folder, format=format), workers)
        wall = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in Path(folder).rglob('*') if path.is_file())
    simulated = sum(result.steps for result in results) * STEP_NS * 1e-9
    return {
        'format': format,
        'workers': workers,
        'episodes': sum(result.status == 'written' for result in results),
        'wall_s': wall,
        'simulated_s': simulated,
        'real_time_factor': simulated / wall,
        'megabytes_per_simulated_s': size / 1e6 / simulated,
    }


def knowledge(scenes: int = 30) -> dict[str, float]:
    """Scenes with picture and lines per second."""
    photographer = Photographer(96)
    scene_lines(0, 'train', photographer)
    begin, lines = time.perf_counter(), 0
    for seed in range(1, scenes + 1):
        shot = scene_lines(seed, 'train', photographer)
        lines += len(shot[1]) if shot else 0
    wall = time.perf_counter() - begin
    return {'scenes_per_s': scenes / wall, 'lines_per_s': lines / wall}


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
        'knowledge': knowledge(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(report, indent=1))


if __name__ == '__main__':  # recording starts processes that import this file anew
    main()
