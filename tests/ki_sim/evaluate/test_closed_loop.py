"""Closed-loop evaluation: chunks are carried out as told, and outcomes are counted honestly."""

from __future__ import annotations

import json
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
from ki_sim.world.world import SimObservation, clipped

SMALL = EvaluationSettings(execute_steps=20, image_size=16)


class Replay:
    """A policy that knows the future: the expert's rows from the observation's time on, held at the end."""

    def __init__(self, task: str, seed: int, goal: int | None, arms, lead: int = 0) -> None:
        self.rows = np.array([f.action for f in record_episode(task, seed, goal, quality=None, arms=arms).frames])
        self.lead, self.asked, self.resets = lead, [], 0

    def reset(self) -> None:
        self.resets += 1

    def __call__(self, observation: SimObservation) -> np.ndarray:
        self.asked.append(observation.time_ns)
        first = observation.time_ns // 50_000_000 - self.lead
        return self.rows[np.clip(np.arange(first, first + 50), 0, len(self.rows) - 1)]


def idle(observation: SimObservation) -> np.ndarray:
    row = clipped(observation.state)
    row[14:] = 0
    return np.tile(row, (50, 1))


def test_a_perfect_policy_succeeds_and_is_asked_every_execute_steps(arms):
    policy = Replay('demo', 3, None, arms)
    outcome = run_episode(policy, 'demo', 3, settings=SMALL)
    assert outcome.success
    assert outcome.score == 1.0
    assert outcome.followed
    assert outcome.first_touched == episode('demo', 3).label(episode('demo', 3).goal.things[0])
    assert policy.resets == 1
    assert set(np.diff(policy.asked)) == {20 * 50_000_000}
    assert outcome.calls == len(policy.asked)


def test_rows_may_be_counted_from_the_one_in_force(arms):
    policy = Replay('demo', 3, None, arms, lead=1)
    assert run_episode(policy, 'demo', 3, settings=EvaluationSettings(20, first_row=1, image_size=16)).success


def test_a_late_chunk_skips_the_rows_that_are_past(arms):
    policy = Replay('demo', 3, None, arms)
    outcome = run_episode(policy, 'demo', 3, settings=EvaluationSettings(20, delay_steps=4, image_size=16))
    assert outcome.success


def test_the_other_instruction_makes_it_a_failure(arms):
    policy = Replay('demo', 3, 0, arms)
    same = episode('demo', 3, 0).goal
    other = next(g for g in range(1, 30) if episode('demo', 3, g).goal.things != same.things)
    outcome = run_episode(policy, 'demo', 3, other, EvaluationSettings(50, image_size=16, limit_s=9.0))
    assert not outcome.success
    assert not outcome.followed
    assert outcome.first_touched


def test_doing_nothing_fails_and_touches_nothing(tmp_path):
    report = evaluate(idle, 'demo', [0], EvaluationSettings(50, image_size=16, limit_s=1.0), videos=tmp_path)
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
    report = evaluate(
        idle, 'demo', [0, 1], EvaluationSettings(50, image_size=16, limit_s=0.2), progress=seen.append, paired=True
    )
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
    ('chunk', 'said'),
    [
        (np.zeros((50, 14)), r'chunk of shape \(50, 14\)'),
        (np.zeros((0, 17)), r'chunk of shape \(0, 17\)'),
        (np.full((50, 17), np.nan), 'the policy is broken'),
    ],
)
def test_a_broken_policy_is_a_failure_with_a_reason(chunk, said):
    outcome = run_episode(lambda observation: chunk, 'demo', 0, settings=SMALL)
    assert not outcome.success
    import re

    assert re.search(said, outcome.error)


def test_rows_outside_the_limits_are_clipped_and_counted():
    def wild(observation: SimObservation) -> np.ndarray:
        return idle(observation) + np.eye(17)[6]

    outcome = run_episode(wild, 'demo', 0, settings=EvaluationSettings(50, image_size=16, limit_s=0.5))
    assert outcome.clipped == 10
    assert outcome.error == ''


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(SimError, match='use at least 1'):
        run_episode(idle, 'demo', 0, settings=EvaluationSettings(execute_steps=0))


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


def test_a_film_keeps_the_colour_of_a_small_thing(tmp_path):
    rows, columns = np.mgrid[0:200, 0:200]
    frame = np.stack([90 + rows // 4, 80 + columns // 4, 70 + (rows + columns) // 8], axis=-1).astype(np.uint8)
    frame[100:104, 100:104] = (150, 30, 200)
    with Image.open(write_gif([frame] * 3, tmp_path / 'film.gif', colours=32)) as film:
        shown = np.asarray(film.convert('RGB'))[102, 102]
    assert np.abs(shown.astype(int) - (150, 30, 200)).max() < 8
