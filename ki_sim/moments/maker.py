"""Makes labelled moments: sets a state, takes the pictures, and rolls out the law of the moment. Steps no physics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np
import numpy.typing as npt

from ki_sim.errors import SimError
from ki_sim.expert.laws import Hand, Move, Push, Rest, Xyz, roll
from ki_sim.expert.situation import PUSH_BEYOND, SLOTS, Body, Duty, Situation, duty
from ki_sim.moments.columns import HandCommands, MomentColumns
from ki_sim.moments.hands import FINGER_GAP, at_home, grip_effort, just_let_go, somewhere
from ki_sim.tasks.episode import Goal
from ki_sim.tasks.success import OTHER, SIDE_LINE
from ki_sim.tasks.tasks import TASKS, Bias, biased_goal
from ki_sim.vqa.boxes import box_text
from ki_sim.world.kinematics import Arms, pointing_down
from ki_sim.world.objects import SceneObject
from ki_sim.world.render import Cameras
from ki_sim.world.robot import ARM_JOINTS, SIDES
from ki_sim.world.scene import BIN_CENTRE, TABLE_TOP, WORK_AREA, Scene, place, scene_xml
from ki_sim.world.world import HOME_ARM

REACHED = 3e-3  # m + rad / 10 that inverse kinematics may leave
ARRANGEMENTS = 12  # pictures of a scene: compiling one costs as much as several pictures
INSTRUCTIONS = 2  # drawn for each picture; the same one twice counts once
BINNED = 0.35  # share of the objects of a tidying task that are in their bin already
OTHER_HAND = 0.3  # share of the moments in which a hand is out that the words leave open, whichever is nearer
PUT_WRONG = {'stack': 0.25, 'next_to': 0.35}  # share of things that stand where they should not have been put
WRONG_GAP = {'stack': (0.003, 0.045), 'next_to': (0.062, 0.130)}  # m from there to the foot, or to the other thing
SPOTS = 12  # tried for these: tables are small and full
LET_GO = 0.6  # share of these in which the hand has only just let go
TALL = 1.5  # times as high as wide: what falls over
FALLEN = 0.1  # share of the tall objects that nothing is asked of that lie: knocked over on the way
PUSHED = 0.6  # share of pushes that are met on their way
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ShownObject:
    """An object in the first view: its words, and its centre from 0 to 1, x to the right and y down."""

    colour: str
    kind: str
    x: float
    y: float


@dataclass(frozen=True)
class SimMoment:
    """One labelled moment.

    Attributes:
        task: its name.
        instruction: what is asked.
        subtask: what is being done, with a box where something is reached for.
        images: by camera.
        state: measured, in the contract's state columns.
        actions: (H, N) what the expert does from here, in the contract's action columns, absolute.
        things: what the first view shows.
        points: where in it the object is that is acted on, and that which it is put on or beside, hidden or not; None
            for one that is outside, or that there is not.
        held: 0 free, 1 held, 2 done.
    """

    task: str
    instruction: str
    subtask: str
    images: dict[str, Image]
    state: npt.NDArray[np.float64]
    actions: npt.NDArray[np.float64]
    things: tuple[ShownObject, ...]
    points: tuple[tuple[float, float] | None, tuple[float, float] | None]
    held: int


class MomentMaker:
    """Makes the moments of scenes; holds kinematics and a GL context, so one per process.

    Args:
        columns: of state and actions.
        horizon: steps of a chunk.
        cameras: whose pictures are taken, in the contract's order; things and points are told of the first.
        image_size: their rows and columns.
        bias: how often what is nearest is asked for, 0..1, see `tasks.Bias`.
    """

    def __init__(
        self,
        columns: MomentColumns,
        horizon: int,
        cameras: Sequence[str],
        image_size: int,
        bias: Bias,
    ) -> None:
        self.columns, self.horizon, self.cameras, self.image_size = columns, horizon, tuple(cameras), image_size
        self.bias, self.arms = bias, Arms()

    def moments(self, task: str, seed: int) -> Iterator[SimMoment]:
        """The moments of one scene: the same for the same seed, wherever and whenever they are made."""
        rng = np.random.default_rng([seed, sum(task.encode()), 21])
        scene = TASKS[task].scene(rng, 'train')
        model = mujoco.MjModel.from_xml_string(scene_xml(scene))
        data = mujoco.MjData(model)
        with Cameras(model, self.image_size, self.image_size) as cameras:
            for number in range(ARRANGEMENTS):
                laid = scene.objects if number == 0 else _laid_anew(rng, task, scene)
                yield from self._arrangement(rng, task, replace(scene, objects=laid), model, data, cameras)

    def _arrangement(
        self,
        rng: np.random.Generator,
        task: str,
        scene: Scene,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        cameras: Cameras,
    ) -> Iterator[SimMoment]:
        asked = [biased_goal(task, scene, rng, self.bias) for _ in range(INSTRUCTIONS)]
        goal = asked[0][0]
        standing = Situation(task, goal, scene.objects, tuple(map(_standing, scene.objects)))
        now = _half_done(rng, _some_fallen(rng, standing, [each for each, _ in asked]))
        first = duty(replace(now, hands=_begun(rng, now)))
        put_wrong = now.bodies[first.target] != standing.bodies[first.target]
        hands = {first.side: _acting(rng, first, put_wrong)}
        hands[OTHER[first.side]] = at_home(rng, OTHER[first.side])
        now, hands = _settled(rng, now, first, hands)
        angles = self._solve(hands)
        if angles is None:
            return
        self._pose(model, data, now, hands, angles)
        images = {name: cameras.image(data, name) for name in self.cameras}
        places = [place_in(model, data, self.cameras[0], i) for i in range(len(now.bodies))]
        seen = [at if _is_seen(model, data, self.cameras[0], i) else None for i, at in enumerate(places)]
        things = tuple(
            ShownObject(obj.colour, obj.kind, *at)
            for obj, at in zip(scene.objects, seen, strict=True)
            if at is not None
        )
        efforts = {side: grip_effort(rng, now.holding.get(side) is not None) for side in hands}
        state = self.columns.state(hands, angles, efforts)
        busy = bool(now.holding) or hands[first.side].done
        for wanted, words in dict(asked[:1] if busy else asked).items():
            yield self._labelled(replace(now, goal=wanted), words, hands, angles, images, places, seen, things, state)

    def _labelled(
        self,
        now: Situation,
        words: str,
        hands: dict[str, Hand],
        angles: dict[str, npt.NDArray[np.float64]],
        images: dict[str, Image],
        places: list[tuple[float, float] | None],
        seen: list[tuple[float, float] | None],
        things: tuple[ShownObject, ...],
        state: npt.NDArray[np.float64],
    ) -> SimMoment:
        found = duty(now)
        commands: HandCommands = {}
        for side, hand in hands.items():
            mine = side == found.side
            holds = now.holding.get(side) == found.target
            commands[side] = roll(
                found.law if mine else Rest(side),
                replace(hand, holds=mine and holds, done=mine and found.done),
                self.horizon,
            )[0]
        acting = now.holding.get(found.side) == found.target
        at = seen[found.target]
        reaching = found.words.startswith('reach for')
        box = box_text(_box(at, now.objects[found.target])) if at is not None and reaching else ''
        return SimMoment(
            now.task,
            words,
            f'{found.words} {box}'.strip(),
            images,
            state,
            self.columns.actions(commands, angles, self.arms),
            things,
            (places[found.target], places[now.goal.other] if now.goal.other >= 0 else None),
            2 if found.done else int(acting),
        )

    def _solve(self, hands: dict[str, Hand]) -> dict[str, npt.NDArray[np.float64]] | None:
        """Joint angles of both arms; None where a hand cannot be."""
        angles = {}
        for side, hand in hands.items():
            angles[side], left = self.arms.solve(side, hand.position, pointing_down(hand.yaw), HOME_ARM[side])
            if left > REACHED:
                return None
        return angles

    def _pose(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        now: Situation,
        hands: dict[str, Hand],
        angles: dict[str, npt.NDArray[np.float64]],
    ) -> None:
        for side in SIDES:
            for name, angle in zip(ARM_JOINTS[side], angles[side], strict=True):
                data.joint(name).qpos = angle
            for finger in 'ab':
                data.joint(f'{side}_finger_{finger}').qpos = hands[side].opening / 2
        for i, body in enumerate(now.bodies):
            turn = np.array([math.cos(body.yaw / 2), 0.0, 0.0, math.sin(body.yaw / 2)])
            if not body.upright:  # its axis along x, before it is turned
                turn = math.sqrt(0.5) * np.array([turn[0], -turn[3], turn[0], turn[3]])
            data.joint(f'object{i}').qpos = (*body.position, *turn)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)


def _laid_anew(rng: np.random.Generator, task: str, scene: Scene) -> tuple[SceneObject, ...]:
    """The same objects elsewhere: as the task lays them, but of the size and shade that the scene was compiled with."""
    for _ in range(20):
        try:
            other = place(rng, [(obj.colour, obj.kind) for obj in scene.objects], yaw_range=0.35, gap=0.055)
        except SimError:
            continue
        laid = tuple(replace(obj, x=new.x, y=new.y, yaw=new.yaw) for obj, new in zip(scene.objects, other, strict=True))
        if TASKS[task].fits(replace(scene, objects=laid)):
            return laid
    return scene.objects


def _standing(obj: SceneObject) -> Body:
    half = (obj.width if obj.kind == 'ball' else obj.height) / 2
    return Body((obj.x, obj.y, TABLE_TOP + half), obj.yaw)


def _half_done(rng: np.random.Generator, now: Situation) -> Situation:
    """Tasks are met in the middle, too: an object has been pushed a part of its way, some are in their bins."""
    if now.task == 'push':
        return _pushed_on(rng, now)
    if rng.random() < PUT_WRONG.get(now.task, 0.0):
        return _put_down_wrong(rng, now)
    if len(now.goal.objects) < 2:
        return now
    bodies, slots = list(now.bodies), {side: list(SLOTS) for side in SIDES}
    for i, side in list(zip(now.goal.objects, now.goal.places, strict=True))[:-1]:
        if rng.random() < BINNED and slots[side]:
            x, y = BIN_CENTRE[side]
            x, y = x + slots[side].pop(0) + rng.normal(0, 0.008), y + rng.normal(0, 0.012)
            z = bodies[i].position[2] + 0.006
            bodies[i] = Body((float(x), float(y), z), bodies[i].yaw + float(rng.normal(0, 0.3)))
    return replace(now, bodies=tuple(bodies))


def _some_fallen(rng: np.random.Generator, now: Situation, asked: Sequence[Goal]) -> Situation:
    """Tall objects that no instruction names may lie, where there is room for them."""
    if now.task == 'push':  # its lanes are free
        return now
    named = {i for goal in asked for i in (*goal.objects, goal.other)}
    bodies = list(now.bodies)
    for i, obj in enumerate(now.objects):
        x, y, _ = bodies[i].position
        if i in named or obj.height < TALL * obj.width or rng.random() >= FALLEN:
            continue
        room = [
            math.dist((x, y), bodies[j].position[:2]) - other.reach for j, other in enumerate(now.objects) if j != i
        ]
        if min(room, default=1.0) > obj.height / 2 + 0.01:
            bodies[i] = Body((x, y, TABLE_TOP + obj.width / 2), float(rng.uniform(-math.pi, math.pi)), upright=False)
    return replace(now, bodies=tuple(bodies))


def _acting(rng: np.random.Generator, first: Duty, put_wrong: bool) -> Hand:
    """The hand that acts; over what it put down wrong it has often just let go.

    A policy that sees an open hand over a standing object only where all is done stays wherever it has let go.
    """
    if put_wrong and isinstance(first.law, Move) and rng.random() < LET_GO:
        return just_let_go(rng, first.law)
    return somewhere(rng, first.side, first.law)


def _begun(rng: np.random.Generator, now: Situation) -> dict[str, Xyz]:
    """The hand that has begun, where no words say which, and that need not be the nearer one."""
    if now.goal.other < 0 or rng.random() >= OTHER_HAND:
        return {}
    return {SIDES[int(rng.integers(2))]: now.bodies[now.goal.objects[0]].position}


def _put_down_wrong(rng: np.random.Generator, now: Situation) -> Situation:
    """Beside what it was to stand on, or too far from what it was to stand beside; as it was where there is no room."""
    (target,), foot = now.goal.objects, now.goal.other
    x, y, _ = now.bodies[foot].position
    others = [i for i in range(len(now.bodies)) if i not in (target, foot)]
    for _ in range(SPOTS):
        away = now.objects[target].reach + now.objects[foot].reach + float(rng.uniform(*WRONG_GAP[now.task]))
        turn = float(rng.uniform(-math.pi, math.pi))
        spot = (x + away * math.cos(turn), y + away * math.sin(turn))
        room = [math.dist(spot, now.bodies[i].position[:2]) - now.objects[i].reach for i in others]
        inside = all(low < each < high for each, (low, high) in zip(spot, WORK_AREA, strict=True))
        if inside and min(room, default=1.0) > now.objects[target].reach + 0.015:
            bodies = list(now.bodies)
            bodies[target] = replace(bodies[target], position=(*spot, bodies[target].position[2]))
            return replace(now, bodies=tuple(bodies))
    return now


def _pushed_on(rng: np.random.Generator, now: Situation) -> Situation:
    (target,), (side,) = now.goal.objects, now.goal.places
    x, y, z = now.bodies[target].position
    if rng.random() < PUSHED:
        y += float(rng.random()) * ((1 if side == 'left' else -1) * (SIDE_LINE + PUSH_BEYOND) - y)
    bodies = list(now.bodies)
    bodies[target] = replace(bodies[target], position=(x, y, z))
    return replace(now, bodies=tuple(bodies))


def _settled(
    rng: np.random.Generator, now: Situation, first: Duty, hands: dict[str, Hand]
) -> tuple[Situation, dict[str, Hand]]:
    """The object goes where the hand has it: between the fingers, or where it was let go of."""
    hand, obj = hands[first.side], now.objects[first.target]
    bodies = list(now.bodies)
    body = bodies[first.target]
    x, y, z = hand.position
    if isinstance(first.law, Move) and hand.holds:
        gap = FINGER_GAP[obj.kind] + float(rng.normal(0, 0.0008))
        hand = replace(hand, opening=obj.width + gap)
        dx, dy = (float(rng.normal(0, 0.0015)) for _ in 'xy')
        low = first.law.grasp.position[2] - body.position[2] + float(rng.normal(0, 0.001))
        turned = body.yaw + hand.yaw - first.law.grasp.yaw
        bodies[first.target] = Body((x + dx, y + dy, z - low), turned)
        now = replace(now, holding={first.side: first.target})
    elif isinstance(first.law, Move) and hand.done:
        below = first.law.grasp.position[2] - body.position[2]
        px, py, pz = first.law.place.position
        dx, dy = (float(rng.normal(0, 0.004)) for _ in 'xy')
        rest = _rest_height(now, first, pz - below)
        bodies[first.target] = Body((px + dx, py + dy, rest), body.yaw + first.law.place.yaw - first.law.grasp.yaw)
    elif isinstance(first.law, Push) and rng.random() < 0.15:  # it is there already
        end = first.law.line + first.law.way * abs(float(rng.normal(0, 0.01)))
        bodies[first.target] = replace(body, position=(body.position[0], end, body.position[2]))
        behind = end - first.law.way * (first.law.reach + abs(float(rng.normal(0, 0.01))))
        hand = replace(hand, position=(body.position[0], behind, first.law.behind[2]), opening=0.0, yaw=0.0)
    hands = {**hands, first.side: hand}
    where = {side: each.position for side, each in hands.items()}
    return replace(now, bodies=tuple(bodies), hands=where), hands


def _rest_height(now: Situation, first: Duty, let_go: float) -> float:
    """Where the centre of an object comes to rest that was let go of at a height."""
    obj = now.objects[first.target]
    half = (obj.width if obj.kind == 'ball' else obj.height) / 2
    foot = 0.0
    if now.goal.other >= 0 and now.task == 'stack':
        foot = now.objects[now.goal.other].height
    elif now.goal.places[0] in BIN_CENTRE:
        foot = 0.006
    return min(let_go, TABLE_TOP + foot + half)


def place_in(model: mujoco.MjModel, data: mujoco.MjData, view: str, index: int) -> tuple[float, float] | None:
    """Where an object's centre is in a camera's square picture, x to the right and y down; None if outside."""
    camera, centre = model.camera(view).id, data.body(f'object{index}').xpos
    x, y, z = data.cam_xmat[camera].reshape(3, 3).T @ (centre - data.cam_xpos[camera])
    focal = 0.5 / math.tan(math.radians(model.cam_fovy[camera]) / 2)
    at = float(0.5 + focal * x / -z), float(0.5 - focal * y / -z)
    return at if min(at) >= 0 and max(at) < 1 else None


def _is_seen(model: mujoco.MjModel, data: mujoco.MjData, view: str, index: int) -> bool:
    """Whether a ray from a camera meets an object where its centre is."""
    body, eye = model.body(f'object{index}').id, data.cam_xpos[model.camera(view).id]
    hit = np.full(1, -1, np.int32)
    mujoco.mj_ray(model, data, eye, data.xpos[body] - eye, None, 1, -1, hit)
    return bool(hit[0] >= 0 and model.geom_bodyid[hit[0]] == body)


def _box(at: tuple[float, float], obj: SceneObject) -> tuple[float, float, float, float]:
    """About the box of an object around its centre: top, left, bottom, right, as shares of the picture."""
    half = obj.width / 2 * 0.9  # one metre is about 0.9 of the picture at the table
    tall = (obj.height * 0.35 + obj.width * 0.7) / 2 * 0.9
    edges = (at[1] - tall, at[0] - half, at[1] + tall, at[0] + half)
    top, left, bottom, right = (min(0.999, max(0.0, edge)) for edge in edges)
    return top, left, bottom, right
