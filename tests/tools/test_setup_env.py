"""The set-up steps: idempotent, quick when nothing is to do, and never a mixture of two ROS 2."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    """A program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_foreign_include_folders_are_replaced_once(tmp_path: Path) -> None:
    build_msgs = load('build_msgs')
    path = tmp_path / 'share' / 'x_msgs' / 'cmake' / 'xExport.cmake'
    path.parent.mkdir(parents=True)
    python, base = '/opt/python/cp310-cp310/include/python3.10', '/opt/python/cp310-cp310/lib/python3.10'
    path.write_text(f'INTERFACE_INCLUDE_DIRECTORIES "{python};{base}/site-packages/numpy/_core/include"\n')
    assert build_msgs.repair_cmake_files(tmp_path) == 1
    python, numpy = path.read_text().split('"')[1].split(';')
    assert Path(python, 'patchlevel.h').is_file() or not Path(python).exists()
    assert Path(numpy, 'numpy', 'arrayobject.h').is_file()
    assert build_msgs.repair_cmake_files(tmp_path) == 0


def test_a_changed_interface_changes_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_msgs = load('build_msgs')
    (tmp_path / 'msg').mkdir()
    (tmp_path / 'msg' / 'A.msg').write_text('uint8 a\n')
    monkeypatch.setattr(build_msgs, 'SOURCE', tmp_path)
    before = build_msgs.fingerprint()
    assert build_msgs.fingerprint() == before
    (tmp_path / 'msg' / 'A.msg').write_text('uint16 a\n')
    assert build_msgs.fingerprint() != before


@pytest.mark.ros
@pytest.mark.skipif(bool(os.environ.get('ROS_DISTRO')), reason='a ROS 2 is sourced; ki_msgs comes from its workspace')
def test_the_installed_interfaces_are_those_of_this_tree() -> None:
    build_msgs = load('build_msgs')
    assert build_msgs.installed_version() == f'{build_msgs.VERSION}+{build_msgs.fingerprint()}', 'run `make setup`'


def test_an_environment_for_wheels_is_refused_when_a_ros_is_sourced_and_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup_env = load('setup_env')
    monkeypatch.setattr(setup_env, 'VENV', tmp_path)
    (tmp_path / 'pyvenv.cfg').write_text('include-system-site-packages = false\n')
    setup_env.make_venv('')
    with pytest.raises(SystemExit, match='made without a sourced ROS 2, and now jazzy is sourced'):
        setup_env.make_venv('jazzy')
    (tmp_path / 'pyvenv.cfg').write_text('include-system-site-packages = true\n')
    setup_env.make_venv('jazzy')
    with pytest.raises(SystemExit, match='made with a sourced ROS 2, and now none is sourced'):
        setup_env.make_venv('')


def test_a_python_that_does_not_fit_is_refused_before_anything_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    setup_env = load('setup_env')
    monkeypatch.setattr(setup_env.sys, 'version_info', (3, 9, 1))
    monkeypatch.setattr(setup_env.sys, 'argv', ['setup_env.py'])
    with pytest.raises(SystemExit, match=r'Python 3\.10 to 3\.12 is needed'):
        setup_env.main()


def test_an_environment_is_made_where_it_is_missing_and_again_when_what_it_holds_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup_env = load('setup_env')
    monkeypatch.delenv('ROS_DISTRO', raising=False)
    for name, path in (('ROOT', ''), ('VENV', '.venv'), ('STAMP', '.venv/setup.json'), ('SHIPPED', 'bundles/demo')):
        monkeypatch.setattr(setup_env, name, tmp_path / path)
    for name in (*setup_env.DEPENDENCIES, 'tools/build_msgs.py', 'ki_msgs/msg/A.msg', 'bundles/demo/manifest.json'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('first')
    made: list[str] = []

    def set_up(accelerator: str, distro: str) -> None:
        made.append(accelerator)
        (tmp_path / '.venv').mkdir(exist_ok=True)
        setup_env.remember(accelerator=accelerator, inputs=setup_env.inputs(accelerator, distro))

    monkeypatch.setattr(setup_env, 'set_up', set_up)

    def call(*arguments: str) -> list[str]:
        """The accelerators of the set-ups that this call did."""
        made.clear()
        monkeypatch.setattr(setup_env.sys, 'argv', ['setup_env.py', *arguments])
        setup_env.main()
        return list(made)

    assert call('--if-stale') == ['cpu'], 'there is none'
    assert call('--if-stale') == []
    assert call() == ['cpu'], 'asked for'
    for name in ('constraints.txt', 'ki_msgs/msg/A.msg', 'bundles/demo/manifest.json'):
        (tmp_path / name).write_text('second')
        assert call('--if-stale') == ['cpu'], name
        assert call('--if-stale') == []
    assert call('--accelerator', 'gpu') == ['gpu']
    assert call('--if-stale') == [], 'as the last time'
    (tmp_path / '.venv' / 'setup.json').write_text('{')
    assert call('--if-stale') == ['cpu'], 'nobody knows what the last one did'
    (tmp_path / '.venv').rename(tmp_path / 'elsewhere')
    (tmp_path / '.venv').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'setup.py').write_text('third')
    assert call('--if-stale') == [], 'the environment of another checkout'


def test_versions_are_pinned_without_the_address_of_any_registry() -> None:
    lines = [line for line in (ROOT / 'constraints.txt').read_text().splitlines() if not line.startswith('#')]
    assert all('==' in line for line in lines)
    assert not any(word in line for line in lines for word in ('://', '--', '@'))
    pinned = {line.split('==')[0].strip() for line in lines}
    assert {'ros-jazzy-rclpy', 'ros-fastrtps', 'torch', 'numpy', 'setuptools', 'onnxruntime', 'mcap'} <= pinned


def test_both_packages_carry_the_same_version_and_valid_manifests() -> None:
    versions = set()
    for path in (ROOT / 'package.xml', ROOT / 'ki_msgs' / 'package.xml'):
        manifest = ElementTree.parse(path).getroot()
        assert manifest.get('format') == '3'
        maintainer = manifest.find('maintainer')
        # colcon silently treats a package with a malformed address as none at all.
        assert maintainer is not None
        assert '@' in maintainer.get('email', '')
        versions.add(manifest.findtext('version'))
    done = subprocess.run(
        [sys.executable, 'setup.py', '--version'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    versions.add(done.stdout.split()[-1])
    versions.add(load('build_msgs').VERSION)
    assert len(versions) == 1, versions


def test_the_installed_programs_are_the_nodes_that_ki_starts() -> None:
    from ki_common.nodes import NODES

    assigned = [n for n in ast.parse((ROOT / 'setup.py').read_text(encoding='utf-8')).body if isinstance(n, ast.Assign)]
    [table] = [n.value for n in assigned if isinstance(n.targets[0], ast.Name) and n.targets[0].id == 'NODES']
    assert ast.literal_eval(table) == NODES
