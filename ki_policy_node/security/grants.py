"""What each node of a robot may publish, hear, serve and call; nothing else.

Names are those of ROS, as a node writes them: `status` is of the robot's namespace, `~/state` of the node, `/clock` of
all. A `*` stands for any text, slashes included. A test compares this with what the running nodes declare.
"""

from __future__ import annotations

from dataclasses import dataclass

from ki_policy_node.teleop.settings import JoyTeleopSettings, LeaderTeleopSettings
from ki_robot.contract.contract import Contract
from ki_robot.messages.states import static_topic

# Of every node; rclpy makes them.
PARAMETER_SERVICES = (
    'describe_parameters',
    'get_parameter_types',
    'get_parameters',
    'list_parameters',
    'set_parameters',
    'set_parameters_atomically',
    'get_type_description',
)
LIFECYCLE_SERVICES = (
    'change_state',
    'get_state',
    'get_available_states',
    'get_available_transitions',
    'get_transition_graph',
)
ACTION_SERVICES, ACTION_TOPICS = ('send_goal', 'cancel_goal', 'get_result'), ('feedback', 'status')
SHARED = ('/tf', '/tf_static', '/clock', '/diagnostics')  # of all robots of a graph
OPERATOR = 'operator'  # no node of ours: a person at a command line, or a supervisor


@dataclass(frozen=True)
class Grants:
    """What one enclave may do, by ROS names."""

    node: str
    publishes: tuple[str, ...] = ()
    hears: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    serves_actions: tuple[str, ...] = ()
    calls_actions: tuple[str, ...] = ()


def grants_for(contract: Contract) -> dict[str, Grants]:
    """The grants of every node that may stand around one robot, by name."""
    found = (
        _policy_node(contract),
        _executor(contract),
        _recorder(),
        _console(contract),
        _teleop('joy_teleop', (*_states(contract), 'chunk_executor/applied_command', JoyTeleopSettings().topic)),
        _teleop('leader_teleop', (LeaderTeleopSettings().topic,)),
        _operator(),
    )
    return {each.node: each for each in found}


def _states(contract: Contract) -> tuple[str, ...]:
    topics = [name for stream in contract.state_streams for name in (stream.topic, static_topic(stream)) if name]
    return tuple(dict.fromkeys(topics))


def _cameras(contract: Contract) -> tuple[str, ...]:
    return tuple(camera.topic for camera in contract.cameras)


def _node(name: str, lifecycle: bool = False, **grants: tuple[str, ...]) -> Grants:
    """With what every node has."""
    services = (*PARAMETER_SERVICES, *(LIFECYCLE_SERVICES if lifecycle else ()))
    events = ('~/transition_event',) if lifecycle else ()
    return Grants(
        name,
        ('/rosout', '/parameter_events', *events, *grants.get('publishes', ())),
        ('/clock', *grants.get('hears', ())),
        (*(f'~/{each}' for each in services), *grants.get('serves', ())),
        grants.get('calls', ()),
        grants.get('serves_actions', ()),
        grants.get('calls_actions', ()),
    )


def _policy_node(contract: Contract) -> Grants:
    return _node(
        'policy_node',
        lifecycle=True,
        publishes=('~/action_chunk', '~/dry_run_chunk', '~/subtask', '~/status', '/diagnostics'),
        hears=(*_cameras(contract), *_states(contract), 'instruction', 'chunk_executor/status'),
        serves=('~/start', '~/stop', '~/reset_fault', '~/set_instruction', '~/load_policy'),
        serves_actions=('~/run',),
    )


def _executor(contract: Contract) -> Grants:
    controllers = [output.controller_name for output in contract.outputs]
    managers = dict.fromkeys(f'{name.rpartition("/")[0]}/controller_manager'.lstrip('/') for name in controllers)
    # A gripper is commanded by a topic, or by goals of an action.
    goals = [output for output in contract.outputs if output.options.interface not in (None, 'topic')]
    topics = [output.topic for output in contract.outputs if output not in goals]
    return _node(
        'chunk_executor',
        lifecycle=True,
        publishes=(
            *('~/state', '~/status', '~/safety_event', '~/applied_command', 'control_source', '/diagnostics'),
            *topics,
        ),
        hears=(
            *('policy_node/action_chunk', 'policy_node/status', 'estop'),
            *('teleop', 'operator_heartbeat', *_states(contract)),
            *(f'teleop/{output.topic.lstrip("/")}' for output in contract.outputs),
            *(f'{name}/controller_state' for name in controllers),
            *(f'{name}/activity' for name in managers),
        ),
        serves=('~/enable', '~/reset_fault', '~/take_over'),
        calls=tuple(f'{name}/list_controllers' for name in managers),
        calls_actions=tuple(output.topic for output in goals),
    )


def _recorder() -> Grants:
    """It hears the whole robot, and commands nothing."""
    nodes = ('policy_node', 'chunk_executor')
    return _node(
        'recorder',
        publishes=('episode', '/diagnostics'),
        hears=('*', *SHARED),
        serves=('~/start_recording', '~/stop_recording', '~/discard_episode', '~/save_black_box'),
        calls=tuple(f'{node}/{service}' for node in nodes for service in ('list_parameters', 'get_parameters')),
        serves_actions=('~/record',),
    )


def _console(contract: Contract) -> Grants:
    return _node(
        'console',
        publishes=('estop', 'operator_heartbeat', 'episode_note'),
        hears=(
            *_cameras(contract),
            *_states(contract),
            *('policy_node/status', 'policy_node/subtask', 'policy_node/action_chunk', 'policy_node/dry_run_chunk'),
            *('chunk_executor/status', 'chunk_executor/safety_event', 'episode', 'instruction', '/diagnostics'),
        ),
        calls=(
            *('policy_node/start', 'policy_node/stop', 'policy_node/reset_fault', 'policy_node/set_instruction'),
            *('policy_node/set_parameters_atomically', 'chunk_executor/enable', 'chunk_executor/reset_fault'),
            *('chunk_executor/take_over', 'recorder/start_recording', 'recorder/stop_recording'),
        ),
    )


def _teleop(name: str, hears: tuple[str, ...]) -> Grants:
    return _node(name, publishes=('teleop',), hears=hears)


def _operator() -> Grants:
    """Everything that an operator may ask for; neither a chunk nor a command."""
    nodes = ('policy_node', 'chunk_executor', 'recorder')
    return Grants(
        OPERATOR,
        publishes=('/rosout', '/parameter_events', 'instruction', 'estop', 'operator_heartbeat', 'episode_note'),
        hears=('*', *SHARED, '/rosout', '/parameter_events'),
        calls=tuple(f'{node}/*' for node in nodes),
        calls_actions=('policy_node/run', 'recorder/record'),
    )
