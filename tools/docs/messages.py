"""The reference of ki_msgs, from the comments of its .msg, .srv and .action files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tables import code, table

ROOT = Path(__file__).resolve().parents[2]
PARTS = {'msg': ('',), 'srv': ('Request', 'Response'), 'action': ('Goal', 'Result', 'Feedback')}
DECLARATION = re.compile(r'^(?P<type>[\w/\[\]<>=]+)\s+(?P<name>\w+)\s*(?:=\s*(?P<value>\S+))?$')


@dataclass
class Interface:
    """One section of a file: fields and constants are (type, name, value or '', comment)."""

    about: str = ''
    lines: list[tuple[str, str, str, str]] = field(default_factory=list)


def page() -> str:
    """All messages, services and actions."""
    said = ['# Messages', '', 'What policy and robot say to each other: the package `ki_msgs`.', '']
    for kind, title in (('msg', 'Messages'), ('srv', 'Services'), ('action', 'Actions')):
        said += [f'## {title}', '']
        for path in sorted((ROOT / 'ki_msgs' / kind).iterdir()):
            said += [f'### {path.stem}', '', *_sections(path.read_text(encoding='utf-8'), PARTS[kind])]
    return '\n'.join(said)


def first_sentence(name: str, kind: str) -> str:
    """What the head of an interface says of it, in one sentence."""
    text = (ROOT / 'ki_msgs' / kind / f'{name}.{kind}').read_text(encoding='utf-8')
    about = parse(text.partition('\n---\n')[0]).about
    return about.split('. ')[0].split('\n')[0].rstrip('.') + '.'


def parse(text: str) -> Interface:
    """One section: its head, and every field with the comment beside it, or else the block of comments above."""
    made, block, begun = Interface(), [], False
    for line in text.splitlines():
        declared, _, comment = line.partition('#')
        if not declared.strip():
            if not line.strip() and block and not begun and not made.about:
                made.about, block = '\n'.join(block), []
            elif not line.strip():
                block = []
            else:
                block.append(comment.strip())
            continue
        found = DECLARATION.match(declared.strip())
        if found is None:
            raise ValueError(f'{line!r} is no declaration')
        begun = True
        said = comment.strip() or ' '.join(block)
        made.lines.append((found['type'], found['name'], found['value'] or '', said))
    return made


def _sections(text: str, names: tuple[str, ...]) -> list[str]:
    said = []
    for name, part in zip(names, text.split('\n---\n'), strict=True):
        parsed = parse(part)
        said += [*([parsed.about, ''] if parsed.about else []), *([f'**{name}**', ''] if name else [])]
        fields = [(code(kind), code(field), about) for kind, field, value, about in parsed.lines if not value]
        constants = [(code(field), value, about) for _, field, value, about in parsed.lines if value]
        if fields:
            said += [table(('type', 'field', ''), fields)]
        if constants:
            said += [table(('constant', 'value', ''), constants)]
    return said
