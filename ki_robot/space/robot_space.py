"""Between what a robot measures and takes, and the hand poses that a policy sees and says.

A contract with hands has two sets of columns: the policy's (`state`, `actions`) and, in `contract.robot`, the robot's.
`RobotSpace` is the one place where one becomes the other: for the live buffer, the index of recordings, the executor
and the simulator alike. For a contract without hands it changes nothing and needs nothing installed.

Letters: S, N columns of the policy; R columns of the robot; H steps; `...` any leading axes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import PLACE_AXES, hand_of
from ki_robot.contract.parts import Limits
from ki_robot.contract.poses import PoseColumns
from ki_robot.contract.robot_columns import pose_names
from ki_robot.errors import RobotError
from ki_robot.space.hand_solver import HandSolver, Miss
from ki_robot.space.rotations import from_matrix, to_matrix

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Unreached:
    """Steps of a chunk at which one arm holds where it is: the first, how many, and the worst of them.

    `column` is the one that is furthest off; `residual_m` and `residual_rad` say how far the nearest joints were from
    the pose at the worst step.
    """

    step: int
    steps: int
    column: str
    residual_m: float
    residual_rad: float
    text: str


@dataclass(frozen=True, eq=False)
class Solution:
    """A chunk in the robot's columns (H, R), and what of it could not be followed."""

    commands_HN: Array
    unreached: tuple[Unreached, ...] = ()


