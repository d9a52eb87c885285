"""Reactive laws: what a hand does next, from where it is, how far it is open and what it holds. No memory, no clock.

A law is asked for one step of 50 ms at a time and gives the command of that step and the hand as it is afterwards, so
it labels any state of a hand, also those that no demonstration passes through: an empty shut hand, an open hand over
the bin, a hand low beside the object. Lengths in m, angles in rad, base frame; a hand points down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ki_sim.world.robot import SIDES
from ki_sim.world.scene import BIN_HEIGHT, TABLE_TOP

OPEN, SHUT = 0.115, 0.0  # the two openings that a law asks for
FINGER_REACH = 0.018  # how far the finger tips extend beyond the point between the pads
SPEED, NEAR_SPEED, LIFT_SPEED, PUSH_SPEED = 0.022, 0.016, 0.008, 0.010  # of a hand, per step
TURN, GRIP = 0.09, 0.018  # of a hand (rad) and of its opening, per step
TURNED = 2.0  # rad, of a hand that may let go turned either way
TRAVEL = TABLE_TOP + BIN_HEIGHT + 0.045  # what is carried passes over bins with its foot at this height
HOME = {'left': (0.36, 0.27, 1.0), 'right': (0.36, -0.27, 1.0)}
AT = 0.009  # a hand this near to a grasp closes
NEARLY = 0.010  # a hand that is open but for so much is open
BETWEEN = 0.010  # fingers closed by so much more than an object's width do not have it between them

Xyz = tuple[float, float, float]


@dataclass(frozen=True)
class Hand:
    """A hand pointing down: between its pads at `position`, turned by `yaw`, open by `opening`.

    `holds`: the object of the law is between its pads. `done`: that object is where the law brings it.
    """

    position: Xyz
    yaw: float
    opening: float
    holds: bool = False
    done: bool = False


@dataclass(frozen=True)
class HandCommand:
    """Where a hand is to be at the end of a step."""

    position: Xyz
    yaw: float
    opening: float


@dataclass(frozen=True)
class Grasp:
    """How an object is taken: where, at which yaw, how wide it is, and the height at which a hand passes over all."""

    position: Xyz
    yaw: float
    width: float
    above: float


@dataclass(frozen=True)
class Place:
    """Where a hand lets go: `position`, `yaw`; `over`: its height on the way; `near`: how far off it may go down.

    `either`: turned as `yaw` says or half a turn from that, whichever is nearer.
    """

    position: Xyz
    yaw: float
    over: float
    near: float = 0.008
    gentle: bool = True
    either: bool = False

    def turned(self, yaw: float) -> float:
        """How a hand that is turned so is to be turned, for the wrist never further than `TURNED`."""
        if not self.either:
            return self.yaw
        near = self.yaw + math.pi * round((yaw - self.yaw) / math.pi)
        return near if abs(near) <= TURNED else self.yaw - math.pi * round(self.yaw / math.pi)


@dataclass(frozen=True)
class Move:
    """Take an object and let go of it elsewhere."""

    grasp: Grasp
    place: Place


@dataclass(frozen=True)
class Touch:
    """Put the shut finger tips on top of an object: hand at `position`, coming from `above`."""

    position: Xyz
    yaw: float
    above: float


@dataclass(frozen=True)
class Push:
    """Push an object sideways with the shut hand, low over the table.

    `behind` is where the hand begins, `way` the direction, +1 to the left, `line` the y that the object is to pass, and
    `reach` how far its centre is from that of the hand where they touch; `above` as in Grasp.
    """

    behind: Xyz
    object_y: float
    reach: float
    way: int
    line: float
    above: float


@dataclass(frozen=True)
class Rest:
    """Go home, or stay there."""

    side: str


Law = Move | Touch | Push | Rest


def step(law: Law, hand: Hand) -> tuple[HandCommand, Hand]:
    """One step of a law: the command, and the hand after it if the robot does as it is told."""
    if isinstance(law, Move):
        return _move(law, hand)
    if isinstance(law, Touch):
        return _touch(law, hand)
    if isinstance(law, Push):
        return _push(law, hand)
    return _rest(law, hand)


def roll(law: Law, hand: Hand, steps: int) -> tuple[list[HandCommand], Hand]:
    """Commands of many steps, each from the hand as the one before left it."""
    commands = []
    for _ in range(steps):
        command, hand = step(law, hand)
        commands.append(command)
        if isinstance(law, Push):
            law, hand = _pushed(law, hand)
    return commands, hand


def easy_yaw(side: str, x: float, y: float) -> float:
    """The yaw at which a wrist over a point is least turned: half of the shoulder's own."""
    assert side in SIDES
    return 0.5 * math.atan2(y - (0.17 if side == 'left' else -0.17), x - 0.13)


