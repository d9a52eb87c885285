"""LIBERO as openpi's client plays it: what a policy sees, when an episode ends, and what is kept of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from ki.simulation.libero_policy import acting, check_fits_libero
from ki_common.errors import KiError
from ki_robot.contract.contract import load_contract
from ki_sim.errors import SimError
from ki_sim.libero.environment import LiberoSeen, axis_angle
from ki_sim.libero.evaluate import EPISODES_FILE, LiberoReport, _begun, evaluate_libero
from ki_sim.libero.rollout import LiberoEpisode, RolloutSettings, write_film
from ki_sim.libero.suites import MAX_STEPS, suite_name

INSTALLED = importlib.util.find_spec('libero') is not None
needs_libero = pytest.mark.skipif(
    not INSTALLED, reason="LIBERO is not installed: its episodes were NOT played (pip install -e '.[libero]')"
)
ABOUT = {'policy': 'p@1', 'suite': 'libero_object', 'execute_steps': 10, 'seed': 7}


def episode(task: int, number: int, success: bool) -> LiberoEpisode:
    return LiberoEpisode(task, number, f'task {task}', success, 100, 10, 1.5)


def test_the_limits_are_those_of_openpis_client() -> None:
    assert MAX_STEPS == {'spatial': 220, 'object': 280, 'goal': 300, '10': 520, '90': 400}
    assert suite_name('10') == 'libero_10'
    with pytest.raises(SimError, match="suite 'long' is unknown; write one of spatial, object"):
        suite_name('long')


def test_a_rotation_is_axis_times_angle_as_robosuite_says_it() -> None:
    """Not the shortest: an angle goes to 2 pi. A quaternion beyond unit length is cut, and no rotation is zero."""
    half = np.deg2rad(200.0) / 2
    np.testing.assert_allclose(axis_angle([0, np.sin(half), 0, np.cos(half)]), [0, np.deg2rad(200.0), 0], atol=1e-12)
    np.testing.assert_array_equal(axis_angle([0, 0, 0, 1.0 + 1e-9]), np.zeros(3))


def test_rates_have_intervals_over_all_and_by_task() -> None:
    report = LiberoReport(ABOUT, [episode(0, 0, True), episode(0, 1, False), episode(3, 0, True)])
    said = report.summary()
    assert (said['success']['k'], said['success']['n']) == (2, 3)
    assert 0.2 < said['success']['low'] < 2 / 3 < said['success']['high'] < 0.95
    assert [(each['task'], each['success']['k']) for each in said['tasks']] == [(0, 1), (3, 1)]


def test_what_was_played_is_not_played_again_and_another_evaluation_is_refused(tmp_path: Path) -> None:
    assert _begun(tmp_path, ABOUT) == []
    line = json.dumps(episode(1, 4, True).to_dict())
    (tmp_path / EPISODES_FILE).write_text(f'{line}\n{line[:20]}')  # cut off while the second was written
    assert _begun(tmp_path, ABOUT) == [episode(1, 4, True)]
    with pytest.raises(
        SimError, match=r'holds an evaluation with execute_steps 10, and this one has 5; choose another'
    ):
        _begun(tmp_path, ABOUT | {'execute_steps': 5})


def test_a_film_is_written(tmp_path: Path) -> None:
    path = write_film(tmp_path / 'films' / '00-00-success.mp4', [np.zeros((64, 64, 3), np.uint8)] * 3)
    assert path.stat().st_size > 100


def test_a_policy_for_another_robot_is_refused() -> None:
    with pytest.raises(
        KiError, match=r'the policy is for arm_single .8 state columns, 8 action columns, cameras scene'
    ):
        check_fits_libero(load_contract('arm_single'), 10)


def test_a_policy_of_the_ready_contract_is_asked_in_liberos_numbers(tmp_path: Path) -> None:
    from ki_vla.policy.inference import load_policy
    from ki_vla.policy.untrained import write_untrained

    contract = load_contract('libero')
    check_fits_libero(contract, 10)
    picture = np.zeros((32, 32, 3), np.uint8)
    seen = LiberoSeen(picture, picture, np.array([0.1, 0, 0.3, 0, 0, 0, 0.02, -0.02]), 'pick up the butter')
    with load_policy(write_untrained(tmp_path / 'b', contract).folder, 'torch', allow_untrained=True) as policy:
        chunk = acting(policy)(seen)
        si = policy.act(
            dict.fromkeys(contract.camera_names, picture), [0.1, 0, 0.3, 0, 0, 0, 0.02, 0.02], seen.instruction
        )
    np.testing.assert_allclose(chunk[:, 6], 1.0 - 50.0 * si[:, 6])


class Scripted:
    """Picks up what the task names and lets it fall into the basket; told where things are, one step at a time."""

    def __init__(self, thing: str) -> None:
        self.thing, self.phase, self.waited = thing, 0, 0

    def __call__(self, seen: LiberoSeen) -> np.ndarray:
        hand, basket = seen.raw['robot0_eef_pos'], seen.raw['basket_1_pos']
        if self.phase == 0 and seen.moment % 1000 == 0:
            self.at = seen.raw[f'{self.thing}_pos'].copy()
        up, over = np.array([0, 0, 0.25]), np.array([basket[0], basket[1], self.at[2] + 0.25])
        goals = [
            (self.at + 0.6 * up, -1, 0), (self.at, -1, 0), (self.at, 1, 10), (self.at + up, 1, 0),
            (over, 1, 0), (over - 0.25 * up, 1, 0), (over - 0.25 * up, -1, 40),
        ]  # fmt: skip
        goal, grip, wait = goals[min(self.phase, len(goals) - 1)]
        delta = goal - hand
        self.waited += 1
        if (np.abs(delta).max() < 0.008 and self.waited > 4 and not wait) or (wait and self.waited > wait):
            self.phase, self.waited = self.phase + 1, 0
        return np.array([[*np.clip(delta / 0.05, -1, 1), 0, 0, 0, grip]])


@needs_libero
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_scripted_policy_solves_a_task_and_a_random_one_does_not(tmp_path: Path) -> None:
    from ki_sim.libero.suites import tasks_of

    (task,) = (each for each in tasks_of('libero_object') if 'butter' in each.language)
    settings = RolloutSettings('libero_object', MAX_STEPS['object'], execute_steps=1, image_size=0)
    scripted = Scripted('butter_1')
    done = evaluate_libero(scripted, [(task, 0)], settings, tmp_path / 'scripted', ABOUT)
    assert done.summary()['success']['k'] == 1
    assert done.episodes[0].steps < MAX_STEPS['object']

    def nobody(_: LiberoSeen) -> np.ndarray:
        raise AssertionError('an episode that is there is not played again')

    assert evaluate_libero(nobody, [(task, 0)], settings, tmp_path / 'scripted', ABOUT).episodes == done.episodes

    def random(seen: LiberoSeen) -> np.ndarray:
        return np.random.default_rng(seen.moment).uniform(-1, 1, (10, 7))

    short = RolloutSettings('libero_object', 60, execute_steps=10, image_size=0)
    about = ABOUT | {'policy': 'random'}
    lost = evaluate_libero(random, [(task, 0), (task, 1)], short, tmp_path / 'random', about, workers=2)
    assert (lost.summary()['success']['k'], [each.calls for each in lost.episodes]) == (0, [6, 6])


@needs_libero
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_policy_sees_two_pictures_the_right_way_up_and_perturbed_words(tmp_path: Path) -> None:
    from ki_sim.libero.environment import LiberoEnvironment
    from ki_sim.libero.suites import initial_states, perturbations, tasks_of

    assert {'lan', 'object', 'swap', 'task'} <= set(perturbations('goal'))
    plain, other = tasks_of('libero_goal'), tasks_of(suite_name('goal', 'lan'))
    assert len(plain) == len(other) == 10
    assert (plain[1].language, other[1].language) == ('put the bowl on the stove', 'place the bowl on the stove')
    assert tasks_of(suite_name('goal', 'swap'))[0].language == plain[0].language
    environment = LiberoEnvironment(plain[0], image_size=64)
    seen = environment.reset(initial_states('libero_goal', 0)[0])
    assert seen.scene is not None
    assert seen.wrist is not None
    assert (seen.scene.shape, seen.wrist.shape, seen.state.shape) == ((64, 64, 3), (64, 64, 3), (8,))
    np.testing.assert_array_equal(seen.scene[::-1, ::-1], seen.raw['agentview_image'])
    assert seen.instruction == plain[0].language
    environment.close()
