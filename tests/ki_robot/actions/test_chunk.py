"""Chunks in time: late arrival, splicing, queueing, ensembling, and the measured delay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_robot.actions.chunk import (
    ActionChunk,
    carried_prefix,
    ensemble,
    first_step_due,
    rows_at,
    skip_past,
    splice,
)
from ki_robot.errors import RobotError

STEP = 50_000_000
T0 = 1_000_000_000
NAMES = ('a/position', 'b/position')


def ramp(start: int = T0, horizon: int = 10, first: float = 0.0, slope: float = 1.0, **more: Any) -> ActionChunk:
    """Column a rises by `slope` a step from `first`, column b is its negative."""
    column = first + slope * np.arange(horizon)
    return ActionChunk(start, STEP, NAMES, np.stack([column, -column], axis=1), **more)


def test_a_step_is_in_force_until_the_next_one() -> None:
    chunk = ramp()
    assert [chunk.index_at(T0 + t) for t in (-1, 0, STEP - 1, STEP, 10 * STEP)] == [-1, 0, 0, 1, 10]
    assert chunk.end_ns == T0 + 10 * STEP
    assert chunk.times_ns[3] == T0 + 3 * STEP


@pytest.mark.parametrize(
    ('late', 'left'), [(-STEP, 10), (0, 10), (STEP - 1, 10), (STEP, 9), (3 * STEP + 7, 7), (9 * STEP, 1)]
)
def test_a_late_consumer_skips_past_steps_and_never_replays_them(late: int, left: int) -> None:
    chunk = ramp(frozen_prefix=4)
    rest = skip_past(chunk, T0 + late)
    assert rest is not None
    assert rest.horizon == left
    assert rest.end_ns == chunk.end_ns, 'what is left keeps its time'
    np.testing.assert_array_equal(rest.data_HN, chunk.data_HN[10 - left :])
    assert rest.frozen_prefix == max(4 - (10 - left), 0)


def test_nothing_is_left_of_a_chunk_that_came_too_late() -> None:
    assert skip_past(ramp(), T0 + 10 * STEP) is None
    assert first_step_due(ramp(), T0 + 99 * STEP) == 10


def test_columns_are_picked_by_name() -> None:
    np.testing.assert_array_equal(ramp().columns(['b/position'])[:, 0], -np.arange(10.0))
    with pytest.raises(RobotError, match="no column 'c/position'"):
        ramp().columns(['c/position'])


def test_a_splice_keeps_the_old_steps_until_the_new_ones_can_begin() -> None:
    old, new = ramp(), ramp(T0 + 4 * STEP, first=100.0)
    joined = splice(old, new, 3)
    assert joined.data_HN[:, 0].tolist() == [4.0, 5.0, 6.0, 103.0, 104.0, 105.0, 106.0, 107.0, 108.0, 109.0]
    assert (joined.start_ns, joined.frozen_prefix) == (new.start_ns, 3)


def test_a_splice_out_of_phase_interpolates_the_old_chunk() -> None:
    joined = splice(ramp(), ramp(T0 + STEP // 4, first=50.0), 2)
    np.testing.assert_allclose(joined.data_HN[:3, 0], [0.25, 1.25, 52.0])


@pytest.mark.parametrize('old', [None, ramp(horizon=3), ramp(T0 + 20 * STEP)])
def test_a_splice_without_old_steps_begins_where_the_new_ones_hold(old: ActionChunk | None) -> None:
    new = ramp(T0 + 2 * STEP, first=100.0)
    joined = splice(old, new, 4)
    assert joined.start_ns == new.start_ns + 4 * STEP
    assert joined.frozen_prefix == 0
    np.testing.assert_array_equal(joined.data_HN, new.data_HN[4:])


def test_a_splice_that_came_after_the_whole_chunk_is_refused() -> None:
    with pytest.raises(RobotError, match='10 steps late and has 10'):
        splice(None, ramp(), 10)
    with pytest.raises(RobotError, match='different columns'):
        splice(ActionChunk(T0, STEP, ('x/position',), np.ones((9, 1))), ramp(), 2)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 9), st.integers(0, 12 * STEP), st.integers(1, 12))
def test_the_seam_of_a_splice_is_where_the_old_chunk_was(delay: int, shift: int, horizon: int) -> None:
    old, new = ramp(horizon=horizon), ramp(T0 + shift, first=7.0)
    joined = splice(old, new, delay)
    assert joined.end_ns == new.end_ns
    for index in range(joined.horizon):
        time = joined.start_ns + index * STEP
        expected = (time - T0) / STEP if time < new.start_ns + delay * STEP else 7.0 + (time - new.start_ns) / STEP
        np.testing.assert_allclose(joined.data_HN[index], [expected, -expected], atol=1e-9)


def test_a_carried_prefix_ends_with_the_old_chunk_and_is_never_padded() -> None:
    old = ramp(horizon=6)
    rows = carried_prefix(old, ramp(T0 + 4 * STEP), 10)
    assert rows[:, 0].tolist() == [4.0, 5.0]
    assert len(carried_prefix(old, ramp(T0 + 6 * STEP), 10)) == 0
    assert len(carried_prefix(old, ramp(T0 - STEP), 10)) == 0


def test_rows_on_the_same_clock_are_copied_bit_for_bit() -> None:
    data = np.random.default_rng(0).normal(size=(10, 2))
    old = ActionChunk(T0, STEP, NAMES, data)
    np.testing.assert_array_equal(rows_at(old, NAMES, T0 + 3 * STEP, STEP, 5), data[3:8])


def test_an_ensemble_is_the_weighted_mean_with_the_oldest_first() -> None:
    chunks = [ramp(T0 + k * STEP, first=k * 10.0, slope=0.0) for k in range(3)]
    mean = ensemble(chunks, chunks[-1], coefficient=0.5)
    weights = np.exp(-0.5 * np.arange(3))
    np.testing.assert_allclose(mean.data_HN[0, 0], (weights * [0.0, 10.0, 20.0]).sum() / weights.sum())
    last = weights[0]  # only the newest chunk reaches the last step
    np.testing.assert_allclose(mean.data_HN[-1, 0], 20.0 * last / last)
    np.testing.assert_allclose(mean.data_HN[-2, 0], (10.0 + 20.0 * weights[1]) / (1.0 + weights[1]))
    np.testing.assert_array_equal(ensemble([], chunks[0]).data_HN, chunks[0].data_HN)
