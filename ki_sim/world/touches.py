"""Which fingers touch which things."""

from __future__ import annotations

from dataclasses import dataclass, field

from ki_sim.world.robot import SIDES


@dataclass
class Touches:
    """Which things the fingers touch, and did: `first` is the first thing ever touched, -1 for none yet."""

    first: int = -1
    now: dict[str, set[int]] = field(default_factory=lambda: {f'{s}_{f}': set() for s in SIDES for f in 'ab'})
    ever_held: dict[str, set[int]] = field(default_factory=lambda: {side: set() for side in SIDES})

    def held(self, side: str) -> set[int]:
        """Things between the pads of a hand: both touch them."""
        return self.now[f'{side}_a'] & self.now[f'{side}_b']

    def touching(self, thing: int) -> set[str]:
        """Hands that touch a thing."""
        return {side for side in SIDES for finger in 'ab' if thing in self.now[f'{side}_{finger}']}
