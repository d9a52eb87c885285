"""Named maps of columns, for policies that were trained on numbers that no sign, scale and offset make of SI values.

Each is invertible where a robot can be. To add one: a name, the units that it takes, and both directions, here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.names import Unit

Array = NDArray[np.floating[Any]]
MapName = Literal['aloha_gripper_state', 'aloha_gripper_action']

# The gripper of ALOHA's follower arms (ViperX 300 S): a crank of 22 mm moves a finger by a rod of 36 mm, so that the
# finger's place l [m] and the motor's angle a [rad] are tied by (l - 0.022 sin a)^2 + (0.022 cos a)^2 = 0.036^2. What
# pi0 was trained on is the angle between 2405 and 3110 of 4096 counts about a zero of 2048: 0.5476 .. 1.6296 rad.
# https://github.com/Physical-Intelligence/openpi/blob/main/src/openpi/policies/aloha_policy.py
CRANK_M, ROD_M = 0.022, 0.036
SHUT_RAD, OPEN_RAD = 0.5476, 1.6296


@dataclass(frozen=True)
class _Pair:
    """A map and its inverse, in one unit."""

    apply: Callable[[Array], Array]
    invert: Callable[[Array], Array]


def _angle(finger: Array) -> Array:
    """The motor's angle for a finger's place; the end of its way where the rod reaches no further."""
    sine = (CRANK_M**2 + finger**2 - ROD_M**2) / (2 * CRANK_M * finger)
    found: Array = np.arcsin(np.clip(sine, -1.0, 1.0))
    return found


def _finger(angle: Array) -> Array:
    """The finger's place for an angle of the motor within -pi/2 .. pi/2, where it stays beyond."""
    angle = np.clip(angle, -np.pi / 2, np.pi / 2)
    return CRANK_M * np.sin(angle) + np.sqrt(ROD_M**2 - (CRANK_M * np.cos(angle)) ** 2)


def _share(angle: Array) -> Array:
    return (angle - SHUT_RAD) / (OPEN_RAD - SHUT_RAD)


def _of_share(share: Array) -> Array:
    return share * (OPEN_RAD - SHUT_RAD) + SHUT_RAD


# Name of a map -> unit of its column -> both directions.
COLUMN_MAPS: dict[MapName, dict[Unit, _Pair]] = {
    # 0 and 1 at the ends of the angle that pi0 was trained on
    'aloha_gripper_state': {
        'rad': _Pair(_share, _of_share),
        'm': _Pair(lambda finger: _share(_angle(finger)), lambda share: _finger(_of_share(share))),
    },
    # the angle, counted from the shut end
    'aloha_gripper_action': {
        'rad': _Pair(lambda angle: angle - SHUT_RAD, lambda said: said + SHUT_RAD),
        'm': _Pair(lambda finger: _angle(finger) - SHUT_RAD, lambda said: _finger(said + SHUT_RAD)),
    },
}
