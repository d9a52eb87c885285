"""What a demonstration sent to the arms' controllers, played as they play it: how near each window comes to the limits.

    python benchmarks/windows.py [out/demo] [--robot bimanual_demo] [--out benchmarks/results/windows.json]

Every JointTrajectory of the bags in a folder; where it has none, `ki demo` plays there first. Between two points a
joint_trajectory_controller plays a cubic, whose greatest speed and acceleration are computed, not sampled. A share of 1
is the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_bags.reader import open_bag
from ki_common.errors import KiError
from ki_common.files import write_text
from ki_robot.contract.contract import load_contract

ROOT = Path(__file__).resolve().parent.parent
ROUNDING = 1e-6  # of a limit


def peaks(
    values_KN: NDArray[np.float64], rates_KN: NDArray[np.float64], times_K: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The greatest speed and acceleration (N,) on the cubics through K points with given rates, times in s."""
    span = np.diff(times_K)[:, None]
    way, begin, end = np.diff(values_KN, axis=0), rates_KN[:-1] * span, rates_KN[1:] * span
    square, cube = 3 * way - 2 * begin - end, begin + end - 2 * way
    turn = np.clip(-square / np.where(cube == 0, np.inf, 3 * cube), 0, 1)  # where the acceleration is 0
    speeds = [np.abs(begin + 2 * square * s + 3 * cube * s * s) / span for s in (0, 1, turn)]
    accelerations = [np.abs(2 * square + 6 * cube * s) / span**2 for s in (0, 1)]
    return np.max(speeds, axis=(0, 1)), np.max(accelerations, axis=(0, 1))


def measure(folder: Path, robot: str) -> dict[str, Any]:
    """Windows, those beyond a limit, and the worst shares.

    Raises:
        KiError: no bags are there, or nothing was sent in them.
    """
    limits = {joint.name: joint.limits for joint in load_contract(robot).robot.actions}
    windows, beyond, worst = 0, 0, np.zeros(2)
    for path in sorted(folder.glob('episode_*')):
        bag = open_bag(path)
        for message in bag.messages():
            if not message.topic.endswith('/joint_trajectory'):
                continue
            sent = bag.decode(message)
            stamps = [point.time_from_start for point in sent.points]
            times_K = np.array([stamp.sec + stamp.nanosec * 1e-9 for stamp in stamps])
            found = peaks(
                np.array([point.positions for point in sent.points]),
                np.array([point.velocities for point in sent.points]),
                times_K,
            )
            of = [limits[f'{name}/position'] for name in sent.joint_names]
            allowed = [each.velocity for each in of], [each.acceleration for each in of]
            shares = [float(np.max(peak / np.array(most))) for peak, most in zip(found, allowed, strict=True)]
            windows, beyond = windows + 1, beyond + (max(shares) > 1 + ROUNDING)
            worst = np.maximum(worst, shares)
    if not windows:
        raise KiError(f'{folder} holds no episode_* with a joint_trajectory; name the folder of a `ki demo`.')
    return {
        'windows': windows,
        'beyond a limit': beyond,
        'worst share': {'velocity': round(float(worst[0]), 6), 'acceleration': round(float(worst[1]), 6)},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description='Windows of a demonstration against the limits.')
    parser.add_argument('folder', type=Path, nargs='?', default=Path('out/demo'))
    parser.add_argument('--robot', default='bimanual_demo')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results/windows.json')
    given = parser.parse_args(arguments)
    if not any(given.folder.glob('episode_*')):
        demo = [sys.executable, '-m', 'ki.main', 'demo', '--no-real', '--out', str(given.folder.absolute())]
        subprocess.run(demo, cwd=ROOT, check=True)
    found = {'command': f'python benchmarks/windows.py, on the bags of a `ki demo`; robot {given.robot}'}
    found |= measure(given.folder, given.robot)
    write_text(given.out, json.dumps(found, indent=1) + '\n')
    print(json.dumps(found, indent=1))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
