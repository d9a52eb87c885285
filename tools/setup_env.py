"""Makes .venv with everything in it. Run by `make setup`, and by what needs .venv when it is missing or stale.

Only the standard library: this runs before anything is installed. Every step says in one line what it does, and
a step whose inputs have not changed is skipped.
"""

from __future__ import annotations

import argparse
import ctypes.util
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
STAMP = VENV / 'setup.json'  # what the last set-up was made of
SHIPPED = ROOT / 'bundles' / 'demo'
DEPENDENCIES = ('setup.py', 'setup.cfg', 'constraints.txt')
PYTHONS = ((3, 10), (3, 13))  # from, up to but not


def has_dri() -> bool:
    """Whether Mesa's software renderer is there for EGL."""
    return any(Path('/usr/lib').glob('*/dri/*_dri.so')) or any(Path('/usr/lib').glob('*/libgallium-*.so'))


def has_headers() -> bool:
    """Whether this Python can compile extensions."""
    return Path(sysconfig.get_paths()['include'], 'Python.h').is_file()


# package -> is it there already? What is missing is asked of apt.
SYSTEM_PACKAGES: dict[str, Callable[[], bool]] = {
    'make': lambda: shutil.which('make') is not None,
    'cmake': lambda: shutil.which('cmake') is not None,
    'g++': lambda: shutil.which('g++') is not None,
    'ffmpeg': lambda: shutil.which('ffmpeg') is not None,
    'python3-venv': lambda: sys.version_info >= (3, 3) and has_module('ensurepip'),
    'python3-dev': has_headers,
    'libegl1': lambda: ctypes.util.find_library('EGL') is not None,
    'libgl1-mesa-dri': has_dri,
    'libosmesa6': lambda: ctypes.util.find_library('OSMesa') is not None,
    # cv2 is linked with these two.
    'libgl1': lambda: ctypes.util.find_library('GL') is not None,
    'libglib2.0-0': lambda: ctypes.util.find_library('gthread-2.0') is not None,
}


def has_module(name: str) -> bool:
    """Whether this Python can import `name`."""
    return subprocess.run([sys.executable, '-c', f'import {name}'], capture_output=True).returncode == 0


def say(line: str) -> None:
    """One line of progress."""
    print(f'setup: {line}', flush=True)


def run(*command: str | Path) -> None:
    """Runs a command, and ends the set-up with its name when it fails."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT)
    if done.returncode:
        raise SystemExit(f'setup: `{" ".join(str(part) for part in command)}` failed with {done.returncode}.')


def last_setup() -> dict[str, str]:
    """What the stamp says of the last set-up; nothing when there is none."""
    try:
        return dict(json.loads(STAMP.read_text(encoding='utf-8')))
    except (OSError, ValueError):
        return {}


def remember(**facts: str) -> None:
    """Adds facts to the stamp."""
    STAMP.write_text(json.dumps(last_setup() | facts), encoding='utf-8')


def digest_of(paths: Iterable[Path], *words: str) -> str:
    """One hash of these files, with their names, and words."""
    digest = hashlib.sha256(' '.join(words).encode())
    for path in paths:
        digest.update(f'\0{path.relative_to(ROOT)}\0'.encode() + path.read_bytes())
    return digest.hexdigest()


def inputs(accelerator: str, distro: str) -> str:
    """A hash of all that decides what .venv holds."""
    interfaces = (path for path in sorted((ROOT / 'ki_msgs').rglob('*')) if path.is_file())
    manifest = [path for path in (SHIPPED / 'manifest.json',) if path.is_file()]
    tools = sorted((ROOT / 'tools').glob('*.py'))
    return digest_of([*(ROOT / name for name in DEPENDENCIES), *tools, *interfaces, *manifest], accelerator, distro)


def sourced_ros() -> str:
    """Distribution of the ROS 2 that this shell has sourced, or ''."""
    return os.environ.get('ROS_DISTRO', '') if os.environ.get('AMENT_PREFIX_PATH') else ''


def install_system_packages() -> None:
    """Installs what is missing with apt when root or with password-less sudo; otherwise says what to type."""
    missing = [package for package, present in SYSTEM_PACKAGES.items() if not present()]
    if not missing:
        return
    install = ['apt-get', 'install', '-y', '--no-install-recommends', *missing]
    root = [] if os.geteuid() == 0 else ['sudo', '-n']
    allowed = not root or subprocess.run([*root, 'true'], capture_output=True).returncode == 0
    if shutil.which('apt-get') is None or not allowed:
        say(f'missing on this machine: {" ".join(missing)}. Install with: sudo {" ".join(install)}')
        return
    say(f'system packages: {" ".join(missing)}')
    quiet = {'stdout': subprocess.DEVNULL, 'env': os.environ | {'DEBIAN_FRONTEND': 'noninteractive'}}
    if subprocess.run([*root, *install], stderr=subprocess.DEVNULL, **quiet).returncode:
        subprocess.run([*root, 'apt-get', 'update'], **quiet)
        if subprocess.run([*root, *install], **quiet).returncode:
            say(f'apt-get could not install {" ".join(missing)}; going on without')


def make_venv(distro: str) -> None:
    """Makes .venv once; it sees the system's packages only where a sourced ROS 2 lives among them."""
    config = VENV / 'pyvenv.cfg'
    if not config.is_file():
        say(f'.venv for Python {sys.version.split()[0]}' + (f' on top of the sourced ROS 2 {distro}' if distro else ''))
        run(sys.executable, '-m', 'venv', *(['--system-site-packages'] if distro else []), VENV)
    sees_system = 'include-system-site-packages = true' in config.read_text(encoding='utf-8')
    if bool(distro) != sees_system:
        made, now = ('with', 'none is') if sees_system else ('without', f'{distro} is')
        raise SystemExit(
            f'setup: .venv was made {made} a sourced ROS 2, and now {now} sourced; the two do not mix. '
            'Remove .venv, or use a shell like the one that made it.'
        )


