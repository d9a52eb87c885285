"""Do the actions move the robot, and how does it move? Checks on states and actions alone.

Letters: T steps, S state columns, N action columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import ActionColumn
from training.doctor.findings import NOTE, WARNING, Finding, StepRange
from training.samples.dataset import EpisodeDataset

MOST_EPISODES = 256  # looked at, evenly spread: beyond that a figure does not become truer
MOVES = {'rad': 0.05, 'm': 0.01, '1': 0.05, 'rad/s': 0.05, 'm/s': 0.02}  # a smaller span is rest; efforts do not move
LEAD_S, LAG_S = 1.0, 1.5  # how far actions may run behind and ahead of the state that they are compared with
LEAST_S = 2.0 * max(LEAD_S, LAG_S)
LEAST_CORRELATION = 0.3
LATE_S = 0.6  # behind its command: no controller that is to be learned from
BEHIND_S = 0.1  # actions this far behind the state are no commands of it
CLEARER = 0.02  # a lag must correlate better than no lag by so much to be believed
REST_PER_S = 0.2  # of `MOVES` a second: slower is idle
IDLE_S, IDLE_SHARE = 2.0, 0.2
JUMP = 3.0  # times the velocity limit, from one step to the next
ROUGH = 4.0  # times the usual roughness of the episodes
MOST_PLACES = 5


@dataclass(frozen=True)
class Segment:
    """Usable steps of an episode in a row."""

    place: StepRange
    state_TS: NDArray[np.float64]
    actions_TN: NDArray[np.float64]


@dataclass(frozen=True)
class Response:
    """How one state column follows its action column.

    Attributes:
        lag_steps: By how many steps the state comes after the action.
        correlation: At that lag; 0 where either stands still.
        against: The strongest negative correlation at any lag.
        action_span, state_span: How far both reach, between their 1 % and 99 % quantiles.
    """

    lag_steps: int
    correlation: float
    against: float
    action_span: float
    state_span: float


def motion_findings(dataset: EpisodeDataset, segments: Sequence[Segment]) -> list[Finding]:
    """All checks of this file."""
    return [
        *response_findings(dataset, segments),
        *jump_findings(dataset, segments),
        *roughness_findings(dataset, segments),
        *idle_findings(dataset, segments),
    ]


def segments_of(dataset: EpisodeDataset, every: bool = False) -> Iterator[Segment]:
    """The usable parts of the episodes, of at most MOST_EPISODES or of `every` one."""
    numbers = dataset.episode_numbers
    most = len(numbers) if every else min(len(numbers), MOST_EPISODES)
    chosen = np.unique(np.linspace(0, len(numbers) - 1, most).round().astype(int))
    for number in (numbers[each] for each in chosen):
        arrays = dataset.arrays(number)
        if 'chunks' in arrays:  # moments: no row follows another
            continue
        usable = np.concatenate([[False], arrays['valid'] & arrays['action_valid'], [False]])
        edges = np.flatnonzero(np.diff(usable.astype(np.int8)))
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            place = StepRange(dataset.index.episodes[number][0].path, number, first, end)
            yield Segment(place, arrays['state'][first:end], arrays['actions'][first:end])


def response_findings(dataset: EpisodeDataset, segments: Sequence[Segment]) -> list[Finding]:
    """Whether each action column moves the state column of its name, and when."""
    found: list[Finding] = []
    names, rate_hz = dataset.contract.state_names, dataset.contract.rate_hz
    # Shorter ones hold too little at the largest lags to tell chance from cause.
    long = [each for each in segments if len(each.state_TS) >= LEAST_S * rate_hz]
    for place, column in enumerate(dataset.contract.actions):
        if column.name not in names or column.unit not in MOVES:
            continue
        told = [each.actions_TN[:, place] for each in long]
        measured = [each.state_TS[:, names.index(column.name)] for each in long]
        if told:
            made = response(told, measured, rate_hz, column.unit)
            found += _judged(column, made, rate_hz, _most_moved(long, measured))
    return found


def response(
    told: Sequence[NDArray[np.float64]], measured: Sequence[NDArray[np.float64]], rate_hz: float, unit: str
) -> Response:
    """Compares actions with the states before and after them; both are segments of one column each."""
    pairs = [(_level(a_T, unit), _level(s_T, unit)) for a_T, s_T in zip(told, measured, strict=True)]
    lags = range(-round(LEAD_S * rate_hz), round(LAG_S * rate_hz) + 1)
    correlations = {lag: _correlation(pairs, lag) for lag in lags}
    best = max(lags, key=lambda lag: correlations[lag] - 1e-9 * abs(lag))
    if correlations[best] - correlations[0] < CLEARER:
        best = 0
    return Response(best, correlations[best], min(correlations.values()), _span(told), _span(measured))


def _judged(column: ActionColumn, made: Response, rate_hz: float, places: tuple[StepRange, ...]) -> Iterator[Finding]:
    name, unit = column.name, column.unit
    told, moved = made.action_span > MOVES[unit], made.state_span > MOVES[unit]
    lag_s = made.lag_steps / rate_hz
    if moved and not told and made.state_span > 5.0 * made.action_span:
        text = (
            f'action {name} spans {made.action_span:.2g} {unit} while its state moves by {made.state_span:.2g} {unit}: '
            'these actions do not move this robot; are they the commands that moved it (--actions state)?'
        )
        yield Finding(WARNING, name, 'constant_action', text, places)
    elif told and not moved and made.action_span > 5.0 * made.state_span:
        text = (
            f'action {name} moves by {made.action_span:.2g} {unit} and its state stays within {made.state_span:.2g} '
            f'{unit}: these actions do not move this robot; does the controller take this topic?'
        )
        yield Finding(WARNING, name, 'no_response', text, places)
    elif told and moved and made.against < -0.8 and -made.against > made.correlation:
        text = f"action {name} moves against its state (correlation {made.against:.2f}); turn its sign, or the state's"
        yield Finding(WARNING, name, 'opposite', text, places)
    elif told and moved and made.correlation < LEAST_CORRELATION:
        text = (
            f'action {name} and the state that follows have nothing in common (correlation {made.correlation:.2f} at '
            'best): these actions do not move this robot; look at names, order and clock of the commands'
        )
        yield Finding(WARNING, name, 'unrelated', text, places)
    elif told and moved and lag_s > LATE_S:
        text = f'the state of {name} follows its action after {lag_s:.2f} s; compare the clocks of commands and states'
        yield Finding(WARNING, name, 'lag', text, places)
    elif told and moved and lag_s < -BEHIND_S:
        text = (
            f'action {name} comes {-lag_s:.2f} s after the state that it is to cause; compare the clocks of commands '
            'and states, or take actions from the state (--actions state)'
        )
        yield Finding(WARNING, name, 'lag', text, places)


def _level(values_T: NDArray[np.float64], unit: str) -> NDArray[np.float64]:
    return np.unwrap(values_T) if unit == 'rad' else values_T


def _correlation(pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], lag: int) -> float:
    """Of actions with the states `lag` steps later, each around its mean of the segment; 0 where one stands still."""
    products, told, moved = 0.0, 0.0, 0.0
    for action_T, state_T in pairs:
        if len(action_T) < 2 * abs(lag) + 2:
            continue
        first = action_T[: len(action_T) - lag] if lag >= 0 else action_T[-lag:]
        then = state_T[lag:] if lag >= 0 else state_T[: len(state_T) + lag]
        first, then = first - first.mean(), then - then.mean()
        products += float(first @ then)
        told += float(first @ first)
        moved += float(then @ then)
    return products / float(np.sqrt(told * moved)) if told > 1e-18 and moved > 1e-18 else 0.0


def _span(values: Sequence[NDArray[np.float64]]) -> float:
    low, high = np.quantile(np.concatenate(values), [0.01, 0.99])
    return float(high - low)


def _most_moved(segments: Sequence[Segment], measured: Sequence[NDArray[np.float64]]) -> tuple[StepRange, ...]:
    order = sorted(range(len(segments)), key=lambda each: -float(np.ptp(measured[each])))
    return tuple(segments[each].place for each in order[:MOST_PLACES])


def jump_findings(dataset: EpisodeDataset, segments: Sequence[Segment]) -> list[Finding]:
    """Positions that are commanded in one step further than the contract lets them move in several."""
    found = []
    for place, column in enumerate(dataset.contract.actions):
        limit = column.limits.velocity
        if interface_of(column.name) != 'position' or not limit:
            continue
        reach = JUMP * limit / dataset.contract.rate_hz
        jumps = []
        for segment in segments:
            change_T = np.abs(np.diff(segment.actions_TN[:, place]))
            jumps += [
                (float(change_T[at]), _around(segment.place, int(at) + 1)) for at in np.flatnonzero(change_T > reach)
            ]
        if jumps:
            jumps.sort(key=lambda each: -each[0])
            text = (
                f'action {column.name} jumps {len(jumps)} times, by up to {jumps[0][0]:.3g} {column.unit} in one step, '
                f'where its velocity limit lets it move {limit / dataset.contract.rate_hz:.2g}; the executor would be '
                'late there'
            )
            places = tuple(where for _, where in jumps[:MOST_PLACES])
            found.append(Finding(WARNING, column.name, 'jump', text, places))
    return found


def _around(place: StepRange, step: int, steps: int = 20) -> StepRange:
    """Some steps before and after one of a place."""
    at = place.first + step
    return StepRange(place.recording, place.episode, max(place.first, at - steps), min(place.end, at + steps))


def roughness_findings(dataset: EpisodeDataset, segments: Sequence[Segment]) -> list[Finding]:
    """Episodes that shake: the jerk of their commanded positions is far above that of the others."""
    columns = [each for each, column in enumerate(dataset.contract.actions) if interface_of(column.name) == 'position']
    long = [segment for segment in segments if len(segment.actions_TN) > 8]
    if len(long) < 3 or not columns:
        return []
    spans_N = _scale(np.concatenate([each.actions_TN[:, columns] for each in long]))
    rough = np.array([_roughness(each.actions_TN[:, columns] / spans_N) for each in long])
    usual = float(np.median(rough))
    shaky = [each for each in np.argsort(-rough) if rough[each] > max(ROUGH * usual, 1e-3)]
    if not shaky:
        return []
    text = (
        f'{len(shaky)} of the {len(long)} episodes looked at shake: the jerk of their actions is up to '
        f'{rough[shaky[0]] / max(usual, 1e-9):.0f} times the usual; look at them, and leave them out (--trim)'
    )
    return [Finding(WARNING, 'episodes', 'jerk', text, tuple(long[each].place for each in shaky))]


def _scale(values_TN: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.quantile(values_TN, [0.01, 0.99], axis=0)
    return np.asarray(np.maximum(high - low, 1e-3), dtype=np.float64)


def _roughness(values_TN: NDArray[np.float64]) -> float:
    """Root mean square of the third differences; a rare jump, which is a finding of its own, counts little."""
    third = np.abs(np.diff(values_TN, n=3, axis=0)).max(axis=1)
    return float(np.sqrt(np.mean(np.minimum(third, np.quantile(third, 0.95)) ** 2)))


def idle_spans(dataset: EpisodeDataset, segment: Segment) -> list[StepRange]:
    """Parts of a segment of at least IDLE_S in which neither state nor actions move."""
    rate, contract = dataset.contract.rate_hz, dataset.contract
    least = round(IDLE_S * rate)
    if len(segment.state_TS) <= least:
        return []
    numbers = [*segment.state_TS.T, *segment.actions_TN.T]
    columns = [*contract.state, *contract.actions]
    moving = np.zeros(len(segment.state_TS), dtype=bool)
    window = max(1, round(0.5 * rate))  # noise of a sensor is no motion
    for values_T, column in zip(numbers, columns, strict=True):
        if column.unit not in MOVES:
            continue
        if interface_of(column.name) == 'velocity':
            moving |= np.abs(values_T) > MOVES[column.unit]
            continue
        change_T = np.abs(values_T[window:] - values_T[:-window]) > REST_PER_S * MOVES[column.unit] * window / rate
        moving[window:] |= change_T
        moving[:-window] |= change_T
    edges = np.flatnonzero(np.diff(np.concatenate([[False], ~moving, [False]]).astype(np.int8)))
    where = segment.place
    return [
        StepRange(where.recording, where.episode, where.first + first, where.first + end)
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        if end - first >= least
    ]


def idle_findings(dataset: EpisodeDataset, segments: Sequence[Segment]) -> list[Finding]:
    """A robot that waits: a policy learns to wait where it was waited, and may never begin."""
    spans = [span for segment in segments for span in idle_spans(dataset, segment)]
    steps = sum(len(segment.state_TS) for segment in segments)
    idle = sum(span.end - span.first for span in spans)
    if not spans:
        return []
    level = WARNING if idle > IDLE_SHARE * steps else NOTE
    text = (
        f'nothing moves in {100 * idle / steps:.0f} % of the steps ({len(spans)} parts of {IDLE_S:g} s and more): a '
        'policy learns to wait there; --trim writes a list without those at the ends of episodes'
    )
    spans.sort(key=lambda span: span.first - span.end)
    return [Finding(level, 'episodes', 'idle', text, tuple(spans))]
