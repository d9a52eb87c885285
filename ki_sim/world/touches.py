"""Which fingers touch which objects."""

from __future__ import annotations

from dataclasses import dataclass, field

from ki_sim.world.robot import SIDES


@dataclass
class Touches:
    """Which objects the fingers touch, and did.

    `first` is the first object ever touched, -1 for none yet, and `first_hand` the hand that did it.
    """

    first: int = -1
    first_hand: str = ''
    now: dict[str, set[int]] = field(default_factory=lambda: {f'{s}_{f}': set() for s in SIDES for f in 'ab'})
    ever_held: dict[str, set[int]] = field(default_factory=lambda: {side: set() for side in SIDES})

    def held(self, side: str) -> set[int]:
        """Objects between the pads of a hand: both touch them."""
        return self.now[f'{side}_a'] & self.now[f'{side}_b']

    def touching(self, obj: int) -> set[str]:
        """Hands that touch an object."""
        return {side for side in SIDES for finger in 'ab' if obj in self.now[f'{side}_{finger}']}
