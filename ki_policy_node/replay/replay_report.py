"""The report of a replay: numbers as JSON, and one HTML file that holds its own pictures and plots.

M chunks, H steps, N columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ki_policy_node.replay import live_parity, replay_plots
from ki_policy_node.replay.comparison import compare, gain, least, verdict
from ki_policy_node.replay.replay import Replay
from ki_policy_node.reports.charts import plotly_script
from ki_policy_node.reports.web_page import Verdict, render
from ki_robot.contract.contract import Contract


def summary(found: Replay) -> dict[str, Any]:
    """All numbers of a replay, as plain data.

    `result` depends on bag, policy and options alone, its errors are those of `comparison.compare`; `timing` was
    measured on this machine.
    """
    seams = [made.planned.seam for made in found.chunks if made.planned.seam is not None]
    inferred = [made.planned.inferred for made in found.chunks]
    result: dict[str, Any] = {
        'bag': found.bag,
        'robot': found.contract.name,
        'policy': found.policy_id,
        'mode': found.options.timing.mode,
        'execute_steps': found.options.timing.execute_steps,
        'latency_ms': found.options.latency_ns / 1e6,
        'chunks': len(found.chunks),
        'seconds': (found.end_ns - found.begin_ns) / 1e9,
        'instructions': sorted({made.instruction for made in found.chunks}),
        **compare(found),
        'seam_position': _spread([float(np.abs(seam.position_jump_N).max()) for seam in seams]),
        'seam_velocity': _spread([float(np.abs(seam.velocity_jump_N).max()) for seam in seams]),
        'ages_ms': {
            name: _spread([made.ages_ns[name] / 1e6 for made in found.chunks if name in made.ages_ns])
            for name in sorted({name for made in found.chunks for name in made.ages_ns})
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
    live = live_parity.page_values(numbers['live']) if 'live' in numbers else None
    compared = bool(result['error'])
    return render(
        'replay.html',
        title=f'Replay of {Path(found.bag).name} with {found.policy_id}',
        plotly=plotly_script(),
        verdict=_verdict(result, live),
        result=result,
        head=(
            'mean absolute error',
            *result['error'],
            'least',
            'policy against the better of holding and extrapolating',
        ),
        by_group=_groups(result) if compared else [],
        by_column=_columns(result, found.contract) if compared else [],
        error_chart=replay_plots.errors(result, found.contract.step_ns / 1e9).interactive('errors') if compared else '',
        gains=replay_plots.gains(result) if compared else '',
        column_chart=replay_plots.columns(found).interactive('columns'),
        chunks_shown=replay_plots.chunks_shown(found),
        strip=replay_plots.strip(found),
        spreads=_spreads(numbers),
        streams=_streams(result),
        missed=[*result['holds'].items(), *result['dropped'].items()],
        live=live,
    )


def _verdict(result: Mapping[str, Any], live: Mapping[str, Any] | None) -> Verdict:
    """The top of the page: the policy beside what anybody could have guessed, and what stood in its way."""
    first, *more = verdict(result)
    ahead = gain(result['error']) if result['error'] else None
    said = []
    if ahead is not None:
        said.append(f'{"Yes: better" if ahead > 0 else "No: not better"} than holding the pose and extrapolating.')
    won, compared = result['chunks_ahead']
    sure = [f'One recording: {result["chunks"]} chunks over {result["seconds"]:.1f} s.']
    if compared:
        sure.append(
            f'The policy errs less in {won} of {compared} chunks. Neighbouring chunks overlap, so this is no interval.'
        )
        sure.append('The robot did not follow the policy here: a small error is needed for success, not proof of it.')
    limited = [
        f'No chunk, {"once" if count == 1 else f"{count} times"}: {why}.'
        for why, count in [*result['holds'].items(), *result['dropped'].items()]
    ]
    limited += [f'{name}: {sum(counts.values())} messages were refused.' for name, counts in result['rejected'].items()]
    return Verdict(
        worked=[*said, first, *([f'Live: {live["said"]}.'] if live else [])],
        sure=sure,
        limited=[*more, *limited, *result['problems']] or ['Nothing was refused and nothing held the policy back.'],
        good=None if ahead is None else ahead > 0,
    )


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Percentiles; empty without values."""
    if not values:
        return {}
    p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
    return {'p50': p50, 'p95': p95, 'p99': p99, 'max': float(max(values))}


def _groups(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of errors: over everything, by unit, by time ahead."""
    groups = {'everything': result['error']}
    if len(result['error_by_unit']) > 1:
        groups |= {f'all in {_unit(unit)}': errors for unit, errors in result['error_by_unit'].items()}
    groups |= {
        f'{span["from_s"]:.2f} to {span["to_s"]:.2f} s ahead': span['error'] for span in result['error_by_horizon']
    }
    return [_error_row(*each) for each in groups.items()]


def _columns(result: Mapping[str, Any], contract: Contract) -> list[tuple[str, ...]]:
    """Rows of errors, one a column."""
    return [
        _error_row(
            f'{column.name} [{_unit(column.unit)}]',
            {name: result['error_by_column'][name][column.name] for name in result['error']},
        )
        for column in contract.actions
    ]


def _error_row(name: str, errors: Mapping[str, float | None]) -> tuple[str, ...]:
    share = gain(errors)
    return (
        name,
        *(_number(error) for error in errors.values()),
        least(errors),
        '' if share is None else f'{0.0 - share:+.0%}',
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
