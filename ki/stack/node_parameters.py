"""What is known of the parameters of every node: for the files of `ki up`, and for the reference docs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ki_common.errors import KiError
from ki_common.node_settings import NodeSettings, is_built_in


def settings_models() -> dict[str, type[NodeSettings]]:
    """The settings of each node by its name; `specs()` of each lists its parameters, as the reference page does."""
    from ki_policy_node.console.settings import ConsoleSettings
    from ki_policy_node.executor.settings import ChunkExecutorSettings
    from ki_policy_node.policy.settings import PolicyNodeSettings
    from ki_policy_node.recorder.settings import RecorderSettings
    from ki_policy_node.synthetic_settings import SyntheticRobotSettings
    from ki_policy_node.teleop.settings import JoyTeleopSettings, LeaderTeleopSettings
    from ki_sim.node.settings import SimRobotSettings

    return {
        'policy_node': PolicyNodeSettings,
        'chunk_executor': ChunkExecutorSettings,
        'recorder': RecorderSettings,
        'console': ConsoleSettings,
        'joy_teleop': JoyTeleopSettings,
        'leader_teleop': LeaderTeleopSettings,
        'synthetic_robot': SyntheticRobotSettings,
        'sim_robot': SimRobotSettings,
    }


def check_parameters(node: str, parameters: Mapping[str, Any], where: str) -> None:
    """Refuses, before it is started, parameters that a node would refuse.

    Raises:
        KiError: an unknown parameter or a value that does not fit, with `where` it stands.
    """
    settings_models()[node].parse({k: v for k, v in parameters.items() if not is_built_in(str(k))}, where)


def check_parameter_file(file: Path, content: Any, namespace: str, nodes: tuple[str, ...]) -> None:
    """Refuses a ROS 2 file of parameters that has none for the nodes started with it, or one that they would refuse.

    rcl says nothing of the former: a section for `/robot2/policy_node` is simply not for `/robot1/policy_node`.

    Args:
        file: Where the content stands.
        content: What the file says.
        namespace: In which the nodes are.
        nodes: Their names.
    """
    names = {node: f'{namespace.strip("/")}/{node}'.strip('/') for node in nodes}
    sections = [
        (node, key, parameters)
        for node, name in names.items()
        for key, parameters in _sections(content)
        if re.fullmatch(_pattern(key), f'/{name}')
    ]
    if not sections:
        raise KiError(
            f'{file} has no parameters for {" or ".join(names.values())}; write "/**/{nodes[0]}:" with '
            '"ros__parameters:" and the parameters below it, as in config/node/policy.yaml.'
        )
    for node, key, parameters in sections:
        check_parameters(node, parameters, f'{file}: {key}')


def _sections(content: Any, above: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Which nodes a file of parameters speaks of, as they are written there, and what it says of them."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key == 'ros__parameters' and isinstance(value, dict):
            yield above, value
        else:
            yield from _sections(value, f'{above}/{key}' if above else str(key))


def _pattern(key: str) -> str:
    """A key of a file of parameters as a pattern of full names: `*` is one name, `**` any number."""
    words = [word for word in key.split('/') if word]
    return ''.join({'*': r'/\w+', '**': r'(/\w+)*'}.get(word, '/' + re.escape(word)) for word in words)
