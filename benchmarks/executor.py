"""A million ticks of the executor in a mad world: how near every limit comes, and what a tick costs.

    python benchmarks/executor.py [--ticks 1000000] [--seed 1000] [--out benchmarks/results/executor.json]

The world is `tests/executor_rig.py`: the shipped robots and robots made of them (jerk limits, no acceleration limits,
trajectory and forward controllers, other rates); chunks good and bad, late ticks, clock jumps, lost messages, e-stops,
controllers that come back with the robot moved; joint_trajectory_controller with both settings of
interpolate_from_desired_state. A ratio of 1 is the limit. Also: the time of a tick of each robot in a quiet world, and
what an hour of ticks leaves behind in memory.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import sys
import time
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np

from ki_robot.contract.contract import load_contract

ROOT = Path(__file__).resolve().parent.parent
EPISODE = 1000  # ticks in one world
HOUR = 360_000
# The same world around the executor of commit fb2bad9, before there was a generator: 100,000 ticks of the same seeds.
BEFORE: dict[str, Any] = {
    'commit': 'fb2bad9',
    'ticks': 100_000,
    'worst ratio to the limit': {'position': 1.11, 'velocity': 150.79, 'acceleration': 2188.47, 'jerk': 75291.17},
    'moved in a state that holds': 0.629,
}


def rig() -> ModuleType:
    """The world."""
    spec = importlib.util.spec_from_file_location('executor_rig', ROOT / 'tests' / 'executor_rig.py')
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules['executor_rig'] = made
    spec.loader.exec_module(made)
    return made


def mad(world: ModuleType, ticks: int, seed: int) -> dict[str, Any]:
    """The worst ratios over many worlds."""
    worst, moved, begin = world.Worst(), 0.0, time.time()
    states = dict.fromkeys(('run', 'hold', 'fault', 'idle', 'disabled'), 0)
    for number, setting in zip(range(ticks // EPISODE), world.settings(seed), strict=False):
        bench = world.Bench(setting)
        for _ in range(EPISODE):
            bench.step()
            states[bench.follower.state.value] += 1
            bench.follower.events.clear()
        worst.join(bench.finish())
        moved = max(moved, bench.moved_when_still)
        if number % 50 == 49:
            print(f'{(number + 1) * EPISODE:>9} ticks, {time.time() - begin:.0f} s: {worst.ratios}', flush=True)
    return {
        'ticks': sum(states.values()),
        'seed': seed,
        'worst ratio to the limit': worst.ratios,
        'by column': worst.columns,
        'moved in a state that holds': moved,
        'ticks by state': states,
    }


def quiet(world: ModuleType, robot: str, ticks: int = 5000) -> dict[str, float]:
    """The time of a tick where nothing is wrong, in microseconds of one core."""
    bench = world.Bench(world.Setting(load_contract(robot), 1, madness=0.0))
    for _ in range(ticks):
        bench.step()
        bench.follower.events.clear()
    taken = np.array(bench.tick_s[500:]) * 1e6
    return {'median': round(float(np.median(taken)), 1), 'p99': round(float(np.percentile(taken, 99)), 1)}


def growth(world: ModuleType, ticks: int = HOUR) -> dict[str, float]:
    """Memory that an hour of ticks leaves behind, in KiB."""
    bench = world.Bench(world.Setting(load_contract('bimanual_mobile'), 2, madness=1.0))

    def play(count: int) -> None:
        for _ in range(count):
            bench.step()
            bench.follower.events.clear()
            bench.tick_s.clear()
            for played in (bench.arms, bench.hands):
                del played.rows[:-4]

    play(2000)
    gc.collect()
    tracemalloc.start()
    play(500)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    import resource

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    play(ticks)
    tracemalloc.start()
    play(500)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    return {'ticks': ticks, 'allocated by 500 ticks, KiB': round((after - before) / 1024, 1), 'resident, KiB': grown}


def main() -> None:
    """Prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ticks', type=int, default=1_000_000)
    parser.add_argument('--hour', type=int, default=HOUR, help='ticks of the measurement of memory')
    parser.add_argument('--seed', type=int, default=1000)
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'executor.json')
    given = parser.parse_args()
    world = rig()
    result: dict[str, Any] = {
        'machine': platform.processor() or platform.machine(),
        'python': platform.python_version(),
    }
    result['tick of a quiet run, us'] = {robot: quiet(world, robot) for robot in world.ROBOTS}
    for robot, taken in result['tick of a quiet run, us'].items():
        print(f'{robot:>16}: tick median {taken["median"]:.0f} us, p99 {taken["p99"]:.0f} us', flush=True)
    result['memory after an hour'] = growth(world, given.hour)
    print(result['memory after an hour'], flush=True)
    result['mad world'] = mad(world, given.ticks, given.seed)
    result['before'] = BEFORE
    now, before = result['mad world']['worst ratio to the limit'], BEFORE.get('worst ratio to the limit', {})
    print(f'\n{"limit":>14} {"worst ratio":>14} {"before":>10}')
    for kind, ratio in now.items():
        print(f'{kind:>14} {ratio:>14.9f} {before.get(kind, float("nan")):>10.2f}')
    given.out.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
