"""What the scripted expert makes of what it sees: how to take an object, where there is room, which arm is nearer.

Lengths in m, angles in rad; positions are in the base frame unless a height is meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ki_sim.expert.laws import FINGER_REACH
from ki_sim.world.kinematics import Arms, Floats, pointing
from ki_sim.world.objects import KINDS, SceneObject
from ki_sim.world.robot import SIDES
from ki_sim.world.scene import BIN_CENTRE, BIN_HALF, BIN_HEIGHT, BIN_WALL, TABLE_TOP, Pose
from ki_sim.world.world import World

PALM_HEIGHT, PALM_HALF = 0.08, 0.075  # how far the palm is above that point, and half its width, m
TAKING = {  # a comfortable start for the inverse kinematics of a hand that comes from the side
    'right': np.array([-0.1, -0.65, 2.2, -1.45, -1.6, -0.05]),
    'left': np.array([0.1, -0.65, 2.2, 1.45, -1.6, 0.05]),
}


class GraspPlanner:
    """Reads the true state of the world; moves nothing.

    Args:
        world: The world.
        objects: Those of its episode.
        arms: Inverse kinematics.
    """

    def __init__(self, world: World, objects: Sequence[SceneObject], arms: Arms) -> None:
        self._world, self._objects, self._arms = world, objects, arms

    def label(self, index: int) -> str:
        """How the object is called."""
        return self._objects[index].label

    def foot_of(self, index: int) -> float:
        """Height of the lowest point of an upright object, m above the floor."""
        return float(self._world.object_position(index)[2]) - self._objects[index].height / 2

    def top_of(self, index: int) -> float:
        """Height of an object's top, m above the floor."""
        return float(self._world.object_position(index)[2]) + self._objects[index].height / 2

    def local(self, index: int) -> tuple[float, float]:
        """Where an object is, in the base frame."""
        pose, _ = self._world.odometry()
        return Pose(*pose).into(*self._world.object_position(index)[:2])

    def grasp_pose(self, side: str, target: int, grasp: float | None) -> tuple[Floats, float]:
        """Where and at which yaw a hand takes an object from above, in the base frame."""
        obj, kind = self._objects[target], KINDS[self._objects[target].kind]
        x, y = self.local(target)
        height = self.foot_of(target) + obj.height * (grasp or kind.grasp)
        if self._world.object_upright(target) < 0.7:  # it fell over: take it where it lies
            height = float(self._world.object_position(target)[2])
        position = np.array([x, y, max(height, TABLE_TOP + FINGER_REACH + 0.003)])
        own = self._world.object_yaw(target) - float(self._world.odometry()[0][2])
        easy = self.easy_yaw(side, position)
        if kind.shape == 'square':
            options = [own + k * math.pi / 2 for k in range(-2, 3)]
        elif kind.shape == 'handled':
            options = [own + k * math.pi for k in range(-1, 2)]
        else:
            options = [easy + turn for turn in (0.0, 0.3, -0.3, 0.6, -0.6, 0.9, -0.9)]
        options = [yaw for yaw in options if abs(yaw - easy) < 1.2] or options
        cost = {yaw: abs(yaw - easy) + 30 * max(0.0, 0.03 - self.free_width(position, yaw, target)) for yaw in options}
        return position, min(cost, key=cost.__getitem__)

    def easy_yaw(self, side: str, position: Floats) -> float:
        """The yaw at which a wrist over a point is least turned: half of the shoulder's own."""
        shoulder = 0.17 if side == 'left' else -0.17
        return 0.5 * math.atan2(position[1] - shoulder, position[0] - 0.13)

    def free_width(self, position: Floats, yaw: float, target: int) -> float:
        """How much wider than the object the gripper can open before a finger or the palm meets a neighbour, m.

        At most 0.05; negative where the palm would come down on a tall neighbour.
        """
        closing = np.array([-math.sin(yaw), math.cos(yaw)])
        free = 0.05
        for i, obj in enumerate(self._objects):
            if i == target or not self.stands_here(i):
                continue
            offset = np.array(self.local(i)) - position[:2]
            along, across = abs(float(offset @ closing)), abs(float(offset @ (-closing[1], closing[0])))
            if across > obj.reach + 0.03:
                continue
            room = along - obj.reach - self._objects[target].width / 2 - 0.016
            if self.top_of(i) > position[2] + PALM_HEIGHT:
                room = min(room, along - obj.reach - PALM_HALF)
            free = min(free, 2 * room)
        if position[2] < TABLE_TOP + BIN_HEIGHT + 0.02 and self._world.odometry()[0][1] < 0.3:  # bins stand on table 1
            wall = BIN_CENTRE['left'][1] - BIN_HALF[1] - 3 * BIN_WALL - abs(position[1])
            free = min(free, 2 * (wall / max(abs(closing[1]), 0.2) - self._objects[target].width / 2 - 0.014))
        return free

    def stands_here(self, index: int) -> bool:
        """Whether an object is on a table, outside the bins."""
        return self._world.object_position(index)[2] > 0.5 and not any(self.in_bin_now(index, side) for side in SIDES)

    def clear_height(self, target: int) -> float:
        """Height over which a hand or a carried object passes all others on their tables."""
        others = [self.top_of(i) + 0.02 for i in range(len(self._objects)) if i != target and self.stands_here(i)]
        return max([TABLE_TOP, *others])

    def among(self, hand: Floats) -> bool:
        """Whether the fingers of a hand are between things, so that it must rise before it goes anywhere else."""
        low = hand[2] - FINGER_REACH
        for i, obj in enumerate(self._objects):
            away = math.dist(self.local(i), hand[:2])
            if self.stands_here(i) and low < self.top_of(i) + 0.01 and away < obj.reach + PALM_HALF:
                return True
        near = any(
            abs(hand[0] - x) < BIN_HALF[0] + PALM_HALF and abs(hand[1] - y) < BIN_HALF[1] + PALM_HALF
            for x, y in BIN_CENTRE.values()
        )
        return near and low < TABLE_TOP + BIN_HEIGHT + 0.01

    def take_direction(self, taker: str, low: Floats) -> float:
        """Compass direction (as for the right hand) from which a hand reaches an object held up, best for its wrist."""
        sign = 1.0 if taker == 'right' else -1.0
        errors = {}
        for degrees in (60, 68, 75, 82, 90):
            angle = math.radians(degrees)
            rotation = pointing(sign * angle)
            _, near = self._arms.solve(taker, low, rotation, TAKING[taker], iterations=80)
            _, far = self._arms.solve(taker, low - 0.13 * rotation[:, 0], rotation, TAKING[taker], iterations=80)
            errors[angle] = max(near, far)
        return min(errors, key=lambda angle: (errors[angle] > 1e-3, abs(angle - 1.25), errors[angle]))

    def in_bin_now(self, target: int, side: str) -> bool:
        """Whether an object is over the floor of a bin."""
        x, y, _ = self._world.object_position(target)
        cx, cy = BIN_CENTRE[side]
        return bool(abs(x - cx) < BIN_HALF[0] and abs(y - cy) < BIN_HALF[1])
