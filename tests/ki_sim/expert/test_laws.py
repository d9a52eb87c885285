"""A law brings any state of a hand to its end, also where things have gone wrong, and never faster than a hand may."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ki_sim.errors import SimError
from ki_sim.expert.laws import (
    FINGER_REACH,
    GRIP,
    HOME,
    OPEN,
    SHUT,
    SPEED,
    TURNED,
    Grasp,
    Hand,
    Move,
    Place,
    Push,
    Rest,
    Touch,
    roll,
    step,
)
from ki_sim.expert.reactive_expert import ReactiveExpert, look
from ki_sim.expert.situation import CARRIED, Body, Situation, duty, free_spot, half_height
from ki_sim.moments.hands import somewhere
from ki_sim.tasks.success import OTHER
from ki_sim.tasks.tasks import SUITE, episode
from ki_sim.world.kinematics import Arms, pointing_down
from ki_sim.world.objects import KINDS
from ki_sim.world.robot import SIDES
from ki_sim.world.scene import TABLE_TOP


def situation(task: str, seed: int) -> Situation:
    made = episode(task, seed)
    objects = made.scene.objects
    bodies = tuple(Body((obj.x, obj.y, TABLE_TOP + obj.height / 2), obj.yaw) for obj in objects)
    return Situation(task, made.goal, objects, bodies)


@pytest.mark.parametrize('task', SUITE)
def test_a_law_comes_to_its_end_from_anywhere(task: str) -> None:
    rng = np.random.default_rng(0)
    for seed in range(60):
        found = duty(situation(task, seed))
        hand = somewhere(rng, found.side, found.law)
        _, after = roll(found.law, hand, 300)
        if isinstance(found.law, Touch):
            assert math.dist(after.position, found.law.position) < 0.004
        else:
            assert after.done, (seed, hand)


@pytest.mark.parametrize('kind', KINDS)
def test_a_hand_rises_from_what_it_has_let_go_of_however_wide(kind: str) -> None:
    width, place = KINDS[kind].width[1], Place((0.45, 0.1, TABLE_TOP + 0.05), 0.0, TABLE_TOP + 0.15)
    law = Move(Grasp(place.position, 0.0, width, place.over), place)
    _, after = roll(law, Hand(place.position, 0.0, width + 0.005, done=True), 40)
    assert after.position[2] == pytest.approx(place.over, abs=0.002)


def test_a_touch_misjudged_by_some_millimetres_still_meets_the_object() -> None:
    for seed in range(20):
        now = situation('touch', seed)
        found = duty(now)
        assert isinstance(found.law, Touch)
        x, y, z = found.law.position
        top = now.bodies[found.target].position[2] + half_height(now, found.target)
        for aside, above in ((0.0, 0.006), (0.010, 0.004)):  # the law of one who sees it so much too high, or aside
            wrong = replace(found.law, position=(x + aside, y, z + above))
            _, after = roll(wrong, Hand((x, y, top + FINGER_REACH + 0.03), 0.0, SHUT), 40)
            assert after.position[2] - FINGER_REACH < top - 0.002


@pytest.mark.parametrize('task', SUITE)
def test_no_step_is_longer_than_a_hand_may_move(task: str) -> None:
    rng = np.random.default_rng(1)
    for seed in range(20):
        found = duty(situation(task, seed))
        hand = somewhere(rng, found.side, found.law)
        for _ in range(120):
            command, after = step(found.law, hand)
            assert math.dist(command.position, hand.position) <= SPEED + 1e-9
            assert abs(after.opening - hand.opening) <= GRIP + 0.01  # fingers stop at what they hold
            assert command.opening in (OPEN, SHUT)
            hand = after


@pytest.fixture
def move() -> Move:
    found = duty(situation('put_in_bin', 0)).law
    assert isinstance(found, Move)
    return found


def test_an_empty_shut_hand_at_the_object_opens_and_rises(move: Move) -> None:
    x, y, z = move.grasp.position
    command, _ = step(move, Hand((x, y, z), move.grasp.yaw, 0.0))
    assert command.opening == OPEN
    assert command.position[2] > z


def test_an_open_hand_low_beside_the_object_rises_before_it_crosses(move: Move) -> None:
    x, y, z = move.grasp.position
    command, _ = step(move, Hand((x + 0.08, y, z), move.grasp.yaw, OPEN))
    assert command.opening == OPEN
    assert command.position[2] - z > abs(command.position[0] - x - 0.08)


def test_an_open_hand_over_the_place_goes_back_to_the_object(move: Move) -> None:
    x, y, _ = move.place.position
    commands, _ = roll(move, Hand((x, y, move.place.over), move.place.yaw, OPEN), 20)
    assert math.dist(commands[-1].position[:2], move.grasp.position[:2]) < math.dist((x, y), move.grasp.position[:2])


def test_a_hand_that_holds_rises_before_it_crosses_and_opens_only_at_the_place(move: Move) -> None:
    hand = Hand(move.grasp.position, move.grasp.yaw, move.grasp.width, holds=True)
    for _ in range(200):
        command, after = step(move, hand)
        if command.opening == OPEN and not hand.done:
            assert math.dist(hand.position[:2], move.place.position[:2]) < move.place.near + 0.005
        if after.done:
            break
        hand = after
    assert after.done


def test_a_push_ends_when_the_object_is_past_the_line() -> None:
    found = next(duty(situation('push', seed)) for seed in range(9))
    assert isinstance(found.law, Push)
    _, after = roll(found.law, Hand(HOME[found.side], 0.0, 0.1), 200)
    assert after.done
    assert after.position[2] > TABLE_TOP + 0.1  # and away


def test_a_hand_without_a_duty_opens_before_it_goes_home() -> None:
    low = Hand((0.45, 0.1, 0.76), 0.3, 0.05)
    command, _ = step(Rest('left'), low)
    assert command.position[:2] == pytest.approx((0.45, 0.1))
    _, after = roll(Rest('left'), low, 100)
    assert after.position == pytest.approx(HOME['left'], abs=1e-3)


@pytest.mark.parametrize('task', ['stack', 'next_to'])
def test_the_hand_that_has_begun_goes_on_where_no_words_say_which(task: str) -> None:
    now = situation(task, 0)
    nearer = 'left' if now.bodies[now.goal.other].position[1] > 0 else 'right'
    target = now.bodies[now.goal.objects[0]].position
    x, y, _ = target
    over, home = (x, y, 0.9), {side: HOME[side] for side in SIDES}
    assert duty(replace(now, hands=home)).side == nearer
    for side in SIDES:
        assert duty(replace(now, hands=home | {side: over})).side == side
        both = {OTHER[side]: (0.45, 0.1, 0.95), side: over}
        assert duty(replace(now, hands=both)).side == side, 'the nearer to the object of two that are out'
        held = {OTHER[side]: now.goal.objects[0]}
        assert duty(replace(now, hands=home | {side: over}, holding=held)).side == OTHER[side]


@pytest.mark.parametrize(('task', 'seed'), [('stack', 0), ('stack', 1), ('next_to', 0), ('next_to', 1)])
def test_the_hand_that_was_not_the_nearer_one_does_it_too(blind_world: Any, arms: Arms, task: str, seed: int) -> None:
    with blind_world(task, seed) as world:
        found = duty(look(world, arms))
        other = OTHER[found.side]
        row = world.observe(images=False).state.copy()
        row[14:] = 0.0
        columns = slice(0, 6) if other == 'left' else slice(7, 13)
        x, y, z = HOME[other]
        for share in np.linspace(0.1, 1.0, 10):  # out, over the table
            there = (x + 0.06 * share, y * (1 - 0.5 * share), z)
            row[columns], _ = arms.solve(other, there, pointing_down(0.0), row[columns])
            world.step(row)
        acted = set()
        for move in ReactiveExpert(world, arms).moves():
            now = look(world, arms)
            acted |= {duty(now).side}
            world.step(move.action)
        assert world.success()
        assert acted == {other}


def test_what_is_put_beside_another_stays_on_the_side_that_it_is_near() -> None:
    standing = situation('next_to', 3)
    (target,), other = standing.goal.objects, standing.goal.other
    # Nothing else is near, and there is room on either side: only where the object is decides.
    bodies = [Body((0.30, -0.3 + 0.3 * i, b.position[2]), 0.0) for i, b in enumerate(standing.bodies)]
    bodies[other] = Body((0.47, 0.0, standing.bodies[other].position[2]), 0.0)
    for way in (-1.0, 1.0):
        for off in (0.20, 0.12, 0.05, 0.02):
            bodies[target] = Body((0.47 + way * off, 0.01, standing.bodies[target].position[2] + 0.1), 0.0)
            x, _ = free_spot(replace(standing, bodies=tuple(bodies)), target, other)
            assert way * (x - 0.47) > 0.03, (way, off)


def test_a_spot_beside_another_hardly_moves_where_everything_is_seen_a_little_elsewhere() -> None:
    rng, far = np.random.default_rng(0), []
    for seed in range(300):
        now = situation('next_to', seed)
        (target,), other = now.goal.objects, now.goal.other
        off = rng.normal(0, 0.008, (len(now.bodies), 2))
        seen = tuple(
            replace(body, position=(body.position[0] + dx, body.position[1] + dy, body.position[2]))
            for body, (dx, dy) in zip(now.bodies, off, strict=True)
        )
        far.append(math.dist(free_spot(now, target, other), free_spot(replace(now, bodies=seen), target, other)))
    assert np.mean(np.array(far) > 0.05) < 0.06, 'a choice that hangs on millimetres comes out in between'


def test_a_spot_beside_another_is_where_nothing_else_stands() -> None:
    for seed in range(100):
        now = situation('next_to', seed)
        (target,), other = now.goal.objects, now.goal.other
        spot = free_spot(now, target, other)
        for i, (obj, body) in enumerate(zip(now.objects, now.bodies, strict=True)):
            if i not in (target, other):
                assert math.dist(spot, body.position[:2]) > obj.reach + now.objects[target].reach


def test_no_finger_opens_between_what_is_put_down_and_what_it_is_put_beside() -> None:
    for seed in range(20):
        now = situation('next_to', seed)
        other = now.goal.other
        law, (x, y, _) = duty(now).law, now.bodies[other].position
        assert isinstance(law, Move)
        bearing = math.atan2(law.place.position[1] - y, law.place.position[0] - x)
        for yaw in (-1.5, -0.3, 0.4, 1.4):
            turned = law.place.turned(yaw)
            assert abs(math.sin(turned - bearing)) < 1e-9, 'fingers open across the line from one to the other'
            assert abs(turned) <= TURNED
            assert abs(turned - yaw) <= math.pi / 2 + 1e-9 or abs(turned) < math.pi / 2 + 1e-9


@pytest.mark.parametrize(
    ('kind', 'height', 'width'), [('plate', 0.02, 0.09), ('bowl', 0.045, 0.09), ('block', 0.045, 0.045)]
)
@pytest.mark.parametrize('task', ['next_to', 'stack'])
def test_what_leans_on_something_where_it_was_to_stand_is_not_done(
    task: str, kind: str, height: float, width: float
) -> None:
    standing = situation(task, 3)
    (target,), other = standing.goal.objects, standing.goal.other
    objects = [replace(obj, x=0.3, y=-0.3 + 0.2 * i) for i, obj in enumerate(standing.objects)]
    objects[target] = replace(objects[target], kind=kind, height=height, width=width)
    bodies = [Body((obj.x, obj.y, TABLE_TOP + obj.height / 2), 0.0) for obj in objects]
    x, y, z = bodies[other].position
    below = 2 * z - TABLE_TOP  # the top of the other
    if task == 'next_to':
        x, below = x + (objects[other].width + width) / 2 + 0.03, TABLE_TOP

    def done(rise: float, upright: bool) -> bool:
        bodies[target] = Body((x, y, below + height / 2 + rise), 0.0, upright)
        return duty(replace(standing, objects=tuple(objects), bodies=tuple(bodies))).done

    assert done(0.0, upright=True)
    assert not done(0.02, upright=False)


@pytest.mark.parametrize('task', ['next_to', 'stack'])
def test_what_is_carried_passes_well_above_all_others(task: str) -> None:
    for seed in range(20):
        now = situation(task, seed)
        law = duty(now).law
        assert isinstance(law, Move)
        (target,) = now.goal.objects
        top = max(b.position[2] + half_height(now, i) for i, b in enumerate(now.bodies) if i != target)
        below = law.grasp.position[2] - (now.bodies[target].position[2] - half_height(now, target))
        assert law.place.over - below >= top + CARRIED - 1e-9


def test_a_task_without_a_law_is_named() -> None:
    made = episode('fetch', 0)
    with pytest.raises(SimError, match='no reactive expert for fetch: use one of touch'):
        duty(Situation('fetch', made.goal, made.scene.objects, ()))
