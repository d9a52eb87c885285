"""Cells, differences and verdicts: what is committed is read back, and nothing is called decided that is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from ki.evidence import statistics
from ki.evidence.cells import START, EvidenceCell, PlayedEpisode, load_cell, load_cells
from ki.evidence.figures import FIGURES, MEASURES, NOT_REPRODUCED, NOT_RUN, REPRODUCED, UNDECIDED, Claim, bar, judge
from ki.evidence.matrix import EvidenceError, load_plan
from ki.evidence.page import page_of, write_page
from ki.evidence.picture import picture_of
from ki.evidence.runner import jobs_of
from ki_robot.contract.contract import contract_file
from ki_vla.objective.recipes import RECIPES
from ki_vla.policy.bundle import load_bundle

ROOT = Path(__file__).resolve().parents[3]
POINTS = (10, 100)


def cell(
    recipe: str, seed: int, rate: float, samples: int = 100, scenes: int = 60, plan: str = 'p', think_s: float = 0.5
) -> EvidenceCell:
    """A cell whose policy succeeds in, and follows, so many of its scenes; easy scenes are easy for all."""
    hard = np.random.default_rng(7).random(scenes)
    luck = np.random.default_rng(seed).normal(0, 0.01)
    episodes = tuple(
        PlayedEpisode('touch', scene, goal, won := bool(hard[scene] < rate + luck), won, float(won), 3.0, think_s)
        for scene in range(scenes)
        for goal in (0, 1)
    )
    questions = {'accuracy': 0.6, 'asked': 10, 'kinds': {}}
    return EvidenceCell(recipe, seed, samples, plan, episodes, episodes[::2], questions)


def several(recipe: str, rate: float, **how: float) -> list[EvidenceCell]:
    return [cell(recipe, seed, rate, **how) for seed in range(3)]


def test_a_cell_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    one = cell('ours', 1, 0.5)
    path = one.save(tmp_path)
    assert path.name == 'ours-1-100.json'
    assert load_cell(path) == one
    assert load_cells(tmp_path, 'p') == [one]
    assert load_cells(tmp_path, 'another plan') == []
    path.write_text(path.read_text()[:-20])
    with pytest.raises(EvidenceError, match=r'ours-1-100\.json is no cell .*remove it'):
        load_cells(tmp_path)
    data = json.loads(one.save(tmp_path).read_text())
    data['episodes']['touch'][0].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(EvidenceError, match='an episode has 6 numbers, not 7'):
        load_cell(path)


def test_a_difference_is_over_the_same_scenes_and_seeds() -> None:
    better, worse = several('ours', 0.9), several('pi0', 0.5)
    found = statistics.difference(better, worse, statistics.success)
    assert found is not None
    assert found.value == pytest.approx(0.4, abs=0.1)
    assert 0 < found.low < found.value < found.high
    assert found.n == 180
    fewer = [replace(each, episodes=each.episodes[:20]) for each in worse[:2]]
    shared = statistics.difference(better, fewer, statistics.success)
    assert shared is not None
    assert shared.n == 20  # two seeds, ten scenes
    assert statistics.difference(better, [], statistics.success) is None


def test_few_scenes_that_end_alike_decide_nothing() -> None:
    one, other = ([cell(name, seed, 0.0, scenes=4) for seed in range(3)] for name in ('ours', 'pi0'))
    found = statistics.difference(one, other, statistics.success)
    assert found is not None
    assert found.value == 0
    assert found.high > 0.2


@pytest.mark.parametrize(
    ('ours', 'theirs', 'says', 'verdict', 'scenes'),
    [
        (0.9, 0.5, 'more', REPRODUCED, 200),
        (0.5, 0.9, 'more', NOT_REPRODUCED, 200),
        (0.61, 0.6, 'more', UNDECIDED, 20),
        (0.6, 0.6, 'alike', REPRODUCED, 200),
        (0.9, 0.4, 'alike', NOT_REPRODUCED, 200),
        (0.6, 0.6, 'alike', UNDECIDED, 20),
    ],
)
def test_a_claim_is_decided_only_by_its_interval(
    ours: float, theirs: float, says: str, verdict: str, scenes: int
) -> None:
    cells = several('ours', ours, scenes=scenes) + several('pi0', theirs, scenes=scenes)
    assert judge(Claim('ours', says, 'pi0'), cells, POINTS).verdict == verdict
    assert judge(Claim('ours', says, 'pi0', point=0), cells, POINTS).verdict == NOT_RUN  # other points have no cells
    assert judge(Claim('ours', says, 'hybrid'), cells, POINTS).verdict == NOT_RUN


def test_one_seed_decides_nothing() -> None:
    cells = [cell('ours', 0, 0.9), cell('pi0', 0, 0.1)]
    assert judge(Claim('ours', 'more', 'pi0'), cells, POINTS).verdict == UNDECIDED
    cells = [cell('pi0_fast', 0, 0.5, think_s=6.0), cell('ours', 0, 0.5, think_s=0.5)]
    assert judge(Claim('pi0_fast', 'longer', 'ours', 'duration'), cells, POINTS).verdict == UNDECIDED


def test_slower_is_judged_by_time_on_the_wall() -> None:
    cells = several('pi0_fast', 0.5, think_s=6.0) + several('ours', 0.5, think_s=0.5)
    found = judge(Claim('pi0_fast', 'longer', 'ours', 'duration'), cells, POINTS)
    assert found.verdict == REPRODUCED
    assert found.found is not None
    assert found.found.value == pytest.approx(9.0 / 3.5)


def test_a_cell_with_an_error_has_no_bar() -> None:
    broken = EvidenceCell('oft', 0, 100, 'p', error='no engine')
    assert bar([broken], 'oft', 100, 'success') is None


def test_figures_name_recipes_and_measures_that_there_are() -> None:
    listed = set(load_plan(ROOT / 'benchmarks/evidence/matrix.yaml').matrix.recipes)
    for figure in FIGURES:
        assert set(figure.recipes) <= listed <= set(RECIPES), figure.name
        assert set(figure.measures) <= set(MEASURES)
        for claim in figure.claims:
            assert {claim.one, claim.other} <= set(figure.recipes), (figure.name, claim)


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    (tmp_path / 'run.yaml').write_text(yaml.safe_dump({'data': {'arrays': 'x'}, 'stages': [{'batch': 10}]}))
    path = tmp_path / 'matrix.yaml'
    fields = {'run': 'run.yaml', 'recipes': ['ours', 'pi0'], 'seeds': [0, 1], 'samples': list(POINTS), 'scenes': 7}
    path.write_text(yaml.safe_dump(fields | {'tasks': ['touch', 'push', 'bus']}))
    return path


def test_the_page_says_what_is_there_and_what_is_not(matrix: Path) -> None:
    plan = load_plan(matrix)
    folder = matrix.parent / 'cells'
    for each in several('ours', 0.9, plan=plan.digest) + several('pi0', 0.5, plan=plan.digest):
        each.save(folder)
    EvidenceCell('pi0_fast', 0, 100, plan.digest, error='no engine can be opened').save(folder)
    EvidenceCell(START, 0, 0, plan.digest, questions={'accuracy': 0.7, 'asked': 10, 'kinds': {}}).save(folder)
    cell('hybrid', 0, 0.9, plan='an older plan').save(folder)
    text = write_page(matrix, matrix.parent / 'evidence.md')
    assert (matrix.parent / 'evidence.md').read_text() == text
    assert '| `ours` more than `pi0`: success |' in text
    assert '**reproduced**' in text
    assert 'not played: no engine can be opened' in text
    assert '| `hybrid` | not run |' in text
    assert '-10 points' in text  # of the questions: 60 % after, 70 % before
    assert 'Not run: `ki evidence modes' in text
    assert '(evidence.png)' in text
    drawn = cv2.imread(str(matrix.parent / 'evidence.png'))
    assert drawn.shape == (420, 1200, 3)
    assert drawn.std() > 10


def test_an_empty_page_is_honestly_empty(matrix: Path) -> None:
    text = page_of(load_plan(matrix), [], matrix.parent)
    assert '0 of 8 are there' in text
    assert '**reproduced**' not in text
    assert '.png' not in text
    assert not picture_of([], ['ours'], POINTS)
    assert text.count('**not run**') == sum(len(figure.claims) for figure in FIGURES)


def test_only_missing_cells_are_run_and_those_with_an_error_again(matrix: Path) -> None:
    plan, folder = load_plan(matrix), matrix.parent / 'cells'
    jobs = jobs_of(plan, matrix, matrix.parent)
    assert [(job['recipe'], job['seed']) for job in jobs] == [
        (START, 0),
        ('ours', 0),
        ('pi0', 0),
        ('ours', 1),
        ('pi0', 1),
    ]
    EvidenceCell(START, 0, 0, plan.digest).save(folder)
    for samples in POINTS:
        cell('ours', 0, 0.5, samples, plan=plan.digest).save(folder)
        EvidenceCell('pi0', 0, samples, plan.digest, error='died').save(folder)
    cell('ours', 1, 0.5, 100, plan=plan.digest).save(folder)  # one point of two
    left = [(job['recipe'], job['seed']) for job in jobs_of(plan, matrix, matrix.parent)]
    assert left == [('pi0', 0), ('ours', 1), ('pi0', 1)]


def test_cells_of_a_robot_that_senses_other_things_are_of_another_plan(matrix: Path, tmp_path: Path) -> None:
    robot = tmp_path / 'robot.yaml'

    def digest(text: str) -> str:
        robot.write_text(text)
        plan = load_plan(matrix)
        return replace(plan, base=plan.base.replace(robot=str(robot))).digest

    told = contract_file('bimanual_demo').read_text().replace('urdf: ', f'urdf: {ROOT}/config/robots/')
    felt = '  - {name: left_gripper/effort, unit: N, source: joint_states}\n'
    assert felt in told
    assert digest(told) == digest(told + '# a remark\n') != digest(told.replace(felt, ''))


def test_scenes_are_shared_out_and_the_same_for_every_recipe(matrix: Path) -> None:
    plan = load_plan(matrix).matrix
    assert [len(plan.scenes_of(task, 7)) for task in ('touch', 'push', 'bus')] == [3, 2, 2]
    assert plan.scenes_of('push', 7).start == 1_000_000


def test_a_run_of_the_matrix_differs_in_recipe_and_seed_alone(matrix: Path) -> None:
    plan = load_plan(matrix)
    run = plan.run_of('pi0', 1, matrix.parent / 'out')
    (stage,) = run.stages
    assert (stage.recipe, stage.steps, run.seed, run.save_every, run.keep) == ('pi0', 10, 1, 1, 10)
    assert plan.base.stages[0].replace(recipe='pi0', steps=10, warmup=1, dense=0.0) == stage


def test_every_recipe_of_the_committed_matrix_has_a_model(tmp_path: Path) -> None:
    plan = load_plan(ROOT / 'benchmarks/evidence/matrix.yaml')
    assert plan.base.start is not None
    start = load_bundle(ROOT / plan.base.start).config
    for name in plan.matrix.recipes:
        run = plan.run_of(name, 0, tmp_path)
        made = RECIPES[run.stages[0].recipe].configure(start, run.model)
        assert made.state_repr == (RECIPES[name].state_repr or ('both' if made.head == 'expert' else 'continuous'))


def test_labels_of_patches_are_taught_with_language_data_alone(matrix: Path) -> None:
    plan = load_plan(matrix)
    taught = {name: plan.run_of(name, 0, matrix.parent).stages[0].dense for name in RECIPES}
    assert {name for name, weight in taught.items() if weight} == {
        name for name, each in RECIPES.items() if each.vlm_data
    }
    assert taught['ours'] == plan.base.stages[0].dense
    assert not taught['pi0']


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'recipes': ['theirs']}, r"recipes has 'theirs'; write names of ours"),
        ({'recipes': []}, 'recipes is empty'),
        ({'samples': [100, 10]}, 'write each once, the smallest first'),
        ({'samples': [15]}, 'samples has 15; write a multiple of the batch of the run, 10'),
        ({'seeds': [0, 0]}, 'write each once'),
        ({'scenes': 0}, 'scenes is 0'),
    ],
)
def test_a_matrix_that_cannot_be_run_is_refused(matrix: Path, change: dict, says: str) -> None:
    matrix.write_text(yaml.safe_dump(yaml.safe_load(matrix.read_text()) | change))
    with pytest.raises(EvidenceError, match=says):
        load_plan(matrix)


def test_the_committed_page_is_that_of_the_committed_cells() -> None:
    plan = load_plan(ROOT / 'benchmarks/evidence/matrix.yaml')
    cells = load_cells(plan.folder / 'cells', plan.digest)
    drawn = picture_of(cells, plan.matrix.recipes, plan.matrix.samples)
    page = ROOT / 'docs/evidence.md'
    assert page.with_suffix('.png').is_file() == bool(drawn)
    expected = page_of(plan, cells, plan.folder, 'evidence.png' if drawn else '')
    assert page.read_text(encoding='utf-8') == expected
