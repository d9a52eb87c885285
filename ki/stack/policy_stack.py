"""What launch/policy.launch.py starts, as programs of `ki up`: the same nodes with the same parameters."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ki.stack.processes import Program
from ki_common.configuration.yaml_reader import read_yaml
from ki_common.errors import KiError
from ki_common.nodes import NODES
from ki_common.share import share_file


class PolicyStack:
    """The policy node and the chunk executor of one robot.

    Args:
        record: Folder for episodes; adds the recorder, as record.launch.py starts it. It begins at once when there is
            an instruction, else when told to.
        given: Arguments of policy.launch.py; the others have the same defaults as there, but no robot.
    """

    def __init__(self, record: str = '', **given: Any) -> None:
        from ki_policy_node.common.launch_arguments import up_arguments

        self.record, self._arguments = record, up_arguments()
        if unknown := set(given) - set(self._arguments):
            raise TypeError(f'ki up has no argument {", ".join(sorted(unknown))}')
        defaults = {name: argument.default for name, argument in self._arguments.items()}
        self.values: Mapping[str, Any] = defaults | {'robot': ''} | given

    def check(self) -> None:
        """Refuses, before a process is started, what its node would refuse.

        Raises:
            KiError: no robot, no such robot, backend, log level, bundle or parameter file, or an instruction that is
                no text.
        """
        from ki.stack.node_parameters import check_parameter_file
        from ki_policy_node.common.launch_arguments import STACK
        from ki_policy_node.cycle.instruction import checked_instruction
        from ki_policy_node.policy.backends import COMMISSIONING
        from ki_robot.contract.contract import load_contract

        values = self.values
        if not values['robot']:
            raise KiError('No robot is named; write --robot NAME_OR_FILE, or name a file that lists the nodes.')
        load_contract(values['robot'])
        for argument in self._arguments.values():
            if argument.choices and values[argument.name] not in argument.choices:
                option, choices = argument.name.replace('_', '-'), ', '.join(argument.choices)
                raise KiError(f'--{option} is {values[argument.name]!r}; write one of {choices}.')
        if values['backend'] != COMMISSIONING and not Path(values['bundle'] or '/dev/null').is_dir():
            raise KiError(
                f'--bundle is {values["bundle"]!r}, which is no folder; name the folder of a bundle, or write '
                f'--backend {COMMISSIONING} to try the robot without a model.'
            )
        if file := values['params_file']:
            if not Path(file).is_file():
                raise KiError(f'--params-file is {file!r}, which is no file; leave it out for the usual one.')
            check_parameter_file(Path(file), read_yaml(file), values['namespace'], STACK)
        if values['instruction']:
            checked_instruction(values['instruction'], '')

    def programs(self) -> tuple[Program, ...]:
        """The processes, in the order of the launch file."""
        from ki_policy_node.common.launch_arguments import STACK, arguments_for, launch_arguments

        file = self.values['params_file'] or str(share_file('ki_policy_node', 'config/node/policy.yaml'))
        made = [
            self._program(
                node, {each.name: self.values[each.name] for each in arguments_for(self._arguments, node)}, file
            )
            for node in STACK
        ]
        if self.values['console']:
            made.append(self._program('console', {'robot': self.values['robot']}, file))
        if self.record:
            recorder = {each.name: each.default for each in arguments_for(launch_arguments('record'), 'recorder')}
            recorder |= {'folder': self.record, 'task': self.values['instruction']}
            made.append(self._program('recorder', recorder | {'use_sim_time': self.values['use_sim_time']}))
        return tuple(made)

    def _program(self, name: str, parameters: dict[str, Any], file: str = '') -> Program:
        command = (sys.executable, '-m', NODES[name], '--ros-args', '--log-level', self.values['log_level'])
        return Program(name, command, parameters, file, namespace=self.values['namespace'])
