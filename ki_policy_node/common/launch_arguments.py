"""The arguments of the launch files, from which `ki up` is made, too: one table, `launch_arguments.json`.

The file is derived from the settings of the nodes by `launch_table`. Only the standard library is imported here:
`ros2 launch` runs in the system's Python, where what the nodes need (pydantic and others) is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix('.json')
STACK = ('policy_node', 'chunk_executor')  # the nodes of policy.launch.py, in the order of their start
_KINDS: dict[str, type] = {'bool': bool, 'double': float, 'string': str}


@dataclass(frozen=True)
class LaunchArgument:
    """One argument of a launch file."""

    name: str
    kind: type  # bool, float or str
    default: bool | float | str | None  # None: it must be given
    description: str
    nodes: tuple[str, ...] = ()  # those that get it as their parameter of the same name; none: for the launch itself
    choices: tuple[str, ...] = ()  # of a word; empty when any will do
    only_launch: bool = False  # `ki up` has no such option: it ends when a node ends

    def declaration(self) -> dict[str, Any]:
        """What `launch.actions.DeclareLaunchArgument` takes beside the name."""
        default = None if self.default is None else str(self.default)
        default = default.lower() if self.kind is bool and default else default
        return {'default_value': default, 'description': self.description, 'choices': list(self.choices) or None}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the file."""
        kind = next(name for name, kind in _KINDS.items() if kind is self.kind)
        return vars(self) | {'kind': kind, 'nodes': list(self.nodes), 'choices': list(self.choices)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> LaunchArgument:
        """One entry of the file."""
        lists = {name: tuple(plain[name]) for name in ('nodes', 'choices')}
        return cls(**{**plain, **lists, 'kind': _KINDS[plain['kind']]})


Table = Mapping[str, LaunchArgument]


def arguments_for(table: Table, node: str) -> list[LaunchArgument]:
    """The arguments that are parameters of a node."""
    return [argument for argument in table.values() if node in argument.nodes]


def launch_arguments(file: str) -> Table:
    """The arguments of a launch file, in order: of policy, record, sim or replay."""
    content = json.loads(FILE.read_text(encoding='utf-8'))
    return {plain['name']: LaunchArgument.from_dict(plain) for plain in content[file]}


def up_arguments() -> Table:
    """Those of policy.launch.py that `ki up` takes, too."""
    return {name: each for name, each in launch_arguments('policy').items() if not each.only_launch}
