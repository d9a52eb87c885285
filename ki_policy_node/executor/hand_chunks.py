"""Chunks that say where hands are to be, as chunks of the joints that bring them there.

They are kept within the limits of the hand first, as any chunk is (`guard`), then solved from where the robot is
commanded or measured. What follows, knows only joints: the same limits, jumps and holds as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ki_policy_node.executor.safety import Event, Kind, Severity
from ki_robot.actions import guard
from ki_robot.actions.chunk import ActionChunk, Matrix, first_step_due
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Limits
from ki_robot.contract.poses import is_pose_column
from ki_robot.errors import RobotError
from ki_robot.policy_values import without_jumps
from ki_robot.space.robot_space import RobotSpace


@dataclass(frozen=True)
class Solved:
    """A chunk in the robot's columns, None where it is refused, and what there is to tell of it."""

    chunk: ActionChunk | None
    events: tuple[Event, ...] = ()


class HandChunks:
    """Turns chunks of one contract into those of its robot.

    Args:
        contract: With hands, or without: then nothing changes.
        policy: Clamp or reject, as for joints.
    """

    def __init__(self, contract: Contract, policy: guard.GuardPolicy) -> None:
        self._space = RobotSpace(contract)
        self._contract, self._policy = contract, policy
        # What passes through is judged with the joints, once.
        self._limits = tuple(
            column.limits if is_pose_column(column.name, contract.hands) else Limits() for column in contract.actions
        )

    def solve(self, chunk: ActionChunk, now_ns: int, where_N: Matrix, measured: Mapping[str, float]) -> Solved:
        """The chunk from the step due now on, in the robot's columns.

        Args:
            chunk: What the policy wants.
            now_ns: The time.
            where_N: The robot's columns: commanded, else measured; NaN where unknown.
            measured: Newest measured values by column, for joints that carry a hand and are never commanded.
        """
        robot = self._contract.robot
        if robot is self._contract or set(chunk.names) == set(robot.action_names):  # a human's are the robot's
            return Solved(chunk)
        try:
            names = self._contract.action_names
            # Numbers of a rotation that jump by a turn are no speed.
            chunk = replace(chunk, names=names, data_HN=without_jumps(self._contract, chunk.columns(names)))
            verdict = guard.check(chunk, self._limits, now_ns, None, self._policy)
            if isinstance(verdict, guard.Reject):
                return Solved(None, (rejected(verdict, chunk),))
            state = np.array([measured.get(name, np.nan) for name in robot.state_names])
            made, unreached = self._space.chunk(verdict.chunk, where_N, first_step_due(chunk, now_ns), state)
        except RobotError as error:
            return Solved(
                None, (Event(Kind.NON_FINITE, Severity.REJECTED, f'Chunk {chunk.chunk_id}: {error}', chunk.chunk_id),)
            )
        events = [clamped(each, chunk) for each in verdict.clamps]
        for each in unreached:
            text = f'Chunk {chunk.chunk_id}: {each.text}'
            event = Event(Kind.WORKSPACE, Severity.CLAMPED, text, chunk.chunk_id, each.step)
            events.append(replace(event, column=each.column, value=each.residual_m))
        return Solved(made, tuple(events))


def rejected(refused: guard.Reject, chunk: ActionChunk) -> Event:
    """A chunk that is not followed, as it is told."""
    event = Event(refused.reason, Severity.REJECTED, refused.message, chunk.chunk_id, refused.step)
    return replace(event, column=refused.column, value=refused.value, limit=refused.limit)


def clamped(clamp: guard.Clamp, chunk: ActionChunk) -> Event:
    """A value that was brought within its limit, as it is told."""
    name = clamp.kind.name.lower().replace('_', ' ')
    text = f'{clamp.column}: {clamp.value:.4g} was brought to its {name} of {clamp.limit:.4g}.'
    event = Event(clamp.kind, Severity.CLAMPED, text, chunk.chunk_id, clamp.step)
    return replace(event, column=clamp.column, value=clamp.value, limit=clamp.limit)
