"""`ki up --robot ... --bundle ...` starts what launch/policy.launch.py starts, with the same parameters."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ki.support.policy_stack import PolicyStack
from ki_common.errors import KiError
from ki_common.nodes import NODES

ROOT = Path(__file__).resolve().parents[3]
Ki = Callable[..., subprocess.CompletedProcess[str]]


class Launch:
    """A launch file, read and not run: its arguments, and for each node the parameters that they become."""

    def __init__(self, name: str) -> None:
        tree = ast.parse((ROOT / 'launch' / name).read_text())
        assigned = [(node.targets[0], node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        self.assigned = {target.id: value for target, value in assigned if isinstance(target, ast.Name)}
        self.arguments: dict[str, tuple[str, str]] = ast.literal_eval(self.assigned['ARGUMENTS'])
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        self.nodes = [
            {each.arg: each.value for each in call.keywords} for call in calls if getattr(call.func, 'id', '') == 'Node'
        ]

    def programs(self, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Node name -> parameters, for some values of the arguments; the file of parameters comes first of all."""
        found = {}
        for node in self.nodes:
            file, *plain = (self.evaluate(each, values) for each in node['parameters'].elts)
            assert file == 'params_file'
            found[node['name'].value] = {name: value for each in plain for name, value in each.items()}
            assert node['executable'].value == node['name'].value
        return found

    def evaluate(self, node: ast.expr, values: dict[str, Any]) -> Any:
        """A dict of `text(...)` and `flag(...)`, by name or in place."""
        if isinstance(node, ast.Name):
            return self.evaluate(self.assigned[node.id], values)
        if isinstance(node, ast.Dict):
            keys = [ast.literal_eval(key) for key in node.keys if key is not None]
            return dict(zip(keys, (self.evaluate(value, values) for value in node.values), strict=True))
        assert isinstance(node, ast.Call)
        kind, [argument, *_] = node.func.id, node.args
        if kind == 'ParameterFile':
            return argument.args[0].value
        return {'text': str, 'flag': bool}[kind](values[argument.value])


@pytest.fixture(scope='module')
def launch() -> Launch:
    return Launch('policy.launch.py')


def default(text: str) -> Any:
    return {'true': True, 'false': False}.get(text, text)


def test_the_options_are_the_arguments_of_the_launch_file_with_the_same_defaults(launch: Launch) -> None:
    ours = {each.name: each.default for each in fields(PolicyStack) if each.name not in ('robot', 'record')}
    theirs = {name: default(value) for name, (value, _) in launch.arguments.items() if name != 'robot'}
    assert ours == theirs | {'params_file': ''}


def test_the_command_has_the_same_defaults_as_the_stack() -> None:
    import typer

    from ki.commands.up import app

    options = {option.name: option.default for option in typer.main.get_command(app).params}
    for each in fields(PolicyStack):
        assert options[each.name] == ('' if each.name == 'robot' else each.default), each.name


@pytest.mark.parametrize('turned', [False, True])
def test_every_node_gets_the_parameters_of_the_launch_file(launch: Launch, turned: bool) -> None:
    values = {name: default(value) for name, (value, _) in launch.arguments.items()}
    if turned:
        values = {name: not value if isinstance(value, bool) else f'a {name}' for name, value in values.items()}
    stack = PolicyStack(**values)
    wanted = launch.programs(values)
    assert [program.name for program in stack.programs()] == list(wanted) == ['policy_node', 'chunk_executor']
    for program in stack.programs():
        assert program.parameters == wanted[program.name]
        assert program.namespace == values['namespace']
        assert program.command[1:3] == ('-m', NODES[program.name])
        assert program.command[-2:] == ('--log-level', values['log_level'])
        assert Path(program.parameters_file) == ROOT / 'config' / 'node' / 'policy.yaml'


def test_the_file_of_parameters_comes_before_the_options(tmp_path: Path) -> None:
    line = PolicyStack('arm_single', params_file='mine.yaml').programs()[0].command_line(tmp_path)
    files = [line[place + 1] for place, word in enumerate(line) if word == '--params-file']
    assert files[0] == 'mine.yaml'
    assert yaml.safe_load(Path(files[1]).read_text())['/**']['ros__parameters']['robot'] == 'arm_single'


