"""Every program of benchmarks/ starts, and finds what it imports, in its functions too."""

from __future__ import annotations

import ast
import importlib
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / 'benchmarks'
PROGRAMS = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob('*.py'))
OURS = ('ki', 'ki_bags', 'ki_common', 'ki_msgs', 'ki_policy_node', 'ki_robot', 'ki_sim', 'ki_vla', 'training')


def imports(program: str) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a program imports from ours, wherever it stands."""
    for node in ast.walk(ast.parse((FOLDER / program).read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition('.')[0] in OURS:
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize('program', PROGRAMS)
def test_a_program_finds_every_name_that_it_imports(program: str) -> None:
    missing = []
    for module, name in imports(program):
        if module.startswith('ki_msgs') or module == 'ki.stack.sim_stack':
            pytest.importorskip('rclpy', reason=f'benchmarks/{program} needs ROS')
        if not hasattr(importlib.import_module(module), name):
            try:
                importlib.import_module(f'{module}.{name}')
            except ModuleNotFoundError:
                missing.append(f'{module}.{name}')
    assert not missing, f'benchmarks/{program} imports what is not there'


@pytest.mark.parametrize('program', [each for each in PROGRAMS if not each.startswith('gpu/')])
def test_a_program_says_how_it_is_used(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run as a script, in this process: a fresh interpreter would spend seconds on imports."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, 'argv', [str(FOLDER / program), '--help'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / program), run_name='__main__')
    assert not end.value.code
    assert capsys.readouterr().out.startswith('usage: ')


def test_the_programs_for_a_gpu_say_how_they_are_used(root: Path) -> None:
    command = [root / 'benchmarks' / 'gpu.sh', '--help']
    done = subprocess.run(command, cwd=root, env=os.environ | {'PYTHONPATH': str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('usage: ')
