"""Markdown from plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells are Markdown, of one line each."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(_cell(each) for each in line) + ' |' for line in lines) + '\n'


def code(text: object) -> str:
    """Text as code; empty stays empty."""
    return f'`{text}`' if str(text) else ''


def _cell(value: object) -> str:
    text = ' '.join(str(value).split()).replace('|', '\\|')
    return text if '`' in text else text.replace('<', '&lt;')
