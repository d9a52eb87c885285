"""When the executor calls the machine too slow, and with which figures."""

from __future__ import annotations

import numpy as np

from ki_policy_node.executor.tick_lateness import Lateness, TickLateness

MS = 1_000_000


def lateness(late_ms: list[float], rate: float = 100.0, limit_ms: float = 50.0) -> TickLateness:
    made = TickLateness(rate, round(limit_ms * MS))
    for each in late_ms:
        made.add(round(each * MS))
    return made


def test_a_machine_that_keeps_up_is_not_complained_about():
    assert lateness([0.1] * 995 + [4.0] * 5).complaint() == ''
    assert lateness([]).complaint() == ''
    assert lateness([]).figures() == Lateness()


def test_late_ticks_are_told_with_their_share_the_worst_and_what_to_do():
    text = lateness([0.1] * 900 + [8.0] * 99 + [31.0]).complaint('To permit it, do this.')
    for part in ('too slow', '10.0 %', 'more than 5 ms late', 'p99 8.0 ms', 'worst 31.0 ms', 'To permit it, do this.'):
        assert part in text
    assert '\n' not in text


def test_a_single_tick_beyond_late_limit_is_told_and_none_where_there_is_no_limit():
    late = [0.1] * 999 + [80.0]
    assert 'worst 80.0 ms' in lateness(late).complaint()
    assert lateness(late, limit_ms=0.0).complaint() == ''


def test_only_the_last_ten_seconds_count_at_any_rate():
    for rate in (20.0, 100.0, 1000.0):
        count = round(10 * rate)
        made = lateness([30.0] * count + [0.1] * count, rate)
        assert made.figures().ticks == count
        assert made.complaint() == ''


def test_a_start_is_not_judged_before_a_second_of_ticks():
    assert lateness([30.0] * 99).complaint() == ''
    assert lateness([30.0] * 100).complaint()


def test_figures_are_those_of_the_samples():
    rng = np.random.default_rng(0)
    late = rng.exponential(2.0, 5000)
    seen, last = lateness(late.tolist()).figures(), np.sort(np.round(late[-1000:] * MS).astype(int))
    assert (seen.p50_ns, seen.p99_ns, seen.worst_ns) == (last[499], last[989], last[-1])
    assert seen.late_share == np.mean(last > 5 * MS)
    assert lateness([-5.0] * 200).figures().worst_ns == 0
