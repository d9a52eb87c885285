"""Builds ros2_ws with colcon, against the sourced ROS 2 or else against the ROS 2 wheels of .venv.

Run by `make ws`; further arguments go to `colcon build` as they are. Afterwards `. ros2_ws/install/local_setup.sh`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKSPACE = ROOT / 'ros2_ws'
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'


def wheels_environment() -> dict[str, str]:
    """What a sourced ROS 2 would have set, pointing to the wheels in .venv instead."""
    environment = os.environ | {'AMENT_PREFIX_PATH': str(VENV), 'CMAKE_PREFIX_PATH': str(VENV), 'ROS_DISTRO': 'jazzy'}
    environment['PATH'] = f'{VENV}/bin:{environment["PATH"]}'
    return environment


def colcon_build(workspace: Path, base: Path, arguments: list[str]) -> int:
    """Runs `colcon build` in `workspace`, with its build, install and log folders below `base`; its exit status."""
    from_wheels = not os.environ.get('AMENT_PREFIX_PATH') or not os.environ.get('ROS_DISTRO')
    environment = wheels_environment() if from_wheels else dict(os.environ)
    folders = ['--build-base', str(base / 'build'), '--install-base', str(base / 'install')]
    cmake = ['-DBUILD_TESTING=OFF', f'-DPython3_EXECUTABLE={PYTHON}', '-DPython3_FIND_VIRTUALENV=ONLY']
    command = [str(PYTHON), '-m', 'colcon', '--log-base', str(base / 'log'), 'build', *folders]
    command += [*arguments, '--cmake-args', *(cmake if from_wheels else cmake[:2])]
    return subprocess.run(command, cwd=workspace, env=environment).returncode


def main() -> None:
    """Parses, checks that there is something to build with, builds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workspace', type=Path, default=WORKSPACE)
    parser.add_argument('--base', type=Path, help='where build, install and log go; the workspace by default')
    options, arguments = parser.parse_known_args()
    if not PYTHON.is_file():
        raise SystemExit('There is no .venv yet: run `make setup` first.')
    if not os.environ.get('ROS_DISTRO'):
        subprocess.run([str(PYTHON), str(ROOT / 'tools' / 'build_msgs.py'), '--repair-only'], check=True)
    sys.exit(colcon_build(options.workspace, options.base or options.workspace, arguments))


if __name__ == '__main__':
    main()
