"""Launch files: what they offer, and what their nodes get, made by launch itself where it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ki.stack.node_parameters import check_parameter_file, check_parameters, settings_models
from ki.stack.policy_stack import PolicyStack
from ki.stack.processes import Program
from ki_common.nodes import NODES
from ki_policy_node.common.launch_arguments import FILE, STACK, launch_arguments, up_arguments
from ki_policy_node.common.launch_table import table_text

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
NAMES = [path.name.partition('.')[0] for path in FILES]


def test_the_table_is_what_the_settings_of_the_nodes_say() -> None:
    assert FILE.read_text(encoding='utf-8') == table_text(), 'make schema writes it'


@pytest.mark.parametrize('name', NAMES)
def test_an_argument_that_is_a_parameter_is_one_of_each_node_that_gets_it(name: str) -> None:
    for argument in launch_arguments(name).values():
        for node in argument.nodes:
            spec = settings_models()[node].specs().get(argument.name)
            if spec is None:
                assert argument.name == 'use_sim_time'
            else:
                assert (argument.kind, argument.choices) == (spec.kind, spec.choices)
                check_parameters(node, {argument.name: argument.default}, 'default')


def test_launch_files_read_their_table_in_a_python_without_our_dependencies() -> None:
    code = f'import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom ki_policy_node.common.launch_arguments import *\n'
    code += 'print(*launch_arguments("policy"))'
    done = subprocess.run([sys.executable, '-I', '-S', '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == list(launch_arguments('policy')), done.stderr


@pytest.mark.parametrize('name', NODES)
def test_an_executable_is_a_module_with_a_main(name: str) -> None:
    spec = importlib.util.find_spec(NODES[name])
    assert spec is not None
    assert spec.origin is not None
    assert '\ndef main(' in Path(spec.origin).read_text()


def test_the_parameter_files_fit_the_nodes_that_they_are_for() -> None:
    for name, nodes in (('policy', STACK), ('sim_robot', ('sim_robot',)), ('recorder', ('recorder',))):
        file = ROOT / 'config' / 'node' / f'{name}.yaml'
        check_parameter_file(file, yaml.safe_load(file.read_text()), '', nodes)


@pytest.mark.parametrize('name', ['commissioning', 'synthetic'])
def test_the_files_of_ki_up_are_taken(name: str) -> None:
    from ki.stack.up_file import read_plan

    assert {program.name for program in read_plan(ROOT / 'config' / 'node' / f'{name}.yaml').programs} >= set(STACK)


# With ROS 2 launch, where it is installed: the launch files are run.

LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

arguments = [tuple(word.split(':=', 1)) for word in sys.argv[2:]]
service = LaunchService()
source = PythonLaunchDescriptionSource(sys.argv[1])
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)]))
sys.exit(service.run())
"""
OFFERED = """
import sys
from launch import LaunchContext
from launch.launch_description_sources import PythonLaunchDescriptionSource

description = PythonLaunchDescriptionSource(sys.argv[1]).get_launch_description(LaunchContext())
print(*(argument.name for argument in description.get_launch_arguments()))
"""
# Stands for a program: writes what it was started with, and ends; a player once the others have begun.
NOTE = """#!{python}
import json, os, pathlib, sys, time, yaml
name, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
# launch_ros writes a list of words as a tuple of Python; rcl reads a sequence and no tag.
yaml.SafeLoader.add_constructor('tag:yaml.org,2002:python/tuple', yaml.SafeLoader.construct_yaml_seq)
while name == 'ros2' and len(list(pathlib.Path({notes!r}).iterdir())) < 2:
    time.sleep(0.05)
files = [yaml.safe_load(pathlib.Path(words[i + 1]).read_text()) for i, w in enumerate(words) if w == '--params-file']
pathlib.Path({notes!r}, name + '.json').write_text(json.dumps([words, files]))
"""


