"""Launch files: they compile, hold no logic, and name only executables, arguments and parameters that exist."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
import yaml

from ki.support.node_parameters import settings_models
from ki_common.nodes import NODES

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / 'launch').glob('*.launch.py'))


def arguments(tree: ast.Module) -> dict[str, tuple[str | None, str]]:
    """The table ARGUMENTS of a launch file."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'ARGUMENTS':
            return ast.literal_eval(node.value)
    raise AssertionError('no ARGUMENTS')


def words(tree: ast.Module, function: str) -> list[str]:
    """The first argument of every call of `function` that is a word."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == function]
    return [call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)]


def keywords(tree: ast.Module, name: str) -> list[str]:
    """The values of every keyword argument of that name that is a word."""
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == name]
    return [value.value for value in found if isinstance(value, ast.Constant)]


def settings(node: str) -> set[str]:
    """The parameters that a node declares."""
    return set(settings_models()[node].specs())


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_a_launch_file_compiles_and_describes_every_argument(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for name, (default, description) in arguments(tree).items():
        assert default is None or isinstance(default, str), name
        assert description.endswith('.'), name
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.If, ast.While, ast.Try))], 'logic'


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_a_launch_file_uses_only_what_exists(path):
    tree = ast.parse(path.read_text())
    declared = {*arguments(tree), 'params_file'}
    assert set(words(tree, 'LaunchConfiguration')) <= declared
    assert set(keywords(tree, 'executable')) <= set(NODES)
    assert set(words(tree, 'text')) | set(words(tree, 'flag')) <= declared


def test_every_argument_of_the_policy_is_a_parameter_of_a_node():
    tree = ast.parse((ROOT / 'launch' / 'policy.launch.py').read_text())
    known = settings('policy_node') | settings('chunk_executor') | {'use_sim_time'}
    assert set(arguments(tree)) - {'namespace', 'log_level'} <= known


@pytest.mark.parametrize('name', ['policy_node', 'chunk_executor', 'recorder'])
def test_an_executable_is_a_module_with_a_main(name):
    spec = importlib.util.find_spec(NODES[name])
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    assert 'main' in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_parameter_file_names_only_parameters_that_exist_with_values_that_fit():
    content = yaml.safe_load((ROOT / 'config' / 'node' / 'policy.yaml').read_text())
    assert set(content) == {'/**/policy_node', '/**/chunk_executor'}
    for node, entry in content.items():
        assert set(entry['ros__parameters']) <= settings(node.rpartition('/')[2])


@pytest.mark.parametrize('path', sorted((ROOT / 'config' / 'node').glob('*.yaml')), ids=lambda path: path.name)
def test_the_files_of_ki_up_name_modules_and_parameters_that_exist(path):
    content = yaml.safe_load(path.read_text())
    for name, entry in content.get('nodes', {}).items():
        assert importlib.util.find_spec(entry['module']), name
        assert set(entry['parameters']) <= settings({module: node for node, module in NODES.items()}[entry['module']])


@pytest.mark.parametrize('robot', ['arm_single', 'bimanual_mobile', 'bimanual_static'])
def test_every_output_of_a_robot_has_its_controller_with_its_joints(robot):
    from ki_robot.contract.contract import load_contract
    from ki_robot.contract.names import joint_of

    content = yaml.safe_load((ROOT / 'config' / 'controllers' / f'{robot}.yaml').read_text())
    managed = content['/**/controller_manager']['ros__parameters']
    for output in load_contract(robot).outputs:
        controller = output.topic.split('/')[0]
        assert controller in managed, output.name
        given = content[f'/**/{controller}']['ros__parameters']
        if output.kind in ('joint_trajectory', 'forward_command'):
            assert given['joints'] == [joint_of(column) for column in output.columns]
        if output.kind == 'joint_trajectory':
            assert given['interpolate_from_desired_state'] is True
            assert given['allow_nonzero_velocity_at_trajectory_end'] is False


def test_the_launch_descriptions_can_be_made_where_launch_is_installed():
    pytest.importorskip('launch_ros', reason='ROS 2 launch is not installed: the descriptions were NOT made')
    for path in FILES:
        spec = importlib.util.spec_from_file_location(path.stem.replace('.', '_'), path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.generate_launch_description().entities
