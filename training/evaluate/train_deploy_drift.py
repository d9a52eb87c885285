"""Does the robot show the policy what it was trained on? States and streams of a deployment against those of training.

The other side is a recording or a live robot; either way it arrives here as numbers. Letters: T moments, S columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Limits, StateColumn
from ki_robot.observation.observation import StreamReport, StreamState
from ki_robot.transforms import MIN_SPAN, Stats
from training.doctor.diagnose import SLOWEST_CAMERA, unit_findings
from training.doctor.findings import ERROR, NOTE, WARNING, Finding
from training.index.index import Index
from training.samples.dataset import EpisodeDataset

SHIFT_STDS = 3.0
OUTSIDE_SHARE = 0.2  # of values outside q01..q99 of training, where 0.02 would be the same distribution
EDGE_SPANS = 0.05  # a robot that waits where episodes begin may lie this far outside: noise at the edge
FAR_SPANS = 1.0  # values this far outside are 3 and more after normalisation, where training has -1..1
SLOWER = 0.8  # of the rate in training
REFUSED_SHARE = 0.01
BLIND_SHARE = 0.05
EVERY_OUTCOME = ('unlabeled', 'success', 'failure')


@dataclass(frozen=True)
class Difference:
    """One state column here and in training; `text` says what is wrong, and is empty where nothing is.

    Attributes:
        level: error | warning, or empty.
        trained_mean, trained_low, trained_high: of training; low and high are its 1 % and 99 % quantiles.
        mean, low, high: here; low and high are the extremes.
        shift: of the mean, in standard deviations of training.
        outside: share of the values outside trained_low..trained_high, 0..1.
        beyond: how far outside the median of those values is, in widths of that range.
    """

    column: str
    unit: str
    level: str
    text: str
    trained_mean: float
    trained_low: float
    trained_high: float
    mean: float
    low: float
    high: float
    shift: float
    outside: float
    beyond: float


def recorded_states(index: Index) -> NDArray[np.float64]:
    """Every state of an index, (T, S), whatever the outcome of its episodes.

    Raises:
        TrainingError: no usable step.
    """
    dataset = EpisodeDataset(index, outcomes=EVERY_OUTCOME)
    return np.concatenate([dataset.arrays(number)['state'] for number in dataset.episode_numbers])


def differences(
    columns: Sequence[StateColumn],
    trained: Stats,
    states_TS: NDArray[np.float64],
    limits: Mapping[str, Limits] | None = None,
) -> list[Difference]:
    """Each state column against training.

    Args:
        columns: The state of the robot.
        trained: Statistics of the same columns.
        states_TS: What the robot measured, as the policy sees it (`policy_state`).
        limits: Of the columns, by name, where the contract knows them (`known_limits`).

    Raises:
        RobotError: the statistics are of other columns.
    """
    trained.check([column.name for column in columns], 'state columns')
    found = []
    for place, column in enumerate(columns):
        values_T = states_TS[np.isfinite(states_TS[:, place]), place]
        if len(values_T):
            found.append(_difference(column, place, trained, values_T, (limits or {}).get(column.name)))
    return found


def _difference(
    column: StateColumn, place: int, trained: Stats, values_T: NDArray[np.float64], limits: Limits | None
) -> Difference:
    mean, low = float(trained.mean[place]), float(trained.q01[place])
    high = max(float(trained.q99[place]), low + MIN_SPAN)
    here = float(values_T.mean())
    shift = (here - mean) / max(float(trained.std[place]), MIN_SPAN / 4.0)
    out_T = (values_T < low) | (values_T > high)
    distance_T = np.maximum(low - values_T, values_T - high)[out_T]
    row = Difference(
        column=column.name,
        unit=column.unit,
        level='',
        text='',
        trained_mean=mean,
        trained_low=low,
        trained_high=high,
        mean=here,
        low=float(values_T.min()),
        high=float(values_T.max()),
        shift=float(shift),
        outside=float(out_T.mean()),
        beyond=float(np.median(distance_T) / (high - low)) if len(distance_T) else 0.0,
    )
    units = unit_findings(f'state {column.name}', column, row.low, row.high, limits)
    if units:
        return replace(row, level=ERROR, text=units[0].text)
    if row.outside > 0.5 and row.beyond > FAR_SPANS:
        return replace(row, level=ERROR, text=f'{_told(row)}; the policy has seen nothing like it, do not run it here')
    if abs(row.shift) > SHIFT_STDS or (row.outside > OUTSIDE_SHARE and row.beyond > EDGE_SPANS):
        return replace(row, level=WARNING, text=f'{_told(row)}; begin nearer to where the episodes were recorded')
    return row


def _told(row: Difference) -> str:
    return (
        f'state {row.column} is {row.mean:.4g} {row.unit} on average where the policy runs, {row.trained_mean:.4g} in '
        f'training ({row.shift:+.1f} standard deviations), {100 * row.outside:.0f} % of it outside the trained '
        f'{row.trained_low:.4g}..{row.trained_high:.4g}'
    )


def difference_findings(rows: Iterable[Difference]) -> list[Finding]:
    """What is wrong among them."""
    return [Finding(row.level, row.column, 'train_deploy', row.text) for row in rows if row.level]


def mismatch_findings(trained: Contract, here: Contract) -> list[Finding]:
    """Fields in which the robot of training and the one of deployment differ."""
    return [Finding(ERROR, 'contract', 'other_robot', text) for text in trained.mismatches(here)]


def recorded_rates(index: Index) -> dict[str, float]:
    """Mean rate of every stream [Hz]: the median over the recordings."""
    names = {name for entry in index.entries for name in entry.streams}
    rates: dict[str, float] = {}
    for name in sorted(names):
        found = [entry.streams[name]['mean_hz'] for entry in index.entries if 'mean_hz' in entry.streams.get(name, {})]
        if found:
            rates[name] = float(np.median(found))
    return rates


def rate_findings(trained: Mapping[str, float], here: Mapping[str, float]) -> list[Finding]:
    """Streams that come slower than in training: the policy sees older inputs than it learned from."""
    found = []
    for name in sorted(set(trained) & set(here)):
        if here[name] < SLOWER * trained[name] and not name.startswith('command '):
            text = f'{name} comes at {here[name]:.1f} Hz where the policy runs, at {trained[name]:.1f} Hz in training'
            found.append(Finding(WARNING, name, 'slower', text))
    return found


def stream_findings(
    contract: Contract,
    health: Sequence[StreamReport],
    rates_hz: Mapping[str, float],
    moments: int,
    blind: Mapping[str, int],
) -> list[Finding]:
    """What is wrong with live streams, as the buffer of the policy node judges them.

    Args:
        contract: The robot.
        health: Of every stream, at the end.
        rates_hz: Mean rate of the streams that were listened to.
        moments: How often an observation was asked for.
        blind: Stream -> how often it stood in the way of one.
    """
    optional = {camera.name for camera in contract.cameras if not camera.required}
    cameras = set(contract.camera_names)
    found = []
    for report in health:
        level = NOTE if report.name in optional else ERROR
        refused = sum(report.rejected.values())
        if report.state == StreamState.NEVER_RECEIVED:
            text = (
                f'{report.name}: nothing came on {report.topic}; is its driver running, its topic and namespace right?'
            )
            found.append(Finding(level, report.name, 'never_received', text))
            continue
        if refused == report.received:
            text = f'{report.name}: every message on {report.topic} is refused. {report.last_error}'
            found.append(Finding(level, report.name, 'refused', text))
            continue
        if refused > REFUSED_SHARE * report.received:
            reasons = ', '.join(f'{reason} {count}' for reason, count in sorted(report.rejected.items()))
            text = f'{report.name}: {refused} of {report.received} messages are refused ({reasons})'
            found.append(Finding(WARNING, report.name, 'refused', text))
        rate = rates_hz.get(report.name, contract.rate_hz)
        if report.name in cameras and rate < SLOWEST_CAMERA * contract.rate_hz:
            text = (
                f'{report.name} comes at {rate:.1f} Hz, the policy steps at {contract.rate_hz:g} Hz: '
                'steps share pictures'
            )
            found.append(Finding(WARNING, report.name, 'slow_camera', text))
    said = {finding.field for finding in found if finding.level == ERROR}
    for name, count in sorted(blind.items()):
        if count > BLIND_SHARE * moments and name not in said:
            stream = 'inputs that agree in time' if name == '*' else name
            text = f'{100 * count / moments:.0f} % of the time the policy would hold for lack of {stream}'
            found.append(Finding(ERROR if count > 0.5 * moments else WARNING, name, 'hold', text))
    return found
