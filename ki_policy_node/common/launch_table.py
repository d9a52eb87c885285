"""Derives the arguments of the launch files from the settings of the nodes; `make schema` writes the file.

What a launch file offers is decided here: which parameters of which nodes, and the few defaults that differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from ki_common.node_settings import NodeSettings
from ki_policy_node.common.launch_arguments import STACK, LaunchArgument
from ki_policy_node.executor.settings import ChunkExecutorSettings
from ki_policy_node.policy.settings import PolicyNodeSettings
from ki_policy_node.recorder.settings import RecorderSettings

LOG_LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')
_SETTINGS: Mapping[str, type[NodeSettings]] = {
    'policy_node': PolicyNodeSettings,
    'chunk_executor': ChunkExecutorSettings,
    'recorder': RecorderSettings,
}


def derived_tables() -> dict[str, list[LaunchArgument]]:
    """The arguments of each launch file, in order, by the file's name."""
    policy, passed = _policy(), ('robot', 'bundle', 'backend', 'instruction', 'namespace')
    restart = ('respawn', 'respawn_delay')
    return {
        'policy': list(policy.values()),
        'record': [
            *(_parameter(name, 'recorder') for name in ('folder', 'prefix', 'task')),
            policy['namespace'],
            replace(policy['use_sim_time'], nodes=('recorder',)),
            LaunchArgument('topics', str, '', 'Topics to record besides those of the namespace, separated by spaces.'),
            LaunchArgument(
                'params_file', str, '', 'Further parameters of the recorder; without it config/node/recorder.yaml.'
            ),
        ],
        'sim': [
            _SIM_CHANGES.get(name, lambda argument: argument)(policy[name]) for name in (*passed, 'console', *restart)
        ],
        'replay': [
            LaunchArgument('bag', str, None, 'The rosbag2 folder or .mcap to play.'),
            LaunchArgument('rate', float, 1.0, 'How fast to play it; 2 is twice as fast.'),
            LaunchArgument('delay', float, 10.0, 'How long the policy has for loading before the bag is played [s].'),
            *(policy[name] for name in passed),
        ],
    }


# The simulator has a robot of its own to serve, and without a bundle it moves all the same.
_SIM_CHANGES = {
    'robot': lambda argument: replace(argument, nodes=('sim_robot', *STACK)),
    'backend': lambda argument: replace(argument, default='commissioning'),
}


def _policy() -> dict[str, LaunchArgument]:
    both = (
        _parameter('robot', *STACK, default='bimanual_mobile'),
        _parameter('bundle', 'policy_node'),
        _parameter('backend', 'policy_node'),
        _parameter('remote_url', 'policy_node'),
        _parameter('remote_token_file', 'policy_node'),
        _parameter('instruction', 'policy_node'),
        _parameter('dry_run', 'policy_node'),
        _parameter('enabled', 'chunk_executor'),
        _parameter('run_on_activate', 'policy_node', default=True),
        _parameter('autostart', *STACK),
        LaunchArgument('namespace', str, '', 'Namespace of the robot: every topic is relative to it.'),
        LaunchArgument('use_sim_time', bool, False, 'Take the time from /clock.', STACK),
        LaunchArgument(
            'respawn',
            bool,
            True,
            'Start a policy node that died again; it waits for ~/start, whatever run_on_activate is.',
            choices=('true', 'false'),
            only_launch=True,
        ),
        LaunchArgument('respawn_delay', float, 2.0, 'How long that waits [s].', only_launch=True),
        LaunchArgument('console', bool, False, "Serve the operator's page, on http://127.0.0.1:8765/ by default."),
        LaunchArgument('log_level', str, 'info', 'The least that is logged.', choices=LOG_LEVELS),
        LaunchArgument('params_file', str, '', 'Further parameters of both nodes; without it config/node/policy.yaml.'),
    )
    return {argument.name: argument for argument in both}


def _parameter(name: str, *nodes: str, default: bool | str | None = None) -> LaunchArgument:
    """A parameter of nodes as an argument; the settings of the first node describe it.

    Args:
        name: Of the parameter.
        nodes: Those that get it.
        default: Where the launch is to have another default than the node.
    """
    spec = _SETTINGS[nodes[0]].specs()[name]
    given = spec.default if default is None else default
    assert not isinstance(given, tuple), 'a list is no launch argument'
    return LaunchArgument(name, spec.kind, given, spec.description, nodes, spec.choices)


def table_text() -> str:
    """The content of the file."""
    files = []
    for file, arguments in derived_tables().items():
        lines = ',\n'.join('    ' + json.dumps(each.to_dict()) for each in arguments)
        files.append(f'  {json.dumps(file)}: [\n{lines}\n  ]')
    return '{\n' + ',\n'.join(files) + '\n}\n'
