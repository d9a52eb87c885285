"""How late the next chunk is expected to be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ki_policy_node.cycle.delay import LATENCIES, DelayEstimate

MS = 1_000_000
latencies = st.lists(st.integers(50, 120), min_size=2, max_size=30)


def estimate(found: list[int]) -> DelayEstimate:
    made = DelayEstimate()
    for each in (9_000, *found):  # the first is cold
        made.add(each * MS)
    return made


def test_the_cold_inference_takes_no_part() -> None:
    assert estimate([]).expected_ns == 0
    assert estimate([80]).expected_ns == 80 * MS
    assert estimate([80]).expected_steps(50 * MS) == 2


@given(latencies, st.integers(0, 40))
def test_one_slow_inference_is_not_what_the_next_ones_are_planned_for(found: list[int], at: int) -> None:
    slow = [*found[:at], 3_000, *found[at:]]
    assert estimate(slow).expected_ns <= max(found) * MS


@given(latencies)
def test_inferences_that_stay_slow_are_believed_after_two(found: list[int]) -> None:
    assert estimate([*found, 400]).expected_ns <= 120 * MS
    assert estimate([*found, 400, 400]).expected_ns == 400 * MS
    assert estimate([400, 400, *[50] * LATENCIES]).expected_ns == 50 * MS