@pytest.mark.parametrize(
    'content',
    [
        (ROOT / 'config' / 'node' / 'policy.yaml').read_text(),
        '{/**: {ros__parameters: {rate: 50.0}}}',
        '{/robot1/policy_node: {ros__parameters: {mode: rtc}}}',
        '{robot1: {chunk_executor: {ros__parameters: {rate: 50.0}}}}',
        '{/*/policy_node: {ros__parameters: {mode: rtc}}}',
    ],
)
def test_a_file_with_parameters_for_a_started_node_is_taken(tmp_path: Path, content: str) -> None:
    file = tmp_path / 'mine.yaml'
    file.write_text(content)
    PolicyStack('arm_single', backend='commissioning', namespace='/robot1', params_file=str(file)).check()


@pytest.mark.parametrize(
    'content',
    [
        'only words',
        '',
        'mode: rtc',
        '{policy_node: {mode: rtc}}',
        '{/robot2/policy_node: {ros__parameters: {mode: rtc}}}',
    ],
)
def test_a_file_without_parameters_for_a_started_node_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / 'mine.yaml'
    file.write_text(content)
    stack = PolicyStack('arm_single', backend='commissioning', namespace='robot1', params_file=str(file))
    with pytest.raises(KiError, match='no parameters for robot1/policy_node or robot1/chunk_executor; write'):
        stack.check()


def test_recording_starts_what_record_launch_starts() -> None:
    stack = PolicyStack('arm_single', record='bags', instruction='wave', namespace='robot1')
    recorder = stack.programs()[-1]
    arguments = Launch('record.launch.py').arguments
    assert set(recorder.parameters) == set(arguments) - {'namespace'}
    assert recorder.parameters == {'folder': 'bags', 'prefix': 'episode', 'task': 'wave', 'use_sim_time': False}
    assert (recorder.name, recorder.namespace) == ('recorder', 'robot1')


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        ({'robot': ''}, 'No robot is named; write --robot'),
        ({'robot': 'nix'}, "No robot is called 'nix'"),
        ({}, "--bundle is '', which is no folder; .*--backend commissioning"),
        ({'backend': 'gpu'}, "--backend is 'gpu'; write one of auto, "),
        ({'backend': 'commissioning', 'log_level': 'loud'}, "--log-level is 'loud'; write one of debug, "),
        ({'backend': 'commissioning', 'params_file': 'none.yaml'}, "--params-file is 'none.yaml', which is no file"),
        ({'backend': 'commissioning', 'instruction': 'x' * 501}, 'has 501 characters'),
    ],
)
def test_a_mistake_is_told_before_a_process_is_started(options: dict[str, str], told: str) -> None:
    with pytest.raises(KiError, match=told):
        PolicyStack(**({'robot': 'arm_single'} | options)).check()


def test_a_file_and_the_options_of_a_robot_exclude_each_other(ki: Ki) -> None:
    done = ki('up', ROOT / 'config' / 'node' / 'synthetic.yaml', '--no-dry-run')
    assert done.returncode == 2
    assert '--dry-run and a file do not go together' in done.stderr
    assert 'leave the file out and write --robot' in done.stderr


@pytest.mark.ros
def test_the_nodes_of_a_robot_run_in_its_namespace_and_are_recorded(tmp_path: Path, rigs: ModuleType) -> None:
    from ki_msgs.msg import PolicyStatus
    from std_msgs.msg import String

    from ki_bags.reader import find_bags
    from ki_policy_node.common import ros

    robot, log = tmp_path / 'small.yaml', tmp_path / 'up.log'
    robot.write_text(yaml.safe_dump(rigs.small_robot()))
    words = ['--robot', robot, '--backend', 'commissioning', '--namespace', 'robot1', '--instruction', 'wave']
    words += ['--record', tmp_path / 'bags', '--log', log]
    command = [sys.executable, '-m', 'ki.main', 'up', *map(str, words)]
    latched = ros.offered_qos('[{durability: transient_local}]')
    with ros.node('listener') as node, subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        statuses: list[Any] = []
        states: list[Any] = []
        node.create_subscription(PolicyStatus, '/robot1/policy_node/status', statuses.append, latched)
        node.create_subscription(String, '/robot1/chunk_executor/state', states.append, latched)

        def up() -> bool:
            holds = bool(statuses) and statuses[-1].state == PolicyStatus.STATE_HOLDING
            return holds and bool(states) and 'episode_0000: wave' in log.read_text()

        heard = ros.spin_until(node, up, 60.0)
        process.send_signal(signal.SIGINT)
        status = process.wait(60)
    assert heard, log.read_text()
    assert statuses[-1].policy_id == 'commissioning-hold'
    assert status == 0, log.read_text()
    assert find_bags(tmp_path / 'bags')
