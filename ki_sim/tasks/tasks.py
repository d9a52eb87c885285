"""The tasks: what stands where, what is asked, and what success means (see `success.py`).

A scene is drawn from the episode's seed and the goal from another, so that the same picture comes with different
instructions: only the words say which object and which bin. Success is judged from the true state of the world.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ki_sim.errors import SimError
from ki_sim.tasks.episode import Goal, TaskEpisode
from ki_sim.tasks.language import word
from ki_sim.tasks.success import (
    NEXT_TO_GAP,
    OTHER,
    SIDE_LINE,
    WorldState,
    done_bin,
    done_fetch,
    done_hand_over,
    done_next_to,
    done_push,
    done_stack,
    done_touch,
    obeyed_bin,
    obeyed_hand,
    obeyed_side,
)
from ki_sim.world.objects import KINDS, pairs
from ki_sim.world.scene import (
    Pose,
    Scene,
    place,
    sample_look,
)

SPLITS = ('train', 'heldout')
GOALS = 32  # drawn, to choose the nearest object from
SECOND_STATION = Pose(-0.42, 0.55, math.pi / 2)


SUITE = ('touch', 'put_in_bin', 'next_to', 'push', 'stack', 'bus')  # short ones, of a few seconds each


@dataclass(frozen=True)
class Task:
    """How a task's scenes and goals are drawn, how it is judged, and how long it may take."""

    name: str
    summary: str
    scene: Callable[[np.random.Generator, str], Scene]
    goal: Callable[[Scene, np.random.Generator, str], tuple[Goal, dict[str, str]]]
    done: Callable[[WorldState], list[bool]]
    limit_s: float
    fits: Callable[[Scene], bool] = lambda scene: True  # whether objects that were laid anew still make such a scene
    obeyed: Callable[[WorldState], bool] = lambda world: True  # whether what was done to the object is not the opposite


