"""Where a hand may be when a moment is taken: on the way of its law, beside it, or where things have gone wrong.

Lengths in m, angles in rad, base frame.
"""

from __future__ import annotations

import math

import numpy as np

from ki_sim.expert.laws import HOME, OPEN, SHUT, Hand, Law, Move, Push, Rest, Touch, Xyz, easy_yaw, step
from ki_sim.world.robot import GRIPPERS, LIMITS
from ki_sim.world.scene import TABLE_TOP
from ki_sim.world.world import HOME_OPENING

AT_HOME, GONE_WRONG = 0.12, 0.30  # shares of the moments
# A hand that opens is half open for a moment only. Where half-open empty hands are as frequent as others, a hand that
# holds something counts as empty in one plan of ten: by its fingers it could be either.
HALF_OPEN, KEPT_HALF_OPEN = (0.016, HOME_OPENING - 0.006), 0.08
# Of the moments right before something is let go of, those in which it is some centimetres off: who sees it low at its
# place alone learns to let go wherever it is low.
MISSED = 0.6
MISSED_BY = (0.018, 0.045, 0.070)  # m, spread of these: a policy sees its place by some mm, or not at all
# A carried thing hides its place while it hovers over it; a policy that has met this too seldom takes the place to be
# elsewhere: 14 of 19 failures of next_to and stack.
HOVERS = (0.020, 0.060)  # m, spread of its height over the place
HALF_TURNED = 0.6  # share of the hands that carry, or have let go, on their way to be turned
RISEN, RISEN_ASIDE = 0.12, 0.012  # m over the way across to which an open hand rises, and its spread beside the object
FREE_X, FREE_Y, FREE_Z = (0.30, 0.58), (-0.14, 0.34), (0.84, 1.04)
SHAKE = 0.0015  # m by which a measured hand is off the law's way at the object; more of it further away
# What the fingers measure while they hold, less the nominal width of the object: soft contacts, pressed (measured).
FINGER_GAP = {
    'ball': -0.0050,
    'block': -0.0024,
    'carton': -0.0024,
    'cup': -0.0015,
    'can': -0.0015,
    'plate': -0.0014,
    'bowl': -0.0011,
    'bottle': -0.0011,
}
# What the gripper's servo measures, N: all that it can while it holds, less while it opens or has only just closed, and
# next to nothing while nothing is between the fingers (measured).
GRIP_EFFORT, LESS_EFFORT, NO_EFFORT = -LIMITS[GRIPPERS['left']].effort, 0.15, 0.3


def at_home(rng: np.random.Generator, side: str) -> Hand:
    """A hand that rests."""
    x, y, z = (float(each + rng.normal(0, 0.004)) for each in HOME[side])
    return Hand((x, y, z), float(rng.normal(0, 0.02)), HOME_OPENING + float(rng.normal(0, 0.0005)))


def somewhere(rng: np.random.Generator, side: str, law: Law) -> Hand:
    """A hand for a moment of a law."""
    if isinstance(law, Rest) or rng.random() < AT_HOME:
        return at_home(rng, side)
    if isinstance(law, Move):
        made = _gone_wrong if rng.random() < GONE_WRONG else _moving
        found = made(rng, side, law)
        while _opens_midair(found, law) and rng.random() > KEPT_HALF_OPEN:
            found = made(rng, side, law)
        ends = law.grasp.position
    else:
        found = _shut(rng, side, law)
        ends = law.position if isinstance(law, Touch) else law.behind
    return _shaken(rng, found, ends)


def just_let_go(rng: np.random.Generator, law: Move) -> Hand:
    """A hand that has opened and rises, over an object that it has put down where it should not stand."""
    x, y, low = law.grasp.position
    narrow = min(law.grasp.width + 0.004, OPEN)
    opening = OPEN if rng.random() < 0.7 else float(rng.uniform(narrow, OPEN))
    height = float(rng.uniform(low, law.place.over + RISEN)) if opening == OPEN else low
    position = _near(rng, (x, y, height), RISEN_ASIDE, 0.003)
    return _shaken(rng, Hand(position, _half_turned(rng, law, law.grasp.yaw, 0.06), opening), law.grasp.position)


def grip_effort(rng: np.random.Generator, holds: bool) -> float:
    """What the servo of a gripper measures, N."""
    if not holds:
        return float(rng.normal(0, NO_EFFORT))
    return GRIP_EFFORT * float(rng.random() if rng.random() < LESS_EFFORT else 1.0)


def _opens_midair(hand: Hand, law: Move) -> bool:
    """Empty, half open, and not where the fingers close or have just let go."""
    low, high = HALF_OPEN
    aside = min(math.dist(hand.position, end) for end in (law.grasp.position, law.place.position))
    return not hand.holds and not hand.done and low < hand.opening < high and aside > 0.02


def _moving(rng: np.random.Generator, side: str, law: Move) -> Hand:
    """Reaching, closing, carrying, or done, as the law does it."""
    kind = rng.random()
    if kind < 0.26:
        return _rolled(rng, law, _reaching(rng, side, law), 24)
    grasp, place = law.grasp, law.place
    if kind < 0.35:
        position = _near(rng, grasp.position, 0.004, 0.004)
        return _rolled(
            rng, law, Hand(position, _turned(rng, grasp.yaw, 0.06), float(rng.uniform(grasp.width, OPEN))), 9
        )
    if kind < 0.67:
        x, y, _ = _free(rng, side)
        z = float(rng.uniform(grasp.position[2], place.over + 0.01))
        z = max(z, place.over - 0.03) if abs(y) > 0.17 else z
        carried = Hand((x, y, z), _half_turned(rng, law, easy_yaw(side, x, y), 0.1), grasp.width, holds=True)
        return _rolled(rng, law, carried, 26)
    missed = rng.random() < MISSED
    aside = MISSED_BY[int(rng.integers(len(MISSED_BY)))]
    over = HOVERS[int(rng.integers(len(HOVERS)))]
    x, y, z = _near(rng, place.position, *((aside, over) if missed else (0.006, 0.003)))
    yaw = place.turned(_half_turned(rng, law, easy_yaw(side, x, y), 0.1))
    low = Hand((x, y, z), _turned(rng, yaw, 0.05), grasp.width, holds=True)
    return _rolled(rng, law, low, 3 if missed else 14)


