"""Tasks: no leaks between splits, words that match the goal, and success judged right both ways."""

from __future__ import annotations

import pytest

from ki_sim.errors import SimError
from ki_sim.evaluate.closed_loop import goal_pair
from ki_sim.tasks.language import WORDINGS
from ki_sim.tasks.success import OTHER, gap_between, on_table
from ki_sim.tasks.tasks import TASKS, episode
from ki_sim.world.objects import COLOURS, HELD_OUT, KINDS
from ki_sim.world.scene import BIN_CENTRE, TABLE_TOP

SEEDS = range(120)
TIDYING = ('bus', 'bus_table')  # what is asked for is everything, by its class


@pytest.mark.parametrize('task', TASKS)
def test_no_held_out_pair_is_anywhere_in_the_scenes_of_action_data(task):
    for seed in SEEDS:
        made = episode(task, seed)
        assert not {(obj.colour, obj.kind) for obj in made.scene.objects} & HELD_OUT
        for colour, kind in HELD_OUT:
            assert f'{colour} {kind}' not in made.instruction


@pytest.mark.parametrize('task', TASKS)
def test_held_out_episodes_ask_for_held_out_objects(task):
    for seed in range(30):
        made = episode(task, seed, split='heldout')
        asked = {(made.scene.objects[i].colour, made.scene.objects[i].kind) for i in made.goal.objects}
        assert asked & HELD_OUT
        if task not in TIDYING:
            assert asked <= HELD_OUT


@pytest.mark.parametrize('task', TASKS)
def test_labels_in_a_scene_are_unambiguous_and_known(task):
    for seed in SEEDS:
        objects = episode(task, seed).scene.objects
        assert len({obj.label for obj in objects}) == len(objects)
        assert all(obj.colour in COLOURS and obj.kind in KINDS for obj in objects)


@pytest.mark.parametrize('task', TASKS)
def test_the_words_name_what_the_goal_means(task):
    said = set()
    for seed in SEEDS:
        made = episode(task, seed)
        said.add(made.instruction.replace(made.label(made.goal.objects[0]), '*'))
        if task not in TIDYING:
            assert made.label(made.goal.objects[0]) in made.instruction
        if made.goal.other >= 0:
            assert made.label(made.goal.other) in made.instruction
        if task in ('demo', 'put_in_bin'):
            assert made.goal.places[0] in made.instruction
            assert OTHER[made.goal.places[0]] not in made.instruction
        assert '{' not in made.instruction
    assert len(WORDINGS[task]) >= 8
    assert len(said) >= 8


def test_goals_are_balanced_and_independent_of_the_scene():
    made = [episode('demo', seed) for seed in range(300)]
    assert 110 < sum(e.goal.places[0] == 'left' for e in made) < 190
    assert 110 < sum(e.goal.objects[0] == 0 for e in made) < 190
    scenes = {tuple(episode('demo', 9, goal).scene.objects) for goal in range(10)}
    goals = {episode('demo', 9, goal).goal for goal in range(30)}
    assert len(scenes) == 1
    assert len(goals) == 4  # two objects, two bins


@pytest.mark.parametrize('task', TASKS)
def test_a_pair_of_goals_differs_in_the_same_scene(task):
    one, two = goal_pair(task, 2)
    first, second = episode(task, 2, one), episode(task, 2, two)
    assert first.scene == second.scene
    assert first.goal != second.goal
    assert first.instruction != second.instruction


def in_bin(world, i, side, dx=0.0):
    x, y = BIN_CENTRE[side]
    return (x + dx, y, TABLE_TOP + 0.01 + world.episode.scene.objects[i].height / 2)


def test_put_in_bin_wants_the_object_and_the_bin_that_were_named(blind_world, put):
    world = blind_world('put_in_bin', 3)
    (target,), (side,) = world.episode.goal.objects, world.episode.goal.places
    stranger = next(i for i in range(3) if i != target)
    assert not world.success()
    put(world, target, in_bin(world, target, OTHER[side]))
    assert not world.success()
    put(world, target, in_bin(world, target, side))
    assert world.success()
    put(world, stranger, in_bin(world, stranger, OTHER[side]))
    assert not world.success()  # something that nobody asked for is in a bin


def test_an_object_still_moving_is_not_done(blind_world, put):
    world = blind_world('demo', 1)
    (target,), (side,) = world.episode.goal.objects, world.episode.goal.places
    x, y, z = in_bin(world, target, side)
    put(world, target, (x, y, z + 0.06), 10_000_000)
    world.advance(50_000_000)
    assert not world.success()
    world.advance(900_000_000)
    assert world.success()


def test_bussing_is_scored_object_by_object(blind_world, put):
    seed = next(s for s in range(50) if len(episode('bus_table', s).scene.objects) == 4)
    world = blind_world('bus_table', seed)
    goal = world.episode.goal
    order = {'left': [0.05, -0.05], 'right': [0.05, -0.05]}
    for count, (i, side) in enumerate(zip(goal.objects, goal.places, strict=True), 1):
        put(world, i, in_bin(world, i, side, order[side].pop()), 800_000_000)
        assert world.score() == pytest.approx(count / 4)
    assert world.success()
    put(world, 0, in_bin(world, 0, OTHER[goal.places[0]]), 800_000_000)
    assert world.score() == pytest.approx(0.75)


def test_stacking_wants_the_object_on_top_and_in_touch(blind_world, put):
    world = blind_world('stack', 2)
    (top,), foot, objects = world.episode.goal.objects, world.episode.goal.other, world.episode.scene.objects
    x, y, z = world.object_position(foot)
    assert not world.success()
    put(world, top, (x + 0.08, y, TABLE_TOP + objects[top].height / 2 + 0.001))
    assert not world.success()
    put(world, top, (x, y, z + objects[foot].height / 2 + objects[top].height / 2 + 0.001))
    assert world.success()


