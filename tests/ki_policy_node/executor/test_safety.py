"""What the executor tells of its interventions."""

from __future__ import annotations

from ki_policy_node.executor.safety import Event, Kind, Severity, lines_of


def clamp(column: str) -> Event:
    return Event(Kind.VELOCITY_LIMIT, Severity.CLAMPED, f'{column}: 3 was brought to its velocity limit of 2.', 7)


def test_one_chunk_that_breaks_many_limits_is_one_line() -> None:
    fault = Event(Kind.ESTOP, Severity.FAULT, 'The e-stop is pressed.')
    lines = lines_of([clamp('a'), fault, clamp('b'), clamp('c')])
    first = 'a: 3 was brought to its velocity limit of 2. 2 more of chunk 7 on ~/safety_event.'
    assert lines == [(Severity.CLAMPED, first), (Severity.FAULT, 'The e-stop is pressed.')]


def test_what_is_alone_is_told_as_it_is() -> None:
    assert lines_of([]) == []
    assert lines_of([clamp('a')]) == [(Severity.CLAMPED, clamp('a').message)]
