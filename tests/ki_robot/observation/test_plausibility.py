"""Measured states that cannot be true are not believed; those that can are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_bags import message_builders
from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.errors import Reason, Rejected
from ki_robot.observation.buffer import ObservationBuffer
from ki_robot.observation.plausibility import LIMIT_MARGIN, SLACK_S, SPEED_FACTOR, StateCheck, possible_states

T0 = 1_700_000_000 * 10**9
PERIOD_NS = 10_000_000
ARM = [f'joint{number}/position' for number in range(1, 8)]


@pytest.fixture(scope='module')
def contract() -> Contract:
    return load_contract('arm_single')


@pytest.fixture
def check(contract: Contract) -> StateCheck:
    """Of seven joints, at 1 rad each (joint 4 at -1: its limits are negative)."""
    made = StateCheck(contract, ARM)
    made.check(pose(), T0)
    return made


def pose(**changed: float) -> np.ndarray:
    """Within all limits of arm_single, with some joints elsewhere."""
    values = dict.fromkeys(ARM, 1.0) | {'joint4/position': -1.0}
    return np.array([*(values | {f'{joint}/position': value for joint, value in changed.items()}).values()])


@pytest.mark.parametrize(
    ('values', 'says'),
    [
        (np.zeros(7), r'joint\d/position is measured at 0, 0\.010 s after -?1: it can have moved by 0\.\d+ at most\.'),
        (pose(joint1=1.0 + 2 * np.pi), r'joint1/position is measured at 7\.283, beyond its limits'),
        (pose(joint6=0.0), r'joint6/position is measured at 0'),
    ],
    ids=['zeros of a second publisher', 'a wrap by one turn', 'an encoder that reads 0 for an instant'],
)
def test_what_no_joint_can_do_is_named_and_not_believed(check: StateCheck, values: np.ndarray, says: str) -> None:
    with pytest.raises(Rejected, match=says) as error:
        check.check(values, T0 + PERIOD_NS)
    assert error.value.reason is Reason.IMPLAUSIBLE
    check.check(pose(joint1=1.02), T0 + 2 * PERIOD_NS)  # the next true one is believed


def test_a_jump_that_stays_is_believed_once_there_was_time_for_it(check: StateCheck) -> None:
    refused = 0
    for tick in range(1, 200):
        try:
            check.check(pose(joint1=0.0), T0 + tick * PERIOD_NS)
            break
        except Rejected:
            refused += 1
    speed = 2.1  # rad/s, joint1 of arm_single
    assert refused * 0.01 == pytest.approx((1.0 / speed - SLACK_S) / SPEED_FACTOR, abs=0.02)


def test_after_a_reset_anything_within_the_limits_is_believed(check: StateCheck) -> None:
    check.reset()
    check.check(pose(joint1=-2.5), T0 + PERIOD_NS)
    with pytest.raises(Rejected):
        check.check(pose(joint1=-3.9), T0 + 2 * PERIOD_NS)


@pytest.mark.parametrize('robot', ['arm_single', 'bimanual_mobile', 'bimanual_static', 'g1_upper_body', 'so101'])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), hertz=st.sampled_from([30, 50, 100, 500, 1000]))
def test_every_motion_within_the_limits_of_commands_is_believed(robot: str, seed: int, hertz: int) -> None:
    """Also with a quantised encoder, jitter of the stamps, lost messages, and a pose a hair beyond a limit."""
    contract = load_contract(robot)
    names = contract.state_names
    possible = possible_states(contract, names)
    rng = np.random.default_rng(seed)
    check = StateCheck(contract, names)
    low, high = (np.nan_to_num(each, posinf=1.0, neginf=-1.0) for each in (possible.lower_C, possible.upper_C))
    room = (high - low) * LIMIT_MARGIN / (1 + 2 * LIMIT_MARGIN)
    low, high = low + room * 0.9, high - room * 0.9
    speed = np.where(np.isfinite(possible.speed_C), possible.speed_C, 1.0)
    at, time_ns = rng.uniform(low, high), T0
    for _ in range(200):
        step_ns = round(1e9 / hertz * int(rng.choice([1, 1, 1, 2, 20])))
        at = np.clip(at + rng.uniform(-1, 1, len(names)) * speed * step_ns / 1e9, low, high)
        time_ns += step_ns
        check.check(np.round(at, 3), time_ns + int(rng.integers(-2_000_000, 2_000_000)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40_000_000), st.floats(-0.6, 0.6), st.booleans()), min_size=1, max_size=12),
)
def test_a_row_of_states_is_judged_as_one_after_the_other(contract: Contract, moves: list[Any]) -> None:
    gaps, steps, out = zip(*moves, strict=True)
    rows = np.stack([pose()] * len(moves))
    rows[:, 0] += np.cumsum(steps)
    rows[np.array(out) & (np.arange(len(moves)) % 5 == 4), 1] = 9.0
    stamps = T0 + np.cumsum(gaps)
    alone, refused = StateCheck(contract, ARM), False
    for row, stamp in zip(rows, stamps.tolist(), strict=True):
        try:
            alone.check(row, stamp)
        except Rejected:
            refused = True
            break
    assert StateCheck(contract, ARM).are_true(rows, stamps) == (not refused)


def test_the_live_buffer_drops_and_counts_it(contract: Contract) -> None:
    buffer = ObservationBuffer(contract)
    stream = contract.state_streams[0]
    columns = [column for column in contract.state if column.source == stream.name]
    at = {column.name: value for column, value in zip(columns, [*pose(), 0.02], strict=False)}

    def push(tick: int, **changed: float) -> bool:
        now = T0 + tick * PERIOD_NS
        values = at | {f'{joint}/position': value for joint, value in changed.items()}
        return buffer.push(stream.name, message_builders.state(contract, stream, now, values), now)

    assert push(0)
    assert not push(1, joint2=-1.0)
    assert push(2)
    [report] = [each for each in buffer.health(T0 + 2 * PERIOD_NS) if each.name == stream.name]
    assert report.rejected == {Reason.IMPLAUSIBLE: 1}
    state = buffer.state(T0 + 2 * PERIOD_NS)
    assert state is not None
    assert state[contract.state_names.index('joint2/position')] == 1.0


def test_the_index_of_recordings_refuses_what_the_live_buffer_does(contract: Contract, tmp_path: Path) -> None:
    from ki_bags.problems import Problems
    from ki_bags.reader import open_bag
    from training.index.streams import collect

    stream = contract.state_streams[0]
    with BagWriter(tmp_path / 'bag') as bag:
        buffer, told = ObservationBuffer(contract), []
        for tick in range(100):
            now = T0 + tick * PERIOD_NS
            glitch = 7.0 if tick % 10 == 5 else 0.001 * tick
            columns = [column.name for column in contract.state if column.source == stream.name]
            values: dict[str, Any] = dict(zip(columns, [*pose(), 0.02], strict=False))
            values['joint3/position'] = 1.0 + glitch
            message = message_builders.state(contract, stream, now, values)
            told.append(buffer.push(stream.name, message, now))
            message_builders.put(bag, stream.topic, now, message)
            for camera in contract.cameras:
                picture = message_builders.picture(now, np.full((8, 8, 3), tick, np.uint8))
                message_builders.put(bag, camera.topic, now, picture)
    assert told.count(False) == 10
    problems = Problems()
    (tmp_path / 'pictures').mkdir()
    found = collect(open_bag(tmp_path / 'bag'), contract, tmp_path / 'pictures', problems)
    assert len(found.states[stream.name]) == told.count(True)
    assert [each.count for each in problems if each.kind == 'implausible'] == [10]
