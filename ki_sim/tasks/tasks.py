"""The tasks: what stands where, what is asked, and when it is done.

A scene is drawn from the episode's seed and the goal from another, so that the same picture comes with different
instructions: only the words say which thing and which bin. Success is judged from the true state of the world.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ki_sim.errors import SimError
from ki_sim.tasks.language import word
from ki_sim.world.objects import KINDS, pairs
from ki_sim.world.scene import (
    BIN_CENTRE,
    BIN_HALF,
    BIN_HEIGHT,
    TABLE_CENTRE,
    TABLE_HALF,
    TABLE_TOP,
    Pose,
    Scene,
    place,
    sample_look,
)

if TYPE_CHECKING:
    from ki_sim.world.world import World

SPLITS = ('train', 'heldout')
OTHER = {'left': 'right', 'right': 'left'}
RELEASED_SPEED = 0.05  # m/s: a thing slower than this has come to rest
NEXT_TO_GAP = 0.06  # m between two things that stand next to each other
SINK = 0.002  # m by which things that touch may sink into each other: contacts are soft
TIP = 0.012  # m by which tilting raises a thing's centre, less than a plate does that it stands on
SECOND_STATION = Pose(-0.42, 0.55, math.pi / 2)


@dataclass(frozen=True)
class Goal:
    """What to do to which things: `things` by index, and per thing its place: a bin's side, 'top', 'beside', ...

    `other` is the thing they are put on or beside; `giver` and `taker` are hands.
    """

    things: tuple[int, ...]
    places: tuple[str, ...] = ()
    other: int = -1
    giver: str = ''
    taker: str = ''


@dataclass(frozen=True)
class TaskEpisode:
    """A scene and what is asked of the robot in it."""

    task: str
    seed: int
    goal_seed: int
    split: str
    scene: Scene
    goal: Goal
    instruction: str
    limit_s: float

    def label(self, index: int) -> str:
        """How people call thing `index`."""
        return self.scene.things[index].label


@dataclass(frozen=True)
class Task:
    """How a task's scenes and goals are drawn, how it is judged, and how long it may take."""

    name: str
    summary: str
    scene: Callable[[np.random.Generator, str], Scene]
    goal: Callable[[Scene, np.random.Generator, str], tuple[Goal, dict[str, str]]]
    done: Callable[[World], list[bool]]
    limit_s: float


