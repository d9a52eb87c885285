"""Two clocks are compared by the messages that pass anyway; delays and losses do not look like an offset."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ki_policy_node.common.clock_offset import WINDOW_NS, ShortestLag, ahead_ns, in_words

MS = 1_000_000


@given(st.integers(-500, 500), st.integers(0, 30), st.integers(0, 2**31))
def test_the_offset_is_found_through_delay_jitter_and_loss(offset_ms: int, travel_ms: int, seed: int) -> None:
    rng, here, there = random.Random(seed), ShortestLag(), ShortestLag()
    for count in range(100):
        now_ns = 10**18 + count * 50 * MS
        for lag, ahead_of_sender in ((here, -offset_ms), (there, offset_ms)):
            if rng.random() < 0.05 and count:
                continue  # lost
            way_ns = (travel_ms * MS + rng.randrange(20 * MS)) if count else travel_ms * MS
            # The sender's stamp is on its own clock; the arrival on the receiver's.
            lag.add(now_ns, now_ns + way_ns + ahead_of_sender * MS, count * 50 * MS)
    found = ahead_ns(here.shortest(5_000 * MS), there.shortest(5_000 * MS))
    assert found == pytest.approx(offset_ms * MS, abs=1 * MS)


def test_what_is_old_is_forgotten_and_nothing_is_made_up() -> None:
    lag = ShortestLag()
    assert lag.shortest(0) is None
    assert ahead_ns(None, 5) is None
    assert ahead_ns(5, None) is None
    lag.add(0, 3 * MS, 0)
    lag.add(0, 9 * MS, WINDOW_NS // 2)
    assert lag.shortest(WINDOW_NS // 2) == 3 * MS
    assert lag.shortest(WINDOW_NS + 1) == 9 * MS
    assert lag.shortest(2 * WINDOW_NS) is None


def test_only_clocks_that_are_apart_are_told() -> None:
    assert in_words(None) == in_words(5 * MS) == ''
    assert '0.200 s ahead of' in in_words(200 * MS)
    assert '0.200 s behind' in in_words(-200 * MS)
