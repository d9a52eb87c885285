"""What an expert knows of a moment, and the law that each hand follows in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ki_sim.errors import SimError
from ki_sim.expert.laws import (
    FINGER_REACH,
    HOME,
    TRAVEL,
    Grasp,
    Law,
    Move,
    Place,
    Push,
    Touch,
    Xyz,
    easy_yaw,
)
from ki_sim.tasks.episode import Goal
from ki_sim.tasks.success import OTHER, SIDE_LINE, TIP
from ki_sim.world.objects import KINDS, SceneObject
from ki_sim.world.robot import SIDES
from ki_sim.world.scene import BIN_CENTRE, BIN_HALF, TABLE_TOP

FINGERS = 0.014  # half of the shut fingers, along and across, m
SLOTS = (-0.05, 0.05, 0.0)  # m from a bin's middle, where several objects go
PRESS = 0.010  # m under its top, to where a touch goes: who sees the top by some mm does not stop in the air
OUT = 0.08  # m from where it rests, at which a hand is out
ENOUGH = 0.025  # m past the line, at which a push is over: who sees where it stands by 1 cm does not stop short of it
PUSH_BEYOND = 0.045  # m past the line, to which a hand pushes that does not look: the arm lags, contact comes late
FOOT_SHARE = {'bowl': 0.62}  # of the width, where the shut fingers meet it
CARRIED = 0.05  # m over all other objects, at which what is put beside or on one is carried: a policy is some mm off
BESIDE = 0.032  # m between an object and the one that it is put beside
ROOM = 0.015  # m from there to all others
SPOT_AREA = ((0.345, 0.590), 0.140)  # of x and |y|: beyond it, open fingers meet the bins


@dataclass(frozen=True)
class Body:
    """Where an object is: its centre (m), its heading (rad), whether it stands."""

    position: Xyz
    yaw: float
    upright: bool = True


@dataclass(frozen=True)
class Situation:
    """A moment of an episode on one table, in the base frame.

    `holding`: the object between the pads of a hand, and where the hand is, so that what slipped is put down right.
    """

    task: str
    goal: Goal
    objects: tuple[SceneObject, ...]
    bodies: tuple[Body, ...]
    holding: Mapping[str, int] = field(default_factory=dict)
    hands: Mapping[str, Xyz] = field(default_factory=dict)


@dataclass(frozen=True)
class Duty:
    """What a hand is to do now, in words, with which object (-1: none) and by which law; `done`: it has been done."""

    side: str
    law: Law
    words: str
    target: int = -1
    done: bool = False


def duty(now: Situation) -> Duty:
    """What is to be done now; the hand that it does not name rests.

    Raises:
        SimError: no law is known for the task.
    """
    if now.task not in _DUTIES:
        raise SimError(f'there is no reactive expert for {now.task}: use one of {", ".join(_DUTIES)}')
    return _DUTIES[now.task](now)


def tasks_with_laws() -> tuple[str, ...]:
    """Names of the tasks that a law does."""
    return tuple(_DUTIES)


def grasp_of(now: Situation, target: int, side: str) -> Grasp:
    """How a hand takes an object from above."""
    obj, body = now.objects[target], now.bodies[target]
    x, y, z = body.position
    kind = KINDS[obj.kind]
    half = half_height(now, target)
    height = z - half + 2 * half * kind.grasp if body.upright else z
    low = TABLE_TOP + FINGER_REACH + 0.003
    easy = easy_yaw(side, x, y)
    turns = {'square': (math.pi / 2, range(-2, 3)), 'handled': (math.pi, range(-1, 2))}.get(kind.shape)
    yaw = easy if turns is None else min((body.yaw + turns[0] * k for k in turns[1]), key=lambda each: abs(each - easy))
    above = max(z + half + 0.05 + FINGER_REACH, clear_height(now, target) + FINGER_REACH)
    return Grasp((x, y, max(height, low)), yaw, obj.width, above)


def clear_height(now: Situation, target: int, room: float = 0.025) -> float:
    """Height over which what a hand carries passes all other objects."""
    tops = [now.bodies[i].position[2] + half_height(now, i) + room for i in range(len(now.bodies)) if i != target]
    return max([TABLE_TOP, *tops])


def half_height(now: Situation, index: int) -> float:
    """From the centre of an object as it stands or lies to its top, and to its foot, m."""
    obj = now.objects[index]
    return (obj.height if now.bodies[index].upright and obj.kind != 'ball' else obj.width) / 2


def in_bin(now: Situation, index: int) -> str:
    """The side of the bin that an object is over or in; empty when it is in none."""
    x, y, _ = now.bodies[index].position
    for side in SIDES:
        cx, cy = BIN_CENTRE[side]
        if abs(x - cx) < BIN_HALF[0] and abs(y - cy) < BIN_HALF[1]:
            return side
    return ''


def _is_held(now: Situation, target: int) -> bool:
    return target in now.holding.values()


def _below(now: Situation, target: int, side: str, grasp: Grasp) -> float:
    """How far the foot of an object is below the hand that holds it, or will."""
    foot = now.bodies[target].position[2] - half_height(now, target)
    return (now.hands[side] if now.holding.get(side) == target else grasp.position)[2] - foot


def _offset(now: Situation, target: int, side: str) -> tuple[float, float]:
    """From an object to the hand that holds it, on the table."""
    if now.holding.get(side) != target:
        return 0.0, 0.0
    hand, body = now.hands[side], now.bodies[target].position
    return hand[0] - body[0], hand[1] - body[1]


# what each task asks of a hand ------------------------------------------------------------------------------------


def _binned(now: Situation, target: int, side: str) -> Duty:
    """An object into the bin on the side of the hand."""
    grasp = grasp_of(now, target, side)
    below = _below(now, target, side, grasp)
    x, y = BIN_CENTRE[side]
    inside = [i for i in range(len(now.objects)) if i != target and in_bin(now, i) == side]
    x += _free_slot(now, side, inside)
    heap = max([0.035, *(now.bodies[i].position[2] + half_height(now, i) - TABLE_TOP - 0.085 for i in inside)])
    over = max(TRAVEL, clear_height(now, target)) + below
    place = Place((x, y, TABLE_TOP + heap + below), easy_yaw(side, x, y), over, near=0.02, gentle=False)
    done = in_bin(now, target) == side and not _is_held(now, target) and now.bodies[target].position[2] < TRAVEL
    return Duty(side, Move(grasp, place), _words(now, target, f'put the {{}} into the {side} bin'), target, done)


def _free_slot(now: Situation, side: str, inside: Sequence[int]) -> float:
    """How far from a bin's middle to let go, along the bin, m: away from what lies there, or will."""
    if len(now.goal.objects) == 1:
        return 0.0
    taken = [now.bodies[i].position[0] - BIN_CENTRE[side][0] for i in inside]
    return max(SLOTS, key=lambda x: min((abs(x - other) for other in taken), default=0.0))


