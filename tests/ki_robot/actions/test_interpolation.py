"""Between the steps: values, velocities, no overshoot, and a trajectory that controllers accept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ki_robot.actions.chunk import ActionChunk
from ki_robot.actions.interpolation import interpolate, resample, slopes
from ki_robot.errors import RobotError

STEP, T0 = 50_000_000, 1_000_000_000
DATA = hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.floats(-5, 5))


def chunk_of(data: np.ndarray) -> ActionChunk:
    return ActionChunk(T0, STEP, ('a/position', 'b/position'), data)


@pytest.mark.parametrize('kind', ['linear', 'cubic'])
@settings(max_examples=60, deadline=None)
@given(data=DATA)
def test_every_point_is_met_and_nothing_overshoots(kind: str, data: np.ndarray) -> None:
    chunk = chunk_of(data)
    values, _ = interpolate(chunk, chunk.times_ns, kind)
    np.testing.assert_allclose(values, data, atol=1e-12)
    fine = T0 + np.arange(0, (len(data) - 1) * 20 + 1) * (STEP // 20)
    values, _ = interpolate(chunk, fine, kind)
    for index in range(len(data) - 1):
        low, high = np.minimum(data[index], data[index + 1]), np.maximum(data[index], data[index + 1])
        part = values[index * 20 : index * 20 + 21]
        assert (part >= low - 1e-9).all()
        assert (part <= high + 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(DATA, st.integers(-STEP, 13 * STEP))
def test_velocity_is_the_derivative_of_the_value(data: np.ndarray, offset: int) -> None:
    chunk, half = chunk_of(data), 1000
    time = T0 + offset
    inside = time - half > T0 and time + half < chunk.times_ns[-1]
    _, velocity = interpolate(chunk, time)
    if inside and (time - half - T0) // STEP == (time + half - T0) // STEP:
        before, after = interpolate(chunk, time - half)[0], interpolate(chunk, time + half)[0]
        np.testing.assert_allclose(velocity, (after - before) / (2 * half * 1e-9), rtol=1e-3, atol=1e-3)
    elif time < T0 or time > chunk.times_ns[-1]:
        assert not velocity.any()


def test_cubic_velocity_is_continuous_at_the_steps_and_linear_is_not() -> None:
    chunk = chunk_of(np.array([[0.0, 0.0], [1.0, 1.0], [3.0, 2.0], [3.5, 3.0]]))
    for kind, continuous in (('cubic', True), ('linear', False)):
        _, before = interpolate(chunk, T0 + STEP - 1, kind)
        _, after = interpolate(chunk, T0 + STEP + 1, kind)
        assert np.allclose(before, after, rtol=1e-4) is continuous


def test_a_straight_line_stays_straight() -> None:
    chunk = chunk_of(np.arange(10.0)[:, None] * [[1.0, -2.0]])
    times = T0 + np.arange(91) * (STEP // 10)
    values, velocities = interpolate(chunk, times)
    np.testing.assert_allclose(values[:, 0], np.arange(91) / 10, atol=1e-12)
    np.testing.assert_allclose(velocities, np.tile([20.0, -40.0], (91, 1)))


def test_outside_a_chunk_it_rests_on_its_ends() -> None:
    chunk = chunk_of(np.arange(10.0).reshape(5, 2))
    for time, row in ((T0 - STEP, 0), (chunk.times_ns[-1] + 1, -1), (chunk.end_ns + STEP, -1)):
        value, velocity = interpolate(chunk, int(time))
        np.testing.assert_array_equal(value, chunk.data_HN[row])
        np.testing.assert_array_equal(velocity, 0.0)


def test_given_slopes_spare_the_work_and_change_nothing() -> None:
    chunk = chunk_of(np.random.default_rng(0).normal(size=(8, 2)))
    known = slopes(chunk.data_HN, STEP * 1e-9)
    for got, expected in zip(
        interpolate(chunk, T0 + 3 * STEP + 9, slopes_HN=known), interpolate(chunk, T0 + 3 * STEP + 9), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_a_resampled_trajectory_ends_at_rest_unless_told_otherwise() -> None:
    chunk = chunk_of(np.arange(10.0)[:, None] * [[1.0, -2.0]])
    window = resample(chunk, T0 + STEP, 10_000_000, 21)
    np.testing.assert_allclose(window.positions_TN[:, 0], 1.0 + np.arange(21) / 5, atol=1e-12)
    assert (window.times_ns[0], window.times_ns[-1]) == (T0 + STEP, T0 + STEP + 200_000_000)
    np.testing.assert_array_equal(window.velocities_TN[-1], 0.0)
    np.testing.assert_allclose(window.velocities_TN[-2], [20.0, -40.0])
    moving = resample(chunk, T0 + STEP, 10_000_000, 21, last_velocity_zero=False)
    np.testing.assert_allclose(moving.velocities_TN[-1], [20.0, -40.0])


def test_nonsense_is_refused() -> None:
    chunk = chunk_of(np.ones((3, 2)))
    with pytest.raises(RobotError, match="interpolation is 'spline'"):
        interpolate(chunk, T0, 'spline')
    with pytest.raises(RobotError, match='0 points'):
        resample(chunk, T0, 10, 0)
