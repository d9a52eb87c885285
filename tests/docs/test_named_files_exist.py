"""ARCHITECTURE's tree and its table "Where do I …?", and the links of the pages beside it, name files that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(ROOT.glob('*.md'))  # those of docs are held by `mkdocs build --strict`
FILE = re.compile(r'[\w./-]*\w\.(?:py|yaml|md|xml|json|sh|toml|msg|srv|action)\b')


def tree_entries(text: str) -> Iterator[tuple[str, Path]]:
    """(name, folder) of every entry of the tree: a line is names, two spaces, a caption; deeper lines lie below.

    A caption that names files means files of its line's folder, where it is one.
    """
    [block] = [block for block in text.split('```')[1::2] if block.lstrip().startswith('Makefile ')]
    folders = {0: ROOT}
    for line in filter(str.strip, block.splitlines()):
        depth = len(line) - len(line.lstrip())
        names, _, caption = line.strip().partition('  ')
        parent = folders[max(known for known in folders if known <= depth)]
        for name in names.split():
            yield name, parent
        first = parent / names.split()[0]
        folders = {known: folder for known, folder in folders.items() if known <= depth} | {depth + 1: first}
        if names == names.split()[0] and first.is_dir():
            yield from ((name, first) for name in FILE.findall(caption))


def test_every_file_of_the_tree_exists() -> None:
    entries = list(tree_entries((ROOT / 'ARCHITECTURE.md').read_text(encoding='utf-8')))
    assert len(entries) > 20
    missing = [str((folder / name).relative_to(ROOT)) for name, folder in entries if not found(folder, name)]
    assert not missing


def found(folder: Path, name: str) -> bool:
    """Whether a folder has this file or folder, directly or, where only its name is given, below."""
    return (folder / name).exists() or ('/' not in name and next(folder.rglob(name), None) is not None)


def where_table(text: str) -> list[tuple[str, str]]:
    """(question, answer) of each row of the table below the heading "Where do I …?"."""
    section = re.split(r'^## ', text, flags=re.MULTILINE)
    [table] = [part for part in section if part.startswith('Where do I')]
    rows = [line.strip('| ').split('|') for line in table.splitlines() if line.startswith('|')]
    return [(cells[0].strip(), cells[-1].strip()) for cells in rows[2:]]


def test_every_answer_of_where_do_i_is_a_file_that_exists() -> None:
    rows = where_table((ROOT / 'ARCHITECTURE.md').read_text(encoding='utf-8'))
    assert len(rows) >= 10
    for question, answer in rows:
        paths = re.findall(r'`([^`]+)`', answer)
        assert paths, f'{question}: names no file'
        missing = [path for path in paths if not (ROOT / path).exists()]
        assert not missing, f'{question}: {missing}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL)
    targets = [target.partition('#')[0] for target in re.findall(r'\]\(([^)\s]+)\)', text) if '://' not in target]
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing
