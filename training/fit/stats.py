"""Normalisation statistics of a dataset, and the doctor that looks for data a model would learn wrong things from.

Statistics are taken after the delta transform, over every known step of every chunk that training draws, so that they
describe exactly what is normalised. Letters: T steps, H horizon, S state columns, N action columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import ActionColumn, StateColumn
from ki_robot.errors import Rejected
from ki_robot.policy_values import policy_actions, policy_state, si_values
from ki_robot.transforms import MIN_SPAN, Stats
from training.errors import TrainingError
from training.fit.quantiles import Running, RunningSteps
from training.index.index import Index
from training.index.stored_images import decode_stored
from training.samples.dataset import EpisodeDataset

ERROR, WARNING, NOTE = 'error', 'warning', 'note'
OUTLIER_SPANS = 5.0  # beyond q01..q99 by this many of its spans
LARGEST_ANGLE = 2.0 * np.pi * 1.5  # rad; a joint that turns further than this is rather in degrees
LARGEST_OPENING = 1.0  # m; grippers are narrower
SLOWEST_CAMERA = 0.9  # of the contract's rate
RATE_DRIFT = 0.05
LONGEST_GAP = 3.0  # message periods
LOST_FRAMES = 0.05  # of the frames that the usual interval promises
GRIPPER_USE = 0.2  # of the range between its limits
DARK, EVEN = 4.0, 2.0  # grey levels: the mean of a black picture, the spread of one without contours
PROBE_IMAGES = 8


@dataclass(frozen=True)
class Finding:
    """One thing the doctor noticed: how bad, which column or stream, what, in one sentence with the fix."""

    level: str
    field: str
    kind: str
    text: str


@dataclass(frozen=True)
class Summary:
    """Statistics with what the doctor needs besides: the extremes."""

    state: Stats
    actions: Stats
    state_low: NDArray[np.float64]
    state_high: NDArray[np.float64]
    action_low: NDArray[np.float64]
    action_high: NDArray[np.float64]


def compute_stats(dataset: EpisodeDataset) -> dict[str, Stats]:
    """`state` and `actions` of a dataset, with the provenance that a bundle carries."""
    summary = summarise(dataset)
    return {'state': summary.state, 'actions': summary.actions}


def summarise(dataset: EpisodeDataset) -> Summary:
    """One pass over the numbers of a dataset; images are not touched."""
    contract = dataset.contract
    states, actions = Running(len(contract.state)), Running(len(contract.actions))
    by_step = RunningSteps(dataset.horizon, len(contract.actions))
    starts = dataset.starts()
    for number in dataset.episode_numbers:
        steps = starts[starts[:, 0] == number, 1]
        arrays = dataset.arrays(number)
        states.update(policy_state(contract, arrays['state'][steps]))
        for begin in range(0, len(steps), 256):  # 256 chunks of 50 x 32 float64 are 3 MB
            chunks_nHN, known_nH = _chunks(dataset, number, steps[begin : begin + 256])
            actions.update(chunks_nHN[known_nH])
            by_step.update(chunks_nHN, known_nH)
    origin = provenance(dataset)
    return Summary(
        state=_stats(contract.state_names, states, {**origin, 'units': [c.unit for c in contract.state]}),
        actions=_stats(
            contract.action_names,
            actions,
            {
                **origin,
                'units': [c.unit for c in contract.actions],
                'representation': [c.representation for c in contract.actions],
            },
            by_step,
        ),
        state_low=states.low,
        state_high=states.high,
        action_low=actions.low,
        action_high=actions.high,
    )


def provenance(dataset: EpisodeDataset) -> dict[str, Any]:
    """Which data a statistic is of."""
    index = dataset.index
    used = [index.episodes[number] for number in dataset.episode_numbers]
    bags = {entry.sha256: entry.path for entry, _ in used}
    return {
        'data_hash': index.hash,
        'contract': index.contract.name,
        'contract_hash': index.contract.hash,
        'bags': [{'name': path.rpartition('/')[2], 'sha256': digest} for digest, path in sorted(bags.items())],
        'episodes': len(used),
        'samples': len(dataset),
        'horizon': dataset.horizon,
        'rate_hz': index.contract.rate_hz,
    }


def _chunks(
    dataset: EpisodeDataset, number: int, steps: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The chunks that begin at `steps`, as the policy says them (n, H, N), and which of their steps are known."""
    actions, known = dataset.chunks(number, steps)
    chunks = policy_actions(dataset.contract, actions, dataset.arrays(number)['state'][steps])
    return np.asarray(chunks, dtype=np.float64), known


def _stats(
    names: tuple[str, ...], running: Running, origin: dict[str, Any], by_step: RunningSteps | None = None
) -> Stats:
    low, high = running.quantile(0.01), running.quantile(0.99)
    return Stats(
        names=names,
        mean=running.mean,
        std=running.std,
        q01=low,
        q99=np.maximum(low, high),
        count=running.count,
        provenance={**origin, 'quantile_error': float(running.resolution.max(initial=0.0))},
        step_mean_HN=None if by_step is None else by_step.mean_HN,
        step_std_HN=None if by_step is None else by_step.std_HN,
    )


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
    if images:
        findings += _pictures(dataset)
    return by_weight(findings)


def by_weight(findings: Iterable[Finding]) -> list[Finding]:
    """Findings, the worst first."""
    rank = {ERROR: 0, WARNING: 1, NOTE: 2}
    return sorted(findings, key=lambda finding: rank[finding.level])


def _columns(contract: Contract, summary: Summary) -> list[Finding]:
    found: list[Finding] = []
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
                found += unit_findings(name, column, low[index], high[index])
            elif isinstance(column, StateColumn):  # statistics are of the policy's values
                ends = si_values([column], np.array([[low[index]], [high[index]]]))
                found += unit_findings(name, column, float(ends.min()), float(ends.max()))
    return found


def unit_findings(name: str, column: StateColumn | ActionColumn, low: float, high: float) -> list[Finding]:
    """Whether a column that reaches from `low` to `high` can be in the unit that its contract states."""
    largest = max(abs(low), abs(high))
    if column.unit == 'rad' and interface_of(column.name) == 'position' and largest > LARGEST_ANGLE:
        text = f'{name} reaches {largest:.4g} and its unit is rad; publish radians, this looks like degrees'
        return [Finding(ERROR, column.name, 'degrees', text)]
    if column.unit == 'm' and interface_of(column.name) == 'position' and largest > LARGEST_OPENING:
        text = f'{name} reaches {largest:.4g} and its unit is m; publish metres, this looks like mm or per cent'
        return [Finding(ERROR, column.name, 'unit', text)]
    if column.unit == '1' and interface_of(column.name) == 'position' and largest > 2.0:
        text = f'{name} reaches {largest:.4g}; a normalised opening lies between 0 and 1'
        return [Finding(ERROR, column.name, 'unit', text)]
    return []


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
    texts = {index.episodes[n][1].texts[0] for n in dataset.episode_numbers if index.episodes[n][1].texts}
    if not any(texts):
        found.append(
            Finding(ERROR, 'instruction', 'no_language', 'no episode has an instruction; give one with --task')
        )
    elif len(texts) == 1:
        text = f'every episode has the instruction {next(iter(texts))!r}: the policy will learn to ignore language'
        found.append(Finding(NOTE, 'instruction', 'one_instruction', text))
    total, usable = sum(lengths), len(dataset)
    if usable < 0.9 * total:
        text = f'{100 * (1 - usable / total):.0f} % of the steps lack a fresh input or a command'
        found.append(Finding(WARNING, 'episodes', 'unusable_steps', text))
    return found


def _pictures(dataset: EpisodeDataset) -> list[Finding]:
    """Cameras that are black, or show one picture while the robot moves."""
    found = []
    starts = dataset.starts()
    chosen = starts[np.linspace(0, len(starts) - 1, PROBE_IMAGES).astype(int)]
    for camera in dataset.contract.camera_names:
        images = []
        for number, step in chosen:
            arrays = dataset.arrays(int(number))
            offset, length = int(arrays[f'{camera}.offset'][step]), int(arrays[f'{camera}.length'][step])
            if offset < 0:
                continue
            entry = dataset.index.episodes[int(number)][0]
            try:
                images.append(decode_stored(entry.folder / f'{camera}.images', offset, length))
            except (Rejected, OSError) as error:
                found.append(Finding(ERROR, camera, 'undecodable', f'a picture of {camera} does not decode: {error}'))
        found += dark_findings(camera, images)
        if len(images) > 2 and len({image.tobytes() for image in images}) == 1:
            text = f'camera {camera} shows the same picture in all {len(images)} samples looked at'
            found.append(Finding(ERROR, camera, 'frozen', text))
    return found


def dark_findings(camera: str, images: Sequence[NDArray[np.uint8]]) -> list[Finding]:
    """Whether a camera sees anything at all; images are uint8 (h, w, 3)."""
    if not images:
        return []
    if max(float(image.mean()) for image in images) < DARK:
        return [Finding(ERROR, camera, 'black', f'camera {camera} is black; is it connected, its lid off?')]
    if max(float(image.std()) for image in images) < EVEN:
        return [Finding(WARNING, camera, 'blank', f'camera {camera} shows one even colour')]
    return []


def worst(findings: Sequence[Finding]) -> str:
    """The level of the worst finding; empty when there is none."""
    levels = {finding.level for finding in findings}
    return next((level for level in (ERROR, WARNING, NOTE) if level in levels), '')