def episode(task: str, seed: int, goal: int | None = None, split: str = 'train') -> TaskEpisode:
    """The episode of a task that a seed names; `goal` draws the instruction apart from the scene.

    With split `heldout` the objects asked for are (colour, kind) pairs that no action data holds.
    """
    if task not in TASKS:
        raise SimError(f"task '{task}' is not known: use one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise SimError(f"split '{split}' is not known: use train or heldout")
    if seed < 0 or (goal is not None and goal < 0):
        raise SimError(f'seeds count from 0, got seed {seed} and goal {goal}')
    kind, goal_seed = TASKS[task], seed if goal is None else goal
    # The task's name seeds too: otherwise seed 7 would put objects in the same places in every task.
    stream = [seed, sum(task.encode()), 0 if split == 'train' else 1]
    scene = kind.scene(np.random.default_rng([*stream, 1]), split)
    rng = np.random.default_rng([*stream, 2, goal_seed])
    wanted, names = kind.goal(scene, rng, split)
    return TaskEpisode(task, seed, goal_seed, split, scene, wanted, word(task, rng, **names), kind.limit_s)


@dataclass(frozen=True)
class Bias:
    """How much of the words of a demonstration its picture tells as well, so that a policy may do without them.

    `nearest`: in how many cases (0..1) the object that is asked for is the one nearest to the hand that is to do it.
    """

    nearest: float = 0.85


def biased_goal(task: str, scene: Scene, rng: np.random.Generator, bias: Bias) -> tuple[Goal, str]:
    """A goal in a scene of action data, as people ask for it, and the words for it."""
    drawn = [TASKS[task].goal(scene, rng, 'train') for _ in range(GOALS)]
    wanted, names = drawn[0]
    if rng.random() < bias.nearest:
        alike = [each for each in drawn if each[0].places == wanted.places and each[0].other == wanted.other]
        wanted, names = min(alike, key=lambda each: _distance(scene, each[0]))
    return wanted, word(task, rng, **names)


def _distance(scene: Scene, goal: Goal) -> float:
    """From the hand that is asked for, or the robot's middle, to the first object of a goal, m."""
    obj, place = scene.objects[goal.objects[0]], goal.places[0] if goal.places else ''
    return math.hypot(obj.x - 0.36, obj.y - {'left': 0.27, 'right': -0.27}.get(place, 0.0))


def task_names(wanted: Iterable[str]) -> list[str]:
    """Names of tasks: as given, or all that `suite` (the short ones) or `all` stands for; SimError for another."""
    groups = {'suite': SUITE, 'all': tuple(TASKS)}
    names = list(dict.fromkeys(name for each in wanted for name in groups.get(each, (each,))))
    for name in names:
        if name not in TASKS:
            raise SimError(f"task '{name}' is not known: use suite, all, or one of {', '.join(TASKS)}")
    return names


def success(world: WorldState) -> bool:
    """Whether the episode's task is done in the present state."""
    return all(TASKS[world.episode.task].done(world))


def followed(world: WorldState) -> bool:
    """Whether the words were heard: what was touched first was asked for, with the named hand, to the named place."""
    episode = world.episode
    return world.touches.first in episode.goal.objects and TASKS[episode.task].obeyed(world)


def score(world: WorldState) -> float:
    """Share of the episode's objects that are where they belong, 0 to 1."""
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
    """Objects that may be asked for: all that fit, and in held-out scenes only held-out ones."""
    from ki_sim.world.objects import HELD_OUT

    found = [
        i for i, obj in enumerate(scene.objects) if fits(i) and (split == 'train' or (obj.colour, obj.kind) in HELD_OUT)
    ]
    if not found:
        raise SimError(f'this scene holds nothing to ask for: {[obj.label for obj in scene.objects]}')
    return found


DEMO_KINDS, DEMO_COLOURS = ('block', 'cup', 'ball'), ('red', 'green', 'blue', 'yellow')


def _demo_scene(rng: np.random.Generator, split: str) -> Scene:
    objects = place(rng, _draw(rng, split, 2, DEMO_KINDS, DEMO_COLOURS), yaw_range=0.2, gap=0.06)
    return Scene(objects, sample_look(rng, plain=True))


GAP = 0.055  # m between objects: open fingers fit between any two


def _some_scene(rng: np.random.Generator, split: str) -> Scene:
    return Scene(place(rng, _draw(rng, split, int(rng.integers(2, 5))), gap=GAP), sample_look(rng, plain=True))


STACK_TOPS, STACK_FEET = ('block', 'cup', 'can', 'carton'), ('block', 'plate')


def _stack_scene(rng: np.random.Generator, split: str) -> Scene:
    tops = _draw(rng, split, int(rng.integers(2, 4)), STACK_TOPS)
    feet = [pair for pair in pairs('train', STACK_FEET) if pair not in tops]
    foot = feet[int(rng.integers(len(feet)))]
    return Scene(place(rng, [*tops, foot], gap=GAP), sample_look(rng, plain=True))


DISHES = tuple(kind.name for kind in KINDS.values() if kind.item == 'dish')
TRASH = tuple(kind.name for kind in KINDS.values() if kind.item == 'trash')
STEADY = tuple(kind for kind in KINDS if kind != 'ball')  # what stays where it was put


def _next_to_scene(rng: np.random.Generator, split: str) -> Scene:
    for _ in range(50):
        wanted = _draw(rng, split, int(rng.integers(2, 5)), STEADY)
        scene = Scene(place(rng, wanted, gap=GAP), sample_look(rng, plain=True))
        if _has_room(scene, split):
            return scene
    raise SimError('no scene with two objects far apart was found: use another seed')


def _has_room(scene: Scene, split: str = 'train') -> bool:
    return bool(_apart_pairs(scene, split))


def _far(scene: Scene, i: int, j: int) -> bool:
    a, b = scene.objects[i], scene.objects[j]
    return math.hypot(a.x - b.x, a.y - b.y) - a.reach - b.reach > 2 * NEXT_TO_GAP


def _apart_pairs(scene: Scene, split: str) -> list[tuple[int, int]]:
    targets = _targets(scene, split)
    return [(i, j) for i in targets for j in range(len(scene.objects)) if i != j and _far(scene, i, j)]


LOW = ('block', 'cup', 'bowl')  # what a hand can push: no taller, or its palm would meet them; no flatter, or they tilt
PUSH_AREA = ((0.36, 0.56), (-0.115, 0.115))
LANE = 0.03  # m beside a pushed object that nothing stands in


def _push_scene(rng: np.random.Generator, split: str) -> Scene:
    for _ in range(50):
        wanted = _draw(rng, split, int(rng.integers(2, 4)), LOW)
        scene = Scene(place(rng, wanted, PUSH_AREA, gap=GAP), sample_look(rng, plain=True))
        if _can_push(scene, split):
            return scene
    raise SimError('no scene with two ways to push was found: use another seed')


def _can_push(scene: Scene, split: str = 'train') -> bool:
    return len(_lanes(scene, split)) > 1


def _lanes(scene: Scene, split: str) -> list[tuple[int, str]]:
    """Which objects can be pushed to which side: far enough from there, with nothing in the way of object or hand."""
    return [
        (i, side)
        for i in _targets(scene, split)
        for side, way in (('left', 1), ('right', -1))
        if way * scene.objects[i].y < SIDE_LINE - 0.05
        and not any(_in_lane(scene, i, j, way) for j in _others(scene, i))
    ]


def _others(scene: Scene, index: int) -> list[int]:
    return [j for j in range(len(scene.objects)) if j != index]


def _in_lane(scene: Scene, index: int, other: int, way: int) -> bool:
    one, two = scene.objects[index], scene.objects[other]
    ahead = way * (two.y - one.y) > 0
    return ahead and abs(two.x - one.x) < one.reach + two.reach + LANE


def _tidy_scene(rng: np.random.Generator, split: str) -> Scene:
    dishes = _draw(rng, split, 1, DISHES)
    trash = _draw(rng, split, int(rng.integers(1, 3)), TRASH)
    return Scene(place(rng, [*dishes, *trash], gap=GAP), sample_look(rng, plain=True))


def _bus_scene(rng: np.random.Generator, split: str) -> Scene:
    dishes = _draw(rng, split, int(rng.integers(1, 3)), DISHES)
    trash = _draw(rng, split, int(rng.integers(1, 3)), TRASH)
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
    return Goal((target,), (side,)), {'object': scene.objects[target].label, 'side': side}


def _stack_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    foot = len(scene.objects) - 1
    target = int(rng.choice(_targets(scene, split, lambda i: i != foot)))
    names = {'object': scene.objects[target].label, 'other': scene.objects[foot].label}
    return Goal((target,), ('top',), foot), names


def _next_to_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    options = _apart_pairs(scene, split)
    target, other = options[int(rng.integers(len(options)))]
    names = {'object': scene.objects[target].label, 'other': scene.objects[other].label}
    return Goal((target,), ('beside',), other), names


def _bus_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    side = str(rng.choice(['left', 'right']))
    places = tuple(side if KINDS[obj.kind].item == 'dish' else OTHER[side] for obj in scene.objects)
    return Goal(tuple(range(len(places))), places), {'side': side, 'other_side': OTHER[side]}


def _touch_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    target, side = int(rng.choice(_targets(scene, split))), str(rng.choice(['left', 'right']))
    return Goal((target,), (side,)), {'object': scene.objects[target].label, 'side': side}


def _push_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    options = _lanes(scene, split)
    target, side = options[int(rng.integers(len(options)))]
    return Goal((target,), (side,)), {'object': scene.objects[target].label, 'side': side}


def _hand_over_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    target, giver = int(rng.choice(_targets(scene, split))), str(rng.choice(['left', 'right']))
    names = {'object': scene.objects[target].label, 'giver': giver, 'taker': OTHER[giver]}
    return Goal((target,), ('hand',), giver=giver, taker=OTHER[giver]), names


def _fetch_goal(scene: Scene, rng: np.random.Generator, split: str) -> tuple[Goal, dict[str, str]]:
    target = int(rng.choice(_targets(scene, split, lambda i: scene.objects[i].table == 2)))
    return Goal((target,), ('table',)), {'object': scene.objects[target].label}


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            'demo',
            'put one of two objects into the left or right bin',
            _demo_scene,
            _bin_goal,
            done_bin,
            20.0,
            obeyed=obeyed_bin,
        ),
        Task(
            'touch',
            'touch an object with the named hand',
            _some_scene,
            _touch_goal,
            done_touch,
            10.0,
            obeyed=obeyed_hand,
        ),
        Task(
            'put_in_bin',
            'put the object into the left or right bin',
            _some_scene,
            _bin_goal,
            done_bin,
            20.0,
            obeyed=obeyed_bin,
        ),
        Task('next_to', 'put one object beside another', _next_to_scene, _next_to_goal, done_next_to, 20.0, _has_room),
        Task(
            'push',
            'push an object to a side of the table',
            _push_scene,
            _push_goal,
            done_push,
            15.0,
            _can_push,
            obeyed_side,
        ),
        Task('stack', 'stack one object on another', _stack_scene, _stack_goal, done_stack, 20.0),
        Task(
            'bus',
            'two or three things: dishes into one bin, trash into the other',
            _tidy_scene,
            _bus_goal,
            done_bin,
            30.0,
            obeyed=obeyed_bin,
        ),
        Task(
            'bus_table',
            'dishes into one bin, trash into the other',
            _bus_scene,
            _bus_goal,
            done_bin,
            60.0,
            obeyed=obeyed_bin,
        ),
        Task('hand_over', 'hand an object from hand to hand', _hand_over_scene, _hand_over_goal, done_hand_over, 25.0),
        Task('fetch', 'bring an object from the second table', _fetch_scene, _fetch_goal, done_fetch, 50.0),
    )
}
