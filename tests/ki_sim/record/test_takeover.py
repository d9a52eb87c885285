"""A scripted operator takes over from a policy that fails, ends the task, and the recording says who drove."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('mujoco')

from ki_bags.reader import open_bag
from ki_sim.record.sim_bags import write_bag
from ki_sim.record.takeover import HAND_OVER_STEPS, Driven, Patience, ScriptedOperator, human_steps, record_takeover
from ki_sim.world.robot import COLUMNS, LIMITS, POSITION_JOINTS
from ki_sim.world.world import HOME_ARM, HOME_OPENING, STEP_NS, SimObservation


class Idle:
    """A policy that does nothing."""

    cameras: tuple[str, ...] = ()

    def reset(self) -> None:
        pass

    def next_row(self, time_ns: int, observe: Callable[[], SimObservation]) -> np.ndarray | None:
        return None


class Astray(Idle):
    """A policy that leads both arms half a radian away from home, with one hand shut, and stays there."""

    def __init__(self) -> None:
        self.steps = 0

    def reset(self) -> None:
        self.steps = 0

    def next_row(self, time_ns: int, observe: Callable[[], SimObservation]) -> np.ndarray | None:
        self.steps += 1
        away = min(0.05 * self.steps, 0.5)
        rows = [[*HOME_ARM[side], HOME_OPENING] for side in ('left', 'right')]
        for row in rows:
            row[0] += away if row is rows[1] else -away
            row[1] += away
        rows[1][6] -= 0.2 * away
        return np.array([*rows[0], *rows[1], 0.0, 0.0, 0.0])


@pytest.mark.parametrize(('task', 'led'), [('demo', False), ('hand_over', True), ('put_in_bin', True), ('stack', True)])
def test_an_operator_goes_on_from_where_the_robot_is(task: str, led: bool) -> None:
    made = record_takeover(Astray(), task, 3, Patience(stuck_s=1.0), image_size=32, led=led)
    assert made.success
    rows = np.array([frame.action for frame in made.frames])
    human = [frame.driver == Driven.HUMAN for frame in made.frames].index(True)
    assert np.abs(rows[human - 1, :6] - HOME_ARM['left']).max() > 0.4, 'the policy led the arm away'
    most = np.array([LIMITS[name].velocity for name in POSITION_JOINTS]) * STEP_NS * 1e-9
    moved = np.abs(np.diff(rows[human - 1 :, : len(most)], axis=0))
    assert (moved <= most + 1e-9).all(), 'commands do not jump when the driver changes'


def test_an_operator_takes_over_from_a_policy_that_does_nothing_and_ends_the_task(tmp_path: Path) -> None:
    made = record_takeover(Idle(), 'touch', 3, Patience(stuck_s=0.5), image_size=32)
    assert made.success
    drove = [frame.driver for frame in made.frames]
    stuck = 1 + round(0.5 / 0.05)
    assert drove[:stuck] == [Driven.POLICY] * stuck
    assert drove[stuck : stuck + HAND_OVER_STEPS] == [Driven.HOLD] * HAND_OVER_STEPS
    assert set(drove[stuck + HAND_OVER_STEPS :]) == {Driven.HUMAN}
    assert human_steps(made) == len(drove) - stuck - HAND_OVER_STEPS

    bag = open_bag(write_bag(made, tmp_path / 'touch-3'))
    said = [bag.decode(each).source for each in bag.messages() if each.topic == '/control_source']
    assert said == [Driven.POLICY, Driven.HOLD, Driven.HUMAN]


def test_an_operator_drives_as_what_the_policy_learned_from_does() -> None:
    grippers = [COLUMNS.index(name) for name in COLUMNS if 'gripper' in name]
    commanded = []
    for led in (False, True):
        made = record_takeover(Idle(), 'put_in_bin', 3, Patience(stuck_s=0.5), image_size=32, led=led)
        assert made.success
        human = np.array([frame.action for frame in made.frames if frame.driver == Driven.HUMAN])
        commanded.append(len(set(human[:, grippers].ravel())))
    assert commanded[0] <= 2, 'moments know hands that open or shut'
    assert commanded[1] > 2, 'recordings know fingers that are led'


def test_what_the_operator_says_points_at_the_object_as_the_experts_own_data_do() -> None:
    made = record_takeover(Idle(), 'put_in_bin', 3, Patience(stuck_s=0.5), image_size=32)
    said = dict.fromkeys(frame.subtask for frame in made.frames if frame.driver == Driven.HUMAN)
    assert all('<loc' in words for words in said if words.startswith(('reach for', 'grasp')))
    assert any(words.startswith('reach for') for words in said)
    assert {frame.subtask for frame in made.frames if frame.driver != Driven.HUMAN} == {''}


def test_the_operator_is_patient_while_there_is_progress_and_not_with_the_wrong_object() -> None:
    world = SimpleNamespace(time_ns=0, score=lambda: world.done, done=0.0, touches=SimpleNamespace(first=-1))
    world.episode = SimpleNamespace(goal=SimpleNamespace(objects=(1,)), label=lambda place: f'object {place}')
    operator = ScriptedOperator(Patience(stuck_s=2.0))
    for seconds, done in ((0, 0.0), (2, 0.0), (2.1, 0.5), (4, 0.5)):
        world.time_ns, world.done = round(seconds * 1e9), done
        assert operator.complaint(world) == ''
    world.time_ns = 4_200_000_000
    assert operator.complaint(world) == 'no progress for 2.1 s'
    world.time_ns, world.touches.first = 2_200_000_000, 1
    assert operator.complaint(world) == ''
    world.touches.first = 0
    assert operator.complaint(world) == 'touched object 0'
