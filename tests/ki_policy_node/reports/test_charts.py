"""Charts of reports: the same lines as a plot and as a picture, and no name that becomes a tag."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np

from ki_policy_node.reports.charts import MOST_POINTS, Chart, Curve, Panel, joined

TIMES = np.linspace(0.0, 1.0, 11)


def plotted(chart: Chart) -> tuple[list[dict], dict]:
    """Traces and layout of the page's plot."""
    page = str(chart.interactive('here'))
    rest = page[re.search(r'Plotly\.newPlot\(\s*"here",\s*', page).end() :]
    traces, end = json.JSONDecoder().raw_decode(rest)
    layout, _ = json.JSONDecoder().raw_decode(rest[end:].lstrip(' ,\n'))
    return traces, layout


def test_a_plot_holds_every_value_and_a_gap_is_none() -> None:
    values = np.array([0.0, 1.0, np.nan, 3.0])
    (trace,), _ = plotted(Chart((Panel('arm', (Curve(np.arange(4.0), values, 'joint', dashed=True),)),)))
    assert trace['x'] == [0.0, 1.0, 2.0, 3.0]
    assert trace['y'] == [0.0, 1.0, None, 3.0]
    assert trace['line']['dash'] == 'dash'


def test_a_long_curve_is_thinned_out() -> None:
    many = np.arange(10.0 * MOST_POINTS)
    (trace,), _ = plotted(Chart((Panel('', (Curve(many, many, 'joint'),)),)))
    assert len(trace['x']) == MOST_POINTS


def test_x_axes_zoom_together_and_one_name_has_one_entry_in_the_legend() -> None:
    panels = tuple(Panel(title, (Curve(TIMES, TIMES, 'measured'),)) for title in ('left', 'right'))
    traces, layout = plotted(Chart(panels, columns=2))
    assert [trace['showlegend'] for trace in traces] == [True, False]
    assert [trace['xaxis'] for trace in traces] == ['x', 'x2']
    assert layout['xaxis2']['matches'] == 'x'


def test_a_joint_at_rest_is_a_flat_line_and_no_noise() -> None:
    still = Panel('', (Curve(TIMES, np.full(11, 0.5) + 1e-6 * TIMES, 'joint'),), least_span=0.02)
    _, layout = plotted(Chart((still,)))
    assert np.allclose(layout['yaxis']['range'], [0.49, 0.51], atol=1e-5)


def test_a_name_with_tags_stays_text() -> None:
    bad = '</script><script>alert(1)</script>'
    chart = Chart((Panel(bad, (Curve(TIMES, TIMES, bad),), bad, bad),))
    page = str(chart.interactive('here'))
    assert page.count('<script') == 1
    assert page.count('</script') == 1
    assert plotted(chart)[0][0]['name'] == bad.replace('<', '&lt;').replace('>', '&gt;')


def test_the_picture_is_the_same_bytes_every_time() -> None:
    chart = Chart((Panel('arm', (Curve(TIMES, TIMES**2, 'joint'),)),))
    assert chart.png() == chart.png()
    drawn = cv2.imdecode(np.frombuffer(chart.png(), np.uint8), cv2.IMREAD_COLOR)
    assert drawn.min() < 100 < drawn.max()


def test_joined_lines_have_gaps_between_them() -> None:
    x, y = joined([(np.array([0.0, 1.0]), np.array([5.0, 6.0])), (np.array([2.0]), np.array([7.0]))])
    assert x.tolist() == [0.0, 1.0, 1.0, 2.0, 2.0]
    assert np.array_equal(y, [5.0, 6.0, np.nan, 7.0, np.nan], equal_nan=True)
    assert joined([])[0].size == 0
