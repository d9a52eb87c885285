"""Looks over training data: columns against their contract, streams, episodes; and every other check of this folder.

Letters: S state columns, N action columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import ActionColumn, Limits, StateColumn
from ki_robot.policy_values import si_values
from ki_robot.transforms import MIN_SPAN, Stats
from training.doctor.findings import ERROR, NOTE, WARNING, Finding, by_weight
from training.doctor.motion import motion_findings, segments_of
from training.doctor.pictures import picture_findings
from training.doctor.repeats import repeat_findings
from training.doctor.words import word_findings
from training.errors import TrainingError
from training.fit.stats import Summary, summarise
from training.index.index import Index
from training.samples.dataset import EpisodeDataset

OUTLIER_SPANS = 5.0  # beyond q01..q99 by this many of its spans
LARGEST_ANGLE = 2.0 * np.pi * 1.5  # rad; a joint that turns further than this is rather in degrees
LARGEST_OPENING = 1.0  # m; grippers are narrower
SLOWEST_CAMERA = 0.9  # of the contract's rate
RATE_DRIFT = 0.05
LONGEST_GAP = 3.0  # message periods
LOST_FRAMES = 0.05  # of the frames that the usual interval promises
GRIPPER_USE = 0.2  # of the range between its limits
BEYOND_LIMITS = 8.0  # times the largest limit: no overshoot, but another unit
NEAR_LIMITS = 1.1  # times the largest limit: noise and overshoot
LARGEST_ANYTHING = 2.0  # a normalised opening is rather per cent beyond it


def diagnose(index: Index, images: bool = True) -> list[Finding]:
    """What is suspicious about the data of an index, worst first.

    Args:
        index: The training data.
        images: Look into a few pictures of every camera too.
    """
    findings = list(_streams(index))
    try:
        dataset = EpisodeDataset(index)
    except TrainingError as error:
        return [Finding(ERROR, '', 'no_data', str(error)), *findings]
    summary = summarise(dataset)
    findings += _columns(index.contract, summary)
    findings += _grippers(index.contract, dataset)
    findings += _limits(index.contract, dataset)
    findings += _episodes(dataset)
    findings += word_findings(dataset)
    segments = list(segments_of(dataset))
    findings += motion_findings(dataset, segments)
    if images:
        findings += picture_findings(dataset, segments)
        findings += repeat_findings(dataset, segments)
    return by_weight(findings)


def _columns(contract: Contract, summary: Summary) -> list[Finding]:
    found: list[Finding] = []
    limits = known_limits(contract)
    sets: tuple[tuple[str, Any, Stats, Any, Any], ...] = (
        ('state', contract.state, summary.state, summary.state_low, summary.state_high),
        ('action', contract.actions, summary.actions, summary.action_low, summary.action_high),
    )
    for what, columns, stats, low, high in sets:
        for index, column in enumerate(columns):
            name = f'{what} {column.name}'
            span = stats.q99[index] - stats.q01[index]
            if low[index] == high[index]:
                text = f'{name} is {low[index]:g} in every sample; is its driver running, its name right?'
                found.append(Finding(WARNING, column.name, 'constant', text))
                continue
            if span < MIN_SPAN:
                text = f'{name} spans {span:.2g} between its 1 % and 99 % quantiles; its noise will not be scaled up'
                found.append(Finding(WARNING, column.name, 'degenerate_span', text))
            reach = max(high[index] - stats.q99[index], stats.q01[index] - low[index])
            if span >= MIN_SPAN and reach > OUTLIER_SPANS * span:
                text = (
                    f'{name} reaches {low[index]:.4g}..{high[index]:.4g}, its 1 % and 99 % quantiles are '
                    f'{stats.q01[index]:.4g}..{stats.q99[index]:.4g}; look at the recordings with these values'
                )
                found.append(Finding(WARNING, column.name, 'outlier', text))
            if not column.is_mapped:
                found += unit_findings(name, column, low[index], high[index], limits.get(column.name))
            elif isinstance(column, StateColumn):  # statistics are of the policy's values
                ends = si_values([column], np.array([[low[index]], [high[index]]]))
                found += unit_findings(name, column, float(ends.min()), float(ends.max()), limits.get(column.name))
    return found


def known_limits(contract: Contract) -> Mapping[str, Limits]:
    """Column name -> what the contract says it stays within: of the state where it says so, else of the action."""
    told = {column.name: column.limits for column in contract.actions}
    measured = {column.name: column.limits for column in contract.state if column.limits.lower is not None}
    return {**told, **measured}


def unit_findings(
    name: str, column: StateColumn | ActionColumn, low: float, high: float, limits: Limits | None = None
) -> list[Finding]:
    """Whether a column that reaches from `low` to `high` can be in the unit that its contract states.

    Limits of the contract decide where there are any: a joint of a drum may turn ten times, a lift may be 2 m high.
    """
    if interface_of(column.name) != 'position':
        return []
    largest = max(abs(low), abs(high))
    allowed = {'rad': LARGEST_ANGLE, 'm': LARGEST_OPENING, '1': LARGEST_ANYTHING}.get(column.unit, np.inf)
    bounds = limits or column.limits
    within = ''
    if bounds.lower is not None and bounds.upper is not None:
        limit = max(abs(bounds.lower), abs(bounds.upper))
        within = f' within {bounds.lower:g}..{bounds.upper:g}'
        # Far beyond the limits is another unit even where it is a small number; within them nothing is.
        allowed = min(max(allowed, limit * NEAR_LIMITS), limit * BEYOND_LIMITS)
    if largest <= allowed:
        return []
    if column.unit == 'rad':
        text = f'{name} reaches {largest:.4g} and its unit is rad{within}; publish radians, this looks like degrees'
        return [Finding(ERROR, column.name, 'degrees', text)]
    if column.unit == 'm':
        text = f'{name} reaches {largest:.4g} and its unit is m{within}; publish metres, this looks like mm or per cent'
        return [Finding(ERROR, column.name, 'unit', text)]
    text = f'{name} reaches {largest:.4g}; a normalised opening lies between 0 and 1'
    return [Finding(ERROR, column.name, 'unit', text)]


def _grippers(contract: Contract, dataset: EpisodeDataset) -> list[Finding]:
    """Grippers that never open or close, where the contract says how far they could."""
    found = []
    values = np.concatenate([dataset.arrays(number)['actions'] for number in dataset.episode_numbers])
    for index, column in enumerate(contract.actions):
        lower, upper = column.limits.lower, column.limits.upper
        gripping = column.unit in ('m', '1') and interface_of(column.name) == 'position'
        if not gripping or lower is None or upper is None:
            continue
        used = (np.nanmax(values[:, index]) - np.nanmin(values[:, index])) / (upper - lower)
        if used < GRIPPER_USE:
            text = (
                f'action {column.name} uses {100 * used:.0f} % of its range {lower:g}..{upper:g}; '
                'does it open and close in the recordings, in this unit?'
            )
            found.append(Finding(WARNING, column.name, 'gripper_range', text))
    return found


def _limits(contract: Contract, dataset: EpisodeDataset) -> list[Finding]:
    """Commands that the guard of the robot would not let pass."""
    found = []
    every = [dataset.arrays(number) for number in dataset.episode_numbers]
    values = np.concatenate([arrays['actions'][arrays['action_valid']] for arrays in every])
    for index, column in enumerate(contract.actions):
        lower = -np.inf if column.limits.lower is None else column.limits.lower
        upper = np.inf if column.limits.upper is None else column.limits.upper
        beyond = (values[:, index] < lower - 1e-6) | (values[:, index] > upper + 1e-6)
        if beyond.any():
            worst = values[beyond, index][np.argmax(np.abs(values[beyond, index]))]
            text = (
                f'action {column.name} is beyond its limits {lower:g}..{upper:g} in {100 * beyond.mean():.2g} % of '
                f'the steps (up to {worst:.4g}); the executor would clamp that'
            )
            found.append(Finding(WARNING, column.name, 'limit', text))
    return found


def _streams(index: Index) -> list[Finding]:
    """Rates and gaps over all recordings; the worst recording of each stream is named."""
    found = []
    cameras = set(index.contract.camera_names)
    names = sorted({name for entry in index.entries for name in entry.streams})
    for name in names:
        rows = [(entry, entry.streams[name]) for entry in index.entries if 'rate_hz' in entry.streams.get(name, {})]
        if not rows:
            continue
        commands = name.startswith('command ')
        entry, row = max(rows, key=lambda pair: pair[1]['longest_gap_s'] * pair[1]['rate_hz'])
        periods = row['longest_gap_s'] * row['rate_hz']
        if periods > LONGEST_GAP and not commands:
            text = f'{name} pauses for {row["longest_gap_s"]:.2f} s at {row["rate_hz"]:.1f} Hz in {entry.path}'
            found.append(Finding(WARNING, name, 'dropped', text))
        entry, row = min(rows, key=lambda pair: pair[1]['mean_hz'] / pair[1]['rate_hz'])
        lost = 1.0 - row['mean_hz'] / row['rate_hz']
        if name in cameras and lost > LOST_FRAMES:
            text = (
                f'{100 * lost:.0f} % of the frames of {name} are missing in {entry.path}: {row["mean_hz"]:.1f} a '
                f'second on average, {row["rate_hz"]:.1f} where none is lost'
            )
            found.append(Finding(WARNING, name, 'lost_frames', text))
        entry, row = max(rows, key=lambda pair: abs(pair[1]['drift'] - 1.0))
        if abs(row['drift'] - 1.0) > RATE_DRIFT and row['count'] >= 50 and not commands:
            text = f'the rate of {name} changes by {100 * (row["drift"] - 1):+.0f} % within {entry.path}'
            found.append(Finding(NOTE, name, 'rate_drift', text))
        entry, row = min(rows, key=lambda pair: pair[1]['mean_hz'])
        if name in cameras and row['mean_hz'] < SLOWEST_CAMERA * index.contract.rate_hz:
            text = (
                f'{name} comes at {row["mean_hz"]:.1f} Hz in {entry.path}, the policy steps at '
                f'{index.contract.rate_hz:g} Hz: steps share pictures'
            )
            found.append(Finding(WARNING, name, 'slow_camera', text))
    return found


def _episodes(dataset: EpisodeDataset) -> list[Finding]:
    found = []
    index = dataset.index
    lengths = [index.episodes[number][1].steps for number in dataset.episode_numbers]
    short = [length for length in lengths if length < dataset.horizon]
    if short:
        text = f'{len(short)} of {len(lengths)} episodes are shorter than one chunk ({dataset.horizon} steps)'
        found.append(Finding(NOTE, 'episodes', 'short', text))
    total, usable = sum(lengths), len(dataset)
    if usable < 0.9 * total:
        text = f'{100 * (1 - usable / total):.0f} % of the steps lack a fresh input or a command'
        found.append(Finding(WARNING, 'episodes', 'unusable_steps', text))
    return found
