"""The trivial predictors are exact on curves that they describe."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_policy_node.replay.predictors import TREND_NS, extrapolate, hold, velocity
from ki_robot.contract.contract import Contract

MS = 1_000_000


def line(times_ns: range, start: float, speed: float) -> list[tuple[int, np.ndarray]]:
    return [(time_ns, np.array([start + speed * time_ns / 1e9, -speed * time_ns / 1e9])) for time_ns in times_ns]


@settings(max_examples=50, deadline=None)
@given(start=st.floats(-2, 2), speed=st.floats(-3, 3), step_ms=st.integers(1, 150), count=st.integers(2, 300))
def test_a_straight_line_is_continued_exactly(start: float, speed: float, step_ms: int, count: int) -> None:
    past = line(range(0, count * step_ms * MS, step_ms * MS), start, speed)
    now_ns, now = past[-1]
    found = velocity(past, now_ns)
    assert found is not None
    np.testing.assert_allclose(found, [speed, -speed], atol=1e-9)
    ahead = np.array([values for _, values in line(range(now_ns, now_ns + 50 * 33 * MS, 33 * MS), start, speed)])
    np.testing.assert_allclose(extrapolate(now, found, 50, 0.033), ahead, atol=1e-9)


def test_a_velocity_is_of_the_last_fifth_of_a_second_and_of_nothing_that_comes_later() -> None:
    past = [(time, np.array([0.0])) for time in range(0, 1000 * MS, 10 * MS)]
    past += [(1000 * MS + time, np.array([2.0 * time / 1e9])) for time in range(0, TREND_NS + 1, 10 * MS)]
    assert velocity(past, 1000 * MS + TREND_NS) == pytest.approx(2.0)
    assert velocity(past, 1000 * MS + TREND_NS // 2) == pytest.approx(1.0)
    assert velocity(past, 1000 * MS) == pytest.approx(0.0)


def test_without_two_measurements_there_is_no_velocity() -> None:
    assert velocity([], 0) is None
    assert velocity([(5, np.zeros(3))], 10) is None
    assert velocity([(5, np.zeros(3)), (7, np.zeros(3))], 6) is None
    # What came before a gap longer than the look back says nothing of now.
    assert velocity([(0, np.zeros(1)), (TREND_NS + 1, np.ones(1))], TREND_NS + 1) is None


def test_holding_keeps_positions_stops_velocities_and_does_not_invent(rigs) -> None:
    plain = rigs.small_robot()
    contract = Contract.parse(plain)
    names = contract.state_names
    state = np.arange(1.0, 1.0 + len(names))
    held = dict(zip(contract.action_names, hold(contract, state), strict=True))
    for place, name in enumerate(names):
        assert held[name] == state[place]
    assert held['base/linear/x/velocity'] == 0.0
    plain['state'] = plain['state'][:2]
    fewer = Contract.parse(plain)
    assert np.isnan(hold(fewer, state[:2])[fewer.action_names.index('gripper/position')])
