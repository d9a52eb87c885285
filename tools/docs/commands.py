"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import click
import typer
from tables import code, table

from ki.main import app


def page() -> str:
    """Every command with its arguments and options."""
    root: Any = typer.main.get_command(app)
    context = click.Context(root, info_name='ki')
    said = ['# Command line', '', '`ki COMMAND --help` shows the same on the terminal.', '']
    for name in root.list_commands(context):
        for words, command in _commands(root.get_command(context, name), context, f'ki {name}'):
            said += _section(words, command)
    return '\n'.join(said)


def _commands(command: Any, parent: Any, words: str) -> Iterator[tuple[str, Any]]:
    yield words, command
    if hasattr(command, 'list_commands'):
        context = click.Context(command, info_name=words, parent=parent)
        for name in command.list_commands(context):
            yield from _commands(command.get_command(context, name), context, f'{words} {name}')


def _section(words: str, command: Any) -> list[str]:
    level = '##' if words.count(' ') == 1 else '###'
    said = [f'{level} {words}', '', _prose(command.help or ''), '']
    arguments = [each for each in command.params if each.param_type_name == 'argument']
    options = [each for each in command.params if each.param_type_name == 'option' and each.name != 'help']
    if arguments:
        said += [table(('argument', ''), [(_argument(each), _prose(each.help or '')) for each in arguments])]
    if options:
        rows = [
            (', '.join(map(code, [*each.opts, *each.secondary_opts])), _default(each), each.help or '')
            for each in options
        ]
        said += [table(('option', 'default', ''), rows)]
    return said


def _argument(each: Any) -> str:
    return f'`{str(each.name).upper()}`' + ('' if each.required else ', optional')


def _default(option: Any) -> str:
    if option.required:
        return '**required**'
    value = option.default
    if value is None or callable(value) or str(value) in ('', '()', '[]'):
        return ''
    return code(str(value).lower() if isinstance(value, bool) else value)


def _prose(text: str) -> str:
    """A help text as Markdown: indented lines, which typer prints as they are, stay so."""
    lines = inspect.cleandoc(text.replace('\b', '')).splitlines()
    return '\n'.join(line for line in lines if line.strip() != '\f')