def test_next_to_wants_a_small_gap_and_the_other_left_alone(blind_world, put):
    world = blind_world('next_to', 4)
    (target,), other, objects = world.episode.goal.objects, world.episode.goal.other, world.episode.scene.objects
    x, y, _ = world.object_position(other)
    reach = (objects[target].width + objects[other].width) / 2
    floor = TABLE_TOP + objects[target].height / 2 + 0.001
    assert not world.success()
    put(world, target, (x + reach + 0.10, y, floor))
    assert not world.success()
    put(world, target, (x + reach + 0.03, y, floor))
    assert world.success()
    put(world, other, (x + 0.01, y + 0.2, TABLE_TOP + objects[other].height / 2 + 0.001))
    put(world, target, (x + reach + 0.04, y + 0.2, floor))
    assert not world.success()  # the other one was brought to it


def next_to_a_plate() -> tuple[int, int]:
    """A seed and an instruction that ask for something to be put next to a plate."""
    for seed in range(200):
        for goal in range(6):
            made = episode('next_to', seed, goal)
            target, other = (made.scene.objects[i] for i in (made.goal.objects[0], made.goal.other))
            if other.kind == 'plate' and target.kind in ('block', 'cup'):
                return seed, goal
    raise AssertionError('no scene asks for it')


def test_next_to_a_plate_is_not_on_it(blind_world, put):
    seed, goal = next_to_a_plate()
    world = blind_world('next_to', seed, goal=goal)
    (target,), other, objects = world.episode.goal.objects, world.episode.goal.other, world.episode.scene.objects
    x, y, z = world.object_position(other)
    put(world, target, (x, y, z + (objects[other].height + objects[target].height) / 2 + 0.001))
    assert world.bears(target, other)
    assert gap_between(world, target, other) < 0
    assert not on_table(world, target)
    assert not world.success()
    reach = (objects[target].width + objects[other].width) / 2
    put(world, target, (x + reach - 0.0005, y, TABLE_TOP + objects[target].height / 2 + 0.001))
    assert world.success()  # they touch, side by side
    assert not world.bears(target, other)


def test_fetching_wants_the_object_on_the_first_table(blind_world, put):
    world = blind_world('fetch', 0)
    (target,) = world.episode.goal.objects
    half = world.episode.scene.objects[target].height / 2
    assert not world.success()
    put(world, target, (0.0, -0.5, half))  # on the floor
    assert not world.success()
    put(world, target, (0.40, 0.0, TABLE_TOP + half + 0.001))
    assert world.success()
    for side in OTHER:
        put(world, target, in_bin(world, target, side))
        assert not world.success()  # in a bin is not on the table
    put(world, target, (0.40, 0.05, TABLE_TOP + half + 0.001))
    assert world.success()


def test_handing_over_wants_both_hands_to_have_had_it(blind_world):
    world = blind_world('hand_over', 0)
    goal, (target,) = world.episode.goal, world.episode.goal.objects
    world.data.joint(f'object{target}').qpos[:3] = (0.4, 0.0, 1.0)
    world.advance(10_000_000)
    world.touches.now[f'{goal.taker}_a'].add(target)
    world.touches.now[f'{goal.taker}_b'].add(target)
    assert not world.success()  # the giver never had it
    world.touches.ever_held[goal.giver].add(target)
    assert world.success()
    world.touches.now[f'{goal.giver}_a'].add(target)
    assert not world.success()  # the giver has not let go


def test_unknown_tasks_and_splits_are_refused():
    with pytest.raises(SimError, match="task 'sweep' is not known"):
        episode('sweep', 0)
    with pytest.raises(SimError, match="split 'test' is not known"):
        episode('demo', 0, split='test')


def test_touching_wants_the_named_hand_and_nothing_else_touched(blind_world):
    world = blind_world('touch', 0)
    (target,), (side,) = world.episode.goal.objects, world.episode.goal.places
    assert not world.success()
    world.touches.now[f'{OTHER[side]}_a'].add(target)
    assert not world.success()
    world.touches.now[f'{OTHER[side]}_a'].clear()
    world.touches.now[f'{side}_a'].add(target)
    assert world.success()
    world.touches.now[f'{side}_b'].add(1 - target if target < 2 else 0)
    assert not world.success()
    world.touches.first, world.touches.first_hand = target, OTHER[side]
    assert not world.followed()
    world.touches.first_hand = side
    assert world.followed()


def test_pushing_wants_the_named_side_and_the_object_left_standing(blind_world, put):
    world = blind_world('push', 0)
    (target,), (side,) = world.episode.goal.objects, world.episode.goal.places
    x, _, z = world.object_position(target)
    way = 1 if side == 'left' else -1
    world.touches.first = target
    assert not world.success()
    put(world, target, (x, -way * 0.13, z))
    assert not world.success()
    assert not world.followed()  # it went the other way
    put(world, target, (x, way * 0.13, z))
    assert world.success()
    assert world.followed()
    put(world, target, (x - 0.08, way * 0.13, z))
    assert not world.success()  # pulled towards the robot


def test_words_are_not_followed_into_the_wrong_bin(blind_world, put):
    world = blind_world('put_in_bin', 3)
    (target,), (side,) = world.episode.goal.objects, world.episode.goal.places
    world.touches.first = target
    assert world.followed()
    put(world, target, in_bin(world, target, OTHER[side]))
    assert not world.followed()
