"""VQA data: pictures of scenes with captions, questions and boxes whose answers are true by construction.

It stands for web data: its vocabulary is wider than what the robot ever handles, and it does contain the (colour,
kind) pairs that action data never shows. Its own held-out split is about pairs that neither has. Nothing moves here:
objects are put on the table, on each other, into bins and into hands, and are looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from ki_common.files import atomic_file, write_text
from ki_common.parallel import results_of
from ki_robot.transforms import cropped
from ki_sim.errors import SimError
from ki_sim.vqa.boxes import SHARP, PictureBox, box_of, cells_of
from ki_sim.vqa.questions import Fact, lines_about, things
from ki_sim.world.kinematics import Arms, pointing_down
from ki_sim.world.objects import ALL_COLOURS, ALL_KINDS, SceneObject, pairs
from ki_sim.world.render import Cameras, check_size
from ki_sim.world.robot import ARM_JOINTS, SIDES
from ki_sim.world.scene import BIN_CENTRE, BIN_HALF, TABLE_TOP, Scene, place, sample_look, scene_xml
from ki_sim.world.world import HOME_ARM, HOME_OPENING

SPLITS = ('train', 'heldout')
PART = 50  # scenes of one file
Crop = tuple[float, float, float, float]
SIZE = 96  # rows and columns of an image, unless told otherwise
AREA = ((0.34, 0.585), (-0.17, 0.17))
HOME_SHARE = 0.5  # of the training scenes, those that look like the robot's own tasks
HOVERS = 0.25  # share of idle hands that are over the table, where they hide some of it

# Pairs of the held-out split. Each has a colour or a kind that the robot never handles, so that no action data
# tells of them, and none is held out of the action data.
VQA_HELD_OUT: frozenset[tuple[str, str]] = frozenset(
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


def vqa_pairs(split: str) -> list[tuple[str, str]]:
    """Every (colour, kind) that pictures of a split may show as its own."""
    if split not in SPLITS:
        raise SimError(f"split '{split}' is not known: use train or heldout")
    every = [(colour, kind) for kind in ALL_KINDS for colour in ALL_COLOURS]
    return [pair for pair in every if (pair in VQA_HELD_OUT) == (split == 'heldout')]


Page = tuple[npt.NDArray[np.uint8], list[dict[str, Any]]]  # a picture and the lines about it


@dataclass(frozen=True)
class Shot:
    """The head camera's picture, what is true of every object in it, and which of them fills each cell of a grid."""

    image: npt.NDArray[np.uint8]
    facts: list[Fact]
    cells: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Still:
    """One scene at rest: objects with a place each (`table`, `left bin`, `left hand`, or `on:INDEX`)."""

    scene: Scene
    places: tuple[str, ...]
    seed: int
    split: str


def sample_still(seed: int, split: str) -> Still:
    """A scene of a split from a seed; held-out ones show at least one held-out pair."""
    known = vqa_pairs('train')
    rng = np.random.default_rng([seed, SPLITS.index(split) if split in SPLITS else 9, 11])
    if split == 'train' and rng.random() < HOME_SHARE:
        known = pairs('train') + pairs('heldout')
        chosen = [known[i] for i in rng.choice(len(known), int(rng.integers(1, 5)), replace=False)]
        laid = place(rng, chosen, yaw_range=0.3)
        return Still(Scene(laid, sample_look(rng, plain=True)), ('table',) * len(laid), seed, split)
    count = int(rng.integers(1, 6))
    chosen = [known[i] for i in rng.choice(len(known), count, replace=False)]
    if split != 'train':
        new = vqa_pairs(split)
        chosen[0] = new[int(rng.integers(len(new)))]
    if count > 1 and rng.random() < 0.35:  # several of a kind or a colour give questions that need both words
        i, j = rng.choice(count, 2, replace=False)
        twin = (chosen[i][0], chosen[j][1]) if rng.random() < 0.5 else (chosen[j][0], chosen[i][1])
        if twin in known and twin not in chosen and chosen[j] not in VQA_HELD_OUT:
            chosen[j] = twin
    if count > 2 and rng.random() < 0.25:  # something flat and something to stand on it are rare by chance
        flat = [pair for pair in known if pair[1] in BASES and pair not in chosen]
        small = [pair for pair in known if pair[1] in SMALL and pair not in chosen]
        chosen[1], chosen[2] = flat[int(rng.integers(len(flat)))], small[int(rng.integers(len(small)))]
    places = _places(rng, chosen)
    on_table = [pair for pair, where in zip(chosen, places, strict=True) if where == 'table']
    on_the_table = iter(place(rng, on_table, AREA, yaw_range=1.2, gap=0.02) if on_table else ())
    objects: list[SceneObject] = []
    for pair, where in zip(chosen, places, strict=True):
        objects.append(next(on_the_table) if where == 'table' else _somewhere(rng, pair, where))
    return Still(Scene(tuple(objects), sample_look(rng)), tuple(places), seed, split)


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


