"""What the live buffer would refuse is no usable step of the index: the same messages through both, robot by robot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ki_bags import message_builders
from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import Camera
from ki_robot.observation.buffer import ObservationBuffer
from ki_robot.observation.observation import Observation
from training.index.episodes import IndexOptions
from training.index.index import Index, index_bags

# One of every kind of stream and column that the ready contracts have.
ROBOTS = ('arm_single', 'bimanual_mobile', 'bimanual_static', 'g1_upper_body', 'bimanual_hands', 'libero')
NS = 10**9
START_NS = 1_700_000_000 * NS
Event = tuple[int, str, Any]  # arrival, stream, message


def values_at(contract: Contract, seconds: float) -> dict[str, float]:
    """A slow sway about the middle of the range of each column of the robot."""
    contract = contract.robot
    limits = {column.name: column.limits for column in contract.actions}
    found = {}
    for column in contract.state:
        bounds = column.limits if column.limits.lower is not None else limits.get(column.name, column.limits)
        middle = 0.5 * ((bounds.lower or 0.0) + (bounds.upper or 0.0))
        span = 0.1 if interface_of(column.name) == 'position' and column.unit == 'rad' else 0.005
        middle += 1.0 if column.name.endswith(('/r11/position', '/r22/position')) else 0.0  # of a rotation
        found[column.name] = middle + span * float(np.sin(2.0 * seconds))
    return found


def picture(contract: Contract, camera: Camera, stamp_ns: int, shade: int) -> Any:
    make = message_builders.raw if camera.transport == 'raw' else message_builders.picture
    return make(stamp_ns, np.full((camera.height or 16, camera.width or 24, 3), shade, np.uint8))


def frame(shade: int) -> Any:
    return cv2.imencode('.jpg', np.full((24, 32, 3), shade, np.uint8))[1].reshape(-1)


def events_of(contract: Contract, fault: str, seed: int, seconds: float = 4.0) -> list[Event]:
    """Every stream at 20 or 50 Hz; `fault` strikes one of them, at random times."""
    rng = np.random.default_rng(seed)
    struck = str(rng.choice([stream.name for stream in contract.streams]))
    begin, end = sorted(rng.uniform(0.5, seconds - 0.5, 2))
    events: list[Event] = []
    for stream in contract.streams:
        is_camera = isinstance(stream, Camera)
        for number in range(round(seconds * (20 if is_camera else 50))):
            when = number / (20 if is_camera else 50)
            stamp_ns = START_NS + round(when * NS)
            arrival_ns = stamp_ns + round(rng.uniform(0.0, 0.004) * NS)
            shade = int(rng.integers(256))
            if stream.name == struck and begin <= when <= end:
                if fault == 'silent':
                    continue
                if fault == 'late':
                    arrival_ns += round(rng.uniform(0.0, 0.3) * NS)
                elif fault == 'other_clock':
                    stamp_ns += round(float(rng.choice([-0.5, 0.08, 0.5])) * NS)
                elif fault == 'frozen':
                    shade = 7
            if isinstance(stream, Camera):
                events.append((arrival_ns, stream.name, picture(contract, stream, stamp_ns, shade)))
            else:
                state = message_builders.state(contract, stream, stamp_ns, values_at(contract, when))
                events.append((arrival_ns, stream.name, state))
    return sorted(events, key=lambda event: event[0])


def record(path: Path, contract: Contract, events: list[Event]) -> Path:
    topics = {stream.name: stream.topic for stream in contract.streams}
    with BagWriter(path, custom={'task': 'x'}) as bag:
        for arrival_ns, name, message in events:
            message_builders.put(bag, topics[name], arrival_ns, message)
    return path


def verdicts(contract: Contract, events: list[Event], times_ns: np.ndarray) -> list[bool]:
    """Whether the live buffer gives an observation at each time."""
    buffer, waiting, found = ObservationBuffer(contract), list(events), []
    buffer.set_instruction('x')
    for now_ns in times_ns.tolist():
        while waiting and waiting[0][0] <= now_ns:
            arrival_ns, name, message = waiting.pop(0)
            buffer.push(name, message, arrival_ns)
        found.append(isinstance(buffer.sample(now_ns), Observation))
    return found


def steps_of(index: Index) -> tuple[np.ndarray, np.ndarray]:
    """Stamps and usability of every step of every episode."""
    stamps, valid = [], []
    for entry, about in index.episodes:
        with np.load(entry.folder / about.file) as arrays:
            stamps.append(arrays['stamps'])
            valid.append(arrays['valid'])
    return np.concatenate(stamps), np.concatenate(valid)


@pytest.mark.parametrize('fault', ['none', 'silent', 'late', 'other_clock', 'frozen'])
@pytest.mark.parametrize('name', ROBOTS)
def test_what_the_live_buffer_refuses_is_no_usable_step(name: str, fault: str, tmp_path: Path) -> None:
    whole = load_contract(name)
    # Only what is measured: where no commands are recorded, the actions come from the state.
    state = {column.name for column in whole.state}
    contract = whole.replace(outputs=(), actions=tuple(each for each in whole.actions if each.name in state))
    events = events_of(contract, fault, seed=len(name) + len(fault))
    index = index_bags(record(tmp_path / 'bag', contract, events), contract, tmp_path / 'index')
    assert index.episodes, [str(each) for each in index.problems]
    stamps, valid = steps_of(index)
    live = np.array(verdicts(contract, events, stamps))
    assert not (valid & ~live).any(), 'the index takes steps that the live node would not act on'
    assert (live & valid).sum() >= 0.9 * live.sum(), 'the index refuses what the live node takes'
    if fault == 'none':
        assert live.all()


def test_one_command_long_ago_is_no_label(tmp_path: Path, toy: Contract, scribe: Any) -> None:
    """A homing command, then ten seconds of guiding by hand."""
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/arm_controller/joint_trajectory',))
        writer.stretch(4.0)
        writer.without = ()
        writer.arm(START_NS, [(0.5, 0.0, 1.0)])
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    [(entry, about)] = index.episodes
    with np.load(entry.folder / about.file) as arrays:
        np.testing.assert_array_equal(arrays['actions'][:-1, 0], arrays['state'][1:, 0])
    assert {'stale_commands', 'action_from_state'} <= index.problems.kinds()
    strict = index_bags(tmp_path / 'bag', toy, tmp_path / 'strict', IndexOptions(actions='commands'))
    stamps, _ = steps_of(strict)
    assert (stamps[-1] - START_NS) / NS <= 0.5 + 5 / toy.rate_hz
    goals = toy.replace(outputs=(toy.outputs[0].replace(commands='goals'), *toy.outputs[1:]))
    index = index_bags(tmp_path / 'bag', goals, tmp_path / 'goals')
    assert not {'stale_commands', 'command_age'} & index.problems.kinds()


def test_a_pause_of_the_commands_is_not_learned_from(tmp_path: Path, toy: Contract, scribe: Any) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/gripper_controller/commands',))
        writer.stretch(4.0)
        writer.without = ()
        for number in range(81):
            if not 30 < number < 50:
                writer.gripper(START_NS + number * NS // 20, 0.04)
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    [(entry, about)] = index.episodes
    with np.load(entry.folder / about.file) as arrays:
        seconds = (arrays['stamps'] - START_NS) / NS
        known = (seconds <= 1.5 + 5 / toy.rate_hz + 1e-9) | (seconds >= 2.5 - 1e-9)
        np.testing.assert_array_equal(arrays['action_valid'], known)
    assert {each.kind: each.count for each in index.problems} == {'command_age': int((~known).sum())}


@pytest.mark.parametrize('trusted', [False, True])
def test_commands_of_another_clock_are_refused_or_dated_by_arrival(
    tmp_path: Path, toy: Contract, scribe: Any, trusted: bool
) -> None:
    """Stamps since boot: all commands would begin in 1970, and the last one would be in force for ever."""
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/arm_controller/joint_trajectory',))
        writer.stretch(2.0)
        writer.without = ()
        for number in range(41):
            position = [0.01 * number, 0.5]
            value = message_builders.trajectory(60 * NS + number * NS // 20, ['joint1', 'joint2'], [0], [position])
            writer.send('/arm_controller/joint_trajectory', START_NS + number * NS // 20, value)
    options = IndexOptions(trust_log_time=('arm',) if trusted else ())
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index', options)
    [(entry, about)] = index.episodes
    with np.load(entry.folder / about.file) as arrays:
        actions = arrays['actions'][:, 0]
        if trusted:
            np.testing.assert_allclose(actions, 0.01 * np.round((arrays['stamps'] - START_NS) / NS * 20), atol=1e-9)
        else:
            np.testing.assert_array_equal(actions[:-1], arrays['state'][1:, 0])
    told = next((each for each in index.problems if each.kind == 'command_clock'), None)
    assert (told is None) == trusted
    assert told is None or (told.count == 41 and '--trust-log-time arm' in told.text)
    assert index.options['trust_log_time'] == (['arm'] if trusted else [])


def test_a_clock_that_drifts_or_jumps_is_measured_and_told_by_stream(
    tmp_path: Path, toy: Contract, scribe: Any
) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/scene/image_raw/compressed', '/wrist/image_raw/compressed'))
        writer.stretch(6.0)
        writer.without = ()
        for number in range(181):
            now_ns = START_NS + number * NS // 30
            writer.image('scene', now_ns - round(0.025 * (now_ns - START_NS)), frame(number), now_ns)  # 2.5 % slow
            writer.image('wrist', now_ns + (3 * NS if number >= 90 else -20_000_000), frame(number), now_ns)
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    kinds = {(each.field, each.kind) for each in index.problems}
    assert {('scene', 'clock_drift'), ('wrist', 'stream_clock_jump')} <= kinds
    streams = index.entries[0].streams
    assert streams['scene']['clock_drift_ppm'] == pytest.approx(25_000, rel=0.15)
    assert streams['wrist']['clock_jumps'] == 1
    assert streams['wrist']['clock_largest_jump_s'] == pytest.approx(-3.02, abs=0.01)
    assert streams['joint_states']['clock_offset_s'] == pytest.approx(0.0, abs=1e-6)
    trusting = IndexOptions(trust_log_time=('scene', 'wrist'))
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'trusting', trusting)
    assert not index.problems.kinds()


def test_messages_days_apart_are_two_episodes_and_no_grid_between(tmp_path: Path, toy: Contract, scribe: Any) -> None:
    """A clock that was right, a recorder that slept: a grid over a year would not fit into memory."""
    year_ns = 365 * 24 * 3600 * NS
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag)
        writer.stretch(1.0)
        writer.stretch(1.0, base_ns=START_NS + year_ns)
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    assert [about.steps for _, about in index.episodes] == [21, 21]
    assert {each.field for each in index.problems if each.kind == 'long_gap'} == {
        'joint_states', 'odom', 'scene/image_raw/compressed'
    }  # fmt: skip
