"""The experts do every task, say what they do, and command nothing the contract forbids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from ki_robot.contract.contract import load_contract
from ki_sim.expert.experts import correcting_steps, expert_steps
from ki_sim.expert.laws import OPEN, SHUT
from ki_sim.expert.motions import ExpertStep
from ki_sim.expert.scripted_expert import ScriptedExpert
from ki_sim.record.sim_bags import ROBOT
from ki_sim.tasks.tasks import TASKS, episode
from ki_sim.world.kinematics import Arms
from ki_sim.world.robot import COLUMNS, SIDES
from ki_sim.world.world import STEP_NS, World


@pytest.mark.parametrize('task', TASKS)
def test_every_task_is_done_within_its_time_and_limits(blind_world, arms, task):
    limits = {column.name: column.limits for column in load_contract(ROBOT).actions}
    lower, upper = (np.array([getattr(limits[name], edge) for name in COLUMNS]) for edge in ('lower', 'upper'))
    speed = np.array([limits[name].velocity for name in COLUMNS[:14]])
    for seed in (11,) if task in ('bus_table', 'fetch') else (11, 12):
        world = blind_world(task, seed)
        rows, subtasks = [], []
        for move in expert_steps(world, arms):
            world.step(move.action)
            rows.append(move.action)
            subtasks.append(move.subtask)
        assert world.success(), (task, seed)
        assert world.time_ns < world.episode.limit_s * 1e9
        actions = np.array(rows)
        assert (actions >= lower - 1e-9).all()
        assert (actions <= upper + 1e-9).all()
        moved = np.abs(np.diff(actions[:, :14], axis=0)) / (STEP_NS * 1e-9)
        assert (moved <= speed + 1e-6).all()
        assert all(subtasks)
        assert len(set(subtasks)) >= 2
        if task not in ('bus', 'bus_table'):
            assert world.touches.first == world.episode.goal.objects[0]


def test_it_moves_differently_from_episode_to_episode_and_the_same_when_repeated(blind_world, arms):
    def rows(seed: int) -> np.ndarray:
        world = blind_world('demo', seed)
        made = []
        for move in ScriptedExpert(world, arms=arms).moves():
            world.step(move.action)
            made.append(move.action)
            if len(made) == 40:
                break
        return np.array(made)

    assert (rows(1) == rows(1)).all()
    assert np.abs(rows(1) - rows(2)).max() > 0.01


def test_who_corrects_moves_at_the_pace_of_the_law_with_hands_open_or_shut(blind_world, arms):
    def played(steps: Callable[..., Iterator[ExpertStep]]) -> tuple[np.ndarray, float]:
        world, rows = blind_world('put_in_bin', 11), []
        for move in steps(world, arms):
            world.step(move.action)
            rows.append(move.action)
        assert world.success()
        return np.array(rows), world.time_ns * 1e-9

    (led, slow_s), (rows, quick_s) = played(expert_steps), played(correcting_steps)
    grippers = [COLUMNS.index(name) for name in COLUMNS if 'gripper' in name]
    assert set(rows[:, grippers].ravel()) <= {OPEN, SHUT}
    assert len(set(led[:, grippers].ravel())) > 2
    assert quick_s < 0.8 * slow_s


def test_a_grasp_that_failed_is_tried_again(blind_world, arms):
    world = blind_world('demo', 3)
    expert, stolen, seen = ScriptedExpert(world, arms=arms), False, []
    (target,) = world.episode.goal.objects
    for move in expert.moves():
        world.step(move.action)
        seen.append(move.subtask)
        if not stolen and move.subtask.startswith('lift'):
            joint = world.data.joint(f'object{target}')
            joint.qpos[:] = (*world.start[target], 1.0, 0.0, 0.0, 0.0)
            joint.qpos[2] += 0.002
            joint.qvel[:] = 0.0
            if world.touches.now['left_a'] or world.touches.now['right_a']:
                joint.qpos[0] += 0.06  # out of the hand
            stolen = True
    reaches = sum(a != b and b.startswith('reach') for a, b in zip(['', *seen], seen, strict=False))
    assert stolen
    assert reaches >= 2
    assert world.success()


def test_who_takes_over_over_the_object_goes_on_and_does_not_go_away_to_come_again(blind_world, arms):
    world, (target, side) = taken_over(blind_world, arms, 'demo', 3, 'grasp', 4)
    begun, rows = arms.pose(side, world.sent(side)[0])[0][2], []
    for move in ScriptedExpert(world, arms=arms).moves():
        if target in world.touches.held(side):
            break
        world.step(move.action)
        rows.append(move.action)
    heights = [arms.pose(side, row[:6] if side == 'left' else row[7:13])[0][2] for row in rows]
    assert max(heights) < begun + 0.002
    assert target in world.touches.held(side)


@pytest.mark.parametrize(('task', 'subtask'), [('demo', 'lift'), ('hand_over', 'hold'), ('hand_over', 'let')])
def test_who_takes_over_an_object_that_is_held_carries_on_with_it(blind_world, arms, task, subtask):
    world, _ = taken_over(blind_world, arms, task, 3, subtask, 3)
    said = []
    for move in ScriptedExpert(world, arms=arms).moves():
        world.step(move.action)
        said.append(move.subtask)
    assert world.success()
    assert not any(words.startswith(('reach', 'grasp')) for words in said)


def test_a_hand_that_is_left_between_things_rises_before_it_goes_elsewhere(blind_world, arms):
    world, (_, side) = taken_over(blind_world, arms, 'demo', 3, 'grasp', 12)
    for i in range(8):  # beside the object, down, and shut
        row = np.concatenate([*(np.append(*world.sent(each)) for each in SIDES), np.zeros(3)])
        offset = 0 if side == 'left' else 7
        position, rotation = arms.pose(side, row[offset : offset + 6])
        beside = position - np.array([0.01 if i < 5 else 0.0, 0.0, 0.0])
        row[offset : offset + 6], _ = arms.solve(side, beside, rotation, row[offset : offset + 6])
        row[offset + 6] = max(0.0, row[offset + 6] - 0.02)
        world.step(row)
    start = arms.pose(side, world.sent(side)[0])[0]
    rows = []
    for move in ScriptedExpert(world, arms=arms).moves():
        world.step(move.action)
        rows.append(move.action)
    way = np.array([arms.pose(side, row[:6] if side == 'left' else row[7:13])[0] for row in rows])
    risen = int(np.argmax(way[:, 2] > start[2] + 0.05))
    assert np.linalg.norm(way[:risen, :2] - start[:2], axis=1).max() < 0.01
    assert world.success()


def test_who_takes_over_lets_go_of_what_was_not_asked_for(blind_world, arms):
    world, (target, side) = taken_over(blind_world, arms, 'demo', 3, 'lift', 1)
    goals = (episode('demo', 3, goal).goal for goal in range(20))
    world.episode = replace(world.episode, goal=next(goal for goal in goals if target not in goal.objects))
    for move in ScriptedExpert(world, arms=arms).moves():
        world.step(move.action)
        if target not in world.touches.held(side):
            break
    assert move.subtask == 'let go of what was not asked for'
    assert abs(world.object_position(target)[2] - world.start[target][2]) < 0.02


def taken_over(
    blind_world: Callable[..., World], arms: Arms, task: str, seed: int, subtask: str, steps: int
) -> tuple[World, tuple[int, str]]:
    """A world whose expert was stopped some steps into a subtask, the object asked for, and the hand that takes it."""
    world, left = blind_world(task, seed), steps
    for move in ScriptedExpert(world, arms=arms).moves():
        world.step(move.action)
        left -= move.subtask.startswith(subtask)
        if not left:
            break
    goal = world.episode.goal
    return world, (goal.objects[0], goal.places[0])
