"""Knowledge data: pictures of scenes with captions, questions and boxes whose answers are true by construction.

It stands for web data: its vocabulary is wider than what the robot ever handles, and it does contain the (colour,
kind) pairs that action data never shows. Its own held-out split is about pairs that neither has. Nothing moves here:
things are put on the table, on each other, into bins and into hands, and are looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from ki_sim.errors import SimError
from ki_sim.kinematics import Arms, pointing_down
from ki_sim.locate import SHARP, box_of
from ki_sim.questions import Fact, lines_about
from ki_sim.render import Cameras
from ki_sim.robot import ARM_JOINTS, SIDES
from ki_sim.scene import BIN_CENTRE, BIN_HALF, TABLE_TOP, Scene, place, sample_look, scene_xml
from ki_sim.things import ALL_COLOURS, ALL_KINDS, Thing
from ki_sim.world import HOME_ARM, HOME_OPENING

SPLITS = ('train', 'heldout')
PART = 50  # scenes of one file
AREA = ((0.34, 0.585), (-0.17, 0.17))

# Pairs of the held-out split. Each has a colour or a kind that the robot never handles, so that no action data
# tells of them, and none is held out of the action data.
KNOWLEDGE_HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ('white', 'book'),
        ('pink', 'banana'),
        ('black', 'hat'),
        ('brown', 'lamp'),
        ('cyan', 'candle'),
        ('grey', 'apple'),
        ('pink', 'cup'),
        ('cyan', 'block'),
        ('white', 'ball'),
        ('black', 'bottle'),
        ('red', 'hammer'),
        ('green', 'spoon'),
        ('blue', 'hat'),
        ('yellow', 'book'),
    }
)
BASES, SMALL = ('plate', 'book'), ('block', 'ball', 'apple', 'cup', 'candle')
HANDLED = ('block', 'ball', 'cup', 'can', 'carton', 'apple', 'candle', 'bottle')


def knowledge_pairs(split: str) -> list[tuple[str, str]]:
    """Every (colour, kind) that pictures of a split may show as its own."""
    if split not in SPLITS:
        raise SimError(f"split '{split}' is not known: use train or heldout")
    every = [(colour, kind) for kind in ALL_KINDS for colour in ALL_COLOURS]
    return [pair for pair in every if (pair in KNOWLEDGE_HELD_OUT) == (split == 'heldout')]


@dataclass(frozen=True)
class Still:
    """One scene at rest: things with a place each (`table`, `left bin`, `left hand`, or `on:INDEX`)."""

    scene: Scene
    places: tuple[str, ...]
    seed: int
    split: str


def sample_still(seed: int, split: str) -> Still:
    """A scene of a split from a seed; held-out ones show at least one held-out pair."""
    known = knowledge_pairs('train')
    rng = np.random.default_rng([seed, SPLITS.index(split) if split in SPLITS else 9, 11])
    count = int(rng.integers(1, 6))
    chosen = [known[i] for i in rng.choice(len(known), count, replace=False)]
    if split != 'train':
        new = knowledge_pairs(split)
        chosen[0] = new[int(rng.integers(len(new)))]
    if count > 1 and rng.random() < 0.35:  # several of a kind or a colour give questions that need both words
        i, j = rng.choice(count, 2, replace=False)
        twin = (chosen[i][0], chosen[j][1]) if rng.random() < 0.5 else (chosen[j][0], chosen[i][1])
        if twin in known and twin not in chosen and chosen[j] not in KNOWLEDGE_HELD_OUT:
            chosen[j] = twin
    if count > 2 and rng.random() < 0.25:  # something flat and something to stand on it are rare by chance
        flat = [pair for pair in known if pair[1] in BASES and pair not in chosen]
        small = [pair for pair in known if pair[1] in SMALL and pair not in chosen]
        chosen[1], chosen[2] = flat[int(rng.integers(len(flat)))], small[int(rng.integers(len(small)))]
    places = _places(rng, chosen)
    on_table = [pair for pair, where in zip(chosen, places, strict=True) if where == 'table']
    laid = iter(place(rng, on_table, AREA, yaw_range=1.2, gap=0.02)) if on_table else iter(())
    things: list[Thing] = []
    for pair, where in zip(chosen, places, strict=True):
        things.append(next(laid) if where == 'table' else _somewhere(rng, pair, where))
    return Still(Scene(tuple(things), sample_look(rng)), tuple(places), seed, split)


def _places(rng: np.random.Generator, chosen: list[tuple[str, str]]) -> list[str]:
    free = ['left bin', 'right bin', 'left hand', 'right hand']
    places = ['table'] * len(chosen)
    for i, (_, kind) in enumerate(chosen):
        options = [where for where in free if 'bin' in where or kind in HANDLED]
        if options and rng.random() < 0.35:
            places[i] = str(rng.choice(options))
            free.remove(places[i])
    bases = [i for i, (_, kind) in enumerate(chosen) if kind in BASES and places[i] == 'table']
    for i, (_, kind) in enumerate(chosen):
        if bases and kind in SMALL and places[i] == 'table' and rng.random() < 0.5:
            places[i] = f'on:{bases.pop(0)}'
    return places


def _somewhere(rng: np.random.Generator, pair: tuple[str, str], where: str) -> Thing:
    """A thing that is not on the table; where exactly is settled when the scene is posed."""
    kind = ALL_KINDS[pair[1]]
    width, height = float(rng.uniform(*kind.width)), float(rng.uniform(*kind.height))
    x, y = BIN_CENTRE['left' if 'left' in where else 'right']
    room = [max(0.0, half - 0.5 * width) for half in BIN_HALF]
    x, y = x + float(rng.uniform(-1, 1)) * room[0], y + float(rng.uniform(-1, 1)) * room[1]
    return Thing(*pair, width, height, x, y, float(rng.uniform(-0.4, 0.4)), 1, float(rng.uniform(0.9, 1.08)))


class Photographer:
    """Poses scenes and takes their pictures; holds kinematics, so one per process."""

    def __init__(self, image_size: int = 96) -> None:
        self.image_size, self.arms = image_size, Arms()

    def shoot(self, still: Still) -> tuple[npt.NDArray[np.uint8], list[Fact]]:
        """The head camera's picture, and what is true of every thing in it."""
        model = mujoco.MjModel.from_xml_string(scene_xml(still.scene))
        data = mujoco.MjData(model)
        rng = np.random.default_rng([still.seed, SPLITS.index(still.split), 12])
        self._pose_arms(model, data, rng)
        self._pose_things(model, data, still, rng)
        mujoco.mj_forward(model, data)
        with Cameras(model, SHARP, SHARP) as cameras:
            segments = cameras.segments(data, 'head')
        with Cameras(model, self.image_size, self.image_size) as cameras:
            image = cameras.image(data, 'head')
        return image, [self._fact(model, data, still, i, segments) for i in range(len(still.places))]

    def _pose_arms(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        for side in SIDES:
            q = np.array(HOME_ARM[side]) + rng.normal(0, 0.06, 6)
            for name, angle in zip(ARM_JOINTS[side], q, strict=True):
                data.joint(name).qpos = angle
            for finger in 'ab':
                data.joint(f'{side}_finger_{finger}').qpos = HOME_OPENING / 2

    def _pose_things(self, model: mujoco.MjModel, data: mujoco.MjData, still: Still, rng: np.random.Generator) -> None:
        things = still.scene.things
        for i, (thing, where) in enumerate(zip(things, still.places, strict=True)):
            pose = data.joint(f'thing{i}').qpos
            if where.endswith('bin'):
                pose[2] = TABLE_TOP + 0.006 + thing.height / 2
            elif where.startswith('on:'):
                base = things[int(where[3:])]
                nudge = rng.uniform(-0.008, 0.008, 2)
                pose[:3] = (base.x + nudge[0], base.y + nudge[1], TABLE_TOP + base.height + thing.height / 2)
            elif where.endswith('hand'):
                self._into_hand(data, thing, where.split()[0], i, rng)

    def _into_hand(self, data: mujoco.MjData, thing: Thing, side: str, index: int, rng: np.random.Generator) -> None:
        sign = 1 if side == 'left' else -1
        spot = np.array([rng.uniform(0.36, 0.50), sign * rng.uniform(0.06, 0.24), rng.uniform(0.90, 1.0)])
        yaw = float(rng.uniform(-0.4, 0.4))
        q, _ = self.arms.solve(side, spot, pointing_down(yaw), HOME_ARM[side])
        for name, angle in zip(ARM_JOINTS[side], q, strict=True):
            data.joint(name).qpos = angle
        for finger in 'ab':
            data.joint(f'{side}_finger_{finger}').qpos = thing.width / 2
        grasp = (ALL_KINDS[thing.kind].grasp - 0.5) * thing.height
        centre = self.arms.pose(side, q)[0] - (0.0, 0.0, grasp)
        data.joint(f'thing{index}').qpos[:] = (*centre, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))

    def _fact(
        self, model: mujoco.MjModel, data: mujoco.MjData, still: Still, index: int, segments: npt.NDArray[np.int32]
    ) -> Fact:
        thing, where = still.scene.things[index], still.places[index]
        box = box_of(segments, model.body(f'thing{index}').id)
        on = still.scene.things[int(where[3:])].label if where.startswith('on:') else ''
        x, y, _ = data.body(f'thing{index}').xpos
        return Fact(thing.colour, thing.kind, 'on' if on else where, on, float(x), float(y), box)