def _somewhere(rng: np.random.Generator, pair: tuple[str, str], where: str) -> SceneObject:
    """An object that is not on the table; where exactly is settled when the scene is posed."""
    kind = ALL_KINDS[pair[1]]
    width, height = float(rng.uniform(*kind.width)), float(rng.uniform(*kind.height))
    x, y = BIN_CENTRE['left' if 'left' in where else 'right']
    room = [max(0.0, half - 0.5 * width) for half in BIN_HALF]
    x, y = x + float(rng.uniform(-1, 1)) * room[0], y + float(rng.uniform(-1, 1)) * room[1]
    return SceneObject(*pair, width, height, x, y, float(rng.uniform(-0.4, 0.4)), 1, float(rng.uniform(0.9, 1.08)))


@dataclass(frozen=True)
class PictureView:
    """What pictures with words show: a camera, and what of its picture is kept (`Camera.crop`; None: all)."""

    camera: str = 'head'
    crop: Crop | None = None


WHOLE = PictureView()


class Photographer:
    """Poses scenes and takes their pictures; holds kinematics, so one per process.

    Args:
        image_size: rows and columns of the whole picture.
        view: the camera, and what of its picture is kept, as `Camera.crop` of a contract says it.
    """

    def __init__(self, image_size: int = SIZE, view: PictureView = WHOLE) -> None:
        self.image_size, self.view, self.arms = image_size, view, Arms()

    def album(self, still: Still, arrangements: int = 1) -> Iterator[Shot | None]:
        """Pictures of one scene, its objects and arms elsewhere in each; None where something is hidden.

        A scene is compiled once: further arrangements cost a fraction of the first.
        """
        model = mujoco.MjModel.from_xml_string(scene_xml(still.scene))
        data = mujoco.MjData(model)
        bodies = [model.body(f'object{i}').id for i in range(len(still.places))]
        with (
            Cameras(model, SHARP, SHARP) as sharp,
            Cameras(model, self.image_size, self.image_size) as cameras,
        ):
            for number in range(arrangements):
                rng = np.random.default_rng([still.seed, SPLITS.index(still.split), 12, number])
                mujoco.mj_resetData(model, data)
                objects = still.scene.objects if number == 0 else _moved(still, rng)
                self._pose_arms(data, still.places, rng)
                self._pose_objects(data, objects, still.places, rng)
                mujoco.mj_forward(model, data)
                segments = _enlarged(cropped(sharp.segments(data, self.view.camera), self.view.crop))
                facts = [self._fact(data, still, i, box_of(segments, body)) for i, body in enumerate(bodies)]
                seen = all(fact.box is not None for fact in facts)
                image = cropped(cameras.image(data, self.view.camera), self.view.crop)
                yield Shot(image, facts, cells_of(segments, bodies)) if seen else None

    def _pose_arms(self, data: mujoco.MjData, places: tuple[str, ...], rng: np.random.Generator) -> None:
        for side in SIDES:
            q = np.array(HOME_ARM[side]) + rng.normal(0, 0.06, 6)
            if f'{side} hand' not in places and rng.random() < HOVERS:
                q = self._hand_at(side, np.array([rng.uniform(0.33, 0.56), rng.uniform(-0.15, 0.15), 0.92]), rng)[0]
            self._bend(data, side, q, HOME_OPENING)

    def _bend(self, data: mujoco.MjData, side: str, q: npt.NDArray[np.float64], opening: float) -> None:
        for name, angle in zip(ARM_JOINTS[side], q, strict=True):
            data.joint(name).qpos = angle
        for finger in 'ab':
            data.joint(f'{side}_finger_{finger}').qpos = opening / 2

    def _hand_at(
        self, side: str, spot: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.float64], float]:
        """Joints that bring a hand to a spot, pointing down, and its yaw."""
        yaw = float(rng.uniform(-0.4, 0.4))
        return self.arms.solve(side, spot, pointing_down(yaw), HOME_ARM[side])[0], yaw

    def _pose_objects(
        self, data: mujoco.MjData, objects: Sequence[SceneObject], places: tuple[str, ...], rng: np.random.Generator
    ) -> None:
        for i, (obj, where) in enumerate(zip(objects, places, strict=True)):
            x, y, z, yaw = obj.x, obj.y, TABLE_TOP + obj.height / 2 + 0.0005, obj.yaw
            if where.endswith('bin'):
                z += 0.006
            elif where.startswith('on:'):
                base, nudge = objects[int(where[3:])], rng.uniform(-0.008, 0.008, 2)
                x, y, z = base.x + nudge[0], base.y + nudge[1], z + base.height
            elif where.endswith('hand'):
                x, y, z, yaw = self._into_hand(data, obj, where.split()[0], rng)
            data.joint(f'object{i}').qpos = (x, y, z, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))

    def _into_hand(
        self, data: mujoco.MjData, obj: SceneObject, side: str, rng: np.random.Generator
    ) -> tuple[float, float, float, float]:
        """Lets a hand hold an object somewhere above the table; where the object is then: x, y, z, yaw."""
        sign = 1 if side == 'left' else -1
        spot = np.array([rng.uniform(0.36, 0.50), sign * rng.uniform(0.06, 0.24), rng.uniform(0.90, 1.0)])
        q, yaw = self._hand_at(side, spot, rng)
        self._bend(data, side, q, obj.width)
        x, y, z = self.arms.pose(side, q)[0]
        return float(x), float(y), float(z) - (ALL_KINDS[obj.kind].grasp - 0.5) * obj.height, yaw

    def _fact(self, data: mujoco.MjData, still: Still, index: int, box: PictureBox | None) -> Fact:
        obj, where = still.scene.objects[index], still.places[index]
        on = still.scene.objects[int(where[3:])].label if where.startswith('on:') else ''
        x, y, _ = data.body(f'object{index}').xpos
        return Fact(obj.colour, obj.kind, 'on' if on else where, on, float(x), float(y), box)


