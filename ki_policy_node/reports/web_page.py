"""Self-contained HTML pages from the templates beside this file: one file each, which opens anywhere.

Every value is escaped by the template engine; only `Markup` is taken as HTML. So no name, instruction or error that
stands in a bag can add anything to a page.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / 'templates'


@dataclass(frozen=True)
class PageLink:
    """A place of the same page, by the id of its element, and what is there."""

    place: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """What every report says first, as sentences.

    Attributes:
        worked: Did it work?
        sure: How sure is that?
        limited: What limited it, most important first.
        next: Where to look next; nothing is said where there are none.
        good: True or False colours the answer; None where nothing was judged.
    """

    worked: Sequence[str]
    sure: Sequence[str]
    limited: Sequence[str]
    next: Sequence[PageLink] = ()
    good: bool | None = None


def render(template: str, **values: Any) -> str:
    """Text of `templates/template` with `values`; a value that the template names and does not get is an error."""
    return _environment().get_template(template).render(**values)


def spot(name: str) -> Markup:
    """A place of a page that `fill` finds again. `name`: letters only."""
    return Markup(f'<!--{name}--><!--/{name}-->')


def fill(text: str, name: str, content: str) -> str:
    """A page with HTML at the spot `name`, in place of what was there; unchanged where there is no such spot."""
    head, found, rest = text.partition(f'<!--{name}-->')
    _, closed, tail = rest.partition(f'<!--/{name}-->')
    return f'{head}{found}{content}{closed}{tail}' if closed else text


def image(data: bytes, kind: str, alt: str = '') -> Markup:
    """The bytes of a png, jpeg or gif as an image of the page."""
    coded = base64.b64encode(data).decode()
    return Markup('<img alt="{}" src="data:image/{};base64,{}">').format(alt, kind, coded)


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals['spot'] = spot
    return made
