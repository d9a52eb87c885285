"""The reference of topics, services and actions: the nodes are made, and asked for what they publish and serve.

No graph is needed: what a node has made is read from the node itself, with the QoS that it was made with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import rclpy
from messages import first_sentence
from rclpy.action import get_action_client_names_and_types_by_node, get_action_server_names_and_types_by_node
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from tables import code, table

ROBOT = 'bimanual_mobile'
IGNORED = ('rosout', 'parameter_events')
HEAD = f"""# Topics, services, actions

Names are relative to the namespace of the robot; `~` is the node's name. Cameras, states and commands are those of the
contract `{ROBOT}`; another robot has its own. Every node also has the standard parameter services; `policy_node` and
`chunk_executor` have those of a lifecycle node, too.

QoS: **latched** is reliable, transient local, depth 1: who comes late gets the last message. **Newest** is reliable,
depth 1. **Sensor** is best effort, depth 5, which hears reliable publishers, too. A topic with several is heard from
every publisher.
"""


# What an endpoint is for, where the comment at the head of its message does not say it. The build fails when one of
# these is gone, and when a service or a topic of ours has no line.
ABOUT = {
    ('policy_node', '~/action_chunk'): 'Chunks for the executor: the next commands of every column.',
    ('policy_node', '~/dry_run_chunk'): 'The same in dry run, where no executor listens.',
    ('policy_node', '~/subtask'): 'What a policy of two levels says it does next.',
    ('policy_node', '~/start'): 'Start a run with the instruction in force.',
    ('policy_node', '~/stop'): 'End the run; the executor holds.',
    ('policy_node', '~/reset_fault'): 'Leave the fault, once its cause is gone.',
    ('chunk_executor', '~/state'): 'State and reason: `hold: joint_states is stale`.',
    ('chunk_executor', '~/applied_command'): 'The setpoints as sent, by column name.',
    ('chunk_executor', '~/enable'): 'Let the executor command the robot, or stop that.',
    ('chunk_executor', '~/reset_fault'): 'Leave the fault, once its cause is gone.',
    ('chunk_executor', '~/take_over'): 'A human drives from now on (true), or the policy again (false).',
    ('chunk_executor', 'teleop'): "A human's chunk; one of a single step is a setpoint of the columns that it names.",
    ('chunk_executor', 'operator_heartbeat'): 'Name of the live operator, several times a second; empty: one leaves.',
    ('chunk_executor', 'estop'): 'Pressed (true): fault. A convenience, no safety function.',
    ('recorder', '~/discard_episode'): 'End the recording and delete its bag.',
    ('recorder', '~/save_black_box'): 'Write the last seconds of all topics as a bag; the message is its folder.',
}
OUTSIDE = (
    'diagnostic_msgs',
    'sensor_msgs',
    'nav_msgs',
    'geometry_msgs',
    'trajectory_msgs',
    'std_msgs/msg/Float64MultiArray',
)


def page() -> str:
    """The interface of every node."""
    said, told = [HEAD], set()
    for node in _nodes():
        said += [f'## {node.get_name()}', '']
        beside = [end for other in getattr(node, 'nodes_beside', tuple)() for end in other.subscriptions]
        for title, ends in (('Publishes', node.publishers), ('Subscribes to', [*node.subscriptions, *beside])):
            rows: dict[tuple[str, str], list[str]] = {}
            for end in ends:
                name, kind = _name(node, end.topic_name), _type(end.msg_type)
                if name not in IGNORED and not _standard(kind):
                    rows.setdefault((name, kind), []).append(_qos(end.qos_profile))
            said += _table(node, title, 'topic', told, [(*key, ', '.join(qos)) for key, qos in sorted(rows.items())])
        services = [(_name(node, each.service_name), _type(each.srv_type), '') for each in node.services]
        said += _table(node, 'Services', 'service', told, [each for each in services if not _standard(each[1])])
        for title, known in (
            ('Actions', get_action_server_names_and_types_by_node),
            ('Calls the actions', get_action_client_names_and_types_by_node),
        ):
            found = known(node, node.get_name(), node.get_namespace())
            actions = [(_name(node, name), kind, '') for name, kinds in found for kind in kinds]
            said += _table(node, title, 'action', told, actions)
    if lost := set(ABOUT) - told:
        raise ValueError(f'tools/docs/interfaces.py describes what no node has: {sorted(lost)}')
    return '\n'.join(said)


def _nodes() -> Iterator[Any]:
    """The three nodes of a robot, one after another, configured where they are lifecycle nodes."""
    from ki_policy_node.executor.executor_node import ChunkExecutor
    from ki_policy_node.policy.policy_node import PolicyNode
    from ki_policy_node.recorder.recorder_node import Recorder

    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'OFF'  # nothing is heard from outside, and nothing is told
    robot = ['-p', 'autostart:=false', '-p', f'robot:={ROBOT}']
    for kind, given in ((PolicyNode, [*robot, '-p', 'backend:=commissioning']), (ChunkExecutor, robot), (Recorder, [])):
        rclpy.init(args=['--ros-args', '--log-level', 'fatal', *given])
        node = kind()
        try:
            if isinstance(node, LifecycleNode) and node.trigger_configure() != TransitionCallbackReturn.SUCCESS:
                raise RuntimeError(f'{node.get_name()} could not be configured.')
            yield node
        finally:
            node.destroy_node()
            rclpy.try_shutdown()


def _table(node: Any, title: str, noun: str, told: set[tuple[str, str]], rows: list[tuple[str, str, str]]) -> list[str]:
    if not rows:
        return []
    lines = []
    for name, kind, qos in rows:
        lines.append((code(name), code(kind), *([qos] if qos else []), _about(node.get_name(), name, kind)))
        told.add((node.get_name(), name))
    head = (noun, 'type', 'QoS', '') if rows[0][2] else (noun, 'type', '')
    return [f'### {title}', '', table(head, lines)]


def _about(node: str, name: str, kind: str) -> str:
    if said := ABOUT.get((node, name)):
        return said
    package, part, message = kind.split('/')
    if package == 'ki_msgs':
        return first_sentence(message, part)
    if kind.startswith(OUTSIDE) or name == '/clock' or part == 'action':
        return ''
    raise ValueError(f'tools/docs/interfaces.py has no line on {name} of {node}; add it to ABOUT.')


def _name(node: Any, full: str) -> str:
    """`/policy_node/status` as `~/status`, `/joint_states` as `joint_states`; topics of no robot stay absolute."""
    own = f'/{node.get_name()}/'
    if full.startswith(own):
        return f'~/{full.removeprefix(own)}'
    return full if full in ('/diagnostics', '/clock') else full.removeprefix('/')


def _type(cls: Any) -> str:
    package, part, *_ = cls.__module__.split('.')
    return f'{package}/{part}/{cls.__name__}'


def _standard(kind: str) -> bool:
    return kind.startswith(('rcl_interfaces', 'lifecycle_msgs', 'type_description_interfaces'))


def _qos(qos: QoSProfile) -> str:
    if qos.durability == DurabilityPolicy.TRANSIENT_LOCAL:
        return 'latched' if qos.depth == 1 else f'transient local, depth {qos.depth}'
    if qos.reliability == ReliabilityPolicy.BEST_EFFORT:
        return 'sensor' if qos.depth == 5 else f'best effort, depth {qos.depth}'
    return 'newest' if qos.depth == 1 else f'reliable, depth {qos.depth}'