def install_python_packages(extras: list[str]) -> None:
    """Installs the project, editable, with these extras; skipped while nothing that decides about it has changed."""
    digest = digest_of((ROOT / name for name in DEPENDENCIES), *extras)
    if last_setup().get('packages') == digest:
        say('Python packages: up to date')
        return
    say(f'Python packages: {", ".join(extras)} (some minutes the first time)')
    pip = [VENV / 'bin' / 'python', '-m', 'pip', 'install', '--quiet', '--constraint', 'constraints.txt']
    run(*pip, 'setuptools', 'wheel')
    # Compat mode puts this folder on the path as a whole, so that a new package needs no second set-up.
    run(*pip, '--no-build-isolation', '--config-settings', 'editable_mode=compat', '-e', f'.[{",".join(extras)}]')
    remember(packages=digest)


def export_shipped_policy() -> None:
    """The graphs of the policy that ships, for ONNX Runtime: made from its weights, so git need not hold them."""
    if (SHIPPED / 'manifest.json').is_file():
        say(f'ONNX graphs of {SHIPPED.relative_to(ROOT)}')
        run(VENV / 'bin' / 'python', '-m', 'ki.main', 'export', SHIPPED, '--missing')


def set_up(accelerator: str, distro: str) -> None:
    """The steps, in order."""
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        raise SystemExit(f'setup: Python 3.10 to 3.12 is needed, this is {sys.version.split()[0]}: make setup PYTHON=…')
    install_system_packages()
    make_venv(distro)
    install_python_packages(
        [
            accelerator,
            'export',
            'sim',
            'train',
            'space',
            'checkpoints',
            'serve',
            'console',
            'security',
            'docs',
            'dev',
            *([] if distro else ['ros']),
        ]
    )
    if distro:
        run(sys.executable, 'tools/build_ws.py', '--packages-select', 'ki_msgs')
    else:
        run(VENV / 'bin' / 'python', 'tools/build_msgs.py')
    export_shipped_policy()
    remember(accelerator=accelerator, inputs=inputs(accelerator, distro))
    say('done. Next: .venv/bin/ki doctor')


def main() -> None:
    """Sets up; with --if-stale only where something has changed since the last set-up, or none was finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--accelerator', choices=('cpu', 'gpu'), help='default: as the last time, at first cpu')
    parser.add_argument('--if-stale', action='store_true', help='do nothing when .venv is as it would be made now')
    given = parser.parse_args()
    last, distro = last_setup(), sourced_ros()
    accelerator = given.accelerator or last.get('accelerator', 'cpu')
    # A link leads to the environment of another checkout, which is not this one's to change unasked.
    if given.if_stale and (VENV.is_symlink() or last.get('inputs') == inputs(accelerator, distro)):
        return
    set_up(accelerator, distro)


if __name__ == '__main__':
    main()
