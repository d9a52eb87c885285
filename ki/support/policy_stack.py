"""What launch/policy.launch.py starts, as programs of `ki up`: the same nodes with the same parameters."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ki.support.processes import Program, read_yaml
from ki_common.errors import KiError
from ki_common.nodes import NODES
from ki_common.share import share_file

LOG_LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')
PARAMETRISED = ('policy_node', 'chunk_executor')  # the nodes that read the file


@dataclass(frozen=True)
class PolicyStack:
    """The policy node and the chunk executor of one robot; fields and defaults are the arguments of the launch file.

    `robot` has no default here. `record` (not in the launch file, but what record.launch.py starts) adds the recorder,
    with that folder; it begins at once when there is an instruction, else when told to.
    """

    robot: str
    bundle: str = ''
    backend: str = 'auto'
    instruction: str = ''
    dry_run: bool = True
    enabled: bool = False
    run_on_activate: bool = True
    autostart: bool = True
    namespace: str = ''
    use_sim_time: bool = False
    log_level: str = 'info'
    params_file: str = ''
    record: str = ''

    def check(self) -> None:
        """Refuses, before a process is started, what its node would refuse.

        Raises:
            KiError: no robot, no such robot, backend, log level, bundle or parameter file, or an instruction that is
                no text.
        """
        from ki_policy_node.policy.backends import BACKENDS, COMMISSIONING
        from ki_policy_node.policy.run import checked_instruction
        from ki_robot.contract.contract import load_contract

        if not self.robot:
            raise KiError('No robot is named; write --robot NAME_OR_FILE, or name a file that lists the nodes.')
        load_contract(self.robot)
        for option, value, known in (('backend', self.backend, BACKENDS), ('log-level', self.log_level, LOG_LEVELS)):
            if value not in known:
                raise KiError(f'--{option} is {value!r}; write one of {", ".join(known)}.')
        if self.backend != COMMISSIONING and not Path(self.bundle or '/dev/null').is_dir():
            raise KiError(
                f'--bundle is {self.bundle!r}, which is no folder; name the folder of a bundle, or write '
                f'--backend {COMMISSIONING} to try the robot without a model.'
            )
        if self.params_file and not Path(self.params_file).is_file():
            raise KiError(f'--params-file is {self.params_file!r}, which is no file; leave it out for the usual one.')
        if self.params_file:
            self._check_parameters(Path(self.params_file))
        if self.instruction:
            checked_instruction(self.instruction, '')

    def programs(self) -> tuple[Program, ...]:
        """The processes, in the order of the launch file."""
        file = self.params_file or str(share_file('ki_policy_node', 'config/node/policy.yaml'))
        shared = {'robot': self.robot, 'use_sim_time': self.use_sim_time, 'autostart': self.autostart}
        policy = {
            'bundle': self.bundle,
            'backend': self.backend,
            'instruction': self.instruction,
            'dry_run': self.dry_run,
            'run_on_activate': self.run_on_activate,
        }
        made = [
            self._program('policy_node', shared | policy, file),
            self._program('chunk_executor', shared | {'enabled': self.enabled}, file),
        ]
        if self.record:
            recorder = {'folder': self.record, 'prefix': 'episode', 'task': self.instruction}
            made.append(self._program('recorder', recorder | {'use_sim_time': self.use_sim_time}))
        return tuple(made)

    def _check_parameters(self, path: Path) -> None:
        """Refuses a file that no node started here would take a parameter from: rcl says nothing of it."""
        content = read_yaml(path)
        nodes = [f'{self.namespace.strip("/")}/{name}'.strip('/') for name in PARAMETRISED]
        if not any(re.fullmatch(key, f'/{node}') for key in _keys(content) for node in nodes):
            raise KiError(
                f'--params-file is {self.params_file!r}, which has no parameters for {" or ".join(nodes)}; write '
                f'"/**/{PARAMETRISED[0]}:" with "ros__parameters:" and the parameters below it, as in '
                'config/node/policy.yaml.'
            )

    def _program(self, name: str, parameters: dict[str, Any], file: str = '') -> Program:
        command = (sys.executable, '-m', NODES[name], '--ros-args', '--log-level', self.log_level)
        return Program(name, command, parameters, file, namespace=self.namespace)


def _keys(content: Any, above: str = '') -> Iterator[str]:
    """Which nodes a file of parameters speaks of, as patterns of full names: `*` is one name, `**` any number."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key == 'ros__parameters' and isinstance(value, dict):
            words = [word for word in above.split('/') if word]
            yield ''.join({'*': r'/\w+', '**': r'(/\w+)*'}.get(word, '/' + re.escape(word)) for word in words)
        else:
            yield from _keys(value, f'{above}/{key}')