class Prefix:
    """This tree as an installed package that launch finds."""

    def __init__(self, folder: Path) -> None:
        self.notes, self.programs = folder / 'notes', folder / 'lib' / 'ki_policy_node'
        index = folder / 'share' / 'ament_index' / 'resource_index' / 'packages'
        self.share = folder / 'share' / 'ki_policy_node'
        for made in (self.notes, self.programs, index, self.share):
            made.mkdir(parents=True)
        (index / 'ki_policy_node').touch()
        for name in ('config', 'launch'):
            (self.share / name).symlink_to(ROOT / name)
        self.environment = os.environ | {
            'AMENT_PREFIX_PATH': f'{folder}{os.pathsep}{os.environ.get("AMENT_PREFIX_PATH", "")}',
            'PATH': f'{self.programs}{os.pathsep}{os.environ["PATH"]}',
            'ROS_LOG_DIR': str(folder / 'log'),
        }

    def program(self, name: str, text: str) -> None:
        """A program that `Node(executable=name)` starts."""
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def only_note(self) -> None:
        """Has every node, and ros2, write down what it was started with, and end."""
        for name in (*NODES, 'ros2'):
            self.program(name, NOTE.format(python=sys.executable, notes=str(self.notes)))

    def command(self, name: str, **arguments: str) -> list[str]:
        """What `ros2 launch ki_policy_node NAME.launch.py` does."""
        words = [f'{argument}:={value}' for argument, value in arguments.items()]
        return [sys.executable, '-c', LAUNCH, str(self.share / 'launch' / f'{name}.launch.py'), *words]


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    """The package with its real programs."""
    if importlib.util.find_spec('launch_ros') is None:
        pytest.skip('ROS 2 launch is not installed: the launch files were NOT run')
    made = Prefix(tmp_path)
    for name, module in {**NODES, 'ki': 'ki.main'}.items():
        made.program(name, f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
    return made


@pytest.fixture
def launched(prefix: Prefix) -> Callable[..., dict[str, Program]]:
    """Runs a launch file whose nodes only write down what they get: the programs by name."""

    def run(name: str, **arguments: str) -> dict[str, Program]:
        prefix.only_note()
        command = prefix.command(name, **arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=prefix.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return {path.stem: noted(path) for path in sorted(prefix.notes.iterdir())}

    return run


def noted(path: Path) -> Program:
    """What a node was started with, as a program of `ki up`: the file of parameters, and the others above it."""
    words, files = json.loads(path.read_text())
    named = dict(word.split(':=', 1) for word in words if word.startswith('__'))
    parameters: dict[str, Any] = {}
    for content in files:
        for key, section in content.items():
            if key == '/**' or key.rpartition('/')[2] == path.stem:
                parameters |= section['ros__parameters']
    return Program(path.stem, tuple(words), parameters, namespace=named.get('__ns', ''))


def usual(node: str) -> dict[str, Any]:
    """The parameters of a node in config/node/policy.yaml."""
    content = yaml.safe_load((ROOT / 'config' / 'node' / 'policy.yaml').read_text())
    return dict(content.get(f'/**/{node}', {'ros__parameters': {}})['ros__parameters'])


@pytest.mark.parametrize('turned', [False, True])
def test_every_node_gets_the_same_from_the_launch_file_and_from_ki_up(launched: Any, turned: bool) -> None:
    values: dict[str, Any] = {name: argument.default for name, argument in up_arguments().items()}
    if turned:
        values = {name: not value if isinstance(value, bool) else value for name, value in values.items()}
        values |= {
            'robot': 'arm_single',
            'bundle': '1',
            'backend': 'onnx',
            'instruction': 'yes: wave',
            'namespace': 'r1',
        }
        values |= {'log_level': 'debug'}
    given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
    given.pop('params_file')
    found = launched('policy', **(given if turned else {}))
    for program in PolicyStack(**values).programs():
        started = found[program.name]
        assert started.parameters == usual(program.name) | dict(program.parameters)
        assert started.namespace.strip('/') == program.namespace
        assert started.command[started.command.index('--log-level') + 1] == values['log_level']


def test_the_recorder_gets_the_same_from_the_launch_file_and_from_ki_up(launched: Any) -> None:
    extra = '/scale/weight /room/image'
    started = launched('record', folder='bags', task='wave', namespace='robot1', topics=extra)['recorder']
    program = PolicyStack('bags', robot='arm_single', instruction='wave', namespace='robot1').programs()[-1]
    content = yaml.safe_load((ROOT / 'config' / 'node' / 'recorder.yaml').read_text())
    usual_ones = content['/**/recorder']['ros__parameters']
    assert started.parameters == usual_ones | program.parameters | {'extra_topics': ['/scale/weight', '/room/image']}
    assert started.namespace == '/robot1'


def test_the_recorder_takes_a_file_of_parameters_below_its_arguments(launched: Any, tmp_path: Path) -> None:
    mine = tmp_path / 'mine.yaml'
    mine.write_text('recorder: {ros__parameters: {cache_mib: 64, folder: theirs}}\n')
    parameters = launched('record', folder='bags', params_file=str(mine))['recorder'].parameters
    assert (parameters['cache_mib'], parameters['folder']) == (64, 'bags')
    assert 'extra_topics' not in parameters


def test_the_simulator_is_driven_at_once_and_without_a_model(launched: Any) -> None:
    found = launched('sim', namespace='robot1')
    assert set(found) == {'sim_robot', *STACK}
    assert found['sim_robot'].parameters == {'robot': 'bimanual_mobile'}
    assert {program.namespace for program in found.values()} == {'/robot1'}
    assert found['policy_node'].parameters['backend'] == 'commissioning'
    assert found['policy_node'].parameters['dry_run'] is False
    assert found['chunk_executor'].parameters['enabled'] is True


def test_a_replay_plays_what_the_policy_reads_to_a_policy_that_commands_nothing(launched: Any) -> None:
    found = launched('replay', bag='a bag', robot='arm_single', rate='2.0', namespace='robot1', backend='torch')
    words = found['ros2'].command
    assert words[:8] == ('bag', 'play', 'a bag', '--clock', '--rate', '2.0', '--delay', '10.0')
    assert '/robot1/joint_states' in words
    assert words[-1] == '/robot1/instruction'
    assert not [word for word in words if 'controller' in word]
    assert found['policy_node'].parameters['dry_run'] is True
    assert found['policy_node'].parameters['use_sim_time'] is True
    assert found['chunk_executor'].parameters['enabled'] is False


def ran(prefix: Prefix, name: str, **arguments: str) -> subprocess.CompletedProcess[str]:
    """A launch file until it ends."""
    command = prefix.command(name, **arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=prefix.environment)


STAYS = f'#!{sys.executable}\nimport signal\nsignal.pause()\n'


@pytest.mark.parametrize(('status', 'told'), [(0, 'the bag is over'), (1, 'ros2 bag play ended with status 1')])
def test_a_replay_ends_with_the_player_and_fails_with_it(prefix: Prefix, status: int, told: str) -> None:
    for node in STACK:
        prefix.program(node, STAYS)
    prefix.program('ros2', f'#!/bin/sh\nsleep 1\nexit {status}\n')
    done = ran(prefix, 'replay', bag='a bag', robot='arm_single')
    assert done.returncode == status
    assert told in done.stdout + done.stderr


DIES = """#!{python}
import os, pathlib, sys
starts = pathlib.Path({notes!r}, 'starts')
files = [pathlib.Path(sys.argv[i + 1]).read_text() for i, word in enumerate(sys.argv) if word == '--params-file']
with starts.open('a') as file:
    print(repr(files[-1]), file=file)
sys.exit([{statuses}][len(starts.read_text().splitlines()) - 1])
"""


@pytest.mark.parametrize(
    ('statuses', 'respawn', 'starts'),
    [('-9, 1, 0', 'true', 3), ('0', 'true', 1), ('2', 'true', 1), ('1', 'false', 1)],
    ids=['died twice', 'was ended', 'has refused its parameters', 'died, and nobody wants another'],
)
def test_a_policy_that_died_is_started_again_and_waits_to_be_told_to_run(
    prefix: Prefix, statuses: str, respawn: str, starts: int
) -> None:
    prefix.only_note()
    prefix.program('policy_node', DIES.format(python=sys.executable, notes=str(prefix.notes), statuses=statuses))
    done = ran(prefix, 'policy', respawn=respawn, respawn_delay='0.2')
    first, *others = (yaml.safe_load(eval(line)) for line in (prefix.notes / 'starts').read_text().splitlines())
    assert len(others) == starts - 1, done.stdout
    [given] = first.values()
    assert given['ros__parameters']['run_on_activate'] is True
    for content in others:
        assert list(content.values()) == [{'ros__parameters': {'run_on_activate': False}}]
    assert ('policy_node is started again in 0.2 s; it runs when ~/start is called' in done.stdout) is (starts > 1)


@pytest.mark.parametrize('name', NAMES)
def test_a_launch_file_offers_what_it_takes_and_nothing_that_it_overrides(prefix: Prefix, name: str) -> None:
    command = [sys.executable, '-c', OFFERED, str(prefix.share / 'launch' / f'{name}.launch.py')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=prefix.environment)
    assert done.stdout.split() == list(launch_arguments(name)), done.stderr


@pytest.mark.parametrize(
    ('name', 'arguments', 'told'),
    [
        ('policy', {'respawn': 'maybe'}, 'value "maybe" is not valid'),
        ('policy', {'respawn_delay': 'soon'}, 'soon'),
        ('policy', {'backend': 'gpu'}, 'value "gpu" is not valid'),
        ('policy', {'log_level': 'loud'}, 'value "loud" is not valid'),
        ('policy', {'dry_run': 'flase'}, 'flase'),
        ('replay', {}, 'bag'),
    ],
)
def test_an_argument_that_cannot_be_starts_nothing(
    prefix: Prefix, name: str, arguments: dict[str, str], told: str
) -> None:
    prefix.only_note()
    command = prefix.command(name, **arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=prefix.environment)
    assert done.returncode == 1
    assert told in done.stdout + done.stderr
    assert not list(prefix.notes.iterdir())


@pytest.mark.ros
def test_a_policy_that_was_killed_comes_back_and_runs_when_it_is_told(
    prefix: Prefix, rigs: ModuleType, tmp_path: Path
) -> None:
    from std_srvs.srv import Trigger

    with rigs.make(tmp_path) as rig, (tmp_path / 'launch.log').open('w') as log:
        given = {'robot': str(rig.contract_file), 'backend': 'commissioning', 'dry_run': 'false', 'enabled': 'true'}
        given |= {'respawn_delay': '0.5', 'instruction': 'swing'}
        process = subprocess.Popen(
            prefix.command('policy', **given), stdout=log, stderr=log, env=prefix.environment, start_new_session=True
        )
        try:
            rig.until('a run', lambda: rig.state == 'run', 60.0)
            victims = [pid for pid in pids_of('ki_policy_node.policy.policy_node') if os.getpgid(pid) == process.pid]
            assert len(victims) == 1
            os.kill(victims[0], signal.SIGKILL)
            rig.until('a hold', lambda: rig.state.startswith('hold'))
            rig.statuses.clear()
            rig.until('another one that is ready', lambda: rig.status.state == rig.status.STATE_READY, 30.0)
            time.sleep(1.0)
            assert {status.state for _, status in rig.statuses[-10:]} == {rig.status.STATE_READY}
            assert rig.state != 'run'
            assert rig.call(Trigger, 'policy_node/start').success
            rig.until('a run', lambda: rig.state == 'run')
        finally:
            os.killpg(process.pid, signal.SIGINT)
            status = process.wait(30)
    assert status == 0, (tmp_path / 'launch.log').read_text()


def pids_of(module: str) -> list[int]:
    """The processes that were started with `python -m module`."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):
            if module in path.read_bytes().decode(errors='replace').split('\0'):
                found.append(int(path.parent.name))
    return found


@pytest.mark.ros
def test_the_nodes_of_the_launch_file_run_and_end_cleanly_at_ctrl_c(
    prefix: Prefix, rigs: ModuleType, tmp_path: Path
) -> None:
    from ki_msgs.msg import PolicyStatus
    from std_msgs.msg import String

    from ki_policy_node.common import ros

    robot, log = tmp_path / 'small.yaml', tmp_path / 'launch.log'
    robot.write_text(yaml.safe_dump(rigs.small_robot()))
    given = {'robot': str(robot), 'backend': 'commissioning', 'namespace': 'robot1'}
    latched = ros.offered_qos('[{durability: transient_local}]')
    with (
        log.open('w') as stream,
        ros.node('listener') as node,
        subprocess.Popen(
            prefix.command('policy', **given),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=prefix.environment,
            start_new_session=True,
        ) as process,
    ):
        statuses: list[Any] = []
        states: list[Any] = []
        node.create_subscription(PolicyStatus, '/robot1/policy_node/status', statuses.append, latched)
        node.create_subscription(String, '/robot1/chunk_executor/state', states.append, latched)

        def up() -> bool:
            return bool(states) and bool(statuses) and statuses[-1].state == PolicyStatus.STATE_HOLDING

        heard = ros.spin_until(node, up, 60.0)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: launch leaves its nodes to hear it themselves
        status = process.wait(30)
    assert heard, log.read_text()
    assert status == 0, log.read_text()
    assert log.read_text().count('process has finished cleanly') == 2
    assert 'escalating' not in log.read_text()
