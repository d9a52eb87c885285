"""A policy node in a process of its own, for a bag to be played to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ki.stack.processes import Processes, Program
from ki.stack.sim_stack import last_words, private_domain
from ki_common.nodes import NODES

NODE, NAMESPACE = 'policy_node', 'ki_replay'  # apart from a robot's topics even in the robot's own domain


@contextlib.contextmanager
def policy_node(parameters: Mapping[str, Any], log: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """The node for the length of a `with` block: its name, and a function that says why it has ended, if it has.

    It is in dry run and on the clock of the bag, whatever `parameters` say; its output goes to `log`.
    """
    from ki_policy_node.common.ros import use_dds_profile

    os.environ['ROS_DOMAIN_ID'] = str(private_domain())
    use_dds_profile()
    fixed = {'dry_run': True, 'use_sim_time': True, 'autostart': True, 'run_on_activate': False}
    command = (sys.executable, '-m', NODES['policy_node'])
    program = Program(NODE, command, {**parameters, **fixed}, namespace=NAMESPACE)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w', encoding='utf-8') as stream:
        processes = Processes([program], os.environ, stream, quiet=True)

        def ended() -> str:
            end = processes.ended()
            return f'The policy node ended with status {end[1]}. {last_words(log, NODE)}See {log}.' if end else ''

        try:
            yield f'/{NAMESPACE}/{NODE}', ended
        finally:
            processes.end()
