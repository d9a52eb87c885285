"""Whether a measured state can be true: measured values are evidence, not truth.

A second publisher of zeros, an encoder that wraps by a turn or reads 0 for an instant, a driver that comes up with
default values: all of them are finite numbers under the right names. What gives them away is that no joint can be
there, or can have come there since it was last believed. The live buffer, the executor and the index of recordings
all ask this one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of
from ki_robot.errors import Reason, Rejected
from ki_robot.messages.arrays import NS, Vector

LIMIT_MARGIN = 0.05  # of the range between the limits: robots are calibrated, and pushed, a little beyond them
SPEED_FACTOR = 3.0  # of the velocity limit of commands: a hand that guides the arm is faster than the policy may be
SLACK_S = 0.1  # at the velocity limit: late stamps, quantised encoders


@dataclass(frozen=True, eq=False)
class Possible:
    """What C measured columns can be: bounds of value and speed, infinite where nothing is known."""

    columns: tuple[str, ...]
    lower_C: Vector
    upper_C: Vector
    speed_C: Vector


def possible_states(contract: Contract, columns: Sequence[str]) -> Possible:
    """The bounds of state columns: their own limits, else those of the action column of the same name, widened."""
    own = {column.name: column.limits for column in contract.state}
    told = {column.name: column.limits for column in contract.actions}
    bounds = []
    for name in columns:
        lower = upper = speed = None
        if interface_of(name) == 'position':
            sources = [source[name] for source in (own, told) if name in source]
            lower, upper, speed = (
                next((value for value in values if value is not None), None)
                for values in zip(*((each.lower, each.upper, each.velocity) for each in sources), strict=True)
            )
        margin = 0.0 if lower is None or upper is None else LIMIT_MARGIN * (upper - lower)
        bounds.append(
            (
                -np.inf if lower is None else lower - margin,
                np.inf if upper is None else upper + margin,
                np.inf if speed is None else speed,
            )
        )
    lower_C, upper_C, speed_C = np.array(bounds, float).reshape(-1, 3).T
    return Possible(tuple(columns), lower_C, upper_C, speed_C)


class StateCheck:
    """Judges the states of one stream, in the order in which they come.

    Args:
        contract: Of the robot.
        columns: State columns of the stream, C of them.
    """

    def __init__(self, contract: Contract, columns: Sequence[str]) -> None:
        self._possible = possible_states(contract, columns)
        self._last_C: Vector | None = None
        self._last_ns = 0

    def check(self, values_C: Vector, stamp_ns: int) -> None:
        """Takes a state as the newest one.

        A column may be anywhere within its limits and a margin, and may have moved at several times its velocity limit
        since it was last believed. So a jump that stays is believed after a while, as the time grows in which the robot
        can have got there; until then nothing is.

        Raises:
            Rejected: It cannot be true; the column is named. The state before it stays the newest.
        """
        possible = self._possible
        outside_C = (values_C < possible.lower_C) | (values_C > possible.upper_C)
        if outside_C.any():
            at = int(np.argmax(outside_C))
            raise Rejected(
                Reason.IMPLAUSIBLE,
                f'{possible.columns[at]} is measured at {values_C[at]:.4g}, beyond its limits '
                f'({possible.lower_C[at]:.4g} to {possible.upper_C[at]:.4g}, a margin included).',
            )
        if self._last_C is not None:
            elapsed_s = max(stamp_ns - self._last_ns, 0) / NS
            moved_C = np.abs(values_C - self._last_C)
            most_C = possible.speed_C * (SPEED_FACTOR * elapsed_s + SLACK_S)
            if (moved_C > most_C).any():
                at = int(np.argmax(moved_C - most_C))
                raise Rejected(
                    Reason.IMPLAUSIBLE,
                    f'{possible.columns[at]} is measured at {values_C[at]:.4g}, {elapsed_s:.3f} s after '
                    f'{self._last_C[at]:.4g}: it can have moved by {most_C[at]:.4g} at most.',
                )
        self._last_C, self._last_ns = np.array(values_C, float), stamp_ns

    def are_true(self, values_MC: NDArray[np.float64], stamps_M: NDArray[np.int64]) -> bool:
        """Whether `check` would take each of these states, one after the other, as the first ones; stamps rise."""
        possible = self._possible
        if ((values_MC < possible.lower_C) | (values_MC > possible.upper_C)).any():
            return False
        elapsed_M1 = np.diff(stamps_M)[:, None] / NS
        return not (np.abs(np.diff(values_MC, axis=0)) > possible.speed_C * (SPEED_FACTOR * elapsed_M1 + SLACK_S)).any()

    def reset(self) -> None:
        """Forgets the last state: a new time, a new recording, or a robot that was moved while nobody looked."""
        self._last_C = None
