"""A scene as data, drawn from a seed, and as the MJCF text that MuJoCo compiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ki_sim.errors import SimError
from ki_sim.world.objects import SceneObject, check_kind
from ki_sim.world.robot import robot_body, robot_rest
from ki_sim.world.shapes import shapes

TABLE_TOP = 0.72
TABLE_CENTRE, TABLE_HALF = (0.51, 0.0), (0.24, 0.47)  # before the robot, in the frame of the station
BIN_CENTRE = {'left': (0.475, 0.310), 'right': (0.475, -0.310)}
BIN_HALF, BIN_WALL, BIN_HEIGHT = (0.105, 0.078), 0.006, 0.085  # inner half sizes
WORK_AREA = ((0.350, 0.565), (-0.135, 0.135))  # where objects are put, between the bins and before both arms
BIN_LOOK = {
    'left': ('0.16 0.30 0.36 1', '0.93 0.94 0.95 1'),
    'right': ('0.72 0.58 0.40 1', '0.30 0.20 0.12 1'),
}
# Tables are never of a colour that objects have: a red cup must be the only red there is.
TABLES = ((0.80, 0.70, 0.56), (0.88, 0.88, 0.86), (0.62, 0.63, 0.65), (0.42, 0.34, 0.28), (0.70, 0.74, 0.76))
FLOORS = ((0.55, 0.56, 0.58), (0.42, 0.40, 0.38), (0.66, 0.64, 0.60), (0.36, 0.40, 0.44))


@dataclass(frozen=True)
class Pose:
    """A pose on the floor: m, m, rad."""

    x: float = 0.0
    y: float = 0.0
    yaw: float = 0.0

    def out(self, x: float, y: float) -> tuple[float, float]:
        """A point of this pose's frame, in the world."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return self.x + c * x - s * y, self.y + s * x + c * y

    def into(self, x: float, y: float) -> tuple[float, float]:
        """A point of the world, in this pose's frame."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return c * (x - self.x) + s * (y - self.y), -s * (x - self.x) + c * (y - self.y)


@dataclass(frozen=True)
class Look:
    """What changes a picture and nothing else: surfaces and light."""

    table: tuple[float, float, float] = TABLES[0]
    table_pattern: str = 'flat'
    floor: tuple[float, float, float] = FLOORS[0]
    light: tuple[float, float, float] = (-0.2, 0.1, -1.0)
    brightness: float = 0.34
    ambient: float = 0.56


@dataclass(frozen=True)
class Scene:
    """Everything there is besides the robot. `stations` are base poses that face a table, the first at the origin."""

    objects: tuple[SceneObject, ...]
    look: Look = Look()
    stations: tuple[Pose, ...] = (Pose(),)
    bins: bool = True

    def table_of(self, index: int) -> Pose:
        """The station of table `index`, counted from 1."""
        return self.stations[index - 1]


def sample_look(rng: np.random.Generator, plain: bool = False) -> Look:
    """Surfaces and light of a scene; `plain` keeps to little change, for tasks meant to be learnt first."""
    table = TABLES[int(rng.integers(2 if plain else len(TABLES)))]
    r, g, b = (float(np.clip(c + rng.uniform(-0.04, 0.04), 0, 1)) for c in table)
    return Look(
        table=(r, g, b),
        table_pattern='flat' if plain else str(rng.choice(['flat', 'checker', 'gradient'])),
        floor=FLOORS[int(rng.integers(len(FLOORS)))],
        light=(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5)), -1.0),
        brightness=float(rng.uniform(0.26, 0.42)),
        ambient=float(rng.uniform(0.50, 0.62)),
    )


def place(
    rng: np.random.Generator,
    wanted: list[tuple[str, str]],
    area: tuple[tuple[float, float], tuple[float, float]] = WORK_AREA,
    station: Pose | None = None,
    table: int = 1,
    yaw_range: float = 0.35,
    gap: float = 0.045,
    kept: tuple[SceneObject, ...] = (),
) -> tuple[SceneObject, ...]:
    """Put (colour, kind) pairs on a table at random, at least `gap` apart so that fingers fit between.

    `kept` are objects already there. Raises SimError when they do not fit into the area.
    """
    station = station or Pose()
    sizes = [(float(rng.uniform(*check_kind(k).width)), float(rng.uniform(*check_kind(k).height))) for _, k in wanted]
    shades = [float(rng.uniform(0.9, 1.08)) for _ in wanted]
    for _ in range(200):
        placed: list[SceneObject] = []
        for (colour, kind), (width, height), shade in zip(wanted, sizes, shades, strict=True):
            for _ in range(60):
                x, y = float(rng.uniform(*area[0])), float(rng.uniform(*area[1]))
                yaw = station.yaw + float(rng.uniform(-yaw_range, yaw_range))
                obj = SceneObject(colour, kind, width, height, *station.out(x, y), yaw, table, shade)
                if all(_apart(obj, other) >= gap for other in (*kept, *placed)):
                    placed.append(obj)
                    break
            else:
                break
        if len(placed) == len(wanted):
            return tuple(placed)
    raise SimError(f'{len(wanted)} objects do not fit on the table with {gap} m between them: ask for fewer')


def _apart(one: SceneObject, other: SceneObject) -> float:
    return math.hypot(one.x - other.x, one.y - other.y) - one.reach - other.reach


# Across the first table, on a stand that is not drawn. From the head, the arm itself hides where an object is to be put
# in about half of the moments in which it is carried; from here, in one of five.
FRONT = '<camera name="front" pos="0.92 0 1.40" xyaxes="0 1 0 -0.808 0 0.589" fovy="58"/>'


def scene_xml(scene: Scene, timestep_s: float = 0.0025, shadows: bool = False) -> str:
    """The whole model as MJCF text: robot, tables, bins, objects, light."""
    look = scene.look
    tables = ''.join(_table(i, station, look) for i, station in enumerate(scene.stations, 1))
    bins = ''.join(_bin(side) for side in BIN_CENTRE) if scene.bins else ''
    objects = ''.join(_object(i, obj) for i, obj in enumerate(scene.objects))
    a, b, tile = look.ambient, look.brightness, 'width="64" height="64"'
    return f"""<mujoco model="ki_sim">
