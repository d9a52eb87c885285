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

from ki_policy_node.replay import STRIP_FRAMES, Replay
from ki_policy_node.web_page import figure, page, plot, table
from ki_robot.chunk import Matrix

LEAST_SPAN = 0.02  # rad, m or their rates


def truth(found: Replay) -> Matrix:
    """The recorded commands at every step of every chunk: (M, H, N), NaN where nothing was recorded."""
    assert found.recorded is not None
    times_MH = np.array([cycle.planned.raw.times_ns for cycle in found.cycles])
    values = np.array([found.recorded.at(times_H) for times_H in times_MH])
    return np.where((times_MH <= found.end_ns)[:, :, None], values, np.nan)


def guesses(found: Replay) -> dict[str, Matrix]:
    """What the policy said, and what two trivial predictors would have: (M, H, N) each."""
    raw = np.array([cycle.planned.raw.data_HN for cycle in found.cycles])
    hold = np.repeat(np.array([cycle.hold_N for cycle in found.cycles])[:, None], raw.shape[1], axis=1)
    times_H = np.arange(raw.shape[1]) * found.contract.step_ns / 1e9
    trend = np.array([cycle.trend_N for cycle in found.cycles])[:, None] * times_H[None, :, None]
    return {'policy': raw, 'hold the pose': hold, 'linear extrapolation': hold + trend}


def summary(found: Replay) -> dict[str, Any]:
    """All numbers of a replay, as plain data.

    `result` depends on bag, policy and options alone; `timing` was measured on this machine. Errors are mean absolute
    differences to the recorded command in SI units, rad, m and their rates alike.
    """
    true = truth(found)
    compared = bool(np.isfinite(true).any())
    errors = {name: np.abs(values - true) for name, values in guesses(found).items()}
    seams = [cycle.planned.seam for cycle in found.cycles if cycle.planned.seam is not None]
    inferred = [cycle.planned.inferred for cycle in found.cycles]
    names = found.contract.action_names
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
        'error': {name: _mean(error) for name, error in errors.items()} if compared else {},
        'error_by_column': {
            name: {column: _mean(error[:, :, index]) for index, column in enumerate(names)}
            for name, error in errors.items()
        },
        'error_by_step': {
            name: [_mean(error[:, step]) for step in range(error.shape[1])] for name, error in errors.items()
        },
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


def write(found: Replay, folder: Path) -> dict[str, Any]:
    """Writes `replay.json` and `replay.html` into `folder`; returns the numbers.

    Raises:
        NodeError: matplotlib is not installed.
    """
    numbers = summary(found)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'replay.json').write_text(json.dumps(numbers, indent=2, sort_keys=True) + '\n', encoding='utf-8')
    (folder / 'replay.html').write_text(html_of(found, numbers), encoding='utf-8')
    return numbers


def html_of(found: Replay, numbers: Mapping[str, Any]) -> str:
    """The whole HTML file."""
    result = numbers['result']
    title = f'Replay of {Path(found.bag).name} with {found.policy_id}'
    parts = [
        f'<p>{result["chunks"]} chunks over {result["seconds"]:.1f} s, mode {result["mode"]}, robot '
        f'{html.escape(result["robot"])}. Instruction: {html.escape("; ".join(result["instructions"]) or "none")}.</p>',
        '<h2>How far from what was commanded</h2>',
        _errors(result),
        plot(_plot_errors(result)) if result['error'] else '<p>The bag holds no commands to compare with.</p>',
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
    if found.problems:
        parts.append('<h2>The bag</h2>' + ''.join(f'<p>{html.escape(text)}</p>' for text in found.problems))
    return page(title, parts)


def _mean(values: Matrix) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Percentiles; empty without values."""
    if not values:
        return {}
    p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
    return {'p50': p50, 'p95': p95, 'p99': p99, 'max': float(max(values))}


def _errors(result: Mapping[str, Any]) -> str:
    rows = [
        (column, *(_number(result['error_by_column'][name][column]) for name in result['error_by_column']))
        for column in next(iter(result['error_by_column'].values()))
    ]
    overall = ('mean of all', *(_number(result['error'].get(name)) for name in result['error_by_column']))
    return table(('mean absolute error', *result['error_by_column']), [*rows, overall])


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


def _plot_errors(result: Mapping[str, Any]) -> Any:
    drawn = figure(9, 3)
    axes = drawn.subplots()
    for name, values in result['error_by_step'].items():
        axes.plot([np.nan if value is None else value for value in values], label=name)
    axes.set(xlabel='step of the chunk', ylabel='mean absolute error', ylim=(0, None))
    axes.legend(frameon=False)
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
