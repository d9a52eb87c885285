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

from ki.stack.processes import Processes, Program
from ki.stack.up_file import UpFile, read_plan
from ki_common.errors import KiError
from ki_common.nodes import NODES

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
    # The short one waits until the long one talks: who is interrupted while it starts does not say goodbye.
    short, long = {'count': 5, 'after': 'lang'}, {'word': 'lang'}
    nodes = {name: {'command': TALKER, 'parameters': said} for name, said in (('short', short), ('long', long))}
    done = ki_process('up', write(tmp_path / 'up.yaml', nodes=nodes))
    assert done.returncode == 3
    assert 'short ended with status 3: ending the others' in done.stdout
    assert 'long 0' in done.stdout
    assert 'goodbye' in done.stdout


def test_a_program_that_ignores_signals_is_killed_and_its_children_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        'ki.stack.processes.PATIENCE_S', ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0))
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
        ({}, "has no field 'nodes'; add it as a mapping"),
        ({'nodes': {}}, 'nodes is {}; write'),
        ({'nodes': {'a': {'module': 'x', 'parameter': {}}}}, "nodes.a has the unknown field 'parameter'; did you mean"),
        ({'nodes': {'a': {'module': 'x'}}, 'domian': 3}, "has the unknown field 'domian'; did you mean 'domain'"),
        ({'nodes': {'a': {}}}, r'nodes\.a\.module or command is needed, one of them; write'),
        ({'nodes': {'a': {'module': 'x', 'command': 'y'}}}, 'module or command is needed, one of them'),
        ({'nodes': {'a': 'x'}}, "nodes.a is 'x'; write a mapping of fields"),
        ({'nodes': {'a': {'module': 'x'}}, 'domain': 'x'}, "domain is 'x'; write a whole number from 0 to 232"),
        ({'nodes': {'a': {'module': 'x'}}, 'domain': 233}, 'domain is 233; write a whole number from 0 to 232'),
        ({'nodes': {'a': {'module': 'x'}}, 'dds': 'wan'}, "dds is 'wan'; write one of loopback, lan, none"),
        ({'nodes': {'a': {'module': 'x', 'remap': ['b:=c']}}}, 'nodes.a.remap is .*; write a mapping'),
        ({'nodes': {'a': {'module': 'x', 'remap': {'b': 3}}}}, r'nodes\.a\.remap\.b is 3; write a word, in quotes'),
        ({'nodes': {'a': {'module': 'x', 'environment': {'B': True}}}}, r'nodes\.a\.environment\.B is True; write'),
        ({'nodes': {'a': {'command': []}}}, 'module or command is needed, one of them'),
        ({'nodes': {'a': {'command': 5}}}, r'nodes\.a\.command is 5; write a word or a list'),
        ({'nodes': {'a': {'module': 'x', 'parameters': 3}}}, r'nodes\.a\.parameters is 3; write a mapping'),
        (
            {'nodes': {'a': {'command': 'x', 'parameters_file': 'none.yaml'}}},
            r"nodes\.a\.parameters_file is 'none.yaml', which is no file; write",
        ),
        ({'nodes': {'a': {'module': 'x'}}}, r"nodes\.a\.module is 'x', which is not installed; write"),
        (
            {'nodes': {'a': {'module': 'ki_policy_node.policy_node'}}},
            r'not installed; did you mean ki_policy_node.policy.policy_node\?',
        ),
        (
            {'nodes': {'a': {'module': NODES['policy_node'], 'parameters': {'mdoe': 'rtc'}}}},
            r"nodes\.a\.parameters has the unknown field 'mdoe'; did you mean 'mode'\?",
        ),
        (
            {'nodes': {'a': {'module': NODES['recorder'], 'parameters': {'compression': 'zip'}}}},
            r"nodes\.a\.parameters: compression is 'zip'; write one of none, lz4, zstd",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_field_and_what_to_write(
    tmp_path: Path, content: dict[str, object], told: str
) -> None:
    with pytest.raises(KiError, match=f'up.yaml.*{told}'):
        read_plan(write(tmp_path / 'up.yaml', **content))


def test_what_the_file_says_reaches_the_programs(tmp_path: Path) -> None:
    mine = write(tmp_path / 'mine.yaml')
    node = {
        'command': ['talk', 3],
        'arguments': ['--rate', 0.5],
        'parameters': {'topics': ['a', 'b'], 'use_sim_time': True},
        'parameters_file': str(mine),
        'remap': {'words': 'loud'},
        'namespace': '/left/',
        'environment': {'OMP_NUM_THREADS': 1},
    }
    file = write(
        tmp_path / 'up.yaml', namespace='robot1', domain=7, dds='lan', nodes={'a': node, 'b': {'command': 'x'}}
    )
    plan = read_plan(file)
    first, second = plan.programs
    assert (plan.dds, plan.domain, first.name, second.command) == ('lan', 7, 'a', ('x',))
    assert first.command == ('talk', '3', '--rate', '0.5')
    assert (first.namespace, second.namespace) == ('robot1/left', 'robot1')
    assert (first.environment, first.remap) == ({'OMP_NUM_THREADS': '1'}, {'words': 'loud'})
    line = first.command_line(tmp_path)
    given = yaml.safe_load(Path(line[-1]).read_text())['/**']['ros__parameters']
    assert given == {'topics': ['a', 'b'], 'use_sim_time': True}
    assert line[line.index('--params-file') + 1] == str(mine)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / 'up.yaml'
    with pytest.raises(KiError, match=r'up\.yaml cannot be read: there is no such file'):
        read_plan(file)
    file.write_text('nodes: [')
    with pytest.raises(KiError, match=r'up\.yaml, line 1: '):
        read_plan(file)
    file.write_text('nodes: {a: {command: x}, a: {command: y}}')
    with pytest.raises(KiError, match="the key 'a' is given twice"):
        read_plan(file)
    file.write_bytes('nodes: {ä: {}}'.encode('latin-1'))
    with pytest.raises(KiError, match=r'up\.yaml cannot be read: byte 8 is no UTF-8'):
        read_plan(file)


def test_a_mistake_of_a_user_is_told_without_a_traceback(ki: Ki) -> None:
    done = ki('up', 'none.yaml')
    assert done.returncode == 2
    assert 'none.yaml cannot be read' in done.stderr
    assert 'Traceback' not in done.stderr


def test_the_domains_of_a_file_are_those_of_ros() -> None:
    from ki_policy_node.common.ros import DDS_PROFILES, DOMAINS

    schema = UpFile.model_json_schema()['properties']
    assert schema['dds']['anyOf'][0]['enum'] == list(DDS_PROFILES)
    assert schema['domain']['anyOf'][0]['maximum'] == DOMAINS
