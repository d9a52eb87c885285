"""Line charts for reports: one description, drawn twice.

Plotly draws what a person zooms into; matplotlib draws the PNG that the page shows where no script runs. Both draw the
same `Chart`, so the two cannot differ. Neither library is imported before something is drawn.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ki_policy_node.errors import NodeError
from ki_policy_node.reports.web_page import image

COLOURS = ('#1f77b4', '#d1620b', '#2e7d32', '#c62828', '#7e57c2', '#8c564b', '#c2185b', '#607d8b', '#8d8d00', '#0097a7')
MOST_POINTS = 2000  # of one curve; longer ones are thinned out
PANEL_INCHES, PANEL_PIXELS = 2.3, 240
DIGITS = 5  # after the point: 0.01 mm, 0.01 mrad

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a panel; NaN in `y` is a gap. Curves of one `name` share one entry of the legend."""

    x: Values
    y: Values
    name: str
    colour: str = COLOURS[0]
    dashed: bool = False
    width: float = 1.2


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes. `least_span`: the y axis covers at least this much, so that a joint at rest is a flat line."""

    title: str
    curves: tuple[Curve, ...]
    x_label: str = ''
    y_label: str = ''
    least_span: float = 0.0
    from_zero: bool = False


@dataclass(frozen=True, eq=False)
class Chart:
    """Panels in rows of `columns`; their x axes zoom together."""

    panels: tuple[Panel, ...]
    columns: int = 1
    height: float = 1.0  # of one row, in units of PANEL_INCHES and PANEL_PIXELS

    @property
    def rows(self) -> int:
        """How many rows the panels fill."""
        return -(-len(self.panels) // self.columns)

    def interactive(self, element: str) -> Markup:
        """The chart as a Plotly plot with the PNG for readers without scripts; the page must embed `plotly_script()`.

        Args:
            element: The id of the HTML element, unique on its page.
        """
        from plotly.io import to_html

        plot = to_html(
            {'data': list(self._traces()), 'layout': self._layout()},
            include_plotlyjs=False,
            full_html=False,
            validate=False,
            div_id=element,
            config={'displaylogo': False, 'responsive': True, 'toImageButtonOptions': {'format': 'png', 'scale': 2}},
        )
        return Markup('{}<noscript>{}</noscript>').format(Markup(plot), image(self.png(), 'png', 'chart'))

    def png(self) -> bytes:
        """The chart as a picture."""
        drawn = figure(11, PANEL_INCHES * self.height * self.rows)
        grid = drawn.subplots(self.rows, self.columns, squeeze=False, sharex=True).ravel()
        for axes, panel in zip(grid, self.panels, strict=False):
            _draw(axes, panel)
        for axes in grid[len(self.panels) :]:
            axes.axis('off')
        return png_of(drawn)

    def _traces(self) -> Any:
        listed: set[str] = set()
        for number, panel in enumerate(self.panels, 1):
            for curve in panel.curves:
                step = -(-len(curve.x) // MOST_POINTS) or 1
                yield {
                    'type': 'scatter',
                    'mode': 'lines',
                    'x': np.round(curve.x[::step], DIGITS).tolist(),
                    'y': [None if np.isnan(y) else y for y in np.round(curve.y[::step], DIGITS).tolist()],
                    # Plotly reads tags in a name; what stands in a bag is text.
                    'name': html.escape(curve.name),
                    'legendgroup': html.escape(curve.name),
                    'showlegend': curve.name not in listed,
                    'line': {'color': curve.colour, 'width': curve.width, 'dash': 'dash' if curve.dashed else 'solid'},
                    'xaxis': _axis('x', number),
                    'yaxis': _axis('y', number),
                }
                listed.add(curve.name)

    def _layout(self) -> dict[str, Any]:
        layout: dict[str, Any] = {
            'grid': {'rows': self.rows, 'columns': self.columns, 'pattern': 'independent', 'ygap': 0.35},
            'height': PANEL_PIXELS * self.height * self.rows + 60,
            'margin': {'l': 50, 'r': 10, 't': 30, 'b': 40},
            'font': {'size': 11},
            'plot_bgcolor': '#fff',
            'hovermode': 'closest',
            'annotations': [],
        }
        for number, panel in enumerate(self.panels, 1):
            suffix = '' if number == 1 else str(number)
            grey = {'gridcolor': '#e6e6e6', 'zeroline': False}
            layout[f'xaxis{suffix}'] = {'title': {'text': html.escape(panel.x_label)}, **grey}
            if number > 1:
                layout[f'xaxis{suffix}']['matches'] = 'x'
            layout[f'yaxis{suffix}'] = {'title': {'text': html.escape(panel.y_label)}, **grey}
            limits = _limits(panel)
            if limits is not None:
                layout[f'yaxis{suffix}']['range'] = list(limits)
            layout['annotations'].append(
                {
                    'text': html.escape(panel.title),
                    'xref': f'{_axis("x", number)} domain',
                    'yref': f'{_axis("y", number)} domain',
                    'x': 0.5,
                    'y': 1.0,
                    'yanchor': 'bottom',
                    'showarrow': False,
                }
            )
        return layout


def plotly_script() -> Markup:
    """The plotting library itself (5 MB), so that the page needs nothing from outside; once a page."""
    from plotly.offline import get_plotlyjs

    return Markup('<script>{}</script>').format(Markup(get_plotlyjs()))


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


def png_of(drawn: Any) -> bytes:
    """A matplotlib figure as the bytes of a PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format='png', dpi=100, metadata={'Software': None})
    return buffer.getvalue()


def joined(pieces: Sequence[tuple[Values, Values]]) -> tuple[Values, Values]:
    """Several lines as one with gaps between them, which is quick to draw."""
    gap = np.array([np.nan])
    x = [part for x, _ in pieces for part in (x, x[-1:])]
    y = [part for _, y in pieces for part in (y, gap)]
    return (np.concatenate(x), np.concatenate(y)) if pieces else (np.empty(0), np.empty(0))


def _axis(letter: str, number: int) -> str:
    return letter if number == 1 else f'{letter}{number}'


def _limits(panel: Panel) -> tuple[float, float] | None:
    """The y limits where the values alone would not give good ones."""
    values = np.concatenate([curve.y for curve in panel.curves]) if panel.curves else np.empty(0)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    if panel.from_zero:
        return 0.0, 1.05 * high or 1.0
    if high - low < panel.least_span:
        return (low + high - panel.least_span) / 2, (low + high + panel.least_span) / 2
    return None


def _draw(axes: Any, panel: Panel) -> None:
    for curve in panel.curves:
        style = '--' if curve.dashed else '-'
        axes.plot(curve.x, curve.y, style, color=curve.colour, linewidth=curve.width, label=curve.name)
    limits = _limits(panel)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.ticklabel_format(useOffset=False)
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(panel.x_label, fontsize=8)
    axes.set_ylabel(panel.y_label, fontsize=8)
    axes.tick_params(labelsize=7)
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    if 1 < len(unique) <= 8:
        axes.legend(unique.values(), unique.keys(), fontsize=7, frameon=False)
