"""`ki up --robot ... --bundle ...` starts what launch/policy.launch.py starts, with the same parameters."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ki.stack.policy_stack import PolicyStack
from ki_common.errors import KiError
from ki_common.nodes import NODES
from ki_policy_node.common.launch_arguments import STACK, arguments_for, launch_arguments, up_arguments

ROOT = Path(__file__).resolve().parents[3]
Ki = Callable[..., subprocess.CompletedProcess[str]]


def started(values: dict[str, Any], node: str) -> dict[str, Any]:
    """The parameters that a node gets where the arguments of the launch file have these values."""
    return {argument.name: values[argument.name] for argument in arguments_for(up_arguments(), node)}


def test_the_command_has_the_arguments_of_the_launch_file_as_options_with_the_same_defaults() -> None:
    import typer

    from ki.commands.up import app

    options = {str(option.name): option for option in typer.main.get_command(app).params}
    own = {'file', 'log', 'seconds', 'record', 'install_completion', 'show_completion'}
    table = up_arguments()
    assert set(options) - own == set(table)
    for name, argument in table.items():
        assert options[name].default == ('' if name == 'robot' else argument.default), name
        assert argument.description in str(getattr(options[name], 'help', '')), name


def test_an_argument_that_the_launch_file_does_not_have_is_no_argument() -> None:
    with pytest.raises(TypeError, match='no argument robbot'):
        PolicyStack(robbot='arm_single')


@pytest.mark.parametrize('turned', [False, True])
def test_every_node_gets_its_parameters(turned: bool) -> None:
    values: dict[str, Any] = {name: argument.default for name, argument in up_arguments().items()}
    if turned:
        values = {name: not value if isinstance(value, bool) else f'a {name}' for name, value in values.items()}
    stack = PolicyStack(**values)
    assert list(STACK) == ['policy_node', 'chunk_executor']
    programs = list(stack.programs())
    assert [program.name for program in programs] == [*STACK, *(['console'] if turned else [])]
    if turned:
        assert programs.pop().parameters == {'robot': values['robot']}
    for program in programs:
        assert program.parameters == started(values, program.name)
        assert program.namespace == values['namespace']
        assert program.command[1:3] == ('-m', NODES[program.name])
        assert program.command[-2:] == ('--log-level', values['log_level'])
        usual = str(ROOT / 'config' / 'node' / 'policy.yaml')
        assert program.parameters_file == (values['params_file'] or usual)


def test_the_file_of_parameters_comes_before_the_options(tmp_path: Path) -> None:
    line = PolicyStack(robot='arm_single', params_file='mine.yaml').programs()[0].command_line(tmp_path)
    files = [line[place + 1] for place, word in enumerate(line) if word == '--params-file']
    assert files[0] == 'mine.yaml'
    assert yaml.safe_load(Path(files[1]).read_text())['/**']['ros__parameters']['robot'] == 'arm_single'


@pytest.mark.parametrize(
    'content',
    [
        (ROOT / 'config' / 'node' / 'policy.yaml').read_text(),
        '{/**: {ros__parameters: {autostart: false}}}',
        '{/**: {ros__parameters: {use_sim_time: true}}}',
        '{/robot1/policy_node: {ros__parameters: {mode: rtc}}}',
        '{robot1: {chunk_executor: {ros__parameters: {rate: 50}}}}',
        '{/*/policy_node: {ros__parameters: {mode: rtc}}}',
    ],
)
def test_a_file_with_parameters_for_a_started_node_is_taken(tmp_path: Path, content: str) -> None:
    file = tmp_path / 'mine.yaml'
    file.write_text(content)
    PolicyStack(robot='arm_single', backend='commissioning', namespace='/robot1', params_file=str(file)).check()


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
    stack = PolicyStack(robot='arm_single', backend='commissioning', namespace='robot1', params_file=str(file))
    with pytest.raises(KiError, match='no parameters for robot1/policy_node or robot1/chunk_executor; write'):
        stack.check()


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        ('{/**: {ros__parameters: {rate: 50.0}}}', r"/\*\* has the unknown field 'rate'"),
        (
            '{/**/policy_node: {ros__parameters: {mod: rtc}}}',
            "policy_node has the unknown field 'mod'; did you mean 'mode'",
        ),
        ('{robot1: {policy_node: {ros__parameters: {mode: rct}}}}', "robot1/policy_node: mode is 'rct'; write one of"),
        (
            '{/**/chunk_executor: {ros__parameters: {rate: 0}}}',
            r'chunk_executor: rate is 0; write a number from \d+ to 1000',
        ),
    ],
)
def test_a_parameter_that_its_node_would_refuse_is_refused_with_file_and_section(
    tmp_path: Path, content: str, told: str
) -> None:
    file = tmp_path / 'mine.yaml'
    file.write_text(content)
    stack = PolicyStack(robot='arm_single', backend='commissioning', namespace='robot1', params_file=str(file))
    with pytest.raises(KiError, match=f'mine.yaml: .*{told}'):
        stack.check()


def test_recording_starts_what_record_launch_starts() -> None:
    stack = PolicyStack('bags', robot='arm_single', instruction='wave', namespace='robot1')
    recorder = stack.programs()[-1]
    assert set(recorder.parameters) == set(launch_arguments('record')) - {
        'namespace',
        'topics',
        'params_file',
    }  # of the launch file alone
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
