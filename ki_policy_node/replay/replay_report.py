"""The report of a replay: numbers as JSON, and one HTML file that holds its own pictures.

M chunks, H steps, N columns.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ki_policy_node.replay import live_parity
from ki_policy_node.replay.comparison import POLICY, compare, gain, least, verdict
from ki_policy_node.replay.replay import STRIP_FRAMES, Replay
from ki_policy_node.reports.web_page import figure, page, plot, table
from ki_robot.contract.contract import Contract

LEAST_SPAN = 0.02  # rad, m or their rates


def summary(found: Replay) -> dict[str, Any]:
    """All numbers of a replay, as plain data.

    `result` depends on bag, policy and options alone, its errors are those of `comparison.compare`; `timing` was
    measured on this machine.
    """
    seams = [cycle.planned.seam for cycle in found.cycles if cycle.planned.seam is not None]
    inferred = [cycle.planned.inferred for cycle in found.cycles]
    result: dict[str, Any] = {
        'bag': found.bag,
        'robot': found.contract.name,
        'policy': found.policy_id,
        'mode': found.options.timing.mode,
        'execute_steps': found.options.timing.execute_steps,
        'latency_ms': found.options.latency_ns / 1e6,
        'chunks': len(found.cycles),
        'seconds': (found.end_ns - found.begin_ns) / 1e9,
        'instructions': sorted({cycle.instruction for cycle in found.cycles}),
        **compare(found),
        'seam_position': _spread([float(np.abs(seam.position_jump_N).max()) for seam in seams]),
        'seam_velocity': _spread([float(np.abs(seam.velocity_jump_N).max()) for seam in seams]),
        'ages_ms': {
            name: _spread([cycle.ages_ns[name] / 1e6 for cycle in found.cycles if name in cycle.ages_ns])
            for name in sorted({name for cycle in found.cycles for name in cycle.ages_ns})
        },
        'received': dict(found.received),
        'rejected': {name: dict(counts) for name, counts in found.rejected.items()},
        'holds': dict(found.holds),
        'dropped': dict(found.dropped),
        'problems': found.problems,
    }
    parts = ('preprocess', 'inference', 'postprocess')
    timing = {f'{part}_ms': _spread([getattr(each, f'{part}_ns') / 1e6 for each in inferred]) for part in parts}
    return {'result': result, 'timing': {'backend': found.backend} | timing}


def failure(numbers: Mapping[str, Any], fail_above: float) -> str:
    """Why a replay counts as failed; empty when it does not.

    Args:
        numbers: Of `summary`.
        fail_above: The largest mean error of the policy that passes.
    """
    error = numbers['result']['error'].get('policy')
    if error is None:
        return 'the bag holds no recorded commands to compare with'
    if error > fail_above:
        return f'the mean error is {error:.5g}, above {fail_above:g}'
    return ''


def write(
    found: Replay, folder: Path, *, name: str = 'replay', live: live_parity.Parity | None = None
) -> dict[str, Any]:
    """Writes `name`.json and `name`.html into `folder`; returns the numbers, with those of `live` beside them.

    Raises:
        NodeError: matplotlib is not installed.
    """
    numbers = summary(found)
    if live is not None:
        numbers['live'] = live_parity.summary(live)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{name}.json').write_text(json.dumps(numbers, indent=2, sort_keys=True) + '\n', encoding='utf-8')
    (folder / f'{name}.html').write_text(html_of(found, numbers), encoding='utf-8')
    return numbers


def html_of(found: Replay, numbers: Mapping[str, Any]) -> str:
    """The whole HTML file."""
    result = numbers['result']
    title = f'Replay of {Path(found.bag).name} with {found.policy_id}'
    parts = [
        f'<p>{result["chunks"]} chunks over {result["seconds"]:.1f} s, mode {result["mode"]}, robot '
        f'{html.escape(result["robot"])}. Instruction: {html.escape("; ".join(result["instructions"]) or "none")}.</p>',
        '<h2>How far from what was commanded</h2>',
        *_comparison(result, found.contract),
        '<h2>Predicted and recorded, column by column</h2>',
        '<p><small>Black: recorded. Colour: every chunk, from its observation on.</small></p>',
        plot(_plot_columns(found)),
        '<h2>What the policy saw</h2>',
        plot(_plot_strip(found)),
        '<h2>Seams, times, streams</h2>',
        table(('', 'p50', 'p95', 'p99', 'max'), _spreads(numbers)),
        table(('stream', 'received', 'refused'), _streams(result)),
        table(('not one chunk because of', 'times'), [*result['holds'].items(), *result['dropped'].items()]),
    ]
    if 'live' in numbers:
        parts += live_parity.section(numbers['live'])
    if found.problems:
        parts.append('<h2>The bag</h2>' + ''.join(f'<p>{html.escape(text)}</p>' for text in found.problems))
    return page(title, parts)


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Percentiles; empty without values."""
    if not values:
        return {}
    p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
    return {'p50': p50, 'p95': p95, 'p99': p99, 'max': float(max(values))}


