"""Two policies that send chunks in turn are found, and one alone is never taken for two for longer than a silence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ki_policy_node.executor.speakers import SILENT_NS, Speakers

S = 1_000_000_000
PERIODS = st.integers(30_000_000, 1_900_000_000)


def chunks(first: int, start_ns: int, period_ns: int, end_ns: int, jitter: list[int]) -> list[tuple[int, int]]:
    """When a policy says which number, late by up to a tenth of its period."""
    times = range(start_ns, end_ns, period_ns)
    late = [jitter[i % len(jitter)] * period_ns // 1000 for i in range(len(times))]
    return [(time + later, first + i) for i, (time, later) in enumerate(zip(times, late, strict=True))]


def judged(said: list[tuple[int, int]]) -> list[tuple[int, bool]]:
    """When which chunk was refused, both policies of one name."""
    speakers = Speakers()
    return [(time, bool(speakers.rivals('a', number, time))) for time, number in sorted(said)]


JITTER = st.lists(st.integers(0, 100), min_size=1, max_size=7)


@given(st.integers(1, 40), st.integers(1, 40), PERIODS, PERIODS, st.integers(0, 2 * S), JITTER)
def test_two_of_one_name_are_found_and_one_goes_on_alone(first, second, period, other, start, jitter):
    said = chunks(first, 0, period, 20 * S, jitter) + chunks(second, start, other, 40 * S, jitter[::-1])
    refused = [time for time, rival in judged(said) if rival]
    assert any(time < 20 * S for time in refused), 'two that speak for 18 s are found'
    assert all(time < 20 * S + SILENT_NS + period + 2 * other for time in refused), 'and the one that stays, goes on'


@given(st.integers(1, 40), PERIODS, JITTER, st.lists(st.booleans(), min_size=20, max_size=40))
def test_one_alone_is_never_two_whatever_is_lost(first, period, jitter, lost):
    said = chunks(first, 0, period, 20 * S, jitter)
    heard = [each for i, each in enumerate(said) if not (lost[i % len(lost)] and i % 2)]
    assert not any(rival for _, rival in judged(heard)), 'every other chunk may be lost'


def test_numbers_that_pass_those_of_an_ended_policy_are_one_policy():
    heard = [(0, 0), (500, 1), (1610, 0), (1640, 1), (2170, 2)]  # ms, number; the last of the first at 1610
    heard += [(3210 + 1070 * i, 3 + i) for i in range(20)]
    refused = [time for time, rival in judged([(ms * 1_000_000, number) for ms, number in heard]) if rival]
    assert all(time <= 4 * S for time in refused)


def test_who_does_not_count_is_no_rival_of_itself():
    assert not any(rival for _, rival in judged([(i * S // 2, 0) for i in range(20)]))


def test_two_that_do_not_count_are_told_apart_by_their_names():
    speakers = Speakers()
    assert [bool(speakers.rivals(name, 0, i * S // 2)) for i, name in enumerate('aabab')] == [False] * 3 + [True] * 2
