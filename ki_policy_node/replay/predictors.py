"""What a policy has to beat: guesses that rest on the last measurements alone.

Pure functions. Letters: H steps, N action columns, S state columns, T measurements, K columns of one stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of

TREND_NS = 200_000_000  # the past that a velocity is taken from


def hold(contract: Contract, state_S: Matrix) -> Matrix:
    """The measured state as a command, (N,): positions kept, velocities 0, NaN where a position is not measured."""
    names = contract.state_names
    kept = [state_S[names.index(name)] if name in names else np.nan for name in contract.action_names]
    moves = np.array([interface_of(name) == 'position' for name in contract.action_names])
    return np.where(moves, kept, 0.0)


def velocity(past: Sequence[tuple[int, Matrix]], now_ns: int) -> Matrix | None:
    """Per second, (K,): from the earliest measurement within `TREND_NS` of the newest; None where there is but one.

    Args:
        past: (time, K values), in order of time.
        now_ns: later ones are not looked at.
    """
    known = [each for each in past if each[0] <= now_ns]
    if not known:
        return None
    last_ns, last_K = known[-1]
    first_ns, first_K = next(each for each in known if each[0] >= last_ns - TREND_NS)
    if first_ns == last_ns:
        return None
    return (last_K - first_K) / ((last_ns - first_ns) / 1e9)


def extrapolate(start_N: Matrix, velocity_N: Matrix, steps: int, step_s: float) -> Matrix:
    """Straight on from where the robot is, (H, N); step 0 is `start_N`."""
    times_H = np.arange(steps) * step_s
    return start_N + times_H[:, None] * velocity_N