def _comparison(result: Mapping[str, Any], contract: Contract) -> list[str]:
    """Sentences, tables and pictures: the policy beside what anybody could have guessed."""
    if not result['error']:
        return ['<p>The bag holds no commands to compare with.</p>']
    names = list(result['error'])
    units = {column.name: column.unit for column in contract.actions}
    groups = {'everything': result['error']}
    if len(result['error_by_unit']) > 1:
        groups |= {f'all in {_unit(unit)}': errors for unit, errors in result['error_by_unit'].items()}
    groups |= {
        f'{span["from_s"]:.2f} to {span["to_s"]:.2f} s ahead': span['error'] for span in result['error_by_horizon']
    }
    columns = {
        f'{column} [{_unit(units[column])}]': {name: result['error_by_column'][name][column] for name in names}
        for column in units
    }
    head = (*names, 'least', 'policy against the better of holding and extrapolating')
    return [
        *(f'<p>{html.escape(text)}</p>' for text in verdict(result)),
        table(('mean absolute error', *head), [_error_row(*each) for each in groups.items()]),
        plot(_plot_errors(result, contract.step_ns / 1e9)),
        '<h2>The same, column by column</h2>',
        table(('mean absolute error', *head), [_error_row(*each) for each in columns.items()]),
        '<p><small>Blue: the policy errs less than the better of holding and extrapolating; red: more. Columns that '
        'hardly move are easy to hold.</small></p>',
        plot(_plot_gains(result)),
    ]


def _error_row(name: str, errors: Mapping[str, float | None]) -> tuple[str, ...]:
    share = gain(errors)
    return (
        name,
        *(_number(error) for error in errors.values()),
        least(errors),
        '' if share is None else f'{-share:+.0%}',
    )


def _unit(unit: str) -> str:
    return 'shares of full travel' if unit == '1' else unit


def _spreads(numbers: Mapping[str, Any]) -> list[tuple[str, ...]]:
    result = numbers['result']
    lines = {
        'position jump at a seam': result['seam_position'],
        'velocity jump at a seam [1/s]': result['seam_velocity'],
        **{f'age of {name} [ms]': each for name, each in result['ages_ms'].items()},
        **{name.replace('_', ' [') + ']': numbers['timing'][name] for name in numbers['timing'] if name != 'backend'},
    }
    return [(name, *(_number(each.get(key)) for key in ('p50', 'p95', 'p99', 'max'))) for name, each in lines.items()]


def _streams(result: Mapping[str, Any]) -> list[tuple[object, ...]]:
    refused = {name: ', '.join(f'{n} {why}' for why, n in each.items()) for name, each in result['rejected'].items()}
    names = [*result['received'], *(name for name in refused if name not in result['received'])]
    return [(name, result['received'].get(name, ''), refused.get(name, '0')) for name in names]


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.4g}'


def _plot_errors(result: Mapping[str, Any], step_s: float) -> Any:
    drawn = figure(9, 3)
    axes = drawn.subplots()
    for name, values in result['error_by_step'].items():
        shown = [np.nan if value is None else value for value in values]
        axes.plot(np.arange(len(shown)) * step_s, shown, label=name, linewidth=2.2 if name == POLICY else 1.3)
    axes.set(xlabel='time ahead of the observation [s]', ylabel='mean absolute error', ylim=(0, None))
    axes.legend(frameon=False)
    return drawn


def _plot_gains(result: Mapping[str, Any]) -> Any:
    """Column by stretch of the chunk: by what factor the policy errs more or less."""
    spans = result['error_by_horizon']
    columns = list(result['error_by_column'][POLICY])
    shares = [
        [gain({name: each[column] for name, each in span['columns'].items()}) for span in spans] for column in columns
    ]
    # On a scale of factors a third and threefold are as far from 1 as each other.
    factors = np.array(
        [[np.nan if share is None else np.log2(max(1.0 - share, 1e-3)) for share in row] for row in shares]
    )
    drawn = figure(8, 0.26 * len(columns) + 0.8)
    axes = drawn.subplots()
    shown = axes.imshow(factors, aspect='auto', cmap='RdBu_r', vmin=-2, vmax=2)
    axes.set_yticks(range(len(columns)), columns, fontsize=7)
    axes.set_xticks(range(len(spans)), [f'{span["from_s"]:.2f} to {span["to_s"]:.2f} s' for span in spans], fontsize=8)
    for row, each in enumerate(shares):
        for column, share in enumerate(each):
            if share is not None:
                axes.text(column, row, f'{-share:+.0%}', ha='center', va='center', fontsize=7)
    bar = drawn.colorbar(shown, ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(['a quarter', 'half', 'the same', 'double', 'fourfold'], fontsize=7)
    return drawn


def _plot_columns(found: Replay) -> Any:
    assert found.recorded is not None
    names = found.contract.action_names
    rows = -(-len(names) // 3)
    drawn = figure(11, 1.8 * rows)
    grid = np.atleast_1d(drawn.subplots(rows, 3, sharex=True)).ravel()
    times = np.linspace(found.begin_ns, found.end_ns, 600).astype(np.int64)
    values = found.recorded.at(times)
    for index, name in enumerate(names):
        for cycle in found.cycles:
            raw = cycle.planned.raw
            grid[index].plot((raw.times_ns - found.begin_ns) / 1e9, raw.data_HN[:, index], linewidth=0.7, alpha=0.7)
        grid[index].plot((times - found.begin_ns) / 1e9, values[:, index], color='black', linewidth=1.0)
        low, high = grid[index].get_ylim()
        if high - low < LEAST_SPAN:  # a joint at rest is a line, not noise blown up
            grid[index].set_ylim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
        grid[index].ticklabel_format(useOffset=False)
        grid[index].set_title(name, fontsize=8)
        grid[index].tick_params(labelsize=7)
    for axes in grid[len(names) :]:
        axes.axis('off')
    return drawn


def _plot_strip(found: Replay) -> Any:
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
    return drawn
