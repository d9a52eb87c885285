"""How far a replayed policy is from what was commanded, beside predictors that anybody could have made.

Errors are mean absolute differences to the recorded command in SI units. M chunks, H steps, N columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ki_policy_node.replay.predictors import extrapolate
from ki_policy_node.replay.replay import Replay
from ki_robot.actions.chunk import Matrix

POLICY, HOLD, TREND, LAST = 'policy', 'hold the pose', 'linear extrapolation', 'repeat the last command'
TRIVIAL = (HOLD, TREND)
SPANS_S = (0.0, 0.25, 0.5, 1.0, 2.0, np.inf)
WORST = 3  # columns that the verdict names


def truth(found: Replay) -> Matrix:
    """The recorded commands at every step of every chunk: (M, H, N), NaN where nothing was recorded."""
    assert found.recorded is not None
    times_MH = np.array([made.planned.raw.times_ns for made in found.chunks])
    values = np.array([found.recorded.at(times_H) for times_H in times_MH])
    return np.where((times_MH <= found.end_ns)[:, :, None], values, np.nan)


def guesses(found: Replay) -> dict[str, Matrix]:
    """What the policy said, and what trivial predictors would have: (M, H, N) each.

    The last command before an observation is more than the policy is given: it says how far a measured pose stays
    behind its command.
    """
    assert found.recorded is not None
    raw = np.array([made.planned.raw.data_HN for made in found.chunks])
    steps, step_s = raw.shape[1], found.contract.step_ns / 1e9
    before_M = np.array([made.planned.raw.start_ns - 1 for made in found.chunks])
    last_MN = found.recorded.at(before_M)
    return {
        POLICY: raw,
        HOLD: np.array([np.tile(made.hold_N, (steps, 1)) for made in found.chunks]),
        TREND: np.array([extrapolate(made.hold_N, made.trend_N, steps, step_s) for made in found.chunks]),
        LAST: np.repeat(last_MN[:, None], steps, axis=1),
    }


def compare(found: Replay) -> dict[str, Any]:
    """All errors as plain data; None where nothing can be compared.

    `error` over everything; `error_by_column`, `error_by_step` and `error_by_unit`; `error_by_horizon`: for each
    stretch of a chunk its seconds, the errors over all columns and, under `columns`, those of each. `chunks_ahead`: in
    how many chunks the policy errs less than the better of `TRIVIAL`, and of how many.
    """
    true = truth(found)
    errors = {name: np.abs(values - true) for name, values in guesses(found).items()}
    columns = list(found.contract.action_names)
    units = [column.unit for column in found.contract.actions]
    return {
        'error': {name: _mean(error) for name, error in errors.items()} if np.isfinite(true).any() else {},
        'error_by_column': {name: _by_column(error, columns) for name, error in errors.items()},
        'error_by_step': {
            name: [_mean(error[:, step]) for step in range(error.shape[1])] for name, error in errors.items()
        },
        'error_by_unit': {
            unit: {name: _mean(error[:, :, [each == unit for each in units]]) for name, error in errors.items()}
            for unit in dict.fromkeys(units)
        },
        'error_by_horizon': [
            {
                'from_s': times_H[0],
                'to_s': times_H[-1],
                'error': {name: _mean(error[:, steps]) for name, error in errors.items()},
                'columns': {name: _by_column(error[:, steps], columns) for name, error in errors.items()},
            }
            for steps, times_H in _spans(true.shape[1], found.contract.step_ns / 1e9)
        ],
        'chunks_ahead': _chunks_ahead(errors),
    }


def least(errors: Mapping[str, float | None]) -> str:
    """The name of the smallest error; empty when none is known."""
    known = {name: error for name, error in errors.items() if error is not None}
    return min(known, key=lambda name: known[name]) if known else ''


def gain(errors: Mapping[str, float | None]) -> float | None:
    """How much less the policy errs than the better of `TRIVIAL`, as a share of it; negative: it errs more."""
    policy, others = errors.get(POLICY), [error for name in TRIVIAL if (error := errors.get(name)) is not None]
    if policy is None or not others or min(others) == 0.0:
        return None
    return 1.0 - policy / min(others)


def verdict(result: Mapping[str, Any]) -> list[str]:
    """In sentences: the policy against holding and extrapolating, where it wins, and where it does not.

    Args:
        result: Of `compare`.
    """
    error = result['error']
    ahead = gain(error)
    if ahead is None:
        return ['Nothing was recorded that the policy could be compared with.']
    said = [
        f'Mean absolute error of the policy {error[POLICY]:.4f}; holding the pose {error[HOLD]:.4f}, extrapolating '
        f'{error[TREND]:.4f}: {_share(ahead)} than the better of the two.'
    ]
    spans = [
        f'{span["from_s"]:.2f} to {span["to_s"]:.2f} s {_share(share)}'
        for span in result['error_by_horizon']
        if (share := gain(span['error'])) is not None
    ]
    said.append(f'The same by time ahead: {", ".join(spans)}.')
    columns = {
        column: gain({name: each[column] for name, each in result['error_by_column'].items()})
        for column in result['error_by_column'][POLICY]
    }
    known = {column: share for column, share in columns.items() if share is not None}
    behind = sorted((column for column, share in known.items() if share <= 0), key=lambda column: known[column])
    worst = [f'{column.removesuffix("/position")} ({_share(known[column])})' for column in behind[:WORST]]
    said.append(
        f'Over whole chunks it wins in {len(known) - len(behind)} of {len(known)} columns'
        + (f'; furthest behind it is in {", ".join(worst)}.' if worst else '.')
    )
    if error.get(LAST) is not None:
        said.append(
            f'Repeating the last command, which the policy is not told, errs by {error[LAST]:.4f}: '
            f'{"less than the policy" if error[LAST] < error[POLICY] else "not less than the policy"}.'
        )
    return said


def _spans(horizon: int, step_s: float) -> list[tuple[slice, list[float]]]:
    """The steps of a chunk, near ones apart from far ones."""
    times_H = (np.arange(horizon) * step_s).tolist()
    edges = np.searchsorted(times_H, np.array(SPANS_S) - 1e-9)
    return [(slice(low, high), times_H[low:high]) for low, high in pairwise(edges.tolist()) if low < high]


def _chunks_ahead(errors: Mapping[str, Matrix]) -> list[int]:
    known = {name: error for name in TRIVIAL if (error := _mean(errors[name])) is not None}
    if not known:
        return [0, 0]
    other = errors[min(known, key=lambda name: known[name])]
    pairs = [(_mean(policy), _mean(trivial)) for policy, trivial in zip(errors[POLICY], other, strict=True)]
    compared = [(policy, trivial) for policy, trivial in pairs if policy is not None and trivial is not None]
    return [sum(policy < trivial for policy, trivial in compared), len(compared)]


def _by_column(error: Matrix, columns: list[str]) -> dict[str, float | None]:
    return {column: _mean(error[:, :, index]) for index, column in enumerate(columns)}


def _mean(values: Matrix) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _share(ahead: float) -> str:
    return f'{abs(ahead):.0%} {"less" if ahead > 0 else "more"}'
