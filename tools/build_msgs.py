"""Builds ki_msgs with the ROS 2 wheels of this environment and installs it there as a wheel.

Run by `make setup` with the environment's own Python. The version of the wheel carries a hash of everything
that shapes it (interfaces, Python, ROS 2 packages, this file), so an unchanged tree costs one look-up.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / 'ki_msgs'
BUILD = ROOT / 'build' / 'ki_msgs'
VERSION = '0.2.0'
TAG = f'cp{sys.version_info.major}{sys.version_info.minor}'
# The wheels' CMake files name the include folders of the machine that built them.
FOREIGN_PYTHON = re.compile(r'/opt/python/cp[^/]*/include/python3\.\d+')
FOREIGN_NUMPY = re.compile(r'/opt/python/cp[^/]*/lib/python3\.\d+/site-packages/numpy/_?core/include')


def repair_cmake_files(prefix: Path) -> int:
    """Points the wheels' exported CMake targets to this machine's Python and NumPy headers; says how many it changed.

    A second call finds nothing to change.
    """
    python_include = sysconfig.get_paths()['include']
    changed = 0
    for path in sorted(prefix.glob('share/*/cmake/*.cmake')):
        text = path.read_text(encoding='utf-8')
        fixed = FOREIGN_NUMPY.sub(numpy.get_include(), FOREIGN_PYTHON.sub(python_include, text))
        if fixed != text:
            path.write_text(fixed, encoding='utf-8')
            changed += 1
    return changed


def fingerprint() -> str:
    """Twelve hex digits that change when anything does that shapes the built package."""
    digest = hashlib.sha256()
    for path in sorted(path for path in SOURCE.rglob('*') if path.is_file()):
        digest.update(f'{path.relative_to(SOURCE)}\n'.encode() + path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    digest.update(f'{sys.version_info[:2]} {sysconfig.get_platform()} numpy {numpy.__version__}'.encode())
    distributions = importlib.metadata.distributions()
    for name, version in sorted({(d.name, d.version) for d in distributions if d.name.startswith('ros-')}):
        digest.update(f'{name} {version}\n'.encode())
    return digest.hexdigest()[:12]


def compile_interfaces(stage: Path) -> None:
    """Configures, builds and installs the package into `stage`; the output is shown when a step fails."""
    prefix = sys.prefix
    environment = os.environ | {'AMENT_PREFIX_PATH': prefix, 'CMAKE_PREFIX_PATH': prefix}
    environment['PATH'] = f'{prefix}/bin:{environment["PATH"]}'
    build = BUILD / 'cmake'
    jobs = str(len(os.sched_getaffinity(0)))
    for command in (
        ['cmake', '-S', str(SOURCE), '-B', str(build), f'-DCMAKE_INSTALL_PREFIX={stage}', '-DBUILD_TESTING=OFF',
         '-DCMAKE_BUILD_TYPE=Release', f'-DPython3_EXECUTABLE={sys.executable}', '-DPython3_FIND_VIRTUALENV=ONLY'],
        ['cmake', '--build', str(build), '--parallel', jobs],
        ['cmake', '--install', str(build)],
    ):  # fmt: skip
        done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise SystemExit(f'{done.stdout}\nki_msgs: `{" ".join(command[:2])}` failed with {done.returncode}.')


def wheel_members(stage: Path, data: str) -> Iterator[tuple[str, bytes]]:
    """What the wheel holds: the Python package, and lib, include and share, which pip puts below the prefix."""
    package = next(path.parent for path in stage.rglob('ki_msgs/__init__.py'))
    for path in sorted(path for path in package.rglob('*') if path.is_file() and path.suffix != '.pyc'):
        yield f'ki_msgs/{path.relative_to(package)}', path.read_bytes()
    for path in [*stage.glob('lib/*.so'), *stage.glob('include/**/*'), *stage.glob('share/**/*')]:
        if path.is_file():
            yield f'{data}/data/{path.relative_to(stage)}', path.read_bytes()


def pack_wheel(stage: Path, version: str) -> Path:
    """Writes the staged install as ki_msgs-VERSION-TAG.whl and returns its path."""
    tag = f'{TAG}-{TAG}-{sysconfig.get_platform().replace("-", "_").replace(".", "_")}'
    info, wheel = f'ki_msgs-{version}.dist-info', BUILD / f'ki_msgs-{version}-{tag}.whl'
    members = dict(wheel_members(stage, f'ki_msgs-{version}.data'))
    members[f'{info}/METADATA'] = (
        f'Metadata-Version: 2.1\nName: ki_msgs\nVersion: {version}\nLicense: Apache-2.0\n'
        'Summary: ROS 2 interfaces between a policy and a robot\n'
    ).encode()
    members[f'{info}/WHEEL'] = f'Wheel-Version: 1.0\nGenerator: ki\nRoot-Is-Purelib: false\nTag: {tag}\n'.encode()
    record = ''
    with zipfile.ZipFile(wheel, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()
            record += f'{name},sha256={digest},{len(content)}\n'
            archive.writestr(name, content)
        archive.writestr(f'{info}/RECORD', f'{record}{info}/RECORD,,\n')
    return wheel


def installed_version() -> str:
    """Version of ki_msgs in this environment; empty when there is none."""
    try:
        return importlib.metadata.version('ki_msgs')
    except importlib.metadata.PackageNotFoundError:
        return ''


def main() -> None:
    """Repairs, builds, packs and installs; says in one line each what was done."""
    changed = repair_cmake_files(Path(sys.prefix))
    if changed:
        print(f'ROS 2 wheels: {changed} CMake files now name the Python and NumPy headers of this machine')
    if '--repair-only' in sys.argv:
        return
    version = f'{VERSION}+{fingerprint()}'
    if installed_version() == version:
        print(f'ki_msgs {version}: up to date')
        return
    print(f'ki_msgs {version}: building (about a minute)', flush=True)
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    compile_interfaces(BUILD / 'stage')
    wheel = pack_wheel(BUILD / 'stage', version)
    for folder in ('cmake', 'stage'):
        shutil.rmtree(BUILD / folder)
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--force-reinstall']
    subprocess.run([*pip, str(wheel)], check=True)
    print(f'ki_msgs {version}: installed from {wheel.relative_to(ROOT)}')


if __name__ == '__main__':
    main()