def _move(law: Move, hand: Hand) -> tuple[HandCommand, Hand]:
    if hand.done:
        return _leave(hand, law.grasp.width, law.place)
    return _carry(law, hand) if hand.holds else _reach(law.grasp, hand)


def _reach(grasp: Grasp, hand: Hand) -> tuple[HandCommand, Hand]:
    """To above the object, down a cone, and shut; up again where the hand is low and wrong, or shut without it."""
    x, y, z = hand.position
    gx, gy, gz = grasp.position
    off, high = math.hypot(gx - x, gy - y), z - gz
    empty = hand.opening < grasp.width - BETWEEN
    closing = off < 2 * AT and abs(high) < 0.014 and not empty
    if (off < AT and abs(high) < 0.008 and not empty) or (closing and hand.opening < OPEN - NEARLY):
        command, after = _go(hand, grasp.position, grasp.yaw, SHUT, NEAR_SPEED)
        if after.opening <= grasp.width:
            after = replace(after, opening=grasp.width, holds=True)
        return command, after
    narrow = hand.opening < grasp.width + 0.012
    if narrow and off < 0.05:  # fingers that are not open would land on the object
        goal = (x, y, max(z, grasp.above))
    elif off > 0.05 and z < grasp.above - 0.02:
        goal = (x + 0.2 * (gx - x), y + 0.2 * (gy - y), grasp.above)
    else:
        goal = (gx, gy, gz + _share(off, 0.010, 0.060) * (grasp.above - gz))
    return _go(hand, goal, grasp.yaw, OPEN, SPEED if off > 0.06 else NEAR_SPEED)


def _carry(law: Move, hand: Hand) -> tuple[HandCommand, Hand]:
    """Up, across, down a cone, and open."""
    x, y, z = hand.position
    px, py, pz = law.place.position
    off, near = math.hypot(px - x, py - y), law.place.near
    lifted = law.grasp.position[2] + 0.012
    speed = LIFT_SPEED if z < lifted and off > near + 0.02 else SPEED  # slowly off the table while the fingers press
    opening = SHUT
    if off > near + 0.025:
        across = _share(z, law.place.over - 0.035, 0.030)
        goal = (x + across * (px - x), y + across * (py - y), law.place.over)
    else:
        goal = (px, py, pz + _share(off, near, 0.025) * (law.place.over - pz))
        if law.place.gentle and z < pz + 0.03:
            speed = LIFT_SPEED
        if off < near + 0.004 and z < pz + (0.007 if law.place.gentle else 0.012):
            opening = OPEN
    command, after = _go(hand, goal, law.place.turned(hand.yaw), opening, speed)
    if opening == OPEN and after.opening > law.grasp.width + 0.004:
        return command, replace(after, holds=False, done=True)
    return command, replace(after, opening=max(after.opening, law.grasp.width))


def _leave(hand: Hand, width: float, place: Place) -> tuple[HandCommand, Hand]:
    """Open, then straight up, then stay above; slowly from what is so wide that the fingers stay near it."""
    x, y, z = hand.position
    room = width + 0.03
    goal = (x, y, z if hand.opening < min(room, OPEN - NEARLY) else max(place.over, z))
    return _go(hand, goal, hand.yaw, OPEN, SPEED if hand.opening >= room else LIFT_SPEED)


