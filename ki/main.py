"""The command `ki`. Every file of `ki/commands` is a subcommand of that name.

To add one, add a file there and nothing else::

    \"\"\"First line: what `ki --help` shows.\"\"\"

    import typer

    app = typer.Typer(help='First line: what `ki --help` shows.')

    @app.command()
    def hello(name: str) -> None:
        from ki_robot.contract.contract import load_contract  # inside: `ki --help` must answer at once
        ...

One `@app.command()` makes `ki FILE`; several make `ki FILE NAME`. A KiError raised anywhere below becomes one
sentence on stderr and exit status 2, and so does what the file system refuses.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import warnings
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from ki_common.errors import KiError

# How often a thread of torch's OpenMP (libgomp) looks for work before it sleeps. At its own 300,000, threads that wait
# take the cores from whatever else runs, and from each other: training a small policy beside a busy machine, two
# did 9 samples/s, 24 with this, and 134 and 137 on a quiet one (benchmarks/results/openmp.json).
SPINS = 10_000
ROOMS = ('ki', 'ki_common', 'ki_robot', 'ki_bags', 'ki_vla', 'ki_policy_node', 'ki_sim', 'training')


class Subcommands(TyperGroup):
    """Finds subcommands by file name and imports only the one that is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the files in `commands/`, as commands."""
        files = pkgutil.iter_modules([str(Path(__file__).parent / 'commands')])
        return sorted(module.name.replace('_', '-') for module in files)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of one file; None for an unknown name, which the parser then reports."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f'ki.commands.{cmd_name.replace("-", "_")}')
        module.app.rich_markup_mode = None
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        # Completion is installed for `ki`, not for every part of it.
        command.params = [option for option in command.params if not str(option.name).endswith('_completion')]
        return command


app = typer.Typer(
    cls=Subcommands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def ki() -> None:
    """KI Stack: check, record, train, export, replay and run vision-language-action policies on ROS 2."""


def fix(module: str) -> str:
    """What to do about a module that is not there."""
    top = module.partition('.')[0]
    if top == 'rclpy' or top.endswith('_msgs'):
        return 'Source your ROS 2 and the workspace built with it, or run `make setup`, which installs one.'
    return '`make setup` installs it.'


def note(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a sentence: the line of code that gave it means nothing to who typed a command."""
    print(f'ki: note: {message}', file=sys.stderr)


def main() -> None:
    """Runs the command line; the console script `ki`."""
    warnings.showwarning = note
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', str(SPINS))
    try:
        app(prog_name='ki')
    except KiError as error:
        print(f'ki: {error}', file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        name = error.name or ''
        if not name or name.partition('.')[0] in ROOMS:
            raise
        print(f'ki: this needs the module {name}, which is not installed here. {fix(name)}', file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `ki topic echo ... | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a folder where a file is meant, no permission, a full disk
        where = '' if error.filename is None else f'{error.filename}: '
        print(f'ki: {where}{error.strerror or error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
