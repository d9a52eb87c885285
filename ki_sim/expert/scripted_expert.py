"""The scripted expert: does the tasks that no law does (`experts`) from the true state, a little differently each time.

It says at every moment what it is doing, looks before it lets go, and tries again when a grasp failed. Its numbers of
style are drawn from the episode's seed, so an episode is the same each time it is played.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator

import numpy as np

from ki_sim.expert.grasp_planning import TAKING, GraspPlanner
from ki_sim.expert.laws import FINGER_REACH
from ki_sim.expert.motions import ExpertStep, Mover, Style
from ki_sim.world.kinematics import Arms, Floats, pointing, pointing_down
from ki_sim.world.robot import OPENING_MAX, SIDES
from ki_sim.world.scene import BIN_CENTRE, BIN_HEIGHT, TABLE_TOP, Pose
from ki_sim.world.world import HOME_ARM, HOME_OPENING, World

TRIES = 3
OVER_IT = 0.015  # m aside: a hand so near over an object need not go away to come again
TRAVEL_HEIGHT = TABLE_TOP + BIN_HEIGHT + 0.045  # where the foot of a carried object passes over bins and objects
MEETING = (0.40, 0.0, 1.00)  # where hands meet to hand over: the object's centre, base frame


class ScriptedExpert(Mover):
    """Plays one episode. `moves()` yields one row per 50 ms; the caller steps the world between them."""

    def __init__(self, world: World, style: Style | None = None, arms: Arms | None = None) -> None:
        episode = world.episode
        rng = np.random.default_rng([episode.seed, episode.goal_seed, sum(episode.task.encode()), 3])
        super().__init__(world, style or draw_style(rng, episode.task), rng, arms)
        self.objects, self.goal = episode.scene.objects, episode.goal
        self.see = GraspPlanner(world, self.objects, self.arms)

    def moves(self) -> Iterator[ExpertStep]:
        """The whole episode, from where the robot is, up to a short rest at its end."""
        for side in SIDES:
            if self.world.touches.held(side) - set(self.goal.objects):
                self.subtask = 'let go of what was not asked for'
                yield from self.grip(side, HOME_OPENING)
        yield from _PLANS[self.world.episode.task](self)
        self.subtask = 'rest, the task is done'
        yield from self.wait(0.4)

    # plans of the tasks -----------------------------------------------------------------------------------------

    def put_in_bin(self) -> Iterator[ExpertStep]:
        """An object into a bin, with the arm on the bin's side."""
        (target,), (side,) = self.goal.objects, self.goal.places
        for _ in range(TRIES):
            if self.world.object_position(target)[2] < TABLE_TOP - 0.05:
                break  # it fell to the floor, where no arm reaches
            if not (yield from self.pick(side, target)):
                continue
            yield from self.drop_in_bin(side, target, side)
            if self.see.in_bin_now(target, side):
                break
        yield from self.go_home(side)

    def hand_over(self) -> Iterator[ExpertStep]:
        """Pick with one hand, high on the object; take it low with the other, from its side; let go."""
        (target,), giver, taker = self.goal.objects, self.goal.giver, self.goal.taker
        for _ in range(TRIES):
            if target in self.world.touches.held(taker):
                yield from self.leave(giver, taker, target)
                break
            if not (yield from self.pick(giver, target, grasp=0.80)):
                continue
            if (yield from self.give(giver, taker, target)):
                break
            yield from self.grip(taker, HOME_OPENING)
            yield from self.swing(taker, HOME_ARM[taker])
        yield from self.go_home(giver)

    def fetch(self) -> Iterator[ExpertStep]:
        """Drive to the second table, pick, drive back, put the object down on the first."""
        (target,) = self.goal.objects
        station = self.world.episode.scene.stations[1]
        turn_at = Pose(-0.42, 0.10 + float(self.rng.uniform(-0.05, 0.05)), station.yaw / 2)
        self.subtask = 'drive to the second table'
        yield from self.drive(Pose(-0.40, 0.0, 0.0), through=0.12)
        yield from self.drive(turn_at, through=0.15)
        yield from self.drive(station)
        _, y = station.into(*self.world.object_position(target)[:2])
        side = 'left' if y > 0 else 'right'
        for _ in range(TRIES):
            if not (yield from self.pick(side, target)):
                continue
            yield from self.carry_home(side, target)
            self.subtask = f'bring the {self.see.label(target)} to the first table'
            yield from self.drive(Pose(turn_at.x, turn_at.y, station.yaw / 2), through=0.15)
            yield from self.drive(Pose(-0.38, 0.0, 0.0), through=0.10)
            yield from self.drive(Pose(0.0, 0.0, 0.0))
            self.subtask = f'put the {self.see.label(target)} on the first table'
            spot = (0.40 + float(self.rng.uniform(-0.02, 0.02)), 0.08 if side == 'left' else -0.08)
            yield from self.put_down(side, target, spot, TABLE_TOP + 0.003)
            break
        yield from self.go_home(side)

    # skills -----------------------------------------------------------------------------------------------------

    def pick(self, side: str, target: int, grasp: float | None = None) -> Generator[ExpertStep, None, bool]:
        """Grasp an object from above and lift it, unless it is held already; returns whether it is held."""
        if target in self.world.touches.held(side):
            return True
        obj, name = self.objects[target], self.see.label(target)
        self.subtask = f'reach for the {name}'
        yield from self.maybe_pause()
        position, yaw = self.see.grasp_pose(side, target, grasp)
        aim = self.rng.normal(0, self.style.aim, 2).clip(-0.006, 0.006)
        yaw += float(self.rng.normal(0, self.style.turn))
        position = position + np.array([*aim, 0.0])
        above = np.array(
            [
                position[0],
                position[1],
                max(self.see.top_of(target) + 0.05, self.see.clear_height(target)) + FINGER_REACH,
            ]
        )
        here, turned = self.hand(side)
        lower = position[2] < here[2] < above[2] and self.opening[side] > obj.width + 0.01
        brought = lower and math.dist(here[:2], position[:2]) < OVER_IT  # by whoever drove before
        if brought:
            above = here
        elif self.see.among(here):
            yield from self.line(side, np.array([here[0], here[1], max(above[2], here[2])]), turned)
        # A miss now and then that the eye corrects before anything is touched.
        if not brought and self.rng.random() < self.style.slip:
            beside = above + np.array([*self.rng.uniform(-0.03, 0.03, 2), -0.01])
            yield from self.free_move(side, beside, pointing_down(yaw))
            yield from self.wait(0.15)
        free = self.see.free_width(position, yaw, target)
        opening = min(OPENING_MAX, obj.width + float(np.clip(free, 0.012, 0.045)))
        yield from self.free_move(side, above, pointing_down(yaw), opening=opening)
        self.subtask = f'grasp the {name}'
        yield from self.line(side, position, pointing_down(yaw), speed=0.6)
        yield from self.wait(0.1)
        yield from self.grip(side, 0.0, until=lambda: target in self.world.touches.held(side))
        yield from self.squeeze(side)
        self.subtask = f'lift the {name}'
        lifted = position + np.array([0.0, 0.0, 0.09])
        yield from self.line(side, lifted, pointing_down(yaw), speed=0.8)
        if target in self.world.touches.held(side):
            return True
        yield from self.grip(side, HOME_OPENING)
        return False

    def squeeze(self, side: str) -> Iterator[ExpertStep]:
        """Close on past the first touch, so that the servo presses with what force it has."""
        for _ in range(4):
            self.opening[side] = max(0.0, self.opening[side] - 0.011)
            yield self.row()

    def free_move(
        self, side: str, position: Floats, rotation: Floats, opening: float | None = None
    ) -> Iterator[ExpertStep]:
        """An unhurried motion through free air, bowed a little, while the gripper opens on the way."""
        bow = float(self.rng.normal(0, self.style.detour))
        opening = self.opening[side] if opening is None else opening
        start = self.opening[side]
        moves = list(self.line(side, position, rotation, bow=float(np.clip(bow, -0.04, 0.04))))
        for i, move in enumerate(moves, 1):
            self.opening[side] = start + (opening - start) * min(1.0, 1.5 * i / len(moves))
            action = move.action.copy()
            action[6 if side == 'left' else 13] = self.opening[side]
            yield ExpertStep(action, move.subtask)

    def carry_home(self, side: str, target: int) -> Iterator[ExpertStep]:
        """Draw a held object close before driving."""
        self.subtask = f'lift the {self.see.label(target)}'
        position, rotation = self.hand(side)
        near = np.array([0.36, 0.20 if side == 'left' else -0.20, max(position[2] + 0.05, 1.0)])
        yield from self.line(side, near, rotation)

    def drop_in_bin(self, side: str, target: int, place: str) -> Iterator[ExpertStep]:
        """Carry a held object over a bin, lower it between the walls, let go, and come out again."""
        name = self.see.label(target)
        self.subtask = f'carry the {name} to the {place} bin'
        below = self.hand(side)[0][2] - self.see.foot_of(target)
        x, y = np.array(BIN_CENTRE[place]) + self.rng.uniform(-0.012, 0.012, 2)
        yield from self.over(side, (x, y), max(TRAVEL_HEIGHT, self.see.clear_height(target)) + below)
        self.subtask = f'drop the {name} into the {place} bin'
        _, rotation = self.hand(side)
        low = np.array([x, y, TABLE_TOP + 0.03 + below])
        yield from self.line(side, low, rotation, speed=0.8)
        yield from self.let_go(side, target, min(self.objects[target].width + 0.03, 0.115))
        yield from self.line(side, np.array([x, y, TRAVEL_HEIGHT + 0.06]), rotation)

    def put_down(
        self, side: str, target: int, spot: tuple[float, float], foot: float, pad: float = 0.0
    ) -> Iterator[ExpertStep]:
        """Set a held object down with its foot at a height, over a spot of the base frame."""
        hand, rotation = self.hand(side)
        pose, _ = self.world.odometry()
        local = Pose(*pose).into(*self.world.object_position(target)[:2])
        offset = hand[:2] - local  # where the hand is relative to the object it holds
        below = hand[2] - self.see.foot_of(target)
        x, y = np.asarray(spot) + offset
        yield from self.over(side, (x, y), max(foot + 0.06, TABLE_TOP + 0.13, self.see.clear_height(target)) + below)
        hand, rotation = self.hand(side)
        # Look again: objects shift a little in the hand on the way.
        x, y = hand[:2] + np.asarray(spot) - Pose(*pose).into(*self.world.object_position(target)[:2])
        below = hand[2] - self.see.foot_of(target)
        yield from self.line(side, np.array([x, y, foot + pad + below]), rotation, speed=0.5)
        yield from self.wait(0.2)
        yield from self.let_go(side, target, min(self.objects[target].width + 0.035, OPENING_MAX))
        yield from self.line(side, np.array([x, y, foot + below + 0.14]), rotation, speed=0.9)

    def over(self, side: str, spot: tuple[float, float], height: float) -> Iterator[ExpertStep]:
        """Carry what is held to above a spot, first up and then across."""
        hand, rotation = self.hand(side)
        if height > hand[2] + 0.01:
            yield from self.line(side, np.array([hand[0], hand[1], height]), rotation)
        yield from self.maybe_pause()
        bow = float(np.clip(self.rng.normal(0, self.style.detour), -0.03, 0.03))
        target = np.array([*spot, max(height, hand[2])])
        yield from self.line(side, target, pointing_down(self.see.easy_yaw(side, target)), bow=bow)

    def let_go(self, side: str, target: int, opening: float) -> Iterator[ExpertStep]:
        """Open until no finger touches the object."""
        yield from self.grip(side, opening)
        yield from self.wait(0.15)

    def give(self, giver: str, taker: str, target: int) -> Generator[ExpertStep, None, bool]:
        """Hold the object up between the hands, take it with the other hand, let go; returns whether it worked."""
        obj, name = self.objects[target], self.see.label(target)
        sign = 1.0 if taker == 'right' else -1.0
        self.subtask = f'hold the {name} up to the {taker} hand'
        meet = np.array(MEETING) + self.rng.uniform(-0.015, 0.015, 3)
        below = self.hand(giver)[0][2] - self.world.object_position(target)[2]
        yield from self.line(giver, meet + np.array([0.0, 0.0, below]), pointing_down(self.see.easy_yaw(giver, meet)))
        yield from self.wait(0.25)
        self.subtask = f'take the {name} with the {taker} hand'
        # Taking far below the giver's fingers: their tips end at 80 % less a finger's reach.
        low = self.world.object_position(target) - np.array([0.0, 0.0, obj.height * 0.26])
        direction = sign * self.see.take_direction(taker, low)
        rotation = pointing(direction)
        approach = rotation[:, 0]
        ready, _ = self.arms.solve(taker, low - 0.13 * approach, rotation, TAKING[taker], iterations=150)
        yield from self.grip(taker, min(OPENING_MAX, obj.width + 0.05))
        yield from self.swing(taker, ready)
        yield from self.line(taker, low + 0.004 * approach, rotation, speed=0.5)
        yield from self.grip(taker, 0.0, until=lambda: target in self.world.touches.held(taker))
        yield from self.squeeze(taker)
        yield from self.leave(giver, taker, target)
        return target in self.world.touches.held(taker)

    def leave(self, giver: str, taker: str, target: int) -> Iterator[ExpertStep]:
        """Let go of what the other hand holds as well, and draw back."""
        self.subtask = f'let the {taker} hand have the {self.see.label(target)}'
        yield from self.grip(giver, min(OPENING_MAX, self.objects[target].width + 0.035))
        hand, turned = self.hand(giver)
        yield from self.line(giver, hand + np.array([0.0, 0.0, 0.10]), turned)

    def go_home(self, side: str) -> Iterator[ExpertStep]:
        """Back to where the arm rests."""
        self.subtask = f'move the {side} arm back to rest'
        hand, rotation = self.hand(side)
        if hand[2] < TRAVEL_HEIGHT + 0.05:
            yield from self.line(side, np.array([hand[0], hand[1], TRAVEL_HEIGHT + 0.06]), rotation)
        start = self.opening[side]
        moves = list(self.swing(side, HOME_ARM[side]))
        for i, move in enumerate(moves, 1):
            self.opening[side] = start + (HOME_OPENING - start) * i / len(moves)
            action = move.action.copy()
            action[6 if side == 'left' else 13] = self.opening[side]
            yield ExpertStep(action, move.subtask)


def draw_style(rng: np.random.Generator, task: str) -> Style:
    """An operator for one episode; the demo task's are calmer, so that little data teaches it."""
    if task == 'demo':
        return Style(speed=float(rng.uniform(0.30, 0.36)), detour=0.008, aim=0.002, turn=0.02, pause=0.0, slip=0.05)
    return Style(speed=float(rng.uniform(0.25, 0.38)), detour=float(rng.uniform(0.0, 0.025)), slip=0.08)


_PLANS: dict[str, Callable[[ScriptedExpert], Iterator[ExpertStep]]] = {
    'demo': ScriptedExpert.put_in_bin,
    'hand_over': ScriptedExpert.hand_over,
    'fetch': ScriptedExpert.fetch,
}
