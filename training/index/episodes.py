"""From the streams of one recording to episodes on the contract's grid.

Letters: T steps, S state columns, N action columns. Times are integer nanoseconds.
"""

from __future__ import annotations

import bisect
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_bags.problems import Problems
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Camera, Output, StateStream
from ki_robot.messages.commands import values_in_force
from ki_robot.observation.stamps import is_out_of_step, is_too_old
from ki_robot.space.robot_space import RobotSpace
from training.errors import TrainingError
from training.index.clocks import clock_epochs, within
from training.index.resample import hold, interpolate, newest_before
from training.index.stream_clocks import StreamClock
from training.index.streams import Collected
from training.index.timeline import EMPTY, Epoch, Timeline

UNKNOWN_DRIVER = 255
HUMAN = 2  # of ki_msgs/ControlSource
OUTCOMES = ('unlabeled', 'success', 'failure', 'discard')
TWIST_TIMEOUT_NS = 500_000_000  # what diff_drive_controller and its kin stop after by default
COMMANDED_SHARE = 0.5  # of the steps of an episode; with fewer, commands are not what moved the robot
LONGER = 'where they count for longer, say so in the contract: max_command_age_s, or commands: goals'
LONG_GAP_NS = 60_000_000_000  # without an input for longer, what lies before and after are two episodes
STATE_KEEP = 2  # an episode needs a step, and a step after it
RULES = {'hold': hold, 'linear': interpolate}
ACTIONS_FROM = ('auto', 'commands', 'state')
Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class IndexOptions:
    """How recordings become episodes; part of what an index is hashed with.

    Attributes:
        state: `hold` (the newest value, what the live node sees) or `linear`.
        columns: Column name -> `hold` or `linear`, where it differs from `state`.
        actions: `commands`, `state` (the next step's state), or `auto`: commands where they were recorded.
        task: The instruction of episodes that carry none.
        store: `original` keeps images as recorded; `model` stores them at the model's size (JPEG, quality 95).
        remap: Contract topic -> topic in the recordings.
        trust_log_time: Cameras, state streams and outputs that are dated by their arrival in the recording, because
            their stamps are of a clock that is wrong.
    """

    state: str = 'hold'
    columns: Mapping[str, str] = field(default_factory=dict)
    actions: str = 'auto'
    task: str = ''
    store: str = 'original'
    remap: Mapping[str, str] = field(default_factory=dict)
    trust_log_time: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ('state', self.state, RULES),
            ('actions', self.actions, ACTIONS_FROM),
            ('store', self.store, ('original', 'model')),
            *((f'columns[{key}]', rule, RULES) for key, rule in self.columns.items()),
        ):
            if value not in allowed:
                raise TrainingError(f'{name} is {value!r}; choose one of {", ".join(allowed)}.')

    def check(self, contract: Contract) -> None:
        """Refuses names that a contract does not have, and that would do nothing.

        Raises:
            TrainingError: names the first one, and the nearest that there is.
        """
        cameras = [camera.topic for camera in contract.cameras]
        topics = [
            *cameras,
            *(each.removesuffix('/compressed') for each in cameras),
            *(f'{c}/compressed' for c in cameras),
        ]
        topics += [stream.topic for stream in contract.state_streams] + [output.topic for output in contract.outputs]
        timed = [each.name for each in (*contract.streams, *contract.outputs)]
        for what, given, known in (
            ('--column', tuple(self.columns), contract.robot.state_names),
            ('--remap', tuple(self.remap), tuple(dict.fromkeys(topics))),
            ('--trust-log-time', tuple(self.trust_log_time), tuple(timed)),
        ):
            for name in given:
                if name not in known:
                    near = difflib.get_close_matches(name, known, 1, 0.5)
                    fix = f'did you mean {near[0]}?' if near else f'it has {", ".join(known)}.'
                    raise TrainingError(f'{what}: {contract.name} has no {name!r}; {fix}')

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and hashing."""
        return {
            'state': self.state,
            'columns': dict(self.columns),
            'actions': self.actions,
            'task': self.task,
            'store': self.store,
            'remap': dict(self.remap),
            'trust_log_time': sorted(self.trust_log_time),
        }


@dataclass(frozen=True)
class Episode:
    """One episode on the grid.

    Attributes:
        arrays: stamps (T,), state (T, S), actions (T, N) absolute SI, action_valid (T,), valid (T,) (every input was
            fresh enough for the live node), text (T,) and subtask (T,) as indices into `texts`, and per camera
            CAMERA.stamp, CAMERA.offset, CAMERA.length (T,), -1 where there is no image. driver (T,) where it was
            recorded: the numbers of ki_msgs/ControlSource, UNKNOWN_DRIVER before the first.
        texts: What was said.
        outcome: One of OUTCOMES.
    """

    arrays: dict[str, NDArray[Any]]
    texts: tuple[str, ...]
    outcome: str
    start_ns: int

    @property
    def steps(self) -> int:
        """T."""
        return len(self.arrays['stamps'])

    @property
    def runs(self) -> Runs:
        """Stretches of steps that can be learned from."""
        return runs_of(self.arrays['valid'] & self.arrays['action_valid'])

    @property
    def human(self) -> Runs:
        """Stretches of steps that a human drove; none where it was not recorded who did."""
        return runs_of(self.arrays['driver'] == HUMAN) if 'driver' in self.arrays else ()


def runs_of(flags_T: NDArray[np.bool_]) -> Runs:
    """Stretches of steps at which something holds, each as the first step and the one after the last."""
    padded = np.concatenate([[False], flags_T, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


@dataclass(frozen=True)
class _Span:
    start_ns: int
    end_ns: int
    task: str
    outcome: str


def episodes_of(
    found: Collected,
    contract: Contract,
    options: IndexOptions,
    custom: Mapping[str, str],
    path: Path,
    problems: Problems,
) -> list[Episode]:
    """Cuts and resamples; everything that cannot be used is counted in `problems`.

    What the clocks of the streams showed is left in `found.clocks`: of each, the worst of its epochs.

    Raises:
        TrainingError: An action column can be had neither from commands nor from the state.
    """
    made: list[Episode] = []
    bounds = clock_epochs(found, contract, path, problems)
    for epoch, (first_log, last_log) in enumerate(bounds):
        part = within(found, contract, first_log, last_log, path, problems)
        _keep_worst(found.clocks, part.clocks)
        if any(not len(part.states[name]) for name in part.states) or not part.states:
            continue
        reach = _reach(part, contract)
        if reach is None:
            text = f'cameras and states of clock epoch {epoch} share no time{_lost(part, contract)}'
            problems.add(path, '', 'no_overlap', text)
            continue
        pieces = _pieces(part, contract, reach, path, problems)
        for span in _spans(part, pieces, custom, options, path, problems):
            episode = _episode(part, contract, options, span, path, problems)
            if episode is not None:
                made.append(episode)
    return made


def _keep_worst(clocks: dict[str, StreamClock], more: Mapping[str, StreamClock]) -> None:
    for name, clock in more.items():
        before = clocks.get(name)
        if before is None or abs(clock.offset_s) > abs(before.offset_s):
            clocks[name] = clock


def _lost(part: Epoch, contract: Contract) -> str:
    """Names the cameras of which nothing is left."""
    names = [each.name for each in contract.cameras if each.required and not len(part.cameras.get(each.name, ()))]
    return f': every picture of {", ".join(names)} was refused' if names else ''


def _reach(part: Epoch, contract: Contract) -> tuple[int, int] | None:
    """From when to when every required input was there."""
    tracks = [part.states[stream.name] for stream in contract.state_streams]
    tracks += [part.cameras[camera.name] for camera in contract.cameras if camera.required]
    if any(not len(track) for track in tracks):
        return None
    start = max(int(track.stamps[0]) for track in tracks)
    end = min(int(track.stamps[-1]) for track in tracks)
    return (start, end) if end > start else None


def _pieces(
    part: Epoch, contract: Contract, reach: tuple[int, int], path: Path, problems: Problems
) -> list[tuple[int, int]]:
    """The reach of the inputs, cut where one of them was silent for long: nothing between is worth a step."""
    cuts: list[tuple[int, int]] = []
    required: list[Camera | StateStream] = [*contract.state_streams]
    required += [camera for camera in contract.cameras if camera.required]
    for spec in required:
        track = part.states.get(spec.name) or part.cameras[spec.name]
        for place in np.flatnonzero(np.diff(track.stamps) > LONG_GAP_NS).tolist():
            begin, end = track.stamps[place : place + 2].tolist()
            text = f'it is silent for {(end - begin) / 1e9:.0f} s; the episode is cut there'
            problems.add(path, spec.topic, 'long_gap', text)
            cuts.append((begin, end))
    pieces, start = [], reach[0]
    for begin, end in sorted(cuts):
        pieces.append((start, begin))
        start = max(start, end)
    return [piece for piece in (*pieces, (start, reach[1])) if piece[1] > piece[0]]


def _spans(
    part: Epoch,
    pieces: Sequence[tuple[int, int]],
    custom: Mapping[str, str],
    options: IndexOptions,
    path: Path,
    problems: Problems,
) -> list[_Span]:
    """Episodes by marker, else by the metadata, else the whole recording; of each the pieces that were recorded."""
    reach = pieces[0][0], pieces[-1][1]
    if len(part.markers):
        spans = _marked(part.markers, reach, path, problems)
    elif 'episodes' in custom:
        spans = _told(custom['episodes'], path, problems)
    else:
        outcome = custom.get('outcome', 'unlabeled')
        spans = [_Span(*reach, custom.get('task', ''), outcome if outcome in OUTCOMES else 'unlabeled')]
    kept, ends = [], [end for _, end in pieces]
    for span in spans:
        if span.outcome == 'discard':
            problems.add(path, '', 'discarded', 'an episode was marked to be discarded')
            continue
        near = pieces[bisect.bisect_right(ends, span.start_ns) : bisect.bisect_left(ends, span.end_ns) + 1]
        bounds = [(max(span.start_ns, start), min(span.end_ns, end)) for start, end in near]
        inside = [(start, end) for start, end in bounds if end > start]
        kept += [_Span(start, end, span.task or options.task, span.outcome) for start, end in inside]
        if not inside:
            problems.add(path, '', 'empty_episode', 'an episode has no time in which every input was recorded')
    return kept


def _marked(markers: Timeline, reach: tuple[int, int], path: Path, problems: Problems) -> list[_Span]:
    spans: list[_Span] = []
    begun: tuple[int, str] | None = None
    for stamp, marker in zip(markers.stamps.tolist(), markers.rows, strict=True):
        if marker.begins:
            if begun is not None:
                problems.add(path, 'markers', 'open_episode', 'an episode has no end; the next one ends it')
                spans.append(_Span(begun[0], stamp - 1, begun[1], 'unlabeled'))
            begun = (stamp, marker.task)
        elif begun is not None:
            outcome = OUTCOMES[marker.outcome] if 0 <= marker.outcome < len(OUTCOMES) else 'unlabeled'
            spans.append(_Span(begun[0], stamp, marker.task or begun[1], outcome))
            begun = None
        else:
            problems.add(path, 'markers', 'stray_marker', 'an episode ends that never began')
    if begun is not None:
        problems.add(path, 'markers', 'open_episode', 'an episode has no end; the recording ends it')
        spans.append(_Span(begun[0], reach[1], begun[1], 'unlabeled'))
    return spans


def _told(text: str, path: Path, problems: Problems) -> list[_Span]:
    try:
        return [
            _Span(
                int(each['start_ns']),
                int(each['end_ns']),
                str(each.get('task', '')),
                OUTCOMES[OUTCOMES.index(each.get('outcome', 'unlabeled'))],
            )
            for each in json.loads(text)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problems.add(path, 'custom_data.episodes', 'bad_metadata', f'the episodes in the metadata do not read: {error}')
        return []


def _episode(
    part: Epoch, contract: Contract, options: IndexOptions, span: _Span, path: Path, problems: Problems
) -> Episode | None:
    count = (span.end_ns - span.start_ns) // contract.step_ns + 1
    grid = span.start_ns + np.arange(count, dtype=np.int64) * contract.step_ns
    valid = np.ones(count, dtype=bool)
    arrays: dict[str, NDArray[Any]] = {'stamps': grid}
    robot, space = contract.robot, RobotSpace(contract)
    measured = _states(part, robot, options, grid, valid, path, problems)
    arrays['state'] = space.state(measured)
    fresh_state = valid.copy()
    for camera in contract.cameras:
        _images(part, camera, grid, arrays, valid, path, problems)
    _keep_step(part, contract, grid, valid, path, problems)
    commands, arrays['action_valid'] = _actions(part, robot, options, measured, fresh_state, grid, path, problems)
    arrays['actions'] = space.actions(commands, measured)
    arrays['valid'] = valid
    texts: list[str] = []
    arrays['text'] = _said(part.instructions, grid, span.task, texts)
    arrays['subtask'] = _said(part.subtasks, grid, '', texts)
    if len(part.drivers):
        arrays['driver'] = _drivers(part.drivers, grid)
    if not any(texts[index] for index in arrays['text']):
        problems.add(path, 'task', 'no_instruction', 'an episode has no instruction; give one with --task')
    usable = np.flatnonzero(valid & arrays['action_valid'])
    if len(usable) < STATE_KEEP:
        problems.add(path, '', 'empty_episode', 'an episode has no step in which every input is fresh')
        return None
    first, last = int(usable[0]), int(usable[-1]) + 1
    cut = {name: array[first:last] for name, array in arrays.items()}
    return Episode(cut, tuple(texts), span.outcome, int(grid[first]))


def _states(
    part: Epoch,
    contract: Contract,
    options: IndexOptions,
    grid: NDArray[np.int64],
    valid: NDArray[np.bool_],
    path: Path,
    problems: Problems,
) -> NDArray[np.float64]:
    state = np.empty((len(grid), len(contract.state)))
    names = contract.state_names
    for stream in contract.state_streams:
        track, columns = part.states[stream.name], part.state_columns[stream.name]
        near = track.around(grid)
        stamps, values = track.stamps[near], track.rows[near]
        rules = [options.columns.get(column, options.state) for column in columns]
        by_rule = {rule: RULES[rule](stamps, values, grid) for rule in set(rules)}
        for index, (column, rule) in enumerate(zip(columns, rules, strict=True)):
            state[:, names.index(column)] = by_rule[rule][:, index]
        _expire(track, grid, stream, valid, path, problems)
    return state


def _images(
    part: Epoch,
    camera: Camera,
    grid: NDArray[np.int64],
    arrays: dict[str, NDArray[Any]],
    valid: NDArray[np.bool_],
    path: Path,
    problems: Problems,
) -> None:
    track = part.cameras.get(camera.name) or EMPTY
    if not len(track):
        for name in ('stamp', 'offset', 'length'):
            arrays[f'{camera.name}.{name}'] = np.full(len(grid), -1, dtype=np.int64)
        return
    stamps, rows = track.stamps, track.rows
    row = track.stamped_before(grid)
    there = row >= 0
    row = np.maximum(row, 0)
    there &= ~is_too_old(grid - stamps[row], camera.max_age_s)
    arrived = np.maximum(track.arrived_before(grid), 0)
    frozen = there & ((rows[row, 2] > 0) | (rows[arrived, 2] > 0))
    there &= ~frozen
    arrays[f'{camera.name}.stamp'] = np.where(there, stamps[row], -1)
    arrays[f'{camera.name}.offset'] = np.where(there, rows[row, 0], -1)
    arrays[f'{camera.name}.length'] = np.where(there, rows[row, 1], -1)
    if camera.required:
        _expire(track, grid, camera, valid, path, problems)
        valid &= ~frozen
    if frozen.any():
        text = 'its pictures are equal while the robot moves; the live node would not act on them'
        problems.add(path, camera.topic, 'frozen', text, int(frozen.sum()))


def _expire(
    track: Timeline,
    grid: NDArray[np.int64],
    spec: Camera | StateStream,
    valid: NDArray[np.bool_],
    path: Path,
    problems: Problems,
) -> None:
    """Marks steps at which the live node would have refused this input as too old: the newest that had arrived."""
    stale = np.zeros(len(grid), dtype=bool)
    for row in (track.stamped_before(grid), track.arrived_before(grid)):
        stale |= (row < 0) | is_too_old(grid - track.stamps[np.maximum(row, 0)], spec.max_age_s)
    if stale.any():
        valid &= ~stale
        text = f'a step has no message younger than {spec.max_age_s} s; the live node would not act on it'
        problems.add(path, spec.topic, 'stale', text, int(stale.sum()))


def _keep_step(
    part: Epoch,
    contract: Contract,
    grid: NDArray[np.int64],
    valid: NDArray[np.bool_],
    path: Path,
    problems: Problems,
) -> None:
    """Marks steps at which what had arrived lay too far apart for the live node."""
    oldest, newest = np.full(len(grid), 2**62), np.full(len(grid), -(2**62))
    for spec in contract.streams:
        track = part.cameras.get(spec.name) or part.states.get(spec.name) or EMPTY
        if not len(track):
            continue
        row = track.arrived_before(grid)
        stamps = track.stamps[np.maximum(row, 0)]
        used = (row >= 0) & ~is_too_old(grid - stamps, spec.max_age_s)
        oldest = np.where(used, np.minimum(oldest, stamps), oldest)
        newest = np.where(used, np.maximum(newest, stamps), newest)
    apart = valid & is_out_of_step(newest - oldest, contract.sync_tolerance_s)
    if apart.any():
        valid &= ~apart
        text = (
            f'the inputs of a step lie more than {contract.sync_tolerance_s} s (sync_tolerance_s) apart; the live node '
            'would not act on them'
        )
        problems.add(path, '', 'unsynchronized', text, int(apart.sum()))


def _actions(
    part: Epoch,
    contract: Contract,
    options: IndexOptions,
    state: NDArray[np.float64],
    fresh: NDArray[np.bool_],
    grid: NDArray[np.int64],
    path: Path,
    problems: Problems,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Commands in force at each step; the state one step later where none were recorded."""
    actions = np.full((len(grid), len(contract.actions)), np.nan)
    known = np.ones(len(grid), dtype=bool)
    names = contract.action_names
    for output in contract.outputs if options.actions != 'state' else ():
        track = part.commands.get(output.name) or EMPTY
        told = _told_by(output, track, grid, part.command_ages.get(output.name))
        if told is None or (options.actions == 'auto' and _is_silent(output, told[1], path, problems)):
            if options.actions == 'commands':
                raise TrainingError(
                    f'{path}: output {output.name} has no command ({output.topic}); record that topic, or take '
                    'actions from the state (--actions auto).'
                )
            continue
        values, in_force = told
        actions[:, [names.index(column) for column in output.columns]] = values
        known &= in_force
        if aged := int((~in_force & (grid >= track.stamps[0])).sum()):
            text = f'a step has no command of {output.name} that still counts, and is not learned from; {LONGER}'
            problems.add(path, output.topic, 'command_age', text, aged)
    _from_state(actions, known, contract, options, state, fresh, path, problems)
    return actions, known


