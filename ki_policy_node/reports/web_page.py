"""Self-contained HTML pages: one file with its tables, pictures and films, which opens anywhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from ki_policy_node.errors import NodeError

STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}h2{margin-top:1.8em}small{color:#666}"""


def page(title: str, parts: Sequence[str], style: str = '') -> str:
    """A whole file; `parts` are HTML, `style` is CSS beyond STYLE."""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return '\n'.join([head, f'<style>{STYLE}\n{style}</style><h1>{html.escape(title)}</h1>', *parts]) + '</html>\n'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Cells are text; nothing without rows."""
    if not rows:
        return ''
    cells = [f'<tr>{"".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)}</tr>' for row in rows]
    return f'<table><tr>{"".join(f"<th>{html.escape(name)}</th>" for name in head)}</tr>{"".join(cells)}</table>'


def place(name: str) -> str:
    """A spot of a page that `fill` finds again."""
    return f'<!--{name}--><!--/{name}-->'


def fill(text: str, name: str, content: str) -> str:
    """A page with HTML at the spot `name`, in place of what was there; unchanged where there is no such spot."""
    head, found, rest = text.partition(f'<!--{name}-->')
    _, closed, tail = rest.partition(f'<!--/{name}-->')
    return f'{head}{found}{content}{closed}{tail}' if closed else text


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches.

    Raises:
        NodeError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NodeError('The report needs matplotlib: pip install matplotlib.') from error
    made = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(made)
    return made


def plot(drawn: Any) -> str:
    """A figure as an image of the page."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format='png', dpi=100, metadata={'Software': None})
    return image(buffer.getvalue(), 'png')


def image(data: bytes, kind: str, alt: str = '') -> str:
    """The bytes of a png, jpeg or gif as an image of the page."""
    coded = base64.b64encode(data).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/{kind};base64,{coded}">'
