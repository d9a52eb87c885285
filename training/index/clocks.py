"""Two clocks: the stamps of messages, and the time they were written. Jumps cut a recording."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_bags.problems import Problems
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Camera, Output, StateStream
from ki_robot.errors import Reason, Rejected
from ki_robot.messages.arrays import NS
from ki_robot.messages.commands import command_age_ns
from ki_robot.observation.stamps import FUTURE_TOLERANCE_NS, check_stamp, is_too_old
from training.index.resample import rising
from training.index.stream_clocks import SMOOTH, StreamClock, measure_clock, smoothed
from training.index.streams import Collected, Track
from training.index.timeline import Epoch, Timeline

JUMP_NS = 1_000_000_000  # stamps and arrivals that part by more than this between two messages: the clock was set
SAME_CLOCK_NS = 50_000_000  # stamps and arrivals that differ by less, all the time, are of one clock
COMMAND_CLOCK_NS = 500_000_000  # commands stamped further than this from their arrival are of another clock

Times = NDArray[np.int64]


def clock_epochs(found: Collected, contract: Contract, path: Path, problems: Problems) -> list[tuple[int, int]]:
    """Stretches of log time within which the stamps of the states never jump."""
    cuts: list[int] = []
    for stream in contract.state_streams[:1]:  # one clock dates a robot; its first stream stands for it
        track = found.states[stream.name]
        stamps, logs = np.asarray(track.stamps, dtype=np.int64), np.asarray(track.logs, dtype=np.int64)
        if len(stamps) < SMOOTH or (stamps < 0).any():
            continue
        smooth = smoothed(stamps - logs)
        for index in np.flatnonzero(np.abs(np.diff(smooth)) > JUMP_NS):
            cuts.append(int(logs[index + 1]))
            seconds = (smooth[index + 1] - smooth[index]) / 1e9
            text = f'the clock jumps by {seconds:+.1f} s; episodes are cut there'
            problems.add(path, stream.topic, 'clock_jump', text)
    return list(itertools.pairwise([-(2**62), *cuts, 2**62]))


def within(
    found: Collected, contract: Contract, first_log: int, last_log: int, path: Path, problems: Problems
) -> Epoch:
    """The messages of one clock epoch, dated, in the order of their stamps; their `logs` are on the clock of those.

    Images and states that the live node would refuse for their stamps are dropped, and counted by its reasons; so are
    commands of another clock. What the clock of each stream showed is in `clocks`.
    """
    clock = _clock(found, first_log, last_log)
    arrivals = _arrivals(found, contract, first_log, last_log, clock)
    clocks: dict[str, StreamClock] = {}

    def part(track: Track, spec: Camera | StateStream | Output | None = None, dtype: Any = None) -> Timeline:
        stamps, logs, chosen = _between(track, first_log, last_log)
        dated = np.where(stamps < 0, clock(logs), stamps) if (stamps < 0).any() else stamps
        arrived = arrivals(logs)
        if spec is None:
            order = np.argsort(dated, kind='stable')
        else:
            _measure(spec, stamps, arrived, clocks, path, problems)
            if isinstance(spec, Output):
                order = _of_one_clock(spec, dated, arrived, path, problems)
            else:
                order = _believed(spec, dated, arrived, path, problems)
        rows = [track.rows[index] for index in chosen[order].tolist()]
        return Timeline(dated[order], arrived[order], rows if dtype is None else np.asarray(rows, dtype=dtype))

    cameras = {camera.name: camera for camera in contract.cameras}
    streams = {stream.name: stream for stream in contract.state_streams}
    outputs = {output.name: output for output in contract.outputs}
    commands = {name: part(track, outputs[name]) for name, track in found.commands.items()}
    return Epoch(
        cameras={name: part(track, cameras[name], np.int64) for name, track in found.cameras.items()},
        states={name: part(track, streams[name], np.float64) for name, track in found.states.items()},
        state_columns=found.state_columns,
        commands=commands,
        command_ages={
            name: command_age_ns(outputs[name], each.stamps, contract.step_ns) for name, each in commands.items()
        },
        markers=part(found.markers),
        instructions=part(found.instructions),
        subtasks=part(found.subtasks),
        drivers=part(found.drivers, dtype=np.uint8),
        clocks=clocks,
    )


def _between(track: Track, first_log: int, last_log: int) -> tuple[Times, Times, NDArray[np.intp]]:
    """Stamps and logs of the messages that were written in a stretch of time, and their places in the track."""
    stamps, logs = np.asarray(track.stamps, dtype=np.int64), np.asarray(track.logs, dtype=np.int64)
    chosen = np.flatnonzero((logs >= first_log) & (logs < last_log))
    return stamps[chosen], logs[chosen], chosen


def _measure(
    spec: Camera | StateStream | Output,
    stamps: Times,
    arrivals: Times,
    clocks: dict[str, StreamClock],
    path: Path,
    problems: Problems,
) -> None:
    """Compares the stamps of a stream with its arrivals; complaints become problems."""
    stamped = stamps >= 0
    measured = measure_clock(stamps[stamped], arrivals[stamped])
    if measured is None:
        return
    clocks[spec.name] = measured
    for kind, text in measured.complaints.items():
        problems.add(path, spec.name, kind, f'{text}; {_trust(spec.name)}')


def _trust(name: str) -> str:
    return f'synchronise its clock, or date it by arrival with --trust-log-time {name}'


def _of_one_clock(output: Output, stamps: Times, arrivals: Times, path: Path, problems: Problems) -> NDArray[np.intp]:
    """The places of the commands that begin about when they arrive, in the order in which they begin."""
    apart = np.abs(stamps - arrivals)
    foreign = int((apart > COMMAND_CLOCK_NS).sum())
    if foreign:
        text = f'a command of {output.name} is stamped {apart.max() / NS:.1f} s away from its arrival; '
        problems.add(path, output.name, 'command_clock', text + _trust(output.name), foreign)
    order: NDArray[np.intp] = np.argsort(stamps, kind='stable')
    kept: NDArray[np.intp] = order[apart[order] <= COMMAND_CLOCK_NS]
    return kept


def _believed(
    spec: Camera | StateStream, stamps: Times, arrivals: Times, path: Path, problems: Problems
) -> NDArray[np.intp]:
    """The places of the messages that the live node would have taken, by its own rule."""
    taken, last = [], 0
    for place, (stamp, arrival) in enumerate(zip(stamps.tolist(), arrivals.tolist(), strict=True)):
        try:
            check_stamp(spec, stamp, arrival, last)
        except Rejected as error:
            off = error.reason in (Reason.FUTURE_STAMP, Reason.STALE)
            hint = f' Or date it by arrival: --trust-log-time {spec.name}.' if off else ''
            problems.add(path, spec.name, str(error.reason), f'{error}{hint}')
        else:
            taken.append(place)
            last = stamp
    return np.asarray(taken, dtype=np.intp)


def _arrivals(
    found: Collected, contract: Contract, first_log: int, last_log: int, clock: Callable[[Times], Times]
) -> Callable[[Times], Times]:
    """Log time -> when a message arrived, on the clock of the stamps.

    The recorder ran on the robot's clock when the states, as recorded, are ones that the live node takes; else (a
    simulation recorded without sim time) the states tell how the clocks differ.
    """
    for stream in contract.state_streams:
        track = found.states.get(stream.name) or Track()
        stamps, logs, _ = _between(track, first_log, last_log)
        ages = (logs - stamps)[stamps > 0]
        if len(ages):
            age_ns = int(np.median(ages))
            same = age_ns >= -FUTURE_TOLERANCE_NS and not is_too_old(age_ns, stream.max_age_s)
            return (lambda times: times) if same else clock
    return lambda times: times


def _clock(found: Collected, first_log: int, last_log: int) -> Callable[[Times], Times]:
    """Log time -> the robot's clock, for messages without a stamp: through a stream that has both."""
    for track in found.states.values():
        stamps, logs, _ = _between(track, first_log, last_log)
        stamps, logs = stamps[stamps > 0], logs[stamps > 0]
        if len(stamps):
            offsets = stamps - logs
            # The smallest delay of a stretch is the clock difference; a simulated clock may also run slower or faster.
            if np.abs(offsets - np.median(offsets)).max() < SAME_CLOCK_NS:
                shift = int(np.median(offsets))
                # Same clock: what is left is transport, which the log time of a command does not suffer twice.
                return lambda times: times + (0 if abs(shift) < SAME_CLOCK_NS else shift)
            keep = rising(logs)
            base_log, base_stamp = logs[0], stamps[0]
            known = (logs[keep] - base_log).astype(np.float64)
            values = np.maximum.accumulate(stamps[keep] - base_stamp).astype(np.float64)
            return lambda times: base_stamp + np.interp(times - base_log, known, values).astype(np.int64)
    return lambda times: times
