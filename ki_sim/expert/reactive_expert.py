"""The reactive expert in physics: looks at the true state every few steps, and does what the law of the moment says.

It has no plan and no memory, so a grasp that failed or an object that was knocked away is simply the next situation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ki_sim.expert.laws import GRIP, Hand, Law, Rest, roll
from ki_sim.expert.motions import ExpertStep
from ki_sim.expert.situation import Body, Duty, Situation, duty
from ki_sim.world.kinematics import Arms, Floats, pointing_down
from ki_sim.world.robot import ARM_JOINTS, GRIPPERS, LIMITS, SIDES
from ki_sim.world.scene import TABLE_TOP
from ki_sim.world.world import STEP_NS, World

EVERY = 4  # steps between two looks
UPRIGHT = 0.7  # cosine of the tilt up to which an object stands
HELD_GAP = 0.003  # m wider than an object that fingers which hold it may be
LOW = TABLE_TOP + 0.018
LAST_STEPS = 10  # after success, until the recording ends
JOINT_STEP = {side: np.array([LIMITS[n].velocity for n in ARM_JOINTS[side]]) * STEP_NS * 1e-9 for side in SIDES}  # rad


class ReactiveExpert:
    """Plays one episode of a task that a law does: a step at a time, and the caller steps the world between them.

    Args:
        world: Its world.
        arms: Kinematics, made once.
        every: Steps between two looks at the true state.
        led: Commands go no faster than joints and gripper may. Else they are what the law says, as a policy's are that
            learned from moments (`ki_sim.moments`), and who plays them sees to the limits.
    """

    def __init__(self, world: World, arms: Arms | None = None, every: int = EVERY, led: bool = True) -> None:
        self.world, self.arms, self.every, self.led = world, arms or Arms(), every, led
        # Who takes over leads on from where the robot was sent: commands do not jump.
        sent = {side: world.sent(side) for side in SIDES}
        self._angles = {side: q for side, (q, _) in sent.items()}
        self._opening = {side: opening for side, (_, opening) in sent.items()}

    def moves(self) -> Iterator[ExpertStep]:
        """Rows of commands with the words for what is being done, until the task has been done for a while."""
        done = 0
        while done <= LAST_STEPS:
            found = duty(look(self.world, self.arms))
            for row in self._rows(found):
                yield ExpertStep(row, found.words if not done else 'rest, the task is done')
                done = done + 1 if self.world.success() else 0

    def _rows(self, found: Duty) -> Floats:
        """Commands (every, 17) of the steps until the next look."""
        rows = np.zeros((self.every, 17))
        state = self.world.observe(images=False).state
        for offset, side in ((0, 'left'), (7, 'right')):
            law: Law = found.law if side == found.side else Rest(side)
            hand = hand_of(self.world, self.arms, found, side)
            q = state[offset : offset + 6]
            for row, command in zip(rows, roll(law, hand, self.every)[0], strict=True):
                x, y, z = command.position
                q, _ = self.arms.solve(side, (x, y, max(z, LOW)), pointing_down(command.yaw), q, iterations=8)
                if not self.led:
                    row[offset : offset + 6], row[offset + 6] = q, command.opening
                    continue
                # A law asks for open or shut; joints and gripper are led there no faster than they may move.
                lead = command.opening - self._opening[side]
                self._opening[side] += float(np.clip(lead, -GRIP, GRIP))
                most = JOINT_STEP[side]
                self._angles[side] = self._angles[side] + np.clip(q - self._angles[side], -most, most)
                row[offset : offset + 6], row[offset + 6] = self._angles[side], self._opening[side]
        return rows


def look(world: World, arms: Arms) -> Situation:
    """The situation of a world: true poses, and what is between the fingers."""
    objects, joints = world.episode.scene.objects, world.joint_states()
    bodies = tuple(
        Body(_point(world.object_position(i)), world.object_yaw(i), world.object_upright(i) > UPRIGHT)
        for i in range(len(objects))
    )
    holding = {}
    for side in SIDES:
        opening = joints[GRIPPERS[side]][0]
        for index in world.touches.held(side):
            if opening < objects[index].width + HELD_GAP:
                holding[side] = index
    hands = {side: _point(arms.pose(side, _angles(world, side))[0]) for side in SIDES}
    return Situation(world.episode.task, world.episode.goal, objects, bodies, holding, hands)


def hand_of(world: World, arms: Arms, found: Duty, side: str) -> Hand:
    """A hand as measured, with what it holds of its duty."""
    position, rotation = arms.pose(side, _angles(world, side))
    opening = world.joint_states()[GRIPPERS[side]][0]
    acts = side == found.side
    obj = found.target if acts else -1
    holds = obj >= 0 and obj in world.touches.held(side) and opening < world.episode.scene.objects[obj].width + HELD_GAP
    yaw = math.atan2(-rotation[0, 1], rotation[1, 1])
    return Hand(_point(position), yaw, opening, holds, acts and found.done)


def _angles(world: World, side: str) -> Floats:
    states = world.joint_states()
    return np.array([states[name][0] for name in ARM_JOINTS[side]])


def _point(xyz: Floats) -> tuple[float, float, float]:
    return float(xyz[0]), float(xyz[1]), float(xyz[2])
