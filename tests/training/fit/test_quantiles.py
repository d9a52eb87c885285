"""Statistics over a stream are those of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.fit.quantiles import BINS, Running, RunningSteps


@pytest.mark.parametrize('merged', [False, True], ids=['one after the other', 'apart and merged'])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(1, 300))
def test_pieces_give_what_the_whole_gives(merged: bool, seed: int, sizes: list[int], exact_rows: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(sum(sizes), 3)) * [1.0, 100.0, 1e-4] + [0.0, -1e6, 3.0]
    running = Running(3, exact_rows)
    for piece in np.split(rows, np.cumsum(sizes)[:-1]):
        if merged:
            other = Running(3, exact_rows)
            other.update(piece)
            running.merge(other)
        else:
            running.update(piece)
    assert running.count == len(rows)
    np.testing.assert_allclose(running.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(running.std, rows.std(axis=0), rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(running.low, rows.min(axis=0))
    for share in (0.01, 0.5, 0.99):
        # Between the two order statistics around the share, give or take the stated resolution.
        ordered = np.sort(rows, axis=0)
        place = share * (len(rows) - 1)
        low, high = ordered[max(int(place) - 1, 0)], ordered[min(int(np.ceil(place)) + 1, len(rows) - 1)]
        found = running.quantile(share)
        slack = running.resolution + 1e-9 * np.abs(found)
        assert (found >= low - slack).all()
        assert (found <= high + slack).all()


def test_a_long_stream_stays_within_its_stated_error() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=200_000), rng.normal(20.0, 5.0, size=100_000)])[:, None]
    running = Running(1, 1000)
    for piece in np.array_split(rows, 60):
        running.update(piece)
    for share in (0.01, 0.25, 0.99):
        assert abs(running.quantile(share)[0] - np.quantile(rows, share)) <= running.resolution[0]
    assert running.resolution[0] <= 2 * (rows.max() - rows.min()) / BINS * 2


def test_constant_columns_have_no_width() -> None:
    running = Running(2, 10)
    running.update(np.tile([[3.0, 0.0]], (100, 1)))
    np.testing.assert_allclose(running.quantile(0.99) - running.quantile(0.01), 0.0, atol=1e-12)
    np.testing.assert_array_equal(running.std, 0.0)


@pytest.mark.parametrize('jump', [1e3, -1e5])
def test_values_far_outside_widen_the_range(jump: float) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(5000, 1))
    running = Running(1, 100)
    running.update(rows)
    running.update(np.array([[jump]]))
    assert abs(running.quantile(0.5)[0] - np.median(rows)) <= running.resolution[0]
    assert running.high[0] == max(jump, rows.max())


def test_moments_by_step_are_those_of_all_known_steps_at_once() -> None:
    rng = np.random.default_rng(0)
    chunks = rng.normal(5.0, 2.0, (300, 4, 3)) * np.array([1, 2, 3, 4])[:, None]
    known = rng.random((300, 4)) < 0.7
    known[:, 3] = False
    chunks[~known] = np.nan
    running = RunningSteps(4, 3)
    for begin in (0, 7, 150):
        end = {0: 7, 7: 150, 150: 300}[begin]
        running.update(chunks[begin:end], known[begin:end])
    for step in range(3):
        np.testing.assert_allclose(running.mean_HN[step], chunks[known[:, step], step].mean(0))
        np.testing.assert_allclose(running.std_HN[step], chunks[known[:, step], step].std(0))
    assert (running.std_HN[3] == 0).all()
