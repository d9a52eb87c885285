"""The monitor of an episode that others drive: the same rules as the evaluation in one process."""

from __future__ import annotations

import pytest

from ki_sim.evaluate.closed_loop import SETTLED_STEPS
from ki_sim.evaluate.episode_monitor import EpisodeMonitor


class Staged:
    """A world in which success comes and goes as a test wants."""

    def __init__(self, world) -> None:
        self.episode, self.touches, self.time_ns, self.done = world.episode, world.touches, 0, False

    def success(self) -> bool:
        return self.done

    def score(self) -> float:
        return float(self.done)

    def followed(self) -> bool:
        return self.done


@pytest.fixture
def staged(blind_world) -> Staged:
    return Staged(blind_world('demo', 1))


def begun(world: Staged) -> EpisodeMonitor:
    monitor = EpisodeMonitor(world)
    monitor.begin(world)
    return monitor


def look(monitor: EpisodeMonitor, world: Staged, steps: int) -> None:
    for _ in range(steps):
        world.time_ns += 50_000_000
        monitor.look(world)


def steps_of(world: Staged) -> int:
    return round(world.episode.limit_s / 0.05)


def test_success_that_has_not_held_when_time_is_up_does_not_count(staged):
    monitor = begun(staged)
    look(monitor, staged, steps_of(staged) - SETTLED_STEPS + 1)
    staged.done = True
    look(monitor, staged, SETTLED_STEPS - 1)
    assert monitor.ended == 'time'
    assert not monitor.report(staged)['success']


def test_success_that_has_held_at_the_last_moment_counts(staged):
    monitor = begun(staged)
    look(monitor, staged, steps_of(staged) - SETTLED_STEPS)
    staged.done = True
    look(monitor, staged, SETTLED_STEPS)
    assert monitor.ended == 'success'
    assert monitor.report(staged)['success']


def test_an_operator_who_stops_when_time_is_up_does_not_change_the_verdict(staged):
    monitor = begun(staged)
    look(monitor, staged, steps_of(staged) - 1)
    staged.done = True
    look(monitor, staged, 1)
    monitor.finish(staged, '')
    assert monitor.ended == 'time'
    assert not monitor.report(staged)['success']


def test_an_operator_who_is_done_in_time_is_judged_by_what_is_true_then(staged):
    monitor = begun(staged)
    look(monitor, staged, 3)
    staged.done = True
    monitor.finish(staged, '')
    assert monitor.ended == 'operator'
    assert monitor.report(staged)['success']


def test_a_report_before_the_end_tells_of_now(staged):
    monitor = begun(staged)
    look(monitor, staged, 2)
    assert not monitor.report(staged)['success']
    staged.done = True
    assert monitor.report(staged)['success']
    assert monitor.report(staged)['ended'] == ''
