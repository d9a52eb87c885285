"""A human's commands as chunks: one setpoint after the other, by output, on the time that the executor follows.

Whatever teleoperates sends single setpoints, some columns at a time. They are followed `DELAY_STEPS` of the contract
later, so that there is a way between two of them, and up to the last. A column that was not sent stays where it is,
and a velocity that is not sent any more is zero. N columns of the contract.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from ki_robot.actions.chunk import ActionChunk, Matrix
from ki_robot.actions.motion import Vector
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of
from ki_robot.errors import RobotError

DELAY_STEPS = 2
CHUNK_NS = 40_000_000  # the least time between two chunks: each is planned as a motion
REMEMBERED_NS = 1_000_000_000


class HumanCommands:
    """The newest setpoints of a human, while one drives.

    Args:
        contract: Columns and outputs.
        timeout_ns: Silence of one source of commands that ends them all.
    """

    def __init__(self, contract: Contract, timeout_ns: int) -> None:
        self._names, self._step_ns, self._timeout_ns = contract.action_names, contract.step_ns, timeout_ns
        self._rows = max(DELAY_STEPS + 1, -(-timeout_ns // contract.step_ns))
        grips = {c for o in contract.outputs if o.role == 'gripper' or o.kind == 'gripper' for c in o.columns}
        self._grips = np.array([name in grips for name in self._names], bool)
        self._zeroed_N = np.array([interface_of(name) != 'position' for name in self._names], bool)
        self._count = 0
        self._heard_any_ns = -1
        self.begin()

    def begin(self) -> None:
        """A human takes over: what was sent before counts no more."""
        self._heard: dict[str, int] = {}  # by source; those of grippers may be silent
        self._column_ns = np.full(len(self._names), -1, np.int64)
        self._targets: deque[tuple[int, Vector]] = deque()  # ROS time, and every column
        self._made_ns = -1

    def alive(self, steady_ns: int) -> bool:
        """Whether commands arrive, whoever drives."""
        return self._heard_any_ns >= 0 and steady_ns - self._heard_any_ns <= self._timeout_ns

    def note(self, steady_ns: int) -> None:
        """Commands arrive."""
        self._heard_any_ns = steady_ns

    def silent(self, steady_ns: int) -> str:
        """Why these commands are not followed: one of their sources is silent. Empty when none is."""
        late = [name for name, heard_ns in self._heard.items() if steady_ns - heard_ns > self._timeout_ns]
        return f'A human drives, and {late[0]} has fallen silent.' if late else ''

    def take(
        self, source: str, values: Mapping[str, float], here_N: Matrix, now_ns: int, steady_ns: int
    ) -> ActionChunk | None:
        """One setpoint of some columns, and the chunk to follow, where one is due.

        Args:
            source: Where it comes from, such as a topic; for the operator.
            values: By column.
            here_N: Where every column stays that is not commanded; NaN where that is not known.
            now_ns: ROS time.
            steady_ns: Steady time.

        Raises:
            RobotError: a column that the contract does not command, a value that is not finite, or a way that is not.
        """
        strange = sorted(set(values) - set(self._names))
        if strange:
            raise RobotError(f'{source} commands {strange[0]!r}, which is no action of the contract.')
        if not np.isfinite(list(values.values())).all():
            raise RobotError(f'{source} commands a value that is not finite.')
        index = np.array([self._names.index(name) for name in values], np.int64)
        if self._targets and now_ns < self._targets[-1][0]:
            self._targets.clear()  # the clock went back
        target_N = self._targets[-1][1].copy() if self._targets else here_N.copy()
        target_N[self._column_ns < 0] = here_N[self._column_ns < 0]
        target_N[index] = list(values.values())
        self._column_ns[index] = steady_ns
        target_N[self._zeroed_N & (steady_ns - self._column_ns > self._timeout_ns) & (self._column_ns >= 0)] = 0.0
        if not self._grips[index].all():
            self._heard[source] = steady_ns
        self._targets.append((now_ns, target_N))
        while now_ns - self._targets[0][0] > REMEMBERED_NS:
            self._targets.popleft()
        if self.silent(steady_ns) or not np.isfinite(target_N).all():
            return None
        if 0 <= now_ns - self._made_ns < CHUNK_NS:
            return None
        self._made_ns, self._count = now_ns, self._count + 1
        return self._chunk(source, now_ns)

    def _chunk(self, source: str, now_ns: int) -> ActionChunk:
        times_T = now_ns + self._step_ns * (np.arange(self._rows) - DELAY_STEPS)
        said_T = np.array([at_ns for at_ns, _ in self._targets], np.int64)
        said_TN = np.array([target_N for _, target_N in self._targets])
        origin = said_T[-1]  # float64 holds differences of times exactly, but not times
        data_HN = np.stack([np.interp(times_T - origin, said_T - origin, column) for column in said_TN.T], axis=1)
        return ActionChunk(now_ns, self._step_ns, self._names, data_HN, now_ns, chunk_id=self._count, policy_id=source)


def setpoint_of(names: Sequence[str], row: Vector) -> dict[str, float]:
    """One row of values by column."""
    return dict(zip(names, row.tolist(), strict=True))
