"""`ki up`: nodes start together, log together, end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ki.support.processes import Processes, Program, read_plan
from ki_common.errors import KiError

TALKER = [sys.executable, str(Path(__file__).parents[1] / 'talker.py')]
Ki = Callable[..., subprocess.CompletedProcess[str]]


def write(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_help_shows_a_file_that_can_be_read(ki: Ki, tmp_path: Path) -> None:
    text = ki('up', '--help').stdout
    assert '\\b' not in text
    shown = text[text.index('  dds:') : text.index('Arguments:')]
    (tmp_path / 'up.yaml').write_text(textwrap.dedent(shown))
    plan = read_plan(tmp_path / 'up.yaml')
    assert (plan.dds, plan.domain, [program.name for program in plan.programs]) == ('loopback', 7, ['policy'])


@pytest.mark.ros
def test_parameters_names_and_remapping_reach_the_nodes_and_ctrl_c_ends_them_cleanly(tmp_path: Path) -> None:
    file = write(
        tmp_path / 'up.yaml',
        namespace='robot',
        nodes={
            'one': {'command': TALKER, 'parameters': {'word': 'eins', 'rate': 10.0}, 'remap': {'words': 'loud'}},
            'two': {'command': TALKER, 'parameters': {'word': 'zwei'}, 'namespace': 'left'},
        },
    )
    command = [sys.executable, '-m', 'ki.main', 'up', str(file), '--log', str(tmp_path / 'logs' / 'up.log')]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    lines: list[str] = []
    while not ('says eins' in ''.join(lines) and 'says zwei' in ''.join(lines)):
        lines.append(process.stdout.readline())
        assert lines[-1], ''.join(lines)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)[0]
    log = ''.join(lines) + rest
    assert process.returncode == 0, log
    assert '/robot/one says eins' in log
    assert '/robot/left/two says zwei' in log
    assert log.count('goodbye') == 2
    assert 'one 0, two 0' in log
    assert (tmp_path / 'logs' / 'up.log').read_text().count('goodbye') == 2


@pytest.mark.ros
def test_when_one_dies_all_end_and_its_status_is_ours(ki_process: Ki, tmp_path: Path) -> None:
    nodes = {'short': {'command': TALKER, 'parameters': {'count': 5}}, 'long': {'command': TALKER}}
    done = ki_process('up', write(tmp_path / 'up.yaml', nodes=nodes))
    assert done.returncode == 3
    assert 'short ended with status 3: ending the others' in done.stdout
    assert 'long 0' in done.stdout
    assert 'goodbye' in done.stdout


def test_a_program_that_ignores_signals_is_killed_and_its_children_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        'ki.support.processes.PATIENCE_S', ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0))
    )
    shell = 'trap "" INT TERM; sleep 60 & echo $!; wait; wait'
    processes = Processes([Program('deaf', ('bash', '-c', shell))], dict(os.environ))
    time.sleep(0.3)
    assert processes.ended() is None
    assert processes.end() == {'deaf': -signal.SIGKILL}


def test_a_program_that_does_not_exist_ends_those_already_started() -> None:
    programs = [Program('first', ('sleep', '60')), Program('second', ('no-such-program',))]
    with pytest.raises(KiError, match='no-such-program'):
        Processes(programs, dict(os.environ))


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        ({}, 'nodes: must list at least one node'),
        ({'nodes': {'a': {'module': 'x', 'parameter': {}}}}, 'unknown key nodes.a.parameter'),
        ({'nodes': {'a': {'module': 'x'}}, 'domian': 3}, 'unknown key domian'),
        ({'nodes': {'a': {}}}, 'nodes.a needs either module: .* or command:'),
        ({'nodes': {'a': {'module': 'x', 'command': 'y'}}}, 'nodes.a needs either'),
        ({'nodes': {'a': 'x'}}, 'nodes.a must be a mapping'),
        ({'nodes': {'a': {'module': 'x'}}, 'domain': 'x'}, "domain: is 'x'; write a whole number from 0 to 232"),
        ({'nodes': {'a': {'module': 'x'}}, 'domain': 233}, 'domain: is 233; write'),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_key(tmp_path: Path, content: dict[str, object], told: str) -> None:
    with pytest.raises(KiError, match=told):
        read_plan(write(tmp_path / 'up.yaml', **content))


def test_a_file_that_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / 'up.yaml').write_bytes('nodes: {ä: {}}'.encode('latin-1'))
    with pytest.raises(KiError, match=r'up\.yaml is no text in UTF-8'):
        read_plan(tmp_path / 'up.yaml')


def test_no_file_and_no_yaml_are_one_sentence(ki: Ki, tmp_path: Path) -> None:
    (tmp_path / 'bad.yaml').write_text('nodes: [')
    for name, told in (('none.yaml', 'There is no file none.yaml.'), ('bad.yaml', 'bad.yaml is no YAML')):
        done = ki('up', name)
        assert done.returncode == 2
        assert told in done.stderr
        assert 'Traceback' not in done.stderr