class RobotSpace:
    """Turns one robot's columns into a policy's, and back. Holds pinocchio's data: one per thread.

    Args:
        contract: The policy's and the robot's columns, with the chain of its hands.

    Raises:
        RobotError: pin is not installed, or the chain of a hand is not known.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract, self.robot = contract, contract.robot
        self._solvers = {}
        if contract.kinematics is not None:
            self._solvers = {hand.name: HandSolver(contract.kinematics, hand) for hand in contract.kinematics.hands}
        self._limits: dict[str, Limits] = {column.name: column.limits for column in self.robot.actions}

    # What is measured, and what was commanded, as the policy sees it.

    def state(self, measured: Array) -> Array:
        """State columns (..., S) of measured ones (..., R), in the order of `robot.state_names`; NaN stays NaN."""
        return self._seen(measured, self.robot.state_names, self.contract.state_names, self.contract.state_poses, {})

    def actions(self, commands: Array, measured: Array | None = None) -> Array:
        """Absolute action columns (..., N) of commands (..., R), in the order of `robot.action_names`.

        Args:
            commands: Positions and velocities, SI; NaN where nothing is known of a command.
            measured: The state (..., R) at the same times, for a joint that carries a hand and is never commanded;
                without it such a hand is NaN.
        """
        names = self.robot.state_names
        beside = {
            name: np.nan if measured is None else np.asarray(measured)[..., names.index(name)]
            for solver in self._solvers.values()
            for name in solver.columns
            if name not in self.robot.action_names
        }
        columns = (self.robot.action_names, self.contract.action_names)
        return self._seen(commands, *columns, self.contract.action_poses, beside)

    def told_by(self, commanded: Collection[str]) -> list[str]:
        """The action columns that are known where these columns of the robot were commanded."""
        found = set(commanded)
        for hand in self.contract.hands.values():
            solver = self._solvers.get(hand.name)
            needed = pose_names(hand) if solver is None else solver.columns
            if all(name in found or name not in self.robot.action_names for name in needed):
                found |= {name for name in self.contract.action_names if hand_of(name) == hand.name}
        return [name for name in self.contract.action_names if name in found]

    def _seen(
        self,
        values: Array,
        names: tuple[str, ...],
        wanted: tuple[str, ...],
        poses: tuple[PoseColumns, ...],
        beside: Mapping[str, Array | float],
    ) -> Array:
        values = np.asarray(values, np.float64)
        if self.robot is self.contract:
            return values
        if values.shape[-1:] != (len(names),):
            raise RobotError(f'values have the shape {values.shape}; {self.robot.name} has {len(names)} columns.')
        column = {name: values[..., index] for index, name in enumerate(names)} | dict(beside)
        found = np.full((*values.shape[:-1], len(wanted)), np.nan)
        for index, name in enumerate(wanted):
            if name in column:
                found[..., index] = column[name]
        for pose in poses:
            turn, place = self._pose(pose, column)
            if len(pose.place):
                found[..., pose.place] = place
            if pose.rotation is not None:
                found[..., pose.turn] = from_matrix(pose.rotation, turn, pose.hand.down)
        return found

    def _pose(self, pose: PoseColumns, column: Mapping[str, Array | float]) -> tuple[Array, Array]:
        """Rotation (..., 3, 3) and place (..., 3) of a hand; NaN where something of it is not known."""
        solver = self._solvers.get(pose.hand.name)
        wanted = pose_names(pose.hand) if solver is None else solver.columns
        numbers = np.stack(np.broadcast_arrays(*(column[name] for name in wanted)), axis=-1)
        turn, place = np.full((*numbers.shape[:-1], 3, 3), np.nan), np.full((*numbers.shape[:-1], 3), np.nan)
        known = np.isfinite(numbers).all(axis=-1)
        if solver is None:
            place[known] = numbers[known][..., : len(PLACE_AXES)]
            turn[known] = to_matrix('rot6d', numbers[known][..., len(PLACE_AXES) :])
        else:
            for at in (at for at in np.ndindex(known.shape) if known[at]):
                turn[at], place[at] = solver.pose(numbers[at])
        return turn, place

    # What the policy wants, as the robot takes it.

    def solve(self, actions_HN: Array, start_N: Array, measured: Array | None = None) -> Solution:
        """A chunk in the robot's columns: (H, R), in the order of `robot.action_names`.

        Places beyond the limits of a hand's columns are brought to them. Where a pose cannot be reached, or only by a
        jump of the joints, the arm holds where it is.

        Args:
            actions_HN: What the policy wants, absolute, SI.
            start_N: The robot's columns (R,) where the first step begins: what is commanded, else measured.
            measured: The state (R,), where a joint that carries a hand is never commanded.

        Raises:
            RobotError: Numbers that are no rotation, with the column; or joints whose place is not known.
        """
        actions_HN = np.asarray(actions_HN, np.float64)
        if self.robot is self.contract:
            return Solution(actions_HN)
        names = self.contract.action_names
        if actions_HN.ndim != 2 or actions_HN.shape[1] != len(names):
            raise RobotError(
                f'a chunk has the shape {actions_HN.shape}; {self.contract.name} has {len(names)} columns.'
            )
        start = dict(zip(self.robot.action_names, np.asarray(start_N, np.float64).tolist(), strict=True))
        if measured is not None:
            start = dict(zip(self.robot.state_names, np.asarray(measured, np.float64).tolist(), strict=True)) | start
        made = {name: actions_HN[:, index] for index, name in enumerate(names)}
        unreached: list[Unreached] = []
        for pose in self.contract.action_poses:
            turn, place = self._wanted(pose, actions_HN)
            solver = self._solvers.get(pose.hand.name)
            if solver is not None:
                missed = self._joints(solver, turn, place, start, made)
                if missed:
                    unreached.append(self._told(pose, missed))
            else:
                turn = np.broadcast_to(np.eye(3), (len(place), 3, 3)) if turn is None else turn  # of data without one
                numbers = np.concatenate([place, from_matrix('rot6d', turn)], axis=1)
                made.update(zip(pose_names(pose.hand), numbers.T, strict=True))
        # A joint that carries no commanded hand, or that a contract leaves to this chunk alone, stays where it is.
        rows = len(actions_HN)
        columns = [made[name] if name in made else np.full(rows, start[name]) for name in self.robot.action_names]
        return Solution(np.stack(columns, axis=1), tuple(unreached))

    def chunk(
        self, chunk: ActionChunk, start_N: Array, first: int = 0, measured: Array | None = None
    ) -> tuple[ActionChunk, tuple[Unreached, ...]]:
        """The same of an `ActionChunk` from step `first` on; the steps before it, which are past, repeat that one."""
        if self.robot is self.contract:
            return chunk, ()
        rows_HN = chunk.columns(self.contract.action_names)
        first = min(first, len(rows_HN) - 1)
        solution = self.solve(rows_HN[first:], start_N, measured)
        commands_HN = np.concatenate([np.repeat(solution.commands_HN[:1], first, axis=0), solution.commands_HN])
        moved = tuple(replace(each, step=each.step + first) for each in solution.unreached)
        return replace(chunk, names=self.robot.action_names, data_HN=commands_HN), moved

    def _wanted(self, pose: PoseColumns, actions_HN: Array) -> tuple[Array | None, Array]:
        """Rotations (H, 3, 3), None where none is said, and places (H, 3) within the limits of their columns."""
        limits = [self.contract.actions[index].limits for index in pose.place]
        lower = [-np.inf if each.lower is None else each.lower for each in limits]
        upper = [np.inf if each.upper is None else each.upper for each in limits]
        place = np.clip(actions_HN[:, pose.place], lower, upper)
        if pose.rotation is None:
            return None, place
        try:
            return to_matrix(pose.rotation, actions_HN[:, pose.turn], pose.hand.down), place
        except RobotError as error:
            raise RobotError(f'{self.contract.action_names[int(pose.turn[0])]}: {error}') from None

    def _joints(
        self, solver: HandSolver, turn: Array | None, place: Array, start: Mapping[str, float], made: dict[str, Array]
    ) -> tuple[Miss, ...]:
        """Writes the joints of one hand into `made`; returns the steps that are not followed."""
        columns = solver.columns
        start_n = np.array([start.get(name, np.nan) for name in columns])
        if not np.isfinite(start_n).all():
            name = columns[int(np.argmin(np.isfinite(start_n)))]
            raise RobotError(f'{name} carries {solver.hand.name}, and where it stands is not known.')
        # A joint that is not commanded stays where it is measured.
        bounds = [self._limits.get(name, Limits()) for name in columns]
        free = np.array([name in self._limits for name in columns])
        lower_n = np.where(free, [_or(each.lower, -np.inf) for each in bounds], start_n)
        upper_n = np.where(free, [_or(each.upper, np.inf) for each in bounds], start_n)
        reach_n = np.array([_or(each.velocity, np.inf) for each in bounds]) * self.contract.step_ns / 1e9
        path = solver.follow(turn, place, start_n, lower_n, upper_n, reach_n)
        made.update({name: path.joints_Hn[:, index] for index, name in enumerate(columns) if free[index]})
        return path.held

    def _told(self, pose: PoseColumns, missed: tuple[Miss, ...]) -> Unreached:
        worst = max(missed, key=lambda each: float(np.linalg.norm(each.off_m)) + 0.1 * each.off_rad)
        off_m = float(np.linalg.norm(worst.off_m))
        axis = int(np.argmax(np.abs(worst.off_m)))
        turned = pose.rotation is not None and 0.1 * worst.off_rad > off_m
        column = self.contract.action_names[int(pose.turn[0] if turned else pose.place[axis])]
        more = f' and {len(missed) - 1} more' if len(missed) > 1 else ''
        text = (
            f'{pose.hand.name} holds at step {missed[0].step}{more}: the pose of step {worst.step} is missed by '
            f'{off_m * 1e3:.1f} mm and {worst.off_rad:.3f} rad ({column}); {worst.why}.'
        )
        return Unreached(missed[0].step, len(missed), column, off_m, worst.off_rad, text)


def _or(value: float | None, missing: float) -> float:
    return missing if value is None else value