def scene_lines(
    seed: int, split: str, photographer: Photographer
) -> tuple[npt.NDArray[np.uint8], list[dict[str, Any]]] | None:
    """Picture and lines of one seed; None for the few scenes that have no room or hide a thing from the camera."""
    try:
        still = sample_still(seed, split)
    except SimError:  # the things drawn do not fit on the table
        return None
    image, facts = photographer.shoot(still)
    if any(fact.box is None for fact in facts):
        return None
    rng = np.random.default_rng([seed, SPLITS.index(split), 13])
    name = f'images/{split}/{seed:07d}.jpg'
    lines = [{'image': name, 'seed': seed, 'split': split, **line} for line in lines_about(facts, rng)]
    return image, lines


def write(
    out: str | Path,
    scenes: int,
    first_seed: int = 0,
    split: str = 'train',
    image_size: int = 96,
    workers: int = 0,
    progress: Callable[[], None] | None = None,
) -> int:
    """Write OUT/SPLIT.jsonl and OUT/images/SPLIT/*.jpg and return the number of lines; goes on where it was stopped.

    A line holds `image`, `kind` (caption, colour, count, ...), `prompt`, `answer`, `seed` and `split`.
    """
    from ki_sim.batch import parallel

    if split not in SPLITS:
        raise SimError(f"split '{split}' is not known: use train or heldout")
    if scenes < 1:
        raise SimError(f'{scenes} scenes were asked for: ask for at least 1')
    out = Path(out)
    end = first_seed + scenes
    work = [(str(out), first, min(first + PART, end), split, image_size) for first in range(first_seed, end, PART)]
    for count in parallel(_write_part, work, workers):
        for _ in range(count if progress is not None else 0):
            progress()  # type: ignore[misc]
    partial, lines = out / f'{split}.jsonl.partial', 0
    with partial.open('w', encoding='utf-8') as stream:
        for _, first, last, _, _ in work:
            text = _part(out, split, first, last).read_text(encoding='utf-8')
            lines += text.count('\n')
            stream.write(text)
    partial.replace(out / f'{split}.jsonl')
    return lines


def _part(out: Path, split: str, first: int, last: int) -> Path:
    return out / 'parts' / f'{split}-{first:07d}-{last:07d}.part'


def _write_part(work: tuple[str, int, int, str, int]) -> int:
    from ki_sim.record import jpeg

    out, first, last, split, image_size = Path(work[0]), *work[1:]
    part = _part(out, split, first, last)
    if part.exists():
        return last - first
    photographer = Photographer(image_size)
    (out / 'images' / split).mkdir(parents=True, exist_ok=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    text = []
    for image, lines in _shots(range(first, last), split, photographer):
        (out / lines[0]['image']).write_bytes(jpeg(image, 92))
        text += [json.dumps(line, sort_keys=True) + '\n' for line in lines]
    partial = part.with_name(part.name + '.partial')
    partial.write_text(''.join(text), encoding='utf-8')
    partial.replace(part)
    return last - first


def _shots(
    seeds: range, split: str, photographer: Photographer
) -> Iterator[tuple[npt.NDArray[np.uint8], list[dict[str, Any]]]]:
    for seed in seeds:
        shot = scene_lines(seed, split, photographer)
        if shot is not None:
            yield shot
