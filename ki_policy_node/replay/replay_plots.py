"""The plots of the report of a replay.

M chunks, H steps, N columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from ki_policy_node.replay.comparison import POLICY, gain
from ki_policy_node.replay.replay import STRIP_FRAMES, Replay, ReplayedChunk
from ki_policy_node.reports.charts import COLOURS, Chart, Curve, Panel, figure, joined, png_of
from ki_policy_node.reports.web_page import image

LEAST_SPAN = 0.02  # rad, m or their rates
MOST_CHUNKS = 120  # drawn; of a longer replay every second, third ... chunk
GROUPS = 3  # colours that chunks take in turn, so that neighbours can be told apart
DARK = 1.3  # a factor, as log2, whose colour needs white text
TIMES = 1500  # at which the recorded commands are drawn


def errors(result: Mapping[str, Any], step_s: float) -> Chart:
    """The mean error of every predictor by the time ahead."""
    curves = []
    for number, (name, values) in enumerate(result['error_by_step'].items()):
        shown = np.array([np.nan if value is None else value for value in values])
        times = np.arange(len(shown), dtype=np.float64) * step_s
        curves.append(Curve(times, shown, name, COLOURS[number], width=2.4 if name == POLICY else 1.3))
    panel = Panel('', tuple(curves), 'time ahead of the observation [s]', 'mean absolute error', from_zero=True)
    return Chart((panel,), height=1.3)


def columns(found: Replay) -> Chart:
    """What was recorded, and every chunk from its observation on, a panel for each column."""
    assert found.recorded is not None
    times = np.linspace(found.begin_ns, found.end_ns, TIMES).astype(np.int64)
    recorded = found.recorded.at(times)
    panels = []
    for index, name in enumerate(found.contract.action_names):
        curves = [
            Curve(
                *joined([_line(found, made, index) for made in _shown(found)[group::GROUPS]]),
                'chunks',
                COLOURS[group],
                width=0.9,
            )
            for group in range(GROUPS)
        ]
        curves.append(Curve((times - found.begin_ns) / 1e9, recorded[:, index], 'recorded', '#000000', width=1.3))
        panels.append(Panel(name, tuple(curves), least_span=LEAST_SPAN))
    return Chart(tuple(panels), columns=3, height=0.8)


def chunks_shown(found: Replay) -> str:
    """How many chunks `columns` draws, in words."""
    shown = len(_shown(found))
    return 'every chunk' if shown == len(found.chunks) else f'{shown} of {len(found.chunks)} chunks'


def gains(result: Mapping[str, Any]) -> Markup:
    """Column by stretch of the chunk: by what factor the policy errs more or less."""
    spans = result['error_by_horizon']
    names = list(result['error_by_column'][POLICY])
    shares = [
        [gain({name: each[column] for name, each in span['columns'].items()}) for span in spans] for column in names
    ]
    # On a scale of factors a third and threefold are as far from 1 as each other.
    factors = np.array(
        [[np.nan if share is None else np.log2(max(1.0 - share, 1e-3)) for share in row] for row in shares]
    )
    drawn = figure(8, 0.26 * len(names) + 0.8)
    axes = drawn.subplots()
    shown = axes.imshow(factors, aspect='auto', cmap='RdBu_r', vmin=-2, vmax=2)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xticks(range(len(spans)), [f'{span["from_s"]:.2f} to {span["to_s"]:.2f} s' for span in spans], fontsize=8)
    for row, each in enumerate(shares):
        for column, share in enumerate(each):
            if share is not None:
                ink = 'white' if abs(factors[row, column]) > DARK else 'black'
                axes.text(column, row, f'{0.0 - share:+.0%}', ha='center', va='center', fontsize=7, color=ink)
    bar = drawn.colorbar(shown, ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(['a quarter', 'half', 'the same', 'double', 'fourfold'], fontsize=7)
    return image(png_of(drawn), 'png', 'error of the policy against the better of holding and extrapolating')


def strip(found: Replay) -> Markup:
    """What the cameras showed from the beginning to the end, a row each."""
    chosen = np.unique(np.linspace(0, len(found.frames) - 1, STRIP_FRAMES).astype(int))
    cameras = found.contract.camera_names
    drawn = figure(11, 1.2 * len(cameras) + 0.3)
    grid = drawn.subplots(len(cameras), len(chosen), squeeze=False)
    for column, frame in enumerate(chosen):
        time_ns, images = found.frames[frame]
        for row, camera in enumerate(cameras):
            grid[row][column].axis('off')
            if camera in images:
                grid[row][column].imshow(images[camera])
        grid[0][column].set_title(f'{(time_ns - found.begin_ns) / 1e9:.1f} s', fontsize=8)
    return image(png_of(drawn), 'png', ', '.join(cameras))


def _shown(found: Replay) -> list[ReplayedChunk]:
    return found.chunks[:: -(-len(found.chunks) // MOST_CHUNKS) or 1]


def _line(found: Replay, made: ReplayedChunk, index: int) -> tuple[Any, Any]:
    raw = made.planned.raw
    return (raw.times_ns - found.begin_ns) / 1e9, raw.data_HN[:, index]