def _words(now: Situation, target: int, carrying: str) -> str:
    label = now.objects[target].label
    return carrying.format(label) if _is_held(now, target) else f'reach for the {label}'


def _bin(now: Situation) -> Duty:
    (target,), (side,) = now.goal.objects, now.goal.places
    return _binned(now, target, side)


def _bus(now: Situation) -> Duty:
    """What is held first, then the nearest that is not yet in its bin."""
    todo = [
        (not _is_held(now, i), now.bodies[i].position[0], i, side)
        for i, side in zip(now.goal.objects, now.goal.places, strict=True)
        if in_bin(now, i) != side or _is_held(now, i)
    ]
    if not todo:
        target, side = now.goal.objects[-1], now.goal.places[-1]
        return _binned(now, target, side)
    _, _, target, side = min(todo)
    return _binned(now, target, side)


def _nearer_arm(now: Situation, target: int, other: int) -> str:
    """The arm that holds the object, else the one that is out already, else that on the side where it is to go.

    Who sees a place near the middle cannot tell its side for sure: what the other arm has begun it goes on with.
    """
    for side, held in now.holding.items():
        if held == target:
            return side
    out = [side for side, hand in now.hands.items() if math.dist(hand, HOME[side]) > OUT]
    if out:
        return min(out, key=lambda side: math.dist(now.hands[side], now.bodies[target].position))
    return 'left' if now.bodies[other].position[1] > 0 else 'right'


def _stack(now: Situation) -> Duty:
    (target,), foot = now.goal.objects, now.goal.other
    side = _nearer_arm(now, target, foot)
    grasp = grasp_of(now, target, side)
    below = _below(now, target, side, grasp)
    x, y, z = now.bodies[foot].position
    top = z + half_height(now, foot)
    dx, dy = _offset(now, target, side)
    over = max(top + 0.05, clear_height(now, target, CARRIED)) + below
    place = Place((x + dx, y + dy, top + 0.003 + below), easy_yaw(side, x, y), over, near=0.008)
    ax, ay, az = now.bodies[target].position
    # What lies or leans there is not done: success counts the height of what stands.
    rise = az - z - (now.objects[foot].height + now.objects[target].height) / 2
    over_foot = math.hypot(ax - x, ay - y) < now.objects[foot].width / 2
    done = over_foot and abs(rise) < TIP and not _is_held(now, target)
    words = _words(now, target, f'put the {{}} on the {now.objects[foot].label}')
    return Duty(side, Move(grasp, place), words, target, done)