<compiler angle="radian" autolimits="true"/>
<option timestep="{timestep_s}" integrator="implicitfast" cone="elliptic" impratio="8" iterations="30">
  <flag multiccd="enable"/>
</option>
<size memory="8M"/>
<visual>
  <global fovy="45"/>
  <quality offsamples="0" shadowsize="2048"/>
  <headlight ambient="{a} {a} {a}" diffuse="0.38 0.38 0.38" specular="0.05 0.05 0.05"/>
  <map znear="0.01" zfar="12" shadowclip="2.2"/>
</visual>
<asset>
  <texture name="sky" type="skybox" builtin="gradient" rgb1="0.75 0.82 0.88" rgb2="0.5 0.56 0.62" {tile}/>
  <texture name="floor" type="2d" builtin="checker" rgb1="{_rgb(look.floor)}" rgb2="{_rgb(look.floor, 0.93)}" {tile}/>
  <texture name="table" type="2d" builtin="{look.table_pattern}" rgb1="{_rgb(look.table)}"
           rgb2="{_rgb(look.table, 0.90)}" {tile}/>
  <material name="floor" texture="floor" texrepeat="8 8" reflectance="0"/>
  <material name="table" texture="table" texrepeat="3 6" texuniform="false" specular="0.1"/>
</asset>
<worldbody>
  <light directional="true" dir="{' '.join(map(str, look.light))}" pos="0.3 0 2.5" diffuse="{b} {b} {b}"
         specular="0.1 0.1 0.1" castshadow="{str(shadows).lower()}"/>
  <geom name="floor" type="plane" size="6 6 0.1" material="floor" contype="4" conaffinity="3"/>
  {tables}{bins}{robot_body()}{objects}{FRONT}
</worldbody>
{robot_rest()}
</mujoco>"""


def _table(index: int, station: Pose, look: Look) -> str:
    x, y = station.out(*TABLE_CENTRE)
    lx, ly = TABLE_HALF[0] - 0.03, TABLE_HALF[1] - 0.03
    legs = ''.join(
        f'<geom type="box" size="0.02 0.02 0.34" pos="{sx * lx} {sy * ly} {0.34 - TABLE_TOP}" '
        f'rgba="{_rgb(look.table, 0.6)} 1" contype="0" conaffinity="0"/>'
        for sx in (-1, 1)
        for sy in (-1, 1)
    )
    return (
        f'<body name="table{index}" pos="{x} {y} {TABLE_TOP}" euler="0 0 {station.yaw}">'
        f'<geom name="table{index}" type="box" size="{TABLE_HALF[0]} {TABLE_HALF[1]} 0.02" pos="0 0 -0.02" '
        f'material="table" contype="0" conaffinity="0"/>'
        # What is felt reaches deeper than what is seen: nothing that a hand presses on comes out below.
        f'<geom type="box" size="{TABLE_HALF[0]} {TABLE_HALF[1]} 0.15" pos="0 0 -0.15" group="3" contype="4" '
        f'conaffinity="3" friction="0.9 0.01 0.001"/>{legs}</body>'
    )


def _bin(side: str) -> str:
    x, y = BIN_CENTRE[side]
    hx, hy = BIN_HALF
    w, h = BIN_WALL, BIN_HEIGHT / 2
    body, rim = BIN_LOOK[side]
    walls = (
        (hx + 2 * w, w, 0, hy + w),
        (hx + 2 * w, w, 0, -hy - w),
        (w, hy, hx + w, 0),
        (w, hy, -hx - w, 0),
    )
    solid = 'contype="4" conaffinity="3"'
    parts = ''.join(
        f'<geom type="box" size="{sx} {sy} {h}" pos="{px} {py} {h}" rgba="{body}" {solid}/>'
        f'<geom type="box" size="{sx} {sy} 0.004" pos="{px} {py} {2 * h}" rgba="{rim}" contype="0" conaffinity="0"/>'
        for sx, sy, px, py in walls
    )
    # The left bin is dark with a white cross on its floor, the right one is cardboard with a dark stripe.
    marks = ((0.085, 0.010, 0.0), (0.010, 0.060, 0.0)) if side == 'left' else ((0.085, 0.022, 0.0),)
    painted = ''.join(
        f'<geom type="box" size="{a} {b} 0.001" pos="0 {o} 0.006" rgba="{rim}" contype="0" conaffinity="0"/>'
        for a, b, o in marks
    )
    return (
        f'<body name="{side}_bin" pos="{x} {y} {TABLE_TOP}">'
        f'<geom name="{side}_bin_floor" type="box" size="{hx} {hy} 0.053" pos="0 0 -0.047" rgba="{body}" {solid}/>'
        f'{parts}{painted}</body>'
    )


def _object(index: int, obj: SceneObject) -> str:
    z = TABLE_TOP + obj.height / 2 + 0.0005
    return (
        f'<body name="object{index}" pos="{obj.x} {obj.y} {z}" euler="0 0 {obj.yaw}">'
        f'<joint name="object{index}" type="free" damping="0.002"/>{shapes(obj)}</body>'
    )


def _rgb(rgb: tuple[float, ...], scale: float = 1.0) -> str:
    return ' '.join(f'{min(1.0, c * scale):.4f}' for c in rgb)
