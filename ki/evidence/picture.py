"""The picture of docs/evidence.md: success by samples of training, and what every recipe came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ki.evidence.cells import EvidenceCell
from ki.evidence.figures import FIGURES, MEASURES, bar, cells_at

CURVES = ('Figures 4 and 8', 'Arms of control')  # of `FIGURES`, a panel each
BARS = ('success', 'followed', 'heldout_followed')
WIDTH, HEIGHT = 12.0, 4.2  # inches
SPREAD = 0.03  # curves lie so far beside each other, in parts of a factor, that their intervals can be told apart


def picture_of(cells: Sequence[EvidenceCell], recipes: Sequence[str], points: Sequence[int]) -> bytes:
    """A PNG; empty where no cell was played.

    Args:
        cells: of one matrix.
        recipes: its recipes, in its order.
        points: its samples.

    Raises:
        NodeError: matplotlib is not installed.
    """
    from ki_policy_node.reports.charts import figure, png_of

    played = [name for name in recipes if any(cells_at(cells, name, samples) for samples in points)]
    if not played:
        return b''
    figures = {each.name: each for each in FIGURES}
    curves = {figures[name].title: [each for each in figures[name].recipes if each in played] for name in CURVES}
    curves = {title: names for title, names in curves.items() if names}
    drawn = figure(WIDTH * (len(curves) + 1) / 3, HEIGHT)
    *left, last = drawn.subplots(1, len(curves) + 1, width_ratios=[1] * len(curves) + [1.1], squeeze=False)[0]
    for axes, (title, names) in zip(left, curves.items(), strict=True):
        _curves(axes, cells, names, points)
        axes.set_title(title, fontsize=10)
    _bars(last, cells, played, points[-1])
    return png_of(drawn)


def _curves(axes: Any, cells: Sequence[EvidenceCell], names: Sequence[str], points: Sequence[int]) -> None:
    from ki_policy_node.reports.charts import COLOURS

    for place, name in enumerate(names):
        found = [(samples, rate) for samples in points if (rate := bar(cells, name, samples, 'success')) is not None]
        if found:
            aside = 1.0 + SPREAD * (place - (len(names) - 1) / 2)
            axes.errorbar(
                [samples * aside for samples, _ in found],
                [100 * rate.value for _, rate in found],
                [
                    [100 * (rate.value - rate.low) for _, rate in found],
                    [100 * (rate.high - rate.value) for _, rate in found],
                ],
                fmt='o-', markersize=3, linewidth=1.4, elinewidth=0.8, capsize=2, label=name, color=COLOURS[place],
            )  # fmt: skip
    axes.set(xscale='log', ylim=(0, 100), xlabel='samples of training', ylabel='success [%]')
    axes.set_xticks(list(points), [f'{samples:,}' for samples in points], fontsize=8)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc='upper left')


def _bars(axes: Any, cells: Sequence[EvidenceCell], names: Sequence[str], samples: int) -> None:
    """What every recipe came to at the last point; recipes from above to below."""
    from ki_policy_node.reports.charts import COLOURS

    high = 0.8 / len(BARS)
    for number, measure in enumerate(BARS):
        rows = [
            (place, rate)
            for place, name in enumerate(names)
            if (rate := bar(cells, name, samples, measure)) is not None
        ]
        axes.barh(
            [place + (number - (len(BARS) - 1) / 2) * high for place, _ in rows],
            [100 * rate.value for _, rate in rows],
            height=high,
            xerr=[
                [100 * (rate.value - rate.low) for _, rate in rows],
                [100 * (rate.high - rate.value) for _, rate in rows],
            ],
            error_kw={'elinewidth': 0.8, 'capsize': 2},
            label=MEASURES[measure][1],
            color=COLOURS[number],
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlim=(0, 100), xlabel=f'after {samples:,} samples [%]')
    axes.invert_yaxis()
    axes.grid(axis='x', alpha=0.3)
    axes.legend(frameon=False, fontsize=7, loc='lower center', bbox_to_anchor=(0.4, 1.0))
