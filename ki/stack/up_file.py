"""A YAML file of `ki up`: which nodes start, with what."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ki.stack.node_parameters import check_parameters
from ki.stack.processes import LaunchPlan, Program
from ki_common.configuration.model import Config
from ki_common.configuration.refusal import nearest
from ki_common.errors import KiError
from ki_common.nodes import NODES

Word = str | int | float  # of a command line or the environment: a number needs no quotes


class UpNode(Config):
    """One process of a file of `ki up`: a Python module, or any command."""

    raises: ClassVar[type[KiError]] = KiError

    module: str | None = None
    """Python module to start, such as ki_policy_node.policy.policy_node; this or command."""
    command: str | tuple[Word, ...] | None = None
    """Program to start, or a list of the program and its arguments; this or module."""
    arguments: tuple[Word, ...] = ()
    """Arguments after the module or the command."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """ROS parameters of the node; they win over those of parameters_file."""
    parameters_file: str = ''
    """ROS 2 file of parameters; a relative path starts at the folder that ki up is called in."""
    remap: dict[str, str] = Field(default_factory=dict)
    """Other names for topics, services and actions: FROM: TO."""
    namespace: str = ''
    """Namespace of the node, below that of the file."""
    environment: dict[str, Word] = Field(default_factory=dict)
    """Environment variables of the process."""

    @model_validator(mode='after')
    def _module_or_command(self) -> Self:
        if bool(self.module) == bool(self.command):
            raise ValueError(
                'module or command is needed, one of them; write the Python module of a node, or a command'
            )
        return self

    def program(self, name: str, namespace: str) -> Program:
        """The process, as a node of this name below a namespace."""
        command: tuple[Word, ...] = (sys.executable, '-m', self.module or '')
        if self.command:
            command = self.command if isinstance(self.command, tuple) else (self.command,)
        return Program(
            name,
            tuple(str(part) for part in (*command, *self.arguments)),
            self.parameters,
            self.parameters_file,
            self.remap,
            '/'.join(part.strip('/') for part in (namespace, self.namespace) if part),
            {key: str(value) for key, value in self.environment.items()},
        )


class UpFile(Config):
    """A file of `ki up`."""

    raises: ClassVar[type[KiError]] = KiError

    nodes: dict[str, UpNode] = Field(min_length=1)
    """The processes by the names of their nodes, in the order of their start."""
    namespace: str = ''
    """Namespace of all nodes."""
    domain: int | None = Field(None, ge=0, le=232)
    """ROS_DOMAIN_ID; without it that of the environment."""
    dds: Literal['loopback', 'lan', 'none'] | None = None
    """How the nodes reach each other (config/dds); without it KI_DDS decides, and else loopback."""


def read_plan(path: Path) -> LaunchPlan:
    """Reads and checks a file of `ki up`.

    Raises:
        KiError: the file, with the field that is unknown, missing or does not fit, and what to write.
    """
    content = UpFile.load(path)
    for name, node in content.nodes.items():
        _check_module(f'{path}: nodes.{name}', node.module, node.parameters)
        if node.parameters_file and not Path(node.parameters_file).is_file():
            raise KiError(
                f'{path}: nodes.{name}.parameters_file is {node.parameters_file!r}, which is no file; write the path '
                'of a ROS 2 file of parameters, from the folder that `ki up` is called in.'
            )
    programs = tuple(node.program(name, content.namespace) for name, node in content.nodes.items())
    return LaunchPlan(programs, content.dds or '', content.domain)


def _check_module(where: str, module: str | None, parameters: Mapping[str, Any]) -> None:
    """Refuses a module that is not there, and parameters that a node of ours would refuse."""
    if not module:
        return
    ours = {module: name for name, module in NODES.items()}
    if module in ours:
        check_parameters(ours[module], parameters, f'{where}.parameters')
    elif not _is_installed(module):
        near = nearest(module, ours)
        hint = f'did you mean {near}?' if near else 'write one that `python -m` can start.'
        raise KiError(f'{where}.module is {module!r}, which is not installed; {hint}')


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a package on the way to it is not there, or it is no name at all
        return False
