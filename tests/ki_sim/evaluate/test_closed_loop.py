"""Closed-loop evaluation: chunks are carried out as told, and outcomes are counted honestly."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ki_sim.errors import SimError
from ki_sim.evaluate.closed_loop import (
    EvaluationReport,
    EvaluationSettings,
    SceneOutcome,
    evaluate,
    expert_table,
    rate,
    run_episode,
    wilson,
    write_gif,
)
from ki_sim.record.record import record_episode
from ki_sim.tasks.tasks import episode
from ki_sim.world.world import STEP_NS, clipped

SMALL = EvaluationSettings(image_size=16)


class Expert:
    """A policy that knows the future: the expert's rows, held at the end."""

    cameras = ()

    def __init__(self, task: str, seed: int, goal: int | None, arms) -> None:
        self.rows = np.array([f.action for f in record_episode(task, seed, goal, quality=None, arms=arms).frames])
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def next_row(self, time_ns: int, observe) -> np.ndarray:
        return self.rows[min(time_ns // STEP_NS, len(self.rows) - 1)]


class Idle:
    """Looks every second, and stands still; `ahead` is added to where it stands."""

    cameras = ('head',)

    def __init__(self, ahead: np.ndarray | None = None) -> None:
        self.ahead = ahead

    def reset(self) -> None:
        self.row = None

    def next_row(self, time_ns: int, observe) -> np.ndarray | None:
        if time_ns % 10**9 == 0:
            self.row = clipped(observe().state)
            self.row[14:] = 0
        return None if self.ahead is None else self.row + self.ahead


def test_a_perfect_policy_succeeds(arms):
    policy = Expert('demo', 3, None, arms)
    outcome = run_episode(policy, 'demo', 3, settings=SMALL)
    assert outcome.success
    assert outcome.score == 1.0
    assert outcome.followed
    assert outcome.first_touched == episode('demo', 3).label(episode('demo', 3).goal.objects[0])
    assert policy.resets == 1


def test_a_policy_without_a_row_stands_still_and_its_looks_are_counted():
    outcome = run_episode(Idle(), 'demo', 0, settings=EvaluationSettings(16, limit_s=2.0))
    assert (outcome.calls, outcome.clipped, outcome.first_touched) == (2, 0, '')


def test_the_other_instruction_makes_it_a_failure(arms):
    policy = Expert('demo', 3, 0, arms)
    same = episode('demo', 3, 0).goal
    other = next(g for g in range(1, 30) if episode('demo', 3, g).goal.objects != same.objects)
    outcome = run_episode(policy, 'demo', 3, other, EvaluationSettings(16, limit_s=9.0))
    assert not outcome.success
    assert not outcome.followed
    assert outcome.first_touched


def test_doing_nothing_fails_and_touches_nothing(tmp_path):
    report = evaluate(Idle(), 'demo', [0], EvaluationSettings(16, limit_s=1.0), videos=tmp_path)
    summary = report.summary()
    assert summary['success']['k'] == 0
    assert summary['followed']['n'] == 0
    assert summary['followed']['rate'] is None
    assert report.outcomes[0].time_s == pytest.approx(1.0)
    film = Image.open(report.outcomes[0].video)
    assert film.n_frames == 5
    report.save(tmp_path / 'r.json')
    assert json.loads((tmp_path / 'r.json').read_text())['summary']['episodes'] == 1


def test_pairs_play_every_scene_twice(arms):
    seen = []
    report = evaluate(Idle(), 'demo', [0, 1], EvaluationSettings(16, limit_s=0.2), progress=seen.append, paired=True)
    assert len(report.outcomes) == len(seen) == 4
    assert report.outcomes[0].instruction != report.outcomes[1].instruction


def test_a_policy_that_hears_no_words_follows_no_pair():
    deaf = [
        SceneOutcome('demo', seed, goal, '', first_touched='cup', followed=goal == 0)
        for seed in range(4)
        for goal in (0, 1)
    ]
    summary = EvaluationReport('demo', {}, deaf).summary()
    assert summary['followed'] == rate(4, 8)
    assert summary['pairs_followed'] == rate(0, 4)
    listens = [replace(outcome, followed=outcome.seed != 3 or outcome.followed) for outcome in deaf]
    assert EvaluationReport('demo', {}, listens).summary()['pairs_followed'] == rate(3, 4)
    assert EvaluationReport('demo', {}, deaf[::2]).summary()['pairs_followed']['n'] == 0


@pytest.mark.parametrize(
    ('row', 'said'),
    [
        (np.zeros(14), r'commands of shape \(14,\)'),
        (np.zeros((50, 17)), r'commands of shape \(50, 17\)'),
        (np.full(17, np.nan), 'the policy is broken'),
    ],
)
def test_a_broken_policy_is_a_failure_with_a_reason(row, said):
    policy = Idle()
    policy.next_row = lambda time_ns, observe: row
    outcome = run_episode(policy, 'demo', 0, settings=SMALL)
    assert not outcome.success
    assert re.search(said, outcome.error)


def test_rows_outside_the_limits_are_clipped_and_counted():
    outcome = run_episode(Idle(np.eye(17)[6]), 'demo', 0, settings=EvaluationSettings(16, limit_s=0.5))
    assert outcome.clipped == 10
    assert outcome.error == ''


def test_wilson_intervals_are_the_known_ones():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(200, 200) == pytest.approx((0.9812, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert rate(0, 0)['rate'] is None


def test_the_experts_table_counts_it(arms):
    table = expert_table(['demo'], [0, 1], workers=1)
    assert isinstance(table['demo'], EvaluationReport)
    assert table['demo'].summary()['success'] == rate(2, 2)
    with pytest.raises(SimError, match="task 'mop'"):
        expert_table(['mop'], [0])


def test_a_film_without_frames_is_refused(tmp_path):
    with pytest.raises(SimError, match='no frames'):
        write_gif([], tmp_path / 'x.gif')


def test_a_film_keeps_the_colour_of_a_small_object(tmp_path):
    rows, columns = np.mgrid[0:200, 0:200]
    frame = np.stack([90 + rows // 4, 80 + columns // 4, 70 + (rows + columns) // 8], axis=-1).astype(np.uint8)
    frame[100:104, 100:104] = (150, 30, 200)
    with Image.open(write_gif([frame] * 3, tmp_path / 'film.gif', colours=32)) as film:
        shown = np.asarray(film.convert('RGB'))[102, 102]
    assert np.abs(shown.astype(int) - (150, 30, 200)).max() < 8
