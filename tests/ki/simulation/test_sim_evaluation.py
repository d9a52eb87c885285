"""Cells of an evaluation: each in a file of its own, gone on with where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ki.simulation import sim_evaluation, sim_policy
from ki.simulation.sim_evaluation import (
    EvaluationCell,
    Plays,
    camera_size,
    cells_of,
    evaluate_cells,
    file_of,
    together,
    trained_tasks,
)
from ki_common.errors import KiError
from ki_policy_node.cycle.continuation import Timing
from ki_robot.contract.contract import load_contract
from ki_sim.evaluate.closed_loop import EvaluationReport, SceneOutcome
from ki_sim.record.sim_bags import DEMO_ROBOT
from ki_sim.tasks.tasks import SUITE
from ki_sim.world.world import clipped
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.policy.bundle import write_bundle, write_parts
from ki_vla.policy.serving import Serving
from ki_vla.policy.untrained import tiny_for, untrained_processor
from training.train.config import load_run

ROOT = Path(__file__).resolve().parents[3]


class Still:
    """A policy that stays where it is; counts episodes."""

    cameras: tuple[str, ...] = ()

    def __init__(self, execute_steps: int, delay_steps: int, denoise_steps: int) -> None:
        self.denoise_steps = denoise_steps
        self.timing, self.policy_id, self.resets = Timing('latest', execute_steps or 25), 'still@1', 0

    def reset(self) -> None:
        self.resets += 1

    def next_row(self, time_ns: int, observe: Any) -> np.ndarray | None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Still]:
    """The policies that were opened; episodes last a moment."""
    made: list[Still] = []

    def open_sim_policy(
        bundle: Path, backend: str, seed: int, mode: str, steps: int, delay: int, decode: str, denoise_steps: int
    ) -> Still:
        made.append(Still(steps, delay, denoise_steps))
        return made[-1]

    def play(policy: Still, task: str, seed: int, goal: int | None, settings: Any, videos: Any) -> SceneOutcome:
        policy.reset()
        return SceneOutcome(task, seed, seed if goal is None else goal, 'go', success=seed % 2 == 0)

    monkeypatch.setattr(sim_policy, 'open_sim_policy', open_sim_policy)
    monkeypatch.setattr('ki_sim.evaluate.closed_loop.run_episode', play)
    return made


def test_every_task_is_played_in_every_way_and_a_policy_is_opened_once_a_way(
    tmp_path: Path, opened: list[Still]
) -> None:
    cells = cells_of(['demo', 'touch'], ['latest'], [4, 8], [0, 2])
    found = list(evaluate_cells(Plays(tmp_path, 3), cells, tmp_path))
    assert len(found) == 8
    assert len(opened) == 4
    assert sorted(path.name for path in tmp_path.glob('*.json'))[:2] == [
        'demo-steps4-delay0.json',
        'demo-steps4-delay2.json',
    ]
    assert found[0][1].settings['execute_steps'] == 4
    assert together([report for cell, report in found[:2]])['success']['n'] == 6


def test_other_steps_of_denoising_are_another_way_of_playing(tmp_path: Path, opened: list[Still]) -> None:
    cells = [EvaluationCell('demo')]
    for steps in (0, 2, 2):
        ((_, report),) = evaluate_cells(Plays(tmp_path, 3, denoise_steps=steps), cells, tmp_path)
    assert [policy.denoise_steps for policy in opened] == [0, 2, 2]
    assert [policy.resets for policy in opened] == [3, 3, 0], 'what was played with as many steps is gone on with'
    assert report.settings['denoise_steps'] == 2


def test_a_cell_whose_every_episode_ends_with_an_error_is_no_measurement_and_is_played_again(
    tmp_path: Path, opened: list[Still], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(policy: Still, task: str, seed: int, *_: Any) -> SceneOutcome:
        policy.reset()
        return SceneOutcome(task, seed, seed, 'go', error='no camera is there')

    with monkeypatch.context() as patch:
        patch.setattr('ki_sim.evaluate.closed_loop.run_episode', broken)
        with pytest.raises(KiError, match=r'demo: each of its 3 episodes .* The first: no camera is there'):
            list(evaluate_cells(Plays(tmp_path, 3), [EvaluationCell('demo')], tmp_path))
    ((_, report),) = evaluate_cells(Plays(tmp_path, 3), [EvaluationCell('demo')], tmp_path)
    assert report.summary()['errors'] == 0
    assert opened[-1].resets == 3


def test_a_second_call_plays_what_is_missing_and_another_policy_begins_anew(
    tmp_path: Path, opened: list[Still], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [EvaluationCell('demo')]
    list(evaluate_cells(Plays(tmp_path, 2, paired=True), cells, tmp_path))
    told: list[SceneOutcome] = []
    ((_, report),) = evaluate_cells(
        Plays(tmp_path, 5, paired=True), cells, tmp_path, tell=lambda cell, outcome: told.append(outcome)
    )
    assert [policy.resets for policy in opened] == [4, 6]
    assert len(report.outcomes) == len(told) == 10
    ((_, fewer),) = evaluate_cells(Plays(tmp_path, 1, paired=True), cells, tmp_path)
    assert len(fewer.outcomes) == 2
    list(evaluate_cells(Plays(tmp_path, 2, paired=False), cells, tmp_path))
    assert opened[-1].resets == 2  # the same scenes, asked once: nothing of the pairs counts
    (tmp_path / 'demo.json').write_text('{"half": ')
    list(evaluate_cells(Plays(tmp_path, 2), cells, tmp_path))
    assert opened[-1].resets == 2
    assert len(json.loads((tmp_path / 'demo.json').read_text())['outcomes']) == 2


def test_scenes_that_are_shared_out_give_the_same_file_and_go_on_too(tmp_path: Path, opened: list[Still]) -> None:
    cells = [EvaluationCell('demo')]
    list(evaluate_cells(Plays(tmp_path, 4, paired=True), cells, tmp_path / 'one'))
    told: list[SceneOutcome] = []
    for seeds in (2, 4):  # the second call plays what is missing; so few scenes are one job, and stay in this process
        sim_evaluation._opened_here.cache_clear()
        ((_, report),) = evaluate_cells(
            Plays(tmp_path, seeds, paired=True),
            cells,
            tmp_path / 'two',
            tell=lambda cell, outcome: told.append(outcome),
            workers=2,
        )
    assert (tmp_path / 'two' / 'demo.json').read_text() == (tmp_path / 'one' / 'demo.json').read_text()
    assert [policy.resets for policy in opened] == [8, 0, 4, 0, 4]  # one is opened to be asked what it is
    assert len(report.outcomes) == 8
    assert len(told) == 4 + 8


@pytest.mark.slow
@pytest.mark.parametrize('shared', [{'workers': 2}, {'ray': 'local'}], ids=['processes', 'ray'])
def test_the_shipped_policy_does_the_same_where_others_play_its_scenes(tmp_path: Path, shared: dict[str, Any]) -> None:
    if 'ray' in shared:
        ray = pytest.importorskip('ray')
        ray.init(address='local', num_cpus=2, log_to_driver=False, include_dashboard=False)
    plays = Plays(ROOT / 'bundles' / 'demo', 5, backend='torch')
    try:
        ((_, here),) = evaluate_cells(plays, [EvaluationCell('put_in_bin')], tmp_path / 'one')
        ((_, there),) = evaluate_cells(plays, [EvaluationCell('put_in_bin')], tmp_path / 'two', **shared)
    finally:
        if 'ray' in shared:
            ray.shutdown()
    same = ('seed', 'goal_seed', 'success', 'score', 'time_s', 'first_touched', 'calls', 'clipped')
    assert [[getattr(each, name) for name in same] for each in there.outcomes] == [
        [getattr(each, name) for name in same] for each in here.outcomes
    ]


def test_names_say_what_differs() -> None:
    one, two = EvaluationCell('demo', 'rtc', 10, 0), EvaluationCell('demo', 'latest', 10, 0)
    assert file_of(one, [one]) == 'demo.json'
    assert file_of(one, [one], 'heldout') == 'demo-heldout.json'
    assert file_of(one, [one, two]) == 'demo-rtc.json'


def test_tasks_together_count_pairs_task_by_task() -> None:
    reports = [
        EvaluationReport(task, {}, [SceneOutcome(task, 7, goal, 'go', followed=heard) for goal in (0, 1)])
        for task, heard in (('demo', True), ('touch', False))
    ]
    assert together(reports)['pairs_followed']['k'] == 1
    assert together(reports)['pairs_followed']['n'] == 2


def test_standing_still_has_no_seam() -> None:
    from ki_sim.evaluate.closed_loop import seam
    from ki_sim.world.world import World

    with World('demo', 0, cameras=()) as world:
        row = clipped(world.observe(images=False).state)
    assert seam([row] * 5) == 0.0
    jumped = row.copy()
    jumped[0] += 0.125  # the shoulder's 2.5 rad/s for a step
    assert seam([row, row, jumped, jumped]) == pytest.approx(1.0)


def test_cameras_have_the_pixels_that_a_cropped_view_needs(tmp_path: Path) -> None:
    contract = load_contract(DEMO_ROBOT)
    config = tiny_for(contract).changed({'vision': {'image_size': 48, 'patch_size': 8}})
    processor = untrained_processor(contract, config)
    (tmp_path / 'policy').mkdir()
    write_parts(tmp_path / 'policy', processor, Serving.for_horizon(contract.horizon), {})
    assert camera_size(tmp_path) == 114, '48 pixels are left by the crop of 0.42'
    assert camera_size(None) == 96


def test_a_bundle_is_played_on_the_tasks_that_it_was_trained_on(tmp_path: Path) -> None:
    contract = load_contract(DEMO_ROBOT)
    config = tiny_for(contract).changed({'vision': {'image_size': 48, 'patch_size': 8}})
    processor = untrained_processor(contract, config)
    for name, run in (
        ('suite', {'simulate': {'tasks': ['suite']}}),
        ('bags', {'simulate': None}),
        ('silent', {}),
        ('odd', ['?']),
    ):
        write_bundle(
            tmp_path / name, name=name, weights=initialise(KiVla(config)), processor=processor, provenance={'run': run}
        )
    assert trained_tasks(tmp_path / 'suite') == list(SUITE)
    assert trained_tasks(tmp_path / 'bags') == trained_tasks(tmp_path / 'silent') == trained_tasks(None) == ['demo']
    assert trained_tasks(tmp_path / 'odd') == ['demo']
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'config.yaml').write_text(
        yaml.safe_dump(load_run(ROOT / 'config/train/demo.yaml', out=str(folder)).to_dict(), sort_keys=False)
    )
    assert trained_tasks(folder) == ['touch', 'put_in_bin', 'next_to', 'push', 'stack']
