"""A set of nodes as processes from one YAML file: what `ros2 launch` does on a robot, where there is none."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO

import typer

from ki._processes import Processes, read_plan

app = typer.Typer(help='Start a set of nodes from a YAML file, with one log; all end together.')


HELP = """Starts every node that FILE lists, and ends all when one ends or at Ctrl-C; none is restarted.

\b
dds: loopback            # loopback (default), lan, none: config/dds
domain: 7                # ROS_DOMAIN_ID
namespace: robot1
nodes:
  policy:
    module: ki_policy_node.policy_node # or command: [program, argument]
    arguments: [--ros-args, --log-level, debug]
    parameters: {backend: auto}        # or parameters_file: config/x.yaml
    remap: {instruction: told}
    namespace: left
    environment: {OMP_NUM_THREADS: 1}
"""


@app.command(help=HELP)
def up(
    file: Path,
    log: Path = typer.Option(None, help='Write the common log here too.'),
    seconds: float = typer.Option(0.0, help='End after this time; 0: when a node ends, or at Ctrl-C.'),
) -> None:
    """Starts the nodes of a file and waits for their end."""
    from ki_policy_node.ros import use_dds_profile

    plan = read_plan(file)
    environment = dict(os.environ)
    use_dds_profile(plan.dds, environment)
    # `command: [ki, ...]` is this ki, whether or not its environment is activated.
    environment['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{environment.get("PATH", "")}'
    if plan.domain is not None:
        environment['ROS_DOMAIN_ID'] = str(plan.domain)
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: stopped.append(received))
    with open_log(log) as stream:
        processes = Processes(plan.programs, environment, stream)
        end = time.monotonic() + (seconds or float('inf'))
        while not stopped and time.monotonic() < end and processes.ended() is None:
            time.sleep(0.05)
        first = processes.ended()
        if first:
            processes.say('ki up', f'{first[0]} ended with status {first[1]}: ending the others')
        statuses = processes.end()
        processes.say('ki up', ', '.join(f'{name} {status}' for name, status in statuses.items()))
    raise typer.Exit(code=abs(first[1]) if first else 0)


def open_log(path: Path | None) -> contextlib.AbstractContextManager[IO[str] | None]:
    """The log file, its folder made; nothing when none is asked for."""
    if path is None:
        return contextlib.nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open('w', encoding='utf-8')
