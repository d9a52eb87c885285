"""Every command in the documentation: those marked `run` are run, and all others are at least commands that exist.

A block that begins with ```bash {.run}, or python, is run with the default tests, one with {.run .slow} with the slow
ones; all blocks of a page share one folder, in order, as a reader would go through them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from ki_policy_node.common.launch_arguments import launch_arguments

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted({*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')} - {ROOT / 'CHANGELOG.md'})  # it names what is gone
FENCE = re.compile(r'^```(?P<language>bash|python)(?P<marks> \{[^}]*\})?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
SEEN_FROM_THE_FOLDER = ('bundles', 'config', 'docs')  # what a reader finds beside them


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    run: bool
    slow: bool


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found = FENCE.finditer(page.read_text(encoding='utf-8'))
    return [
        Block(each['language'], each['text'], '.run' in (each['marks'] or ''), '.slow' in (each['marks'] or ''))
        for each in found
    ]


def run_all(chosen: list[Block], folder: Path) -> None:
    """Runs blocks as one would type them, in a folder with what the repository's root has."""
    for name in SEEN_FROM_THE_FOLDER:
        (folder / name).symlink_to(ROOT / name)
    programs = Path(sys.executable).parent
    environment = os.environ | {'PATH': f'{programs}:{os.environ["PATH"]}', 'PYTHONPATH': str(ROOT), 'COLUMNS': '120'}
    for block in chosen:
        program = ['bash', '-euo', 'pipefail', '-c'] if block.language == 'bash' else [sys.executable, '-c']
        done = subprocess.run(
            [*program, block.text],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=900,
        )
        assert done.returncode == 0, f'{block.text}\nended with {done.returncode}:\n{done.stdout[-4000:]}'


def named(page: Path) -> str:
    """A page as tests call it."""
    return str(page.relative_to(ROOT))


def pages_with(slow: bool) -> list[Path]:
    """The pages that have something to run in one of the two sets of tests."""
    return [page for page in PAGES if any(each.run and each.slow == slow for each in blocks(page))]


@pytest.mark.parametrize('page', pages_with(slow=False), ids=named)
def test_the_quick_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    run_all([each for each in blocks(page) if each.run and not each.slow], tmp_path)


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.timeout(2400)
@pytest.mark.parametrize('page', pages_with(slow=True), ids=named)
def test_all_commands_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    run_all([each for each in blocks(page) if each.run], tmp_path)


@pytest.mark.parametrize('page', [page for page in PAGES if blocks(page)], ids=named)
def test_every_block_can_be_read(page: Path) -> None:
    for block in blocks(page):
        if block.language == 'python':
            compile(block.text, named(page), 'exec')
            continue
        text = block.text.replace('<this repository>', 'REPOSITORY').replace('<its folder>', 'FOLDER')
        done = subprocess.run(['bash', '-n'], input=text, text=True, capture_output=True)
        assert done.returncode == 0, f'{block.text}\n{done.stderr}'


def calls(page: Path, program: str) -> Iterator[list[str]]:
    """The calls of a program in the blocks of a page, as words; also those in backticks within a sentence."""
    text = page.read_text(encoding='utf-8')
    shell = [block for block in blocks(page) if block.language == 'bash']
    lines = [line for block in shell for line in block.text.replace('\\\n', ' ').splitlines()]
    lines += re.findall(r'`([^`\n]+)`', re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL))
    for line in lines:
        for part in re.split(r'&&|;|\\?\|', line.split(' #')[0]):
            words = shlex.split(part.replace('…', '').replace("'", '"'), posix=True) if part.count('"') % 2 == 0 else []
            while words and re.fullmatch(r'[A-Z_]+=\S*', words[0]):
                words.pop(0)
            if words[: len(program.split())] == program.split():
                yield words[len(program.split()) :]


@pytest.mark.parametrize('page', PAGES, ids=named)
def test_every_ki_command_has_the_options_that_are_written(page: Path) -> None:
    from ki.main import app

    root: Any = typer.main.get_command(app)
    for words in calls(page, 'ki'):
        command, context = root, click.Context(root, info_name='ki')
        while words and hasattr(command, 'get_command') and re.fullmatch('[a-z][a-z-]*', words[0]):
            name = words.pop(0)
            command = command.get_command(context, name)
            assert command is not None, f'{named(page)}: there is no command {name!r} in `ki ... {name}`'
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {'--help'}
        for word in words:
            option = word.split('=')[0]
            assert not option.startswith('-') or option in known, f'{named(page)}: {command.name} has no {option}'


@pytest.mark.parametrize('page', PAGES, ids=named)
def test_every_launch_file_has_the_arguments_that_are_written(page: Path) -> None:
    for words in calls(page, 'ros2 launch ki_policy_node'):
        if not words or not words[0].endswith('.launch.py'):
            continue
        known = launch_arguments(words[0].removesuffix('.launch.py'))
        for name, found, _ in (word.partition(':=') for word in words[1:]):
            assert not found or name in known, f'{named(page)}: {words[0]} has no argument {name}'


def test_some_pages_are_run() -> None:
    assert len(pages_with(slow=False)) >= 2
    assert len(pages_with(slow=True)) >= 4
