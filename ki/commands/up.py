"""A set of nodes as processes, from one YAML file or for one robot: what `ros2 launch` does, where there is none."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import typer

from ki.stack.policy_stack import PolicyStack
from ki.stack.processes import LaunchPlan, Processes
from ki_common.errors import KiError

app = typer.Typer(help='Start the nodes of a robot, or of a YAML file, with one log; all end together.')


HELP = """Starts the policy of a robot, or every node that FILE lists, and ends all when one ends or at Ctrl-C.

\b
ki up --robot bimanual_mobile --bundle my_policy/ --instruction "fold the towel"
is `ros2 launch ki_policy_node policy.launch.py robot:=... bundle:=...`: the same nodes, the same parameters.
ki up FILE starts what a file says; none is restarted:

\b
dds: loopback            # loopback (default), lan, none: config/dds
domain: 7                # ROS_DOMAIN_ID
namespace: robot1
nodes:
  policy:
    module: ki_policy_node.policy.policy_node # or command: [program, argument]
    arguments: [--ros-args, --log-level, debug]
    parameters: {backend: auto}        # or parameters_file: config/x.yaml
    remap: {instruction: told}
    namespace: left
    environment: {OMP_NUM_THREADS: 1}
"""


def launch_options() -> list[inspect.Parameter]:
    """The arguments of policy.launch.py as options."""
    from ki_policy_node.common.launch_arguments import up_arguments

    options = []
    for argument in up_arguments().values():
        choices = f' One of {", ".join(argument.choices)}.' if argument.choices else ''
        default = '' if argument.name == 'robot' else argument.default  # here, a robot must be named
        option = typer.Option(default, help=argument.description + choices)
        options.append(
            inspect.Parameter(argument.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=argument.kind)
        )
    return options


def with_launch_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with its `**arguments` spelled out: Typer offers those of policy.launch.py as options."""
    own = inspect.signature(command, eval_str=True)
    named = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    # inspect.signature reads this attribute, which no stub knows
    command.__signature__ = own.replace(parameters=[*named, *launch_options()])  # type: ignore[attr-defined]
    return command


@app.command(help=HELP)
@with_launch_options
def up(
    context: typer.Context,
    file: Path = typer.Argument(None, help='What to start; without one, the nodes of --robot.', show_default=False),
    log: Path = typer.Option(None, help='Write the common log here too.'),
    seconds: float = typer.Option(0.0, help='End after this time; 0: when a node ends, or at Ctrl-C.'),
    record: str = typer.Option('', help='Record into this folder: at once with --instruction, else when told to.'),
    **arguments: Any,
) -> None:
    """Starts the nodes of a robot or of a file and waits for their end."""
    from ki_policy_node.common.ros import use_dds_profile

    plan = plan_of(file, PolicyStack(record, **arguments), given(context, {'record', *arguments}))
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


def given(context: typer.Context, names: set[str]) -> list[str]:
    """Which of some options stand on the command line."""
    return sorted(name for name in names if 'COMMANDLINE' in str(context.get_parameter_source(name)))


def plan_of(file: Path | None, stack: PolicyStack, options: list[str]) -> LaunchPlan:
    """What to start: what the file says, or the nodes of a robot.

    Raises:
        KiError: both forms at once, or a mistake in either.
    """
    from ki.stack.up_file import read_plan

    if file is None:
        stack.check()
        return LaunchPlan(stack.programs())
    if options:
        raise KiError(
            f'--{options[0].replace("_", "-")} and a file do not go together: {file} says what its nodes get. Write it '
            'there, or leave the file out and write --robot.'
        )
    return read_plan(file)


def open_log(path: Path | None) -> contextlib.AbstractContextManager[IO[str] | None]:
    """The log file, its folder made; nothing when none is asked for."""
    if path is None:
        return contextlib.nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open('w', encoding='utf-8')
