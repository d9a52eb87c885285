"""Each node may do on a secured network what it declares when it runs, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('rclpy')

from ki_policy_node.security.documents import full_name, policy
from ki_policy_node.security.grants import OPERATOR, Grants, grants_for
from ki_robot.contract.contract import load_contract

pytestmark = pytest.mark.ros
NODES_OF_A_ROBOT = ('policy_node', 'chunk_executor', 'recorder', 'console', 'joy_teleop', 'leader_teleop')
# Made when there is a controller manager, or a controller that says something: not on this empty network.
LATE = ('controller_state', 'activity', 'list_controllers')


@contextmanager
def node(name: str, robot: str) -> Iterator[Any]:
    """A node of ours, configured, alone."""
    import rclpy
    from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

    lines = {
        'policy_node': ['autostart:=false', 'backend:=commissioning', f'robot:={robot}'],
        'chunk_executor': ['autostart:=false', f'robot:={robot}'],
        'recorder': [],
        'console': [f'robot:={robot}', 'port:=0'],
        'joy_teleop': [f'robot:={robot}', f'axes:=["0:={load_contract(robot).action_names[0]}*0.2"]'],
        'leader_teleop': [f'robot:={robot}'],
    }[name]
    rclpy.init(args=['--ros-args', '--log-level', 'fatal', *(part for line in lines for part in ('-p', line))])
    made = kind(name)()
    try:
        if isinstance(made, LifecycleNode):
            assert made.trigger_configure() == TransitionCallbackReturn.SUCCESS
        yield made
    finally:
        if hasattr(made, 'close'):
            made.close()
        made.destroy_node()
        rclpy.try_shutdown()


def kind(name: str) -> Any:
    """The class of a node."""
    import importlib

    from ki_common.nodes import NODES

    classes = {
        'policy_node': 'PolicyNode',
        'chunk_executor': 'ChunkExecutor',
        'recorder': 'Recorder',
        'console': 'ConsoleNode',
        'joy_teleop': 'JoyTeleop',
        'leader_teleop': 'LeaderTeleop',
    }
    return getattr(importlib.import_module(NODES[name]), classes[name])


def declared(node: Any) -> dict[str, set[str]]:
    """What a node does, read from itself and from the graph."""
    from rclpy.action import get_action_client_names_and_types_by_node, get_action_server_names_and_types_by_node

    own = node.get_name(), node.get_namespace()
    beside = [(each.get_name(), each.get_namespace()) for each in getattr(node, 'nodes_beside', list)()]

    def plain(names: Any) -> set[str]:
        return {name for name, _ in names if '/_action/' not in name}

    return {
        'publishes': plain(node.get_publisher_names_and_types_by_node(*own)),
        'hears': plain(each for who in (own, *beside) for each in node.get_subscriber_names_and_types_by_node(*who)),
        'serves': plain(node.get_service_names_and_types_by_node(*own)),
        'calls': plain(node.get_client_names_and_types_by_node(*own)),
        'serves_actions': plain(get_action_server_names_and_types_by_node(node, *own)),
        'calls_actions': plain(get_action_client_names_and_types_by_node(node, *own)),
    }


def granted(grants: Grants, part: str) -> set[str]:
    return {full_name(name, '', grants.node) for name in getattr(grants, part)}


@pytest.mark.parametrize(
    ('name', 'robot'),
    [*((name, 'bimanual_mobile') for name in NODES_OF_A_ROBOT), ('chunk_executor', 'bimanual_static')],
)
def test_a_node_is_granted_what_it_declares_and_nothing_else(name: str, robot: str, ros_domain: int) -> None:
    grants = grants_for(load_contract(robot))[name]
    with node(name, robot) as running:
        found = declared(running)
        own = f'/{running.get_name()}/'
        services = {f'{own}get_type_description'}  # of Jazzy; Humble has none
        for part in ('publishes', 'hears', 'serves', 'serves_actions', 'calls_actions'):
            may, does = granted(grants, part), found[part]
            may = {each for each in may if not each.endswith(LATE)} - {'/clock'}  # heard in simulated time
            does = does - {'/clock'}
            if name == 'recorder' and part == 'hears':
                assert '/*' in may
                continue
            assert does <= may | services, f'{name} {part}: {sorted(does - may)} would be refused'
            assert may - services <= does, f'{name} {part}: {sorted(may - does)} is granted and not used'
        assert found['calls'] <= granted(grants, 'calls')


def test_the_shipped_policy_file_is_what_the_grants_say(root: Path) -> None:
    grants = grants_for(load_contract('bimanual_mobile'))
    shipped = (root / 'config/sros2/bimanual_mobile.policy.xml').read_bytes()
    assert shipped == policy(list(grants.values()), ''), 'write it anew: ki security init, and copy policy.xml'


def test_neither_the_operator_nor_the_console_may_publish_chunks_or_commands() -> None:
    contract = load_contract('bimanual_mobile')
    grants = grants_for(contract)
    commands = {full_name(output.topic, '', '') for output in contract.outputs} | {'/policy_node/action_chunk'}
    for name in (OPERATOR, 'console', 'recorder', 'joy_teleop', 'leader_teleop'):
        assert not granted(grants[name], 'publishes') & commands, name
    assert granted(grants['policy_node'], 'publishes') & commands == {'/policy_node/action_chunk'}
    may_enable = {name for name, each in grants.items() if any('enable' in call for call in each.calls)}
    assert may_enable == {'console'}, 'and the operator, by chunk_executor/*'
    may_stop = {name for name, each in grants.items() if 'estop' in each.publishes}
    assert may_stop == {'console', OPERATOR}