def _beside(now: Situation) -> Duty:
    (target,), other = now.goal.objects, now.goal.other
    side = _nearer_arm(now, target, other)
    grasp = grasp_of(now, target, side)
    below = _below(now, target, side, grasp)
    x, y = free_spot(now, target, other)
    dx, dy = _offset(now, target, side)
    over = max(TABLE_TOP + 0.06, clear_height(now, target, CARRIED)) + below
    a, b = now.bodies[target].position, now.bodies[other].position
    # Fingers open along the hand's y: turned such that none of them is between the two.
    yaw = math.atan2(y - b[1], x - b[0])
    place = Place((x + dx, y + dy, TABLE_TOP + 0.004 + below), yaw, over, near=0.013, either=True)
    gap = math.dist(a[:2], b[:2]) - (now.objects[target].width + now.objects[other].width) / 2
    flat = a[2] - TABLE_TOP < now.objects[target].height / 2 + TIP  # a plate that leans on something is not put down
    done = gap < 0.058 and flat and not _is_held(now, target)
    words = _words(now, target, f'put the {{}} next to the {now.objects[other].label}')
    return Duty(side, Move(grasp, place), words, target, done)


def free_spot(now: Situation, target: int, other: int) -> tuple[float, float]:
    """A spot beside an object, on the side of what is to be put there, or as near to that as there is room.

    It goes with what is carried. A choice between two sides that only what is seen decides comes out in between.
    """
    x, y, _ = now.bodies[other].position
    here = now.bodies[target].position
    distance = now.objects[other].width / 2 + now.objects[target].width / 2 + BESIDE
    bearing = math.atan2(here[1] - y, here[0] - x)
    best, least = (x, y), math.inf
    for turn in sorted((i * math.pi / 60 for i in range(-60, 60)), key=abs):
        spot = (x + distance * math.cos(bearing + turn), y + distance * math.sin(bearing + turn))
        (low, high), wide = SPOT_AREA
        beyond = max(0.0, low - spot[0], spot[0] - high) + max(0.0, abs(spot[1]) - wide)
        crowd = 0.0
        for i, obj in enumerate(now.objects):
            if i not in (target, other):
                room = math.dist(spot, now.bodies[i].position[:2]) - obj.reach - now.objects[target].reach
                crowd += max(0.0, ROOM - room)
        cost = abs(turn) + 150 * crowd + 150 * beyond
        if cost < least:
            best, least = spot, cost
    return best


def _touch_duty(now: Situation) -> Duty:
    (target,), (side,) = now.goal.objects, now.goal.places
    x, y, z = now.bodies[target].position
    top = z + half_height(now, target)
    above = max(top + 0.05, clear_height(now, target)) + FINGER_REACH
    law = Touch((x, y, top + FINGER_REACH - PRESS), easy_yaw(side, x, y), above)
    return Duty(side, law, f'touch the {now.objects[target].label}', target)


def _push_duty(now: Situation) -> Duty:
    (target,), (to,) = now.goal.objects, now.goal.places
    way, side = (1, OTHER['left']) if to == 'left' else (-1, OTHER['right'])
    obj, (x, y, _) = now.objects[target], now.bodies[target].position
    reach = obj.width / 2 * FOOT_SHARE.get(obj.kind, 1.0) + FINGERS
    above = max(TABLE_TOP + obj.height + 0.05, clear_height(now, target)) + FINGER_REACH
    low = TABLE_TOP + FINGER_REACH + 0.008
    line = way * (SIDE_LINE + PUSH_BEYOND)
    law = Push((x, y - way * (obj.reach + FINGERS + 0.018), low), y, reach, way, line, above)
    return Duty(side, law, f'push the {obj.label} to the {to}', target, way * y > SIDE_LINE + ENOUGH)


_DUTIES: dict[str, Callable[[Situation], Duty]] = {
    'touch': _touch_duty,
    'put_in_bin': _bin,
    'next_to': _beside,
    'push': _push_duty,
    'stack': _stack,
    'bus': _bus,
    'bus_table': _bus,
}
