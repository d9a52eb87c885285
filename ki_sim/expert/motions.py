"""Motions of the scripted expert: one contract row per 50 ms, smooth, each with words for what is being done.

A motion is a generator of `ExpertStep`s. The expert thinks in hand poses of the base frame; joint angles follow by
inverse kinematics from the ones commanded before, so that commands never jump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ki_sim.errors import SimError
from ki_sim.world.kinematics import Arms, Floats, rotation_vector
from ki_sim.world.robot import LIMITS, OPENING_MAX, SIDES
from ki_sim.world.scene import Pose
from ki_sim.world.world import STEP_NS, World

STEP_S = STEP_NS * 1e-9
JOINT_SPEED = 1.1  # rad/s, mean over a joint-space motion; the peak of a minimum-jerk profile is 1.9 times that
TURN_SPEED = 1.2  # rad/s, mean
GRIP_SPEED = 0.22  # m/s of opening
DRIVE_SPEED, DRIVE_ACCELERATION, DRIVE_TURN = 0.42, 0.7, 0.8


@dataclass(frozen=True)
class ExpertStep:
    """One step of the expert: an action row in the contract's columns and the subtask it belongs to."""

    action: Floats
    subtask: str


@dataclass(frozen=True)
class Style:
    """How one episode's operator moves: what differs between people, and between a person's days."""

    speed: float = 0.30  # mean speed of the hand, m/s
    detour: float = 0.02  # how far a free motion bows sideways, m
    aim: float = 0.003  # standard deviation of where the hand grasps, m
    turn: float = 0.04  # and of how it is turned, rad
    pause: float = 0.1  # chance of a short stop between two motions
    slip: float = 0.0  # chance of going for the object a little beside it, seeing it, and correcting


class Mover:
    """Keeps what is commanded now and turns motions into rows."""

    def __init__(self, world: World, style: Style, rng: np.random.Generator, arms: Arms | None = None) -> None:
        self.world, self.style, self.rng = world, style, rng
        self.arms = arms or Arms()
        # Who takes over goes on from where the robot was sent: commands do not jump.
        sent = {side: world.sent(side) for side in SIDES}
        self.q: dict[str, Floats] = {side: q for side, (q, _) in sent.items()}
        self.opening = {side: opening for side, (_, opening) in sent.items()}
        self.twist = np.zeros(3)
        self.subtask = ''

    def row(self) -> ExpertStep:
        """What is commanded now, as one step."""
        both = (np.append(self.q[side], self.opening[side]) for side in SIDES)
        return ExpertStep(np.concatenate([*both, self.twist]), self.subtask)

    def wait(self, duration_s: float) -> Iterator[ExpertStep]:
        """Stay as commanded."""
        for _ in range(max(1, round(duration_s / STEP_S))):
            yield self.row()

    def maybe_pause(self) -> Iterator[ExpertStep]:
        """Stop and think, as people do now and then."""
        if self.rng.random() < self.style.pause:
            yield from self.wait(float(self.rng.uniform(0.1, 0.35)))

    def hand(self, side: str) -> tuple[Floats, Floats]:
        """Pose of a hand as commanded, in the base frame."""
        return self.arms.pose(side, self.q[side])

    def line(
        self,
        side: str,
        position: npt.ArrayLike,
        rotation: Floats,
        speed: float = 1.0,
        rise: float = 0.0,
        bow: float = 0.0,
        until: Callable[[], bool] | None = None,
    ) -> Iterator[ExpertStep]:
        """ExpertStep a hand straight to a pose, or along an arc that rises by `rise` and bows sideways by `bow` (m)."""
        start, turned = self.hand(side)
        goal = np.asarray(position, np.float64)
        way, turn = goal - start, rotation_vector(rotation @ turned.T)
        length = float(np.linalg.norm(way)) + 2 * abs(rise)
        duration = 0.2 + max(length / (self.style.speed * speed), float(np.linalg.norm(turn)) / TURN_SPEED)
        sideways = np.cross(way, (0.0, 0.0, 1.0))
        sideways *= bow / max(float(np.linalg.norm(sideways)), 1e-6)
        count = max(2, round(duration / STEP_S))
        for i in range(1, count + 1):
            s = minimum_jerk(i / count)
            hump = np.sin(np.pi * s) ** 2
            here = start + s * way + hump * sideways + (0.0, 0.0, rise * hump)
            self._solve(side, here, rotated(turned, s * turn))
            yield self.row()
            if until is not None and until():
                return

    def swing(self, side: str, goal: npt.ArrayLike, speed: float = 1.0) -> Iterator[ExpertStep]:
        """ExpertStep an arm to joint angles, all joints arriving together."""
        start, end = self.q[side].copy(), np.asarray(goal, np.float64)
        duration = 0.2 + float(np.max(np.abs(end - start))) / (JOINT_SPEED * speed)
        count = max(2, round(duration / STEP_S))
        for i in range(1, count + 1):
            self.q[side] = start + minimum_jerk(i / count) * (end - start)
            yield self.row()

    def grip(self, side: str, opening: float, until: Callable[[], bool] | None = None) -> Iterator[ExpertStep]:
        """Open or close a gripper at an even speed."""
        goal = float(np.clip(opening, 0.0, OPENING_MAX))
        while abs(goal - self.opening[side]) > 1e-6:
            step = np.clip(goal - self.opening[side], -GRIP_SPEED * STEP_S, GRIP_SPEED * STEP_S)
            self.opening[side] += float(step)
            yield self.row()
            if until is not None and until():
                return

    def drive(self, goal: Pose, through: float = 0.0, limit_s: float = 15.0) -> Iterator[ExpertStep]:
        """Drive the base to a pose and stop, or only to `through` metres near it; SimError if it never gets there."""
        for _ in range(round(limit_s / STEP_S)):
            pose, _ = self.world.odometry()
            x, y = Pose(*pose).into(goal.x, goal.y)
            away = np.array([x, y, (goal.yaw - pose[2] + np.pi) % (2 * np.pi) - np.pi])
            if through and np.hypot(x, y) < through:
                return
            if np.hypot(x, y) < 0.008 and abs(away[2]) < 0.012:
                break
            wanted = 1.6 * away
            wanted[:2] *= min(1.0, DRIVE_SPEED / max(float(np.hypot(*wanted[:2])), 1e-9))
            wanted[2] = np.clip(wanted[2], -DRIVE_TURN, DRIVE_TURN)
            step = np.array([DRIVE_ACCELERATION, DRIVE_ACCELERATION, 1.6]) * STEP_S
            self.twist = self.twist + np.clip(wanted - self.twist, -step, step)
            yield self.row()
        else:
            raise SimError(f'the base did not reach ({goal.x:.2f}, {goal.y:.2f}): something is in its way')
        self.twist = np.zeros(3)
        yield self.row()

    def _solve(self, side: str, position: Floats, rotation: Floats) -> None:
        q, _ = self.arms.solve(side, position, rotation, self.q[side], iterations=8)
        top = np.array([LIMITS[f'{side}_joint{i}'].velocity for i in range(1, 7)]) * STEP_S * 0.9
        self.q[side] = self.q[side] + np.clip(q - self.q[side], -top, top)


def minimum_jerk(s: float) -> float:
    """Share of the way after share `s` of the time, for the smoothest motion from rest to rest."""
    return s**3 * (10 - 15 * s + 6 * s**2)


def rotated(rotation: Floats, vector: Floats) -> Floats:
    """A rotation matrix turned further by a rotation vector given in the outer frame (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-9:
        return rotation
    x, y, z = vector / angle
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: Floats = (np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K) @ rotation
    return turned
