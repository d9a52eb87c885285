"""Labelled moments: the same for the same seed, whole files only, of states that the robot measures, asked as told."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from ki_robot.contract.contract import load_contract
from ki_sim.errors import SimError
from ki_sim.expert.laws import HOME, OPEN, SHUT, Grasp, Move, Place, roll
from ki_sim.expert.situation import ENOUGH, PUSH_BEYOND, Situation, duty
from ki_sim.moments.columns import MomentColumns, hand_columns
from ki_sim.moments.hands import FINGER_GAP, just_let_go, somewhere
from ki_sim.moments.maker import MomentMaker, SimMoment, _begun, _half_done, _some_fallen, _standing
from ki_sim.moments.shards import MomentSettings, part, task_turns, write
from ki_sim.tasks.success import SIDE_LINE
from ki_sim.tasks.tasks import SUITE, TASKS, Bias, biased_goal
from ki_sim.world.objects import HELD_OUT, KINDS
from ki_sim.world.robot import GRIPPERS, LIMITS, SIDES
from ki_sim.world.scene import TABLE_TOP

COLUMNS = tuple(name for side in SIDES for name in (*hand_columns(side), f'{GRIPPERS[side]}/position'))
TELLING = {
    'red': lambda r, g, b: r > 1.5 * max(g, b),
    'green': lambda r, g, b: g > 1.5 * max(r, b),
    'yellow': lambda r, g, b: min(r, g) > 1.5 * b,
    'orange': lambda r, g, b: r > 1.3 * g > 1.3 * b,
}
SETTINGS = MomentSettings('hands', COLUMNS, COLUMNS, ('head',), 10, SUITE, 32)


@pytest.fixture(scope='module')
def made() -> list[SimMoment]:
    maker = MomentMaker(MomentColumns(COLUMNS, COLUMNS), 10, ('head',), 32, Bias())
    return [moment for task in SUITE for seed in range(3) for moment in maker.moments(task, seed)]


def test_moments_are_of_every_state_of_every_task(made: list[SimMoment]) -> None:
    found = Counter((moment.task, moment.held) for moment in made)
    assert {task for task, _ in found} == set(SUITE)
    assert all(found[task, 0] for task in SUITE)
    assert all(found[task, 1] for task in ('put_in_bin', 'next_to', 'stack', 'bus'))
    assert all(np.isfinite(moment.state).all() and np.isfinite(moment.actions).all() for moment in made)


def test_chunks_begin_where_the_hands_are_and_ask_for_open_or_shut(made: list[SimMoment]) -> None:
    for moment in made:
        assert moment.actions.shape == (10, 10)
        for hand in (0, 5):
            assert np.linalg.norm(moment.actions[0, hand : hand + 3] - moment.state[hand : hand + 3]) < 0.025
            assert set(np.round(moment.actions[:, hand + 4], 6)) <= {OPEN, SHUT}


def test_pushes_are_met_all_along_their_way_and_where_they_are_over() -> None:
    """Who saw objects only where they began would not know how to go on with one that has been pushed."""
    rng, found = np.random.default_rng(0), []
    for seed in range(60):
        scene = TASKS['push'].scene(np.random.default_rng(seed), 'train')
        goal, _ = TASKS['push'].goal(scene, rng, 'train')
        now = _half_done(rng, Situation('push', goal, scene.objects, tuple(map(_standing, scene.objects))))
        way, (target,) = 1 if goal.places[0] == 'left' else -1, goal.objects
        before, after = scene.objects[target], now.bodies[target].position
        assert after[0] == before.x
        assert all(now.bodies[i].position[1] == obj.y for i, obj in enumerate(scene.objects) if i != target)
        found.append((way * after[1], way * (after[1] - before.y)))
        assert duty(now).done == (way * after[1] > SIDE_LINE + ENOUGH)
    beyond, moved = np.array(found).T
    assert (moved >= 0).all()
    assert (moved == 0).any()
    assert np.histogram(beyond, np.arange(-0.10, SIDE_LINE + PUSH_BEYOND + 0.01, 0.05))[0].min() >= 3
    assert (beyond > SIDE_LINE + ENOUGH).any()


def test_either_hand_is_met_at_work_where_no_words_say_which() -> None:
    found = Counter()
    rng = np.random.default_rng(0)
    for seed in range(80):
        scene = TASKS['stack'].scene(np.random.default_rng(seed), 'train')
        goal, _ = TASKS['stack'].goal(scene, rng, 'train')
        now = Situation('stack', goal, scene.objects, tuple(map(_standing, scene.objects)))
        begun = duty(replace(now, hands=_begun(rng, now))).side
        found[begun == duty(now).side] += 1
    assert found[True] > found[False] > 4
    told = Situation('touch', replace(now.goal, other=-1), now.objects, now.bodies)
    assert all(not _begun(rng, told) for _ in range(20)), 'words that name the hand are obeyed'


def test_what_fingers_hold_has_the_gap_that_the_simulator_measures(made: list[SimMoment]) -> None:
    held = [moment for moment in made if moment.held == 1]
    for moment in held:
        opening = min(moment.state[4], moment.state[9])
        kind = moment.subtask.split()[3]  # 'put the red cup ...'
        low, high = KINDS[kind].width
        assert low + FINGER_GAP[kind] - 0.004 < opening < high + FINGER_GAP[kind] + 0.004
    assert len(held) > 10


def test_a_gripper_that_holds_measures_the_force_that_the_simulator_does_and_an_empty_one_none() -> None:
    columns = (*COLUMNS, *(f'{GRIPPERS[side]}/effort' for side in SIDES))
    maker = MomentMaker(MomentColumns(columns, COLUMNS), 10, ('head',), 32, Bias())
    moments = [moment for seed in range(4) for moment in maker.moments('put_in_bin', seed)]
    held = np.array([moment.held == 1 for moment in moments])
    efforts = np.array([moment.state[-2:] for moment in moments])
    most = LIMITS[GRIPPERS['left']].effort
    assert np.isclose(efforts[held].min(axis=1), -most).mean() > 0.7
    assert (efforts[held].min(axis=1) >= -most).all()
    assert (np.abs(efforts[~held]) < 2).all()
    assert held.sum() > 10


def test_no_held_out_pair_is_shown_and_points_are_at_things(made: list[SimMoment]) -> None:
    for moment in made:
        assert not {(thing.colour, thing.kind) for thing in moment.things} & HELD_OUT
        assert all(0 <= thing.x < 1 and 0 <= thing.y < 1 for thing in moment.things)
        for point in filter(None, moment.points):
            assert all(0 <= each < 1 for each in point)


def test_points_are_where_the_object_is_and_where_that_is_on_or_beside_which_it_is_put(made: list[SimMoment]) -> None:
    shown, hidden = Counter[str](), Counter[str]()
    for moment in made:
        seen = {f'{thing.colour} {thing.kind}': (thing.x, thing.y) for thing in moment.things}
        acted_on, other = moment.points
        said = re.match(r'(?:reach for|touch|push|put) the (\w+ \w+)', moment.subtask)
        assert said is not None
        hidden['acted on'] += acted_on is not None and said[1] not in seen
        assert acted_on == seen.get(said[1], acted_on), 'told where it is, hidden or not'
        if moment.held == 1 and moment.task in ('stack', 'next_to'):
            name = ' '.join(moment.subtask.split()[-2:])  # put the red cup on the blue plate
            hidden['other'] += other is not None and name not in seen
            assert other == seen.get(name, other)
        if moment.task not in ('stack', 'next_to'):
            assert other is None, 'a bin is no object'
        elif other is not None:
            assert other != acted_on
        shown[f'{moment.task} {moment.held}'] += 1
    assert min(hidden['acted on'], hidden['other']) > 3
    assert {'stack 1', 'next_to 1', 'stack 0', 'next_to 0', 'touch 0', 'push 0'} <= set(shown)


@pytest.mark.parametrize('camera', ['head', 'front'])
def test_a_thing_is_where_its_colour_is_in_the_picture(camera: str) -> None:
    maker = MomentMaker(MomentColumns(COLUMNS, COLUMNS), 2, (camera,), 192, Bias())
    seen = 0
    for moment in itertools.chain(maker.moments('push', 3), maker.moments('push', 5)):
        for thing in moment.things:
            if thing.kind == 'block' and thing.colour in TELLING:
                r, g, b = (int(c) for c in moment.images[camera][int(thing.y * 192), int(thing.x * 192)])
                assert TELLING[thing.colour](r, g, b), (thing, r, g, b)
                seen += 1
    assert seen


def test_from_across_the_table_an_arm_seldom_hides_where_an_object_is_to_go() -> None:
    def hidden(camera: str) -> float:
        maker = MomentMaker(MomentColumns(COLUMNS, COLUMNS), 2, (camera,), 8, Bias())
        carried = [each for seed in range(10) for each in maker.moments('stack', seed) if each.held == 1]
        assert len(carried) > 8
        wanted = [' '.join(each.subtask.split()[-2:]) for each in carried]
        shown = [[f'{thing.colour} {thing.kind}' for thing in each.things] for each in carried]
        return float(np.mean([name not in names for name, names in zip(wanted, shown, strict=True)]))

    assert hidden('front') < 0.66 * hidden('head')


def test_some_tall_things_that_nothing_is_asked_of_lie_on_the_table() -> None:
    maker = MomentMaker(MomentColumns(COLUMNS, COLUMNS), 2, ('front',), 8, Bias())
    rng, lying, tall = np.random.default_rng(0), 0, 0
    for seed in range(200):
        scene = TASKS['next_to'].scene(np.random.default_rng(seed), 'train')
        goal, _ = biased_goal('next_to', scene, rng, maker.bias)
        standing = Situation('next_to', goal, scene.objects, tuple(map(_standing, scene.objects)))
        for i, (obj, body) in enumerate(zip(scene.objects, _some_fallen(rng, standing, [goal]).bodies, strict=True)):
            named = i in (*goal.objects, goal.other)
            tall += not named and obj.height > 1.5 * obj.width
            if body.upright:
                continue
            lying += 1
            assert not named
            assert body.position[2] == TABLE_TOP + obj.width / 2
    assert 0.02 * tall < lying < 0.15 * tall


@pytest.mark.parametrize(('task', 'least', 'most'), [('stack', 0.0, 0.045), ('next_to', 0.06, 0.13)])
def test_some_things_stand_where_they_were_put_down_wrong(task: str, least: float, most: float) -> None:
    rng, moved = np.random.default_rng(0), 0
    for seed in range(60):
        scene = TASKS[task].scene(np.random.default_rng(seed), 'train')
        goal, _ = biased_goal(task, scene, rng, Bias())
        standing = Situation(task, goal, scene.objects, tuple(map(_standing, scene.objects)))
        now = _half_done(rng, standing)
        if now == standing:
            continue
        moved += 1
        one, other = (now.bodies[i].position for i in (goal.objects[0], goal.other))
        room = math.dist(one[:2], other[:2]) - sum(scene.objects[i].reach for i in (goal.objects[0], goal.other))
        assert least < room < most
        assert not duty(now).done
    assert 3 <= moved <= 25


def test_an_open_hand_over_what_it_put_down_wrong_takes_it_again() -> None:
    rng = np.random.default_rng(0)
    law = Move(Grasp((0.45, 0.05, 0.80), 0.0, 0.05, 0.93), Place((0.50, -0.05, 0.85), 0.0, 0.93))
    heights = []
    for _ in range(200):
        hand = just_let_go(rng, law)
        assert not hand.holds
        assert math.dist(hand.position[:2], law.grasp.position[:2]) < 0.08
        heights.append(hand.position[2])
        commands, after = roll(law, hand, 80)
        assert after.holds or after.done, 'on the way to where it belongs'
        assert commands[0].opening == OPEN or hand.position[2] < 0.83
    assert min(heights) < 0.82
    assert max(heights) > 1.0


def test_what_is_held_low_is_not_always_where_it_is_let_go_of() -> None:
    side, rng = 'left', np.random.default_rng(0)
    grasp = Grasp((0.45, 0.05, 0.80), 0.0, 0.05, 0.93)
    law = Move(grasp, Place((0.50, -0.05, 0.85), 0.0, 0.93, near=0.005))
    hands = [hand for hand in (somewhere(rng, side, law) for _ in range(2000)) if hand.holds]
    off = [math.dist(hand.position[:2], law.place.position[:2]) for hand in hands if hand.position[2] < 0.875]
    near, missed = sum(each < 0.012 for each in off), sum(0.015 < each < 0.06 for each in off)
    assert near > 30
    assert 0.3 < missed / near < 3
    low = [hand for hand in hands if math.dist(hand.position[:2], law.place.position[:2]) < 0.06]
    assert min(hand.position[2] for hand in low) > 0.80, 'over what it is put on'


def test_empty_hands_are_seldom_half_open_so_that_fingers_which_hold_look_held() -> None:
    side, rng = 'left', np.random.default_rng(0)
    law = Move(Grasp((0.45, 0.05, 0.80), 0.0, 0.05, 0.93), Place((0.50, -0.05, 0.85), 0.0, 0.93, near=0.005))
    hands = [somewhere(rng, side, law) for _ in range(3000)]
    ends = (law.grasp.position, law.place.position)
    midair = [hand for hand in hands if min(math.dist(hand.position, end) for end in ends) > 0.025]
    half_open = [hand for hand in midair if not hand.holds and not hand.done and 0.02 < hand.opening < 0.09]
    holding = sum(hand.holds for hand in midair)
    assert holding > 500
    assert 10 < len(half_open) < 0.12 * holding, 'they are met, too'
    assert sum(not hand.holds and hand.opening < 0.015 for hand in midair) > 100, 'shut without anything'
    assert sum(not hand.holds and hand.opening > 0.11 for hand in midair) > 500


def test_tasks_with_a_second_thing_to_find_have_more_scenes() -> None:
    assert Counter(task_turns(('touch', 'push', 'stack', 'next_to'))) == {
        'touch': 2,
        'push': 2,
        'stack': 3,
        'next_to': 3,
    }


def test_people_ask_for_what_is_nearest_as_often_as_they_are_said_to() -> None:
    def nearest(bias: float) -> float:
        rng, hits = np.random.default_rng(0), []
        for seed in range(150):
            scene = TASKS['touch'].scene(np.random.default_rng(seed), 'train')
            goal, _ = biased_goal('touch', scene, rng, Bias(bias))
            home = HOME[goal.places[0]]
            distances = [math.dist((obj.x, obj.y), home[:2]) for obj in scene.objects]
            hits.append(int(np.argmin(distances)) == goal.objects[0])
        return float(np.mean(hits))

    assert nearest(1.0) > 0.95
    assert nearest(0.0) < 0.55


def test_the_same_settings_give_the_same_file_and_a_second_call_makes_only_what_is_missing(tmp_path: Path) -> None:
    settings = replace(SETTINGS, tasks=('touch',))
    one, two = part(0, 5, settings), part(0, 5, settings)
    assert all(np.array_equal(one[name], two[name], equal_nan=one[name].dtype.kind == 'f') for name in one)
    assert not np.array_equal(one['state'], part(1, 5, settings)['state'])
    (path,) = write(tmp_path, 5, settings, workers=1)
    stamp = path.stat().st_mtime_ns
    assert write(tmp_path, 5, settings, workers=1) == [path]
    assert path.stat().st_mtime_ns == stamp
    with np.load(path) as stored:
        jpeg = stored['jpeg'][stored['offset'][0, 0] : stored['offset'][0, 1]]
        assert cv2.imdecode(jpeg, cv2.IMREAD_COLOR).shape == (32, 32, 3)
    with pytest.raises(SimError, match='made with other settings'):
        write(tmp_path, 5, replace(settings, nearest=0.5), workers=1)


def test_joints_are_solved_where_a_contract_has_no_hands(arms) -> None:
    contract = load_contract('bimanual_mobile')
    columns = MomentColumns(contract.state_names, contract.action_names)
    moment = next(MomentMaker(columns, 6, ('head',), 16, Bias()).moments('put_in_bin', 1))
    hands = next(MomentMaker(MomentColumns(COLUMNS, COLUMNS), 6, ('head',), 16, Bias()).moments('put_in_bin', 1))
    for offset, hand, side in ((0, 0, 'left'), (7, 5, 'right')):
        position, _ = arms.pose(side, moment.actions[-1, offset : offset + 6])
        assert np.allclose(position, hands.actions[-1, hand : hand + 3], atol=2e-3)
    assert np.all(moment.actions[:, 14:] == 0)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'tasks': ('fetch',)}, "task 'fetch' has no reactive expert"),
        ({'tasks': ()}, 'tasks is empty'),
        ({'cameras': ('nose',)}, "there is no camera 'nose'"),
        ({'nearest': 1.5}, 'bias is 1.5'),
        ({'horizon': 0}, 'horizon is 0'),
        ({'image_size': 4}, 'image size 4x4'),
        ({'state': ('left_elbow/position',)}, 'column left_elbow/position is not one of the simulated robot'),
        ({'state': ('left_joint1/effort',)}, 'column left_joint1/effort is not one'),
        ({'actions': ('left_gripper/effort',)}, 'column left_gripper/effort is not one'),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict, says: str) -> None:
    with pytest.raises(SimError, match=says):
        replace(SETTINGS, **changes)