def _reaching(rng: np.random.Generator, side: str, law: Move) -> Hand:
    grasp = law.grasp
    if rng.random() < 0.5:  # the last centimetres, more often than they are passed
        x, y, z = _near(rng, grasp.position, 0.02, 0.04)
        if math.hypot(x - grasp.position[0], y - grasp.position[1]) > 0.016:
            z = max(z, grasp.above - 0.025)
        return Hand((x, y, z), _turned(rng, grasp.yaw, 0.1), OPEN)
    if rng.random() < 0.4:
        return at_home(rng, side)
    x, y, z = _free(rng, side)
    opening = OPEN if rng.random() < 0.85 else float(rng.uniform(0.03, OPEN))
    return Hand((x, y, max(z, grasp.above - 0.02)), _turned(rng, easy_yaw(side, x, y), 0.1), opening)


def _gone_wrong(rng: np.random.Generator, side: str, law: Move) -> Hand:
    """An empty shut hand, an open hand over the place, a hand low beside the object; the object still lies there."""
    grasp, kind = law.grasp, rng.random()
    opening = float(rng.choice([rng.uniform(0, 0.012), rng.uniform(0, 0.045), OPEN], p=[0.45, 0.15, 0.40]))
    if kind < 0.35:
        px, py, pz = law.place.position
        x, y, z = px + rng.normal(0, 0.03), py + rng.normal(0, 0.03), rng.uniform(pz, law.place.over + 0.10)
    elif kind < 0.75:
        x, y, z = _near(rng, grasp.position, 0.05, 0.03)
        beside = math.hypot(x - grasp.position[0], y - grasp.position[1])
        if grasp.width - 0.01 < opening < OPEN and beside < 0.03:
            opening = OPEN
        if opening < 0.1 and beside < 0.05:
            z = max(z, grasp.above - 0.03)
    else:
        x, y, z = _free(rng, side)
    hand = Hand((float(x), float(y), float(z)), _turned(rng, easy_yaw(side, x, y), 0.1), opening)
    return _rolled(rng, law, hand, 10 if opening == OPEN else 3)


def _shut(rng: np.random.Generator, side: str, law: Touch | Push) -> Hand:
    """A hand that touches or pushes: shutting, on its way, low at the object, or low beside it."""
    end = law.position if isinstance(law, Touch) else law.behind
    kind = rng.random()
    if kind < 0.45:
        x, y, z = _free(rng, side)
        opening = SHUT if rng.random() < 0.6 else float(rng.uniform(0, OPEN))
        return _rolled(rng, law, Hand((x, y, max(z, law.above - 0.02)), _turned(rng, _law_yaw(law), 0.1), opening), 24)
    spread = 0.004 if kind < 0.75 else 0.03
    x, y, z = _near(rng, end, spread, 0.02)
    if isinstance(law, Push):
        y = min(y, end[1]) if law.way > 0 else max(y, end[1])  # not inside the object
    if isinstance(law, Touch) and math.hypot(x - end[0], y - end[1]) > 0.01:
        z = max(z, end[2] + 0.01)
    return _rolled(rng, law, Hand((x, y, z), _turned(rng, _law_yaw(law), 0.05), float(rng.uniform(0, 0.006))), 20)


def _law_yaw(law: Touch | Push) -> float:
    """How a shut hand is turned."""
    return law.yaw if isinstance(law, Touch) else 0.0


def _free(rng: np.random.Generator, side: str) -> Xyz:
    sign = 1 if side == 'left' else -1
    return float(rng.uniform(*FREE_X)), float(sign * rng.uniform(*FREE_Y)), float(rng.uniform(*FREE_Z))


def _near(rng: np.random.Generator, point: Xyz, aside: float, above: float) -> Xyz:
    x, y = (float(each + rng.normal(0, aside)) for each in point[:2])
    return x, y, point[2] + abs(float(rng.normal(0, above)))


def _turned(rng: np.random.Generator, yaw: float, spread: float) -> float:
    return yaw + float(rng.normal(0, spread))


def _half_turned(rng: np.random.Generator, law: Move, yaw: float, spread: float) -> float:
    """About a yaw, or up to a quarter of a turn off where a hand lets go turned either way: it turns on its way."""
    turned = law.place.either and rng.random() < HALF_TURNED
    return _turned(rng, yaw, spread) + (float(rng.uniform(-math.pi, math.pi)) / 2 if turned else 0.0)


def _rolled(rng: np.random.Generator, law: Law, hand: Hand, most: int) -> Hand:
    for _ in range(int(rng.integers(0, most))):
        hand = step(law, hand)[1]
    return hand


def _shaken(rng: np.random.Generator, hand: Hand, end: Xyz) -> Hand:
    """As it would be measured: a little off the way, less so where it matters."""
    far = min(1.0, math.dist(hand.position, end) / 0.05)
    spread = SHAKE + 0.004 * far
    x, y, z = (float(each + rng.normal(0, spread)) for each in hand.position)
    low = TABLE_TOP + 0.018
    return Hand((x, y, max(z, low)), _turned(rng, hand.yaw, 0.02), max(0.0, hand.opening), hand.holds, hand.done)
