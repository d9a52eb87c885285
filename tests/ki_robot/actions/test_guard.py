"""The guard: what passes unchanged, what is clamped, what is rejected, each with column, step, value and limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ki_robot.actions.chunk import ActionChunk
from ki_robot.actions.guard import Accept, GuardPolicy, Kind, Reject, check
from ki_robot.contract.parts import Limits
from ki_robot.errors import RobotError

STEP, T0 = 50_000_000, 1_000_000_000
DT = STEP * 1e-9
NAMES = ('arm/position', 'base/linear/x/velocity')
LIMITS = (Limits(lower=-1.0, upper=1.0, velocity=2.0, acceleration=20.0), Limits(velocity=0.5, acceleration=1.0))


def chunk_of(data: Any) -> ActionChunk:
    return ActionChunk(T0, STEP, NAMES, np.array(data, dtype=np.float64), observation_ns=T0 - STEP, chunk_id=4)


def still(arm: float = 0.2, base: float = 0.1, horizon: int = 10) -> np.ndarray:
    return np.tile([arm, base], (horizon, 1))


def accepted(result: Accept | Reject) -> Accept:
    assert isinstance(result, Accept), result
    return result


def rejected(result: Accept | Reject) -> Reject:
    assert isinstance(result, Reject), result
    return result


def test_a_chunk_within_all_limits_passes_untouched() -> None:
    chunk = chunk_of(still())
    result = accepted(check(chunk, LIMITS, T0, np.array([0.2, 0.0])))
    assert result.chunk is chunk
    assert result.clamps == ()


def test_values_on_the_limit_pass() -> None:
    data = still(0.0, 0.5)
    data[:, 0] = np.linspace(-1.0, -1.0 + 9 * 2.0 * DT, 10)
    assert accepted(check(chunk_of(data), LIMITS, T0)).clamps == ()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_rejects_the_whole_chunk(value: float) -> None:
    chunk = chunk_of(still())
    chunk.data_HN[7, 1] = value
    result = rejected(check(chunk, LIMITS, T0))
    assert (result.reason, result.column, result.step) == (Kind.NON_FINITE, NAMES[1], 7)
    assert 'base/linear/x/velocity at step 7' in result.message


def test_a_chunk_that_is_over_or_rests_on_old_data_is_rejected() -> None:
    chunk = chunk_of(still())
    assert rejected(check(chunk, LIMITS, T0 + 10 * STEP)).reason is Kind.CHUNK_EXPIRED
    result = rejected(check(chunk, LIMITS, T0 + 8 * STEP, policy=GuardPolicy(max_age_ns=400_000_000)))
    assert (result.reason, result.value, result.limit) == (Kind.CHUNK_EXPIRED, 0.45, 0.4)
    assert result.message == 'Chunk 4 rests on an observation 0.450 s old; at most 0.4 s.'


def test_a_first_step_far_from_the_measured_pose_is_rejected() -> None:
    result = rejected(check(chunk_of(still(0.9)), LIMITS, T0, np.array([0.2, 0.0])))
    assert (result.reason, result.column, result.step) == (Kind.START_JUMP, NAMES[0], 0)
    assert result.value == pytest.approx(0.7)
    assert result.limit == pytest.approx(0.6)
    data = still(0.9)
    data[3:, 0] = 0.25
    assert isinstance(check(chunk_of(data), LIMITS, T0 + 3 * STEP, np.array([0.2, 0.0])), Accept), (
        'past steps do not count'
    )
    assert isinstance(check(chunk_of(still(0.9)), LIMITS, T0, np.array([np.nan, 0.0])), Accept), 'nothing is measured'


def test_a_first_step_may_be_approached_slowly_where_the_policy_says_so() -> None:
    result = accepted(check(chunk_of(still(0.9)), LIMITS, T0, np.array([0.2, 0.0]), GuardPolicy(jump='clamp')))
    path = np.concatenate([[0.2], result.chunk.data_HN[:, 0]])
    assert (np.diff(path) >= -1e-12).all(), 'it does not overshoot'
    assert np.abs(np.diff(path)).max() <= 2.0 * DT + 1e-9
    assert {clamp.kind for clamp in result.clamps} == {Kind.VELOCITY_LIMIT, Kind.ACCELERATION_LIMIT}


def test_a_robot_outside_its_limits_comes_back_without_a_jump() -> None:
    result = accepted(check(chunk_of(still(0.9)), LIMITS, T0, np.array([1.2, 0.1]), GuardPolicy(jump='clamp')))
    path = np.concatenate([[1.2], result.chunk.data_HN[:, 0]])
    assert np.abs(np.diff(path)).max() <= 2.0 * DT + 1e-9
    assert path[-1] == pytest.approx(0.9, abs=0.02)


CASES = [
    (0, slice(4, None), 1.3, Kind.POSITION_LIMIT, 'position', 4, 1.3, 1.0),
    (0, slice(4, None), -1.4, Kind.POSITION_LIMIT, 'position', 4, -1.4, -1.0),
    (1, slice(4, None), 0.9, Kind.POSITION_LIMIT, 'position', 4, 0.9, 0.5),
    (0, slice(5, None), 0.35, Kind.VELOCITY_LIMIT, 'velocity', 5, 3.0, 2.0),
    (1, slice(5, None), 0.3, Kind.ACCELERATION_LIMIT, 'acceleration', 5, 4.0, 1.0),
    (0, slice(5, None), 0.26, Kind.ACCELERATION_LIMIT, 'acceleration', 5, 24.0, 20.0),
]


@pytest.mark.parametrize(('column', 'steps', 'value', 'kind', 'rule', 'step', 'told', 'limit'), CASES)
def test_an_excess_is_clamped_or_rejected_as_the_policy_says(
    column: int, steps: slice, value: float, kind: Kind, rule: str, step: int, told: float, limit: float
) -> None:
    data = still()
    data[steps, column] = value
    clamped = accepted(check(chunk_of(data), LIMITS, T0))
    worst = next(clamp for clamp in clamped.clamps if clamp.kind is kind)
    assert (worst.column, worst.step) == (NAMES[column], step)
    assert worst.value == pytest.approx(told)
    assert worst.limit == pytest.approx(limit)
    assert isinstance(check(clamped.chunk, (Limits(lower=-1.0, upper=1.0, velocity=2.0), LIMITS[1]), T0), Accept)
    np.testing.assert_array_equal(clamped.chunk.data_HN[: step - 1], data[: step - 1])
    result = rejected(check(chunk_of(data), LIMITS, T0, policy=GuardPolicy(**{rule: 'reject'})))
    assert (result.reason, result.column, result.step) == (kind, NAMES[column], step)
    assert result.value == pytest.approx(told)
    assert result.limit == pytest.approx(limit)


def test_steps_already_past_are_neither_judged_nor_changed() -> None:
    data = still()
    data[:4, 0] = 5.0
    result = accepted(check(chunk_of(data), LIMITS, T0 + 4 * STEP))
    assert result.clamps == ()
    np.testing.assert_array_equal(result.chunk.data_HN, data)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.float64, (12, 2), elements=st.floats(-1e6, 1e6)),
    hnp.arrays(np.float64, 2, elements=st.floats(-0.9, 0.9)),
    st.integers(0, 11),
    st.booleans(),
)
def test_whatever_comes_in_what_goes_out_keeps_the_limits(
    data: np.ndarray, measured: np.ndarray, late: int, from_measured: bool
) -> None:
    measured = measured * [1.0, 0.5]
    result = accepted(
        check(chunk_of(data), LIMITS, T0 + late * STEP, measured if from_measured else None, GuardPolicy(jump='clamp'))
    )
    out = result.chunk.data_HN[late:]
    if from_measured:
        out = np.concatenate([measured[None], out])
    arm, base = out[:, 0], out[:, 1]
    assert np.isfinite(out).all()
    assert np.abs(arm).max() <= 1.0 + 1e-6 * (1 + np.abs(data).max())
    assert np.abs(base).max() <= 0.5 + 1e-6 * (1 + np.abs(data).max())
    if result.clamps:
        assert np.abs(np.diff(arm)).max(initial=0.0) <= 2.0 * DT + 1e-9
        assert np.abs(np.diff(base)).max(initial=0.0) <= 1.0 * DT + 1e-9
        turn = np.abs(np.diff(arm, n=2))
        free = np.abs(arm[2:]) < 1.0 - 1e-9  # at a bound the brake may be harder than the limit
        assert turn[free].max(initial=0.0) <= 20.0 * DT**2 + 1e-9


def test_limits_must_be_given_for_every_column() -> None:
    with pytest.raises(RobotError, match='1 limits are given for 2 columns'):
        check(chunk_of(still()), LIMITS[:1], T0)


def test_an_unlimited_column_is_never_clamped() -> None:
    data = np.random.default_rng(0).normal(size=(10, 2)) * 100
    assert accepted(check(chunk_of(data), (Limits(), Limits()), T0)).clamps == ()


@pytest.mark.parametrize('wrong', [{'velocity': 'ignore'}, {'jump_s': 0.0}, {'max_age_ns': 0}])
def test_a_policy_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(RobotError, match='guard'):
        GuardPolicy(**wrong)