def _touch(law: Touch, hand: Hand) -> tuple[HandCommand, Hand]:
    x, y, z = hand.position
    tx, ty, tz = law.position
    off = math.hypot(tx - x, ty - y)
    if hand.opening > 0.012 or (off > 0.05 and z < law.above - 0.02):
        across = 1.0 if z > law.above - 0.02 else 0.2
        goal = (x + across * (tx - x), y + across * (ty - y), law.above)
    else:
        goal = (tx, ty, tz + _share(off, 0.012, 0.050) * (law.above - tz))
    return _go(hand, goal, law.yaw, SHUT, SPEED if z > tz + 0.05 else LIFT_SPEED)


def _rest(law: Rest, hand: Hand) -> tuple[HandCommand, Hand]:
    x, y, z = hand.position
    hx, hy, hz = HOME[law.side]
    across = 0.0 if hand.opening < OPEN - 0.02 and z < TRAVEL else _share(z, TRAVEL - 0.05, 0.10)
    return _go(hand, (x + across * (hx - x), y + across * (hy - y), hz), (1.0 - across) * hand.yaw, OPEN, SPEED)


def _push(law: Push, hand: Hand) -> tuple[HandCommand, Hand]:
    x, y, z = hand.position
    bx, by, bz = law.behind
    if hand.done:  # back from the object first, then up
        away = abs(y - law.object_y) > law.reach + 0.03 or z > bz + 0.05
        goal = (x, y, law.above) if away else (x, y - 0.05 * law.way, z)
        return _go(hand, goal, 0.0, SHUT, SPEED)
    low = z < bz + 0.025 and abs(x - bx) < 0.014 and law.way * (y - by) > -0.012
    if low and hand.opening < 0.02 and law.way * (law.object_y - y) > 0:
        return _go(hand, (bx, y + 0.05 * law.way, bz), 0.0, SHUT, PUSH_SPEED)
    off = math.hypot(bx - x, by - y)
    if hand.opening > 0.012 or (off > 0.03 and z < law.above - 0.02):
        across = 1.0 if z > law.above - 0.02 else 0.1
        goal = (x + across * (bx - x), y + across * (by - y), law.above)
    else:
        goal = (bx, by, bz + _share(off, 0.008, 0.030) * (law.above - bz))
    return _go(hand, goal, 0.0, SHUT, SPEED if z > bz + 0.05 else NEAR_SPEED)


def _pushed(law: Push, hand: Hand) -> tuple[Push, Hand]:
    """The law after a step: the object goes where the hand in contact goes."""
    x, y, z = hand.position
    low = z < law.behind[2] + 0.02 and abs(x - law.behind[0]) < law.reach
    contact = y + law.way * law.reach
    moved = law.way * (contact - law.object_y)
    if low and not hand.done and 0 < moved < 0.03:
        bx, by, bz = law.behind
        law = replace(law, object_y=contact, behind=(bx, by + law.way * moved, bz))
    return law, replace(hand, done=hand.done or law.way * (law.object_y - law.line) > 0)


def _go(hand: Hand, goal: Xyz, yaw: float, opening: float, speed: float) -> tuple[HandCommand, Hand]:
    """One step towards a goal, slower at its end."""
    x, y, z = hand.position
    dx, dy, dz = goal[0] - x, goal[1] - y, goal[2] - z
    far = math.sqrt(dx * dx + dy * dy + dz * dz)
    if far > 1e-4:
        share = min(speed, 0.5 * far + 0.001, far) / far
        x, y, z = x + share * dx, y + share * dy, z + share * dz
    turned = hand.yaw + min(TURN, max(-TURN, yaw - hand.yaw))
    opened = hand.opening + min(GRIP, max(-GRIP, opening - hand.opening))
    command = HandCommand((x, y, z), turned, opening)
    return command, replace(hand, position=command.position, yaw=turned, opening=opened)


def _share(off: float, near: float, width: float) -> float:
    """0 within `near`, 1 beyond `near` + `width`, straight between."""
    return min(1.0, max(0.0, (off - near) / width))