def episode(task: str, seed: int, goal: int | None = None, split: str = 'train') -> TaskEpisode:
    """The episode of a task that a seed names; `goal` draws the instruction apart from the scene.

    With split `heldout` the things asked for are (colour, kind) pairs that no action data holds.
    """
    if task not in TASKS:
        raise SimError(f"task '{task}' is not known: use one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise SimError(f"split '{split}' is not known: use train or heldout")
    if seed < 0 or (goal is not None and goal < 0):
        raise SimError(f'seeds count from 0, got seed {seed} and goal {goal}')
    kind, goal_seed = TASKS[task], seed if goal is None else goal
    # The task's name seeds too: otherwise seed 7 would put things in the same places in every task.
    stream = [seed, sum(task.encode()), 0 if split == 'train' else 1]
    scene = kind.scene(np.random.default_rng([*stream, 1]), split)
    rng = np.random.default_rng([*stream, 2, goal_seed])
    wanted, names = kind.goal(scene, rng, split)
    return TaskEpisode(task, seed, goal_seed, split, scene, wanted, word(task, rng, **names), kind.limit_s)


def success(world: World) -> bool:
    """Whether the episode's task is done in the present state."""
    return all(TASKS[world.episode.task].done(world))


def score(world: World) -> float:
    """Share of the episode's things that are where they belong, 0 to 1."""
    return float(np.mean(TASKS[world.episode.task].done(world)))


# scenes ---------------------------------------------------------------------------------------------------------


def _draw(
    rng: np.random.Generator, split: str, count: int, kinds: tuple[str, ...] = (), colours: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    """`count` different (colour, kind) pairs; in held-out scenes about half are held out, the first one always."""
    known = pairs('train', kinds, colours)
    if split == 'train':
        return [known[i] for i in rng.choice(len(known), count, replace=False)]
    new = pairs('heldout', kinds, colours)
    share = max(1, min(len(new), count // 2))
    chosen = [new[i] for i in rng.choice(len(new), share, replace=False)]
    return chosen + [known[i] for i in rng.choice(len(known), count - share, replace=False)]


def _targets(scene: Scene, split: str, fits: Callable[[int], bool] = lambda _: True) -> list[int]:
    """Things that may be asked for: all that fit, and in held-out scenes only held-out ones."""
    from ki_sim.world.objects import HELD_OUT

    found = [
        i
        for i, thing in enumerate(scene.things)
        if fits(i) and (split == 'train' or (thing.colour, thing.kind) in HELD_OUT)
    ]
    if not found:
        raise SimError(f'this scene holds nothing to ask for: {[thing.label for thing in scene.things]}')
    return found


DEMO_KINDS, DEMO_COLOURS = ('block', 'cup', 'ball'), ('red', 'green', 'blue', 'yellow')


def _demo_scene(rng: np.random.Generator, split: str) -> Scene:
    things = place(rng, _draw(rng, split, 2, DEMO_KINDS, DEMO_COLOURS), yaw_range=0.2, gap=0.06)
    return Scene(things, sample_look(rng, plain=True))


def _bin_scene(rng: np.random.Generator, split: str) -> Scene:
    return Scene(place(rng, _draw(rng, split, int(rng.integers(3, 5)))), sample_look(rng))


STACK_TOPS, STACK_FEET = ('block', 'cup', 'can', 'carton'), ('block', 'plate')


def _stack_scene(rng: np.random.Generator, split: str) -> Scene:
    tops = _draw(rng, split, 2, STACK_TOPS)
    feet = [pair for pair in pairs('train', STACK_FEET) if pair not in tops]
    foot = feet[int(rng.integers(len(feet)))]
    return Scene(place(rng, [*tops, foot]), sample_look(rng))


STEADY = tuple(kind for kind in KINDS if kind != 'ball')  # what stays where it was put


def _next_to_scene(rng: np.random.Generator, split: str) -> Scene:
    for _ in range(50):
        scene = Scene(place(rng, _draw(rng, split, 3, STEADY), gap=0.055), sample_look(rng))
        if any(_far(scene, i, j) for i, j in _apart_pairs(scene, split)):
            return scene
    raise SimError('no scene with two things far apart was found: use another seed')


def _far(scene: Scene, i: int, j: int) -> bool:
    a, b = scene.things[i], scene.things[j]
    return math.hypot(a.x - b.x, a.y - b.y) - a.reach - b.reach > 2 * NEXT_TO_GAP


def _apart_pairs(scene: Scene, split: str) -> list[tuple[int, int]]:
    targets = _targets(scene, split)
    return [(i, j) for i in targets for j in range(len(scene.things)) if i != j and _far(scene, i, j)]


def _bus_scene(rng: np.random.Generator, split: str) -> Scene:
    by_item = {item: tuple(kind.name for kind in KINDS.values() if kind.item == item) for item in ('dish', 'trash')}
    dishes = _draw(rng, split, int(rng.integers(1, 3)), by_item['dish'])
    trash = _draw(rng, split, int(rng.integers(1, 3)), by_item['trash'])
    return Scene(place(rng, [*dishes, *trash], gap=0.04), sample_look(rng))


TALL = ('can', 'bottle', 'carton')


def _hand_over_scene(rng: np.random.Generator, split: str) -> Scene:
    first = _draw(rng, split, 2, TALL)
    return Scene(place(rng, first, ((0.38, 0.53), (-0.12, 0.12)), gap=0.055), sample_look(rng))


def _fetch_scene(rng: np.random.Generator, split: str) -> Scene:
    nudge = rng.uniform(-1, 1, 3) * (0.05, 0.05, 0.10)
    station = Pose(SECOND_STATION.x + nudge[0], SECOND_STATION.y + nudge[1], SECOND_STATION.yaw + nudge[2])
    wanted = _draw(rng, split, 3)
    there = place(rng, wanted[:2], station=station, table=2, gap=0.055)
    here = place(rng, wanted[2:], ((0.48, 0.56), (-0.14, 0.14)), gap=0.05)
    return Scene((*there, *here), sample_look(rng), (Pose(), station))


# goals ----------------------------------------------------------------------------------------------------------


def _bin_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    target, side = int(rng.choice(_targets(scene, split))), str(rng.choice(['left', 'right']))
    return Goal((target,), (side,)), {'thing': scene.things[target].label, 'side': side}


def _stack_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    foot = len(scene.things) - 1
    target = int(rng.choice(_targets(scene, split, lambda i: i != foot)))
    names = {'thing': scene.things[target].label, 'other': scene.things[foot].label}
    return Goal((target,), ('top',), foot), names


def _next_to_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    options = _apart_pairs(scene, split)
    target, other = options[int(rng.integers(len(options)))]
    names = {'thing': scene.things[target].label, 'other': scene.things[other].label}
    return Goal((target,), ('beside',), other), names


def _bus_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    side = str(rng.choice(['left', 'right']))
    places = tuple(side if KINDS[thing.kind].item == 'dish' else OTHER[side] for thing in scene.things)
    return Goal(tuple(range(len(places))), places), {'side': side, 'other_side': OTHER[side]}


def _hand_over_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    target, giver = int(rng.choice(_targets(scene, split))), str(rng.choice(['left', 'right']))
    names = {'thing': scene.things[target].label, 'giver': giver, 'taker': OTHER[giver]}
    return Goal((target,), ('hand',), giver=giver, taker=OTHER[giver]), names


def _fetch_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    target = int(rng.choice(_targets(scene, split, lambda i: scene.things[i].table == 2)))
    return Goal((target,), ('table',)), {'thing': scene.things[target].label}


# success --------------------------------------------------------------------------------------------------------


def at_rest(world: World, index: int) -> bool:
    """No hand touches it and it does not move."""
    return not world.touches.touching(index) and world.thing_speed(index) < RELEASED_SPEED


def in_bin(world: World, index: int, side: str) -> bool:
    """Its centre is between a bin's walls and not above its rim by more than a lying thing would be."""
    x, y, z = world.thing_position(index)
    cx, cy = BIN_CENTRE[side]
    inside = abs(x - cx) <= BIN_HALF[0] and abs(y - cy) <= BIN_HALF[1]
    return bool(inside and TABLE_TOP < z < TABLE_TOP + BIN_HEIGHT + 0.03)


def gap_between(world: World, one: int, other: int) -> float:
    """Free space between two things on a table, m; negative where one is over the other."""
    a, b = world.thing_position(one), world.thing_position(other)
    things = world.episode.scene.things
    return float(np.linalg.norm(a[:2] - b[:2])) - things[one].width / 2 - things[other].width / 2


def on_table(world: World, index: int, table: int = 1) -> bool:
    """It lies or stands on a table's top itself, clear of the edge."""
    scene, position = world.episode.scene, world.thing_position(index)
    thing, (x, y) = scene.things[index], scene.table_of(table).into(*position[:2])
    over = abs(x - TABLE_CENTRE[0]) < TABLE_HALF[0] and abs(y - TABLE_CENTRE[1]) < TABLE_HALF[1]
    low = min(thing.width, thing.height) / 2 - 0.01
    return bool(over and low < position[2] - TABLE_TOP < thing.height / 2 + TIP)


def _done_bin(world: World) -> list[bool]:
    goal = world.episode.goal
    strangers = [i for i in range(len(world.episode.scene.things)) if i not in goal.things]
    clean = not any(in_bin(world, i, side) for i, side in itertools.product(strangers, OTHER))
    return [
        clean and in_bin(world, i, side) and at_rest(world, i) for i, side in zip(goal.things, goal.places, strict=True)
    ]


def _done_stack(world: World) -> list[bool]:
    (top,), foot = world.episode.goal.things, world.episode.goal.other
    things, a, b = world.episode.scene.things, world.thing_position(top), world.thing_position(foot)
    rise = a[2] - b[2] - things[foot].height / 2
    above = abs(rise - things[top].height / 2) < 0.012 and np.linalg.norm(a[:2] - b[:2]) < things[foot].width / 2
    return [bool(above and at_rest(world, top) and world.in_contact(top, foot))]


def _done_next_to(world: World) -> list[bool]:
    (target,), other = world.episode.goal.things, world.episode.goal.other
    kept = np.linalg.norm(world.thing_position(other)[:2] - world.start[other][:2]) < 0.05
    near = -SINK <= gap_between(world, target, other) <= NEXT_TO_GAP and not world.bears(target, other)
    return [bool(near and kept and at_rest(world, target) and on_table(world, target) and on_table(world, other))]


def _done_hand_over(world: World) -> list[bool]:
    goal, (target,) = world.episode.goal, world.episode.goal.things
    lifted = world.thing_position(target)[2] - world.episode.scene.things[target].height / 2 > TABLE_TOP + 0.05
    given = target in world.touches.ever_held[goal.giver]
    return [bool(given and lifted and world.touches.touching(target) == {goal.taker} and _held(world, target))]


def _held(world: World, target: int) -> bool:
    return target in world.touches.held(world.episode.goal.taker)


def _done_fetch(world: World) -> list[bool]:
    (target,) = world.episode.goal.things
    binned = any(in_bin(world, target, side) for side in OTHER)  # the bins stand on the first table
    return [on_table(world, target, 1) and not binned and at_rest(world, target)]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task('demo', 'put one of two things into the left or right bin', _demo_scene, _bin_goal, _done_bin, 20.0),
        Task('put_in_bin', 'put the thing into the left or right bin', _bin_scene, _bin_goal, _done_bin, 20.0),
        Task('stack', 'stack one thing on another', _stack_scene, _stack_goal, _done_stack, 20.0),
        Task('next_to', 'move one thing next to another', _next_to_scene, _next_to_goal, _done_next_to, 20.0),
        Task('bus_table', 'dishes into one bin, trash into the other', _bus_scene, _bus_goal, _done_bin, 60.0),
        Task('hand_over', 'hand a thing from hand to hand', _hand_over_scene, _hand_over_goal, _done_hand_over, 25.0),
        Task('fetch', 'bring a thing from the second table', _fetch_scene, _fetch_goal, _done_fetch, 50.0),
    )
}
