"""Follows a moving target within position, velocity and acceleration limits, one small step at a time.

N columns; a position column is followed with bounded speed and acceleration, a velocity or effort column with
bounded value and change.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ki_robot.actions.chunk import Matrix
from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import Limits

ROUNDING = 1e-6
TELL_SHARE = 0.02  # of a limit: smaller corrections are rounding, not an intervention


@dataclass(frozen=True)
class Correction:
    """The hardest correction of one step: `what` (position, velocity, acceleration) was asked for and limited."""

    column: int
    what: str
    value: float
    limit: float


class Limiter:
    """The state of all columns: value and speed, moved by `step`.

    Args:
        names: Of the columns.
        limits: Theirs.
    """

    def __init__(self, names: Sequence[str], limits: Sequence[Limits]) -> None:
        def bound(name: str, missing: float) -> Matrix:
            found = [getattr(each, name) for each in limits]
            return np.array([missing if value is None else value for value in found])

        self._position_N = np.array([interface_of(name) == 'position' for name in names])
        velocity_N = bound('velocity', np.inf)
        # A velocity column's own bound is `velocity`, beside lower and upper.
        own_N = np.where(self._position_N, np.inf, velocity_N)
        self._lower_N = np.maximum(bound('lower', -np.inf), -own_N)
        self._upper_N = np.minimum(bound('upper', np.inf), own_N)
        self._acceleration_N = bound('acceleration', np.inf)
        # The first derivative of a velocity column is bounded by `acceleration`, the second by nothing.
        self._speed_N = np.where(self._position_N, velocity_N, self._acceleration_N)
        self._change_N = np.where(self._position_N, self._acceleration_N, np.inf)
        self.value_N: Matrix = np.zeros(len(names))
        self.speed_N: Matrix = np.zeros(len(names))

    def reset(self, value_N: Matrix) -> None:
        """Starts at `value_N`, at rest."""
        self.value_N = np.array(value_N, dtype=np.float64)
        self.speed_N = np.zeros_like(self.value_N)

    def copy(self) -> Limiter:
        """One that can run ahead."""
        made = copy.copy(self)
        made.value_N, made.speed_N = self.value_N.copy(), self.speed_N.copy()
        return made

    def step(self, target_N: Matrix, target_speed_N: Matrix, dt: float) -> Correction | None:
        """One step of `dt` seconds towards a target that is at `target_N` now and moves at `target_speed_N`.

        Where the target can be followed, it is followed exactly. Where it cannot, the column closes in as fast as it
        may while it can still brake to the target's own speed.

        Returns:
            The hardest correction, None when there was none worth telling.
        """
        wanted_N = target_N + target_speed_N * dt
        inside_N = np.clip(wanted_N, self._lower_N, self._upper_N)
        # At a position limit the target stands still, whatever it would like.
        lead_N = np.where(inside_N == wanted_N, target_speed_N, 0.0)
        gap_N = inside_N - lead_N * dt - self.value_N
        with np.errstate(invalid='ignore'):
            # Braking by a dt a step from speed v takes v^2 / 2a + v dt / 2: solved for v.
            half_N = 0.5 * self._change_N * dt
            brake_N = np.sqrt(half_N**2 + 2.0 * self._change_N * np.abs(gap_N)) - half_N
            reach_N = np.fmin(np.abs(gap_N) / dt, brake_N)
        asked_N = lead_N + np.sign(gap_N) * np.where(np.isnan(reach_N), 0.0, reach_N)
        least_N = np.maximum(-self._speed_N, self.speed_N - self._change_N * dt)
        most_N = np.minimum(self._speed_N, self.speed_N + self._change_N * dt)
        # A speed above its limit (the limit was tightened) comes down as fast as it may.
        speed_N = np.clip(asked_N, np.minimum(least_N, most_N), np.maximum(least_N, most_N))
        value_N = np.clip(self.value_N + speed_N * dt, self._lower_N, self._upper_N)
        # Outside already (a measured pose beyond its limit): come back at a bounded speed, never in one jump.
        outside_N = (self.value_N < self._lower_N) | (self.value_N > self._upper_N)
        value_N = np.where(outside_N, self.value_N + speed_N * dt, value_N)
        clamp = self._hardest(wanted_N, inside_N, value_N, speed_N, dt)
        self.speed_N = (value_N - self.value_N) / dt
        self.value_N = value_N
        return clamp

    def _hardest(
        self, wanted_N: Matrix, inside_N: Matrix, value_N: Matrix, speed_N: Matrix, dt: float
    ) -> Correction | None:
        beyond_N = np.abs(wanted_N - inside_N)
        worst = int(np.argmax(beyond_N))
        if beyond_N[worst] > ROUNDING:
            limit = self._upper_N[worst] if wanted_N[worst] > inside_N[worst] else self._lower_N[worst]
            return Correction(worst, 'position', float(wanted_N[worst]), float(limit))
        asked_N = (inside_N - self.value_N) / dt  # what arriving in one step would have taken
        over_N = np.where(np.isfinite(self._speed_N), (np.abs(asked_N) - self._speed_N) / self._speed_N, -1.0)
        worst = int(np.argmax(over_N))
        if over_N[worst] > TELL_SHARE:
            what = 'velocity' if self._position_N[worst] else 'acceleration'
            return Correction(worst, what, float(asked_N[worst]), float(self._speed_N[worst]))
        # An acceleration matters once it leaves the setpoint behind its target.
        behind_N = np.where(np.isfinite(self._change_N), np.abs(inside_N - value_N) / (self._change_N * dt), -1.0)
        worst = int(np.argmax(behind_N))
        if behind_N[worst] > 1.0:
            asked = float((asked_N[worst] - self.speed_N[worst]) / dt)
            return Correction(worst, 'acceleration', asked, float(self._change_N[worst]))
        return None
