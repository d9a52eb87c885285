"""What a robot does with this tree: `colcon build` in ros2_ws, source the result, run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(importlib.util.find_spec('colcon_core') is None, reason='colcon is not installed: `make setup`'),
]


def test_the_workspace_holds_exactly_the_two_packages(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'colcon', '--log-base', str(tmp_path), 'list']
    done = subprocess.run(command, cwd=root / 'ros2_ws', capture_output=True, text=True, check=True)
    listed = [line.split('\t') for line in done.stdout.splitlines()]
    assert listed == [
        ['ki_msgs', 'src/ki_msgs', '(ros.ament_cmake)'],
        ['ki_policy_node', 'src/ki_policy_node', '(ros.ament_python)'],
    ]


def test_links_of_the_workspace_are_relative_and_resolve(root: Path) -> None:
    links = {path.name: os.readlink(path) for path in (root / 'ros2_ws' / 'src').iterdir()}
    assert links == {'ki_msgs': '../../ki_msgs', 'ki_policy_node': '../..'}


@pytest.mark.slow  # a minute of two cores; set-up builds ki_msgs from the same files, and the links are held above
@pytest.mark.timeout(300)
def test_both_packages_build_and_can_be_sourced(root: Path, tmp_path: Path) -> None:
    build = [sys.executable, str(root / 'tools' / 'build_ws.py'), '--base', str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Summary: 2 packages finished' in done.stdout + done.stderr
    share = tmp_path / 'install' / 'ki_policy_node' / 'share' / 'ki_policy_node'
    assert (share / 'package.xml').is_file()
    assert {path.name for path in (share / 'config' / 'dds').iterdir()} == {'loopback.xml', 'lan.xml'}

    code = (
        'import ki_msgs, ki.main, rclpy; from ki_common.share import share_file\n'
        'from ki_policy_node.common import ros; from ki_msgs.msg import ActionChunk\n'
        'with ros.node("n") as node: node.create_publisher(ActionChunk, "c", 1)\n'
        'print(ki_msgs.__file__, ki.main.__file__, share_file("ki_policy_node", "config/dds/lan.xml"), sep="\\n")'
    )
    script = f". install/local_setup.sh && cd / && {sys.executable} -c '{code}' && ki_policy_node/ki --help"
    script = script.replace('ki_policy_node/ki', str(tmp_path / 'install/ki_policy_node/lib/ki_policy_node/ki'))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('AMENT', 'FAST'))}
    sourced = subprocess.run(['bash', '-c', script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert sourced.returncode == 0, sourced.stderr
    paths = sourced.stdout.splitlines()[:3]
    assert all(path.startswith(str(tmp_path / 'install')) for path in paths), paths
