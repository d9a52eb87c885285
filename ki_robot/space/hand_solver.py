"""Where one hand is for given joints, and which joints bring it along a path: `pinocchio` on a contract's chain.

Inverse kinematics is damped least squares, each step from the one before. Joint limits are kept by solving for the
joints that are not at theirs. A pose that cannot be reached, or only by a jump of the joints, is not followed: the arm
holds where it is, and the step is named.

Letters: n joints of the hand, H steps.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.kinematics import HandFrame, Kinematics
from ki_robot.errors import RobotError

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

ARM_M = 0.1  # a radian counts as much as so many metres
LOOSE_M = 0.01  # the same for a hand whose rotation hardly matters
LOOSE_RAD = 0.5  # a tolerance from which it hardly does
CLOSE_M, CLOSE_RAD = 1e-4, 1e-3  # near enough to stop
GOES_ON = 0.9  # of the last step's motion is where the next one begins to look; less than 1, so that no drift is kept
FIRST_ITERATIONS, ITERATIONS = 100, 25
DAMPING = 2e-3  # m; of directions in which the hand moves this little for a radian of the joints, half is damped away
FAR = 1e6  # m; a chunk may hold numbers beyond all measure
LEAP = 0.15  # m; a target further away is approached in steps that the Jacobian still describes
TURN = 0.4  # rad or m; most that a joint moves in an iteration
SINGULAR = 0.01  # m a radian: below it, no joint speed moves the hand in some direction
JUMP = 3.0  # of a joint's speed: a step that needs more is a jump, not a motion


@dataclass(frozen=True, eq=False)
class JointPath:
    """Joints along a path, (H, n), and the steps at which the arm holds instead, each with its reason."""

    joints_Hn: Matrix
    held: tuple[Miss, ...] = ()


@dataclass(frozen=True)
class Miss:
    """One step that is not followed: how far the nearest found was off, and why."""

    step: int
    off_m: tuple[float, float, float]
    off_rad: float
    why: str


@dataclass(frozen=True, eq=False)
class _Found:
    """What one solution came to: joints (n,), what is left of place (3,) and rotation (rad), joints at their limits."""

    joints_n: Vector
    off_m: Vector
    off_rad: float
    at_limit_n: NDArray[np.bool_]


class HandSolver:
    """Kinematics of one hand. Holds pinocchio's data: one per thread.

    Args:
        kinematics: Of the contract, with its chain.
        hand: One of its hands.

    Raises:
        RobotError: pin is not installed, or the chain is not known.
    """

    def __init__(self, kinematics: Kinematics, hand: HandFrame) -> None:
        if not kinematics.chain:
            raise RobotError(f'kinematics has no chain for hand {hand.name}; load the contract from its file.')
        self._pin = _pinocchio()
        self.hand, self.joints = hand, kinematics.joints_of(hand)
        self.columns = [f'{joint}/position' for joint in self.joints]
        whole = self._pin.buildModelFromXML(kinematics.chain)
        others = [whole.getJointId(name) for name in list(whole.names)[1:] if name not in self.joints]
        self._model = self._pin.buildReducedModel(whole, others, self._pin.neutral(whole))
        self._data = self._model.createData()
        # pin numbers joints in an order of its own
        self._place_n = np.array([self._model.joints[self._model.getJointId(name)].idx_q for name in self.joints])
        self._tip = self._model.getFrameId(hand.tip)
        base = self._model.getFrameId(hand.base)
        self._pin.framesForwardKinematics(self._model, self._data, self._pin.neutral(self._model))
        placed = self._data.oMf[base]
        self._base_rotation, self._base_place = placed.rotation.copy(), placed.translation.copy()
        loose = hand.tolerance_rad >= LOOSE_RAD
        self._arm_m = LOOSE_M if loose else ARM_M

    def pose(self, joints_n: Vector) -> tuple[Matrix, Vector]:
        """Rotation (3, 3) and place (3,) of the tip in the base frame."""
        self._pin.framesForwardKinematics(self._model, self._data, self._ordered(joints_n))
        at = self._data.oMf[self._tip]
        turn: Matrix = self._base_rotation.T @ at.rotation
        return turn, self._base_rotation.T @ (at.translation - self._base_place)

    def follow(
        self,
        rotations_H33: Matrix | None,
        places_H3: Matrix,
        start_n: Vector,
        lower_n: Vector,
        upper_n: Vector,
        reach_n: Vector,
    ) -> JointPath:
        """The joints along a path of poses, from where they stand.

        Args:
            rotations_H33: Of the tip in the base frame; None where the place alone is said.
            places_H3: Of the tip, m.
            start_n: Where the joints stand; the first step may be anywhere, what is refused of it is for the guard.
            lower_n: Least position of every joint.
            upper_n: Greatest.
            reach_n: How far full speed takes each joint in a step.
        """
        here_n = np.clip(start_n, lower_n, upper_n)
        moved_n = np.zeros_like(here_n)
        joints, missed = np.empty((len(places_H3), len(here_n))), []
        for step, place in enumerate(places_H3):
            turn = None if rotations_H33 is None else self._base_rotation @ rotations_H33[step]
            target = self._base_rotation @ np.clip(place, -FAR, FAR) + self._base_place
            guess_n = np.minimum(np.maximum(here_n + GOES_ON * moved_n, lower_n), upper_n)
            found = self._solve(turn, target, guess_n, lower_n, upper_n, ITERATIONS if step else FIRST_ITERATIONS)
            why = self._why_not(found, here_n, reach_n if step else None)
            if why:
                off = self._base_rotation.T @ found.off_m
                missed.append(Miss(step, (float(off[0]), float(off[1]), float(off[2])), found.off_rad, why))
                moved_n = np.zeros_like(here_n)
            else:
                moved_n = found.joints_n - here_n if step else np.zeros_like(here_n)
                here_n = found.joints_n
            joints[step] = here_n
        return JointPath(joints, tuple(missed))

    def _why_not(self, found: _Found, here_n: Vector, reach_n: Vector | None) -> str:
        """Why the arm holds instead of going there; empty where it goes."""
        off_m = float(np.linalg.norm(found.off_m))
        if not (off_m <= self.hand.tolerance_m and found.off_rad <= self.hand.tolerance_rad):
            stopped = [name for name, stops in zip(self.joints, found.at_limit_n, strict=True) if stops]
            if stopped:
                return f'{" and ".join(stopped)} cannot go on, at the limit'
            stretched = self._least_motion(found.joints_n) < SINGULAR
            return 'the arm is stretched out or folded there' if stretched else 'no joints were found for it'
        if reach_n is None:
            return ''
        speed_n = np.abs(found.joints_n - here_n) / reach_n
        fastest = int(np.argmax(speed_n))
        singular = speed_n[fastest] > 1.0 and self._least_motion(here_n) < SINGULAR
        if speed_n[fastest] > JUMP or singular:
            where = ' next to a singularity' if singular else ''
            return f'{self.joints[fastest]} would have to move {speed_n[fastest]:.1f} times its speed{where}'
        return ''

    def _solve(
        self, turn: Matrix | None, target: Vector, start_n: Vector, lower_n: Vector, upper_n: Vector, iterations: int
    ) -> _Found:
        """Damped least squares from `start_n`, in the frame of the model; the best that was found."""
        q_n, best, least = start_n, None, np.inf
        for _ in range(iterations):
            off_m, off = self._off(q_n, turn, target)
            size = float(np.sqrt(off @ off))
            if best is None or size < least:
                slow = size > 0.999 * least
                best, least = (q_n, off_m, off), size
            else:
                slow = True
            if slow or (off_m @ off_m < CLOSE_M**2 and size < self._arm_m * CLOSE_RAD):
                break
            J, wanted = self._jacobian(q_n, turn is not None), off * min(1.0, LEAP / size)
            q_n = self._step(q_n, J, wanted, (DAMPING + min(0.05, 0.2 * size)) ** 2, lower_n, upper_n)
        assert best is not None
        q_n, off_m, off = best
        return _Found(q_n, off_m, float(np.sqrt(off[3:] @ off[3:])) / self._arm_m, (q_n <= lower_n) | (q_n >= upper_n))

    def _step(self, q_n: Vector, J: Matrix, wanted: Vector, damping: float, lower_n: Vector, upper_n: Vector) -> Vector:
        """One step; joints that it would take out of their limits stop there, and the others do what is left."""
        free = np.ones(len(q_n), bool)
        moved_n: Vector = q_n
        for _ in range(3):
            used = J * free
            square = used @ used.T
            square.flat[:: len(square) + 1] += damping
            step_n = used.T @ np.linalg.solve(square, wanted)
            most = float(np.abs(step_n).max())
            moved_n = q_n + (step_n if most <= TURN else step_n * (TURN / most))
            beyond = free & ((moved_n < lower_n) | (moved_n > upper_n))
            if not beyond.any():
                return moved_n
            stopped = np.clip(moved_n, lower_n, upper_n)
            wanted = wanted - J[:, beyond] @ (stopped - q_n)[beyond]
            q_n = np.where(beyond, stopped, q_n)
            free &= ~beyond
        kept_n: Vector = np.clip(moved_n, lower_n, upper_n)
        return kept_n

    def _off(self, joints_n: Vector, turn: Matrix | None, target: Vector) -> tuple[Vector, Vector]:
        """What is left to the target: m (3,), and m with the rotation weighted (3,) or (6,)."""
        self._q = self._ordered(joints_n)
        self._pin.computeJointJacobians(self._model, self._data, self._q)
        at = self._pin.updateFramePlacement(self._model, self._data, self._tip)
        off_m: Vector = target - at.translation
        if turn is None:
            return off_m, off_m
        return off_m, np.concatenate([off_m, self._arm_m * self._pin.log3(turn @ at.rotation.T)])

    def _jacobian(self, joints_n: Vector, turns: bool) -> Matrix:
        """Of the tip at the joints that `_off` was asked for last: m (and weighted rad) a unit of each joint."""
        aligned = self._pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        J: Matrix = self._pin.getFrameJacobian(self._model, self._data, self._tip, aligned)[:, self._place_n]
        if not turns:
            return J[:3]
        J[3:] *= self._arm_m
        return J

    def _least_motion(self, joints_n: Vector) -> float:
        """How little the hand moves, in its worst direction, for a radian of the joints: m."""
        self._off(joints_n, None, np.zeros(3))
        turns = self.hand.tolerance_rad < LOOSE_RAD
        return float(np.linalg.svd(self._jacobian(joints_n, turns), compute_uv=False)[-1])

    def _ordered(self, joints_n: Sequence[float] | Vector) -> Vector:
        q: Vector = np.empty(self._model.nq)
        q[self._place_n] = joints_n
        return q


def _pinocchio() -> Any:
    try:
        return importlib.import_module('pinocchio')
    except ImportError as error:
        raise RobotError(
            f"The contract's kinematics needs pin ({error}); install it: pip install 'ki_policy_node[space]'."
        ) from error