def _enlarged(segments: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Segments of a part of a picture as large as those of a whole one, which boxes and cells are measured on."""
    rows, columns = (np.arange(SHARP) * size // SHARP for size in segments.shape)
    enlarged: npt.NDArray[np.int32] = segments[rows[:, None], columns]
    return enlarged


def _moved(still: Still, rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """The same objects, those on the table elsewhere; where they were if there is no room."""
    objects = still.scene.objects
    on_table = [i for i, where in enumerate(still.places) if where == 'table']
    try:
        laid = place(rng, [(objects[i].colour, objects[i].kind) for i in on_table], AREA, yaw_range=1.2, gap=0.025)
    except SimError:
        return objects
    spots = dict(zip(on_table, laid, strict=True))
    return tuple(
        replace(obj, x=spots[i].x, y=spots[i].y, yaw=spots[i].yaw) if i in spots else obj
        for i, obj in enumerate(objects)
    )


def scene_lines(seed: int, split: str, photographer: Photographer, arrangements: int = 1) -> Iterator[Page]:
    """Pictures with their lines, of one seed; none of the few scenes without room, or where an object is hidden."""
    try:
        still = sample_still(seed, split)
    except SimError:  # the objects drawn do not fit on the table
        return
    folder = _sized(split, photographer.image_size, photographer.view)
    for number, shot in enumerate(photographer.album(still, arrangements)):
        if shot is None:
            continue
        rng = np.random.default_rng([seed, SPLITS.index(split), 13, number])
        about: dict[str, Any] = {'image': f'images/{folder}/{seed:07d}_{number}.jpg', 'seed': seed, 'split': split}
        about['things'] = things(shot.facts)
        yield shot.image, [{**about, **line} for line in lines_about(shot.facts, shot.cells, rng)]


def write(
    out: str | Path,
    scenes: int,
    first_seed: int = 0,
    split: str = 'train',
    image_size: int = SIZE,
    workers: int = 0,
    progress: Callable[[], None] | None = None,
    arrangements: int = 1,
    view: PictureView = WHOLE,
) -> int:
    """Write OUT/SPLIT.jsonl and OUT/images/SPLIT/*.jpg and return the number of lines; goes on where it was stopped.

    Each scene gives `arrangements` pictures, with its objects elsewhere in each. A line holds `image`, `kind` (caption,
    colour, count, ...), `prompt`, `answer`, `seed` and `split`. Images of another size than `SIZE`, or of another
    `view`, are in a folder of their own, so that none is taken for another; with a crop, only scenes are kept that lie
    within it.
    """
    if split not in SPLITS:
        raise SimError(f"split '{split}' is not known: use train or heldout")
    if scenes < 1:
        raise SimError(f'{scenes} scenes were asked for: ask for at least 1')
    if arrangements < 1:
        raise SimError(f'{arrangements} arrangements of each scene were asked for: ask for at least 1')
    check_size(image_size, image_size)
    out = Path(out)
    end = first_seed + scenes
    work = [
        (str(out), first, min(first + PART, end), split, image_size, arrangements, view)
        for first in range(first_seed, end, PART)
    ]
    for count in results_of(_write_part, work, workers):
        if progress is not None:
            for _ in range(count):
                progress()
    lines = 0
    with atomic_file(out / f'{split}.jsonl') as file:
        for _, first, last, *_ in work:
            part = _part(out, split, first, last, image_size, arrangements, view).read_bytes()
            lines += part.count(b'\n')
            file.write(part)
    return lines


def _part(out: Path, split: str, first: int, last: int, image_size: int, arrangements: int, view: PictureView) -> Path:
    return out / 'parts' / f'{_sized(split, image_size, view)}-{first:07d}-{last:07d}-{arrangements}.part'


def _sized(split: str, image_size: int, view: PictureView) -> str:
    """What files of a split are named after: it, and size, camera and part of its images unless they are the usual."""
    name = split if image_size == SIZE else f'{split}-{image_size}px'
    name = name if view.camera == WHOLE.camera else f'{name}-{view.camera}'
    return name if view.crop is None else f'{name}-{"_".join(f"{round(1000 * each):04d}" for each in view.crop)}'


def _write_part(work: tuple[str, int, int, str, int, int, PictureView]) -> int:
    from ki_sim.record.record import jpeg

    out, first, last, split, image_size, arrangements, view = Path(work[0]), *work[1:]
    part = _part(out, split, first, last, image_size, arrangements, view)
    if part.exists():
        return last - first
    photographer = Photographer(image_size, view)
    (out / 'images' / _sized(split, image_size, view)).mkdir(parents=True, exist_ok=True)
    text = []
    for seed in range(first, last):
        for image, lines in scene_lines(seed, split, photographer, arrangements):
            (out / lines[0]['image']).write_bytes(jpeg(image, 92))
            text += [json.dumps(line, sort_keys=True) + '\n' for line in lines]
    write_text(part, ''.join(text))
    return last - first
