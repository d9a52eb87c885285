"""When a task is done: whether each object that was asked for is where it belongs, from the true state of the world."""

from __future__ import annotations

import itertools
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ki_sim.tasks.episode import TaskEpisode
from ki_sim.world.scene import BIN_CENTRE, BIN_HALF, BIN_HEIGHT, TABLE_CENTRE, TABLE_HALF, TABLE_TOP
from ki_sim.world.touches import Touches

OTHER = {'left': 'right', 'right': 'left'}
RELEASED_SPEED = 0.05  # m/s: an object slower than this has come to rest
NEXT_TO_GAP = 0.06  # m between two objects that stand next to each other
SIDE_LINE = 0.10  # m from the middle of the table, beyond which an object is at its side
ASIDE = 0.01  # m that an object may be knocked aside
PUSHED_ASIDE = 0.06  # m that a pushed object may stray from its way
TOUCHED_MOVE = 0.03  # m that an object may move while it is touched
SINK = 0.002  # m by which objects that touch may sink into each other: contacts are soft
TIP = 0.012  # m by which tilting raises an object's centre, less than a plate does that it stands on


class WorldState(Protocol):
    """What success is decided from: the parts of ki_sim.world.world.World that the predicates read."""

    episode: TaskEpisode
    touches: Touches
    start: list[npt.NDArray[np.float64]]

    def object_position(self, index: int) -> npt.NDArray[np.float64]:
        """Centre of an object in the world, (3,)."""
        ...

    def object_speed(self, index: int) -> float:
        """Speed of an object's centre, m/s."""
        ...

    def in_contact(self, one: int, other: int) -> bool:
        """Whether two objects touch each other."""
        ...

    def bears(self, one: int, other: int) -> bool:
        """Whether two objects touch such that one rests on the other."""
        ...


def at_rest(world: WorldState, index: int) -> bool:
    """No hand touches it and it does not move."""
    return not world.touches.touching(index) and world.object_speed(index) < RELEASED_SPEED


def in_bin(world: WorldState, index: int, side: str) -> bool:
    """Its centre is between a bin's walls and not above its rim by more than a lying object would be."""
    x, y, z = world.object_position(index)
    cx, cy = BIN_CENTRE[side]
    inside = abs(x - cx) <= BIN_HALF[0] and abs(y - cy) <= BIN_HALF[1]
    return bool(inside and TABLE_TOP < z < TABLE_TOP + BIN_HEIGHT + 0.03)


def gap_between(world: WorldState, one: int, other: int) -> float:
    """Free space between two objects on a table, m; negative where one is over the other."""
    a, b = world.object_position(one), world.object_position(other)
    objects = world.episode.scene.objects
    return float(np.linalg.norm(a[:2] - b[:2])) - objects[one].width / 2 - objects[other].width / 2


def on_table(world: WorldState, index: int, table: int = 1) -> bool:
    """It lies or stands on a table's top itself, clear of the edge."""
    scene, position = world.episode.scene, world.object_position(index)
    obj, (x, y) = scene.objects[index], scene.table_of(table).into(*position[:2])
    over = abs(x - TABLE_CENTRE[0]) < TABLE_HALF[0] and abs(y - TABLE_CENTRE[1]) < TABLE_HALF[1]
    low = min(obj.width, obj.height) / 2 - 0.01
    return bool(over and low < position[2] - TABLE_TOP < obj.height / 2 + TIP)


def done_bin(world: WorldState) -> list[bool]:
    """Each object lies in its bin, untouched; none of them counts while an object that nobody asked for is in a bin."""
    goal = world.episode.goal
    strangers = [i for i in range(len(world.episode.scene.objects)) if i not in goal.objects]
    clean = not any(in_bin(world, i, side) for i, side in itertools.product(strangers, OTHER))
    return [
        clean and in_bin(world, i, side) and at_rest(world, i)
        for i, side in zip(goal.objects, goal.places, strict=True)
    ]


def done_touch(world: WorldState) -> list[bool]:
    """The named hand touches the object, which has hardly moved, and no hand touches anything else."""
    goal, (target,) = world.episode.goal, world.episode.goal.objects
    touched = [world.touches.touching(i) for i in range(len(world.episode.scene.objects))]
    alone = not any(hands for i, hands in enumerate(touched) if i != target)
    kept = np.linalg.norm(world.object_position(target) - world.start[target]) < TOUCHED_MOVE
    return [bool(touched[target] == {goal.places[0]} and alone and kept)]


def done_push(world: WorldState) -> list[bool]:
    """The object stands at the named side of the table, untouched, about as far from the robot as it was."""
    goal, (target,) = world.episode.goal, world.episode.goal.objects
    x, y, _ = world.object_position(target)
    way = 1 if goal.places[0] == 'left' else -1
    beyond = way * y > SIDE_LINE and abs(x - world.start[target][0]) < PUSHED_ASIDE
    return [bool(beyond and at_rest(world, target) and on_table(world, target))]


def done_stack(world: WorldState) -> list[bool]:
    """The object rests on the other one, within its width, untouched."""
    (top,), foot = world.episode.goal.objects, world.episode.goal.other
    objects, a, b = world.episode.scene.objects, world.object_position(top), world.object_position(foot)
    rise = a[2] - b[2] - objects[foot].height / 2
    above = abs(rise - objects[top].height / 2) < 0.012 and np.linalg.norm(a[:2] - b[:2]) < objects[foot].width / 2
    return [bool(above and at_rest(world, top) and world.in_contact(top, foot))]


def done_next_to(world: WorldState) -> list[bool]:
    """The two lie side by side on the table, untouched, and the other one has not been moved."""
    (target,), other = world.episode.goal.objects, world.episode.goal.other
    kept = np.linalg.norm(world.object_position(other)[:2] - world.start[other][:2]) < 0.05
    near = -SINK <= gap_between(world, target, other) <= NEXT_TO_GAP and not world.bears(target, other)
    return [bool(near and kept and at_rest(world, target) and on_table(world, target) and on_table(world, other))]


def obeyed_hand(world: WorldState) -> bool:
    """The named hand touched first."""
    return world.touches.first_hand == world.episode.goal.places[0]


def obeyed_bin(world: WorldState) -> bool:
    """No object that was asked for is in another bin than its own."""
    goal = world.episode.goal
    return not any(in_bin(world, i, OTHER[side]) for i, side in zip(goal.objects, goal.places, strict=True))


def obeyed_side(world: WorldState) -> bool:
    """The object has not gone the other way."""
    goal, (target,) = world.episode.goal, world.episode.goal.objects
    moved = world.object_position(target)[1] - world.start[target][1]
    return bool((moved if goal.places[0] == 'left' else -moved) > -ASIDE)


def done_hand_over(world: WorldState) -> list[bool]:
    """The taker alone holds the lifted object, and the giver has held it."""
    goal, (target,) = world.episode.goal, world.episode.goal.objects
    lifted = world.object_position(target)[2] - world.episode.scene.objects[target].height / 2 > TABLE_TOP + 0.05
    given = target in world.touches.ever_held[goal.giver]
    taken = target in world.touches.held(goal.taker) and world.touches.touching(target) == {goal.taker}
    return [bool(given and lifted and taken)]


def done_fetch(world: WorldState) -> list[bool]:
    """The object lies on the first table, in no bin, untouched."""
    (target,) = world.episode.goal.objects
    binned = any(in_bin(world, target, side) for side in OTHER)  # the bins stand on the first table
    return [on_table(world, target, 1) and not binned and at_rest(world, target)]