def _told_by(
    output: Output, track: Timeline, grid: NDArray[np.int64], max_age_ns: int | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
    """What one controller was told at each step, and whether that still counted; None where it was told nothing."""
    if not len(track) or track.stamps[0] > grid[-1]:
        return None
    if output.kind.startswith('twist'):
        return values_in_force(track.stamps, track.rows, grid, TWIST_TIMEOUT_NS)
    return values_in_force(track.stamps, track.rows, grid, max_age_ns=max_age_ns)


def _is_silent(output: Output, in_force: NDArray[np.bool_], path: Path, problems: Problems) -> bool:
    """Whether commands count at so few steps that something else moved the robot: a hand, or another controller."""
    share = float(in_force.mean())
    if share >= COMMANDED_SHARE:
        return False
    text = (
        f'commands of {output.name} count at {share:.0%} of the steps of an episode, so something else moved the robot '
        f'and they are not used; {LONGER}'
    )
    problems.add(path, output.topic, 'stale_commands', text)
    return True


def _from_state(
    actions: NDArray[np.float64],
    known: NDArray[np.bool_],
    contract: Contract,
    options: IndexOptions,
    state: NDArray[np.float64],
    fresh: NDArray[np.bool_],
    path: Path,
    problems: Problems,
) -> None:
    """Fills the columns without commands with the state one step later; the last step has none."""
    for index, column in enumerate(contract.action_names):
        if not np.isnan(actions[:, index]).all():
            continue
        if column not in contract.state_names:
            raise TrainingError(
                f'{path}: action column {column} has no command and no state column of that name; '
                'record its command topic.'
            )
        values = state[:, contract.state_names.index(column)]
        actions[:-1, index], actions[-1, index] = values[1:], values[-1]
        known[:-1] &= fresh[1:]
        known[-1] = False
        if options.actions == 'auto':
            text = 'no command was recorded, or none that counts: the action is the state one step later'
            problems.add(path, column, 'action_from_state', text)


def _drivers(track: Timeline, grid: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Per step who drives."""
    row = track.stamped_before(grid)
    found = np.full(len(grid), UNKNOWN_DRIVER, dtype=np.uint8)
    found[row >= 0] = track.rows[row[row >= 0]]
    return found


def _said(track: Timeline, grid: NDArray[np.int64], first: str, texts: list[str]) -> NDArray[np.int32]:
    """Per step the index of the newest text into `texts`, which grows; `first` until something was said."""
    # What a marker says at the start counts more than what was said before it.
    begun, last = track.stamped_before(grid[[0, -1]]).tolist()
    near = slice(begun + 1 if first else max(begun, 0), last + 1)
    said = track.rows[near]
    places = {text: index for index, text in enumerate(texts)}
    every = [first, *said]
    for text in every:
        if text not in places:
            places[text] = len(texts)
            texts.append(text)
    row = newest_before(track.stamps[near], grid) + 1
    return np.asarray([places[text] for text in every], dtype=np.int32)[row]
