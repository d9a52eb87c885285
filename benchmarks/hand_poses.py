"""What hand poses cost and how near they come: a 50-step chunk of two 6-DoF arms, solved and measured again.

    python benchmarks/hand_poses.py [--chunks 200] [--out benchmarks/results/hand_poses.json]

Chunks go from the simulated robot's home to places over its table, both hands at once, each with a turn. Times are CPU
time of one thread (the machine may be busy) and wall time; errors are between the pose that was asked for and the one
that the solved joints have.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np

from ki_robot.contract.contract import load_contract
from ki_robot.space.robot_space import RobotSpace
from ki_sim.world.world import HOME_ARM

HORIZON = 50


def goals(rng: np.random.Generator) -> np.ndarray:
    """A pose of each hand over the table, (10,): x, y, z, yaw, opening."""
    found = []
    for side in (1, -1):
        x, y, z = rng.uniform(0.3, 0.6), rng.uniform(0.0, 0.4), rng.uniform(0.74, 1.0)
        easy = 0.5 * math.atan2(y - 0.17, x - 0.13)
        found += [x, side * y, z, side * (easy + rng.uniform(-0.8, 0.8)), rng.uniform(0.0, 0.12)]
    return np.array(found)


def percentiles(values: list[float]) -> dict[str, float]:
    """p50 and p99."""
    return {name: round(float(np.percentile(values, share)), 3) for name, share in (('p50', 50), ('p99', 99))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else '')
    parser.add_argument('--chunks', type=int, default=200)
    parser.add_argument('--out', type=Path, default=Path('benchmarks/results/hand_poses.json'))
    given = parser.parse_args()
    space, rng = RobotSpace(load_contract('bimanual_hands')), np.random.default_rng(0)
    start = np.concatenate([[0.1, 0.1], HOME_ARM['left'], HOME_ARM['right']])
    here, part = space.state(start), np.minimum(np.linspace(0.0, 1.2, HORIZON), 1.0)[:, None]
    cpu, wall, places, turns, missed, fk = [], [], [], [], 0, []
    for _ in range(given.chunks):
        chunk = here + part * (goals(rng) - here)
        begin, begin_cpu = time.perf_counter(), time.thread_time()
        found = space.solve(chunk, start)
        cpu.append(1e3 * (time.thread_time() - begin_cpu))
        wall.append(1e3 * (time.perf_counter() - begin))
        missed += bool(found.unreached)
        off = np.abs(space.actions(found.commands_HN) - chunk)
        if not found.unreached:
            places.append(1e3 * float(off[:, [0, 1, 2, 5, 6, 7]].max()))
            turns.append(1e3 * float(off[:, [3, 8]].max()))
        begin_cpu = time.thread_time()
        space.state(start)
        fk.append(1e3 * (time.thread_time() - begin_cpu))
    result = {
        'chunks': given.chunks,
        'steps': HORIZON,
        'CPU per chunk [ms]': percentiles(cpu),
        'wall per chunk [ms]': percentiles(wall),
        'CPU per measured state [ms]': percentiles(fk),
        'worst place error [mm]': round(max(places), 4),
        'worst rotation error [mrad]': round(max(turns), 4),
        'chunks with a pose that was held': missed,
        'load while measured': [round(each, 1) for each in os.getloadavg()],
        'cores': os.cpu_count(),
        'machine': platform.machine(),
        'python': platform.python_version(),
    }
    given.out.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
