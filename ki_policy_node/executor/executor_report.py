"""What the executor says of itself in messages: at every change, and again before somebody has to wonder."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ki_msgs.msg import ControlSource, ExecutorStatus

from ki_policy_node.executor.chunk_follower import Follower
from ki_policy_node.executor.safety import Driver, State
from ki_robot.messages.arrays import set_time

STATUS_NS = 100_000_000
SOURCE_NS = 1_000_000_000
_STATES = {
    State.DISABLED: ExecutorStatus.STATE_DISABLED,
    State.IDLE: ExecutorStatus.STATE_IDLE,
    State.RUN: ExecutorStatus.STATE_RUN,
    State.HOLD: ExecutorStatus.STATE_HOLD,
    State.FAULT: ExecutorStatus.STATE_FAULT,
}


@dataclass(frozen=True)
class _Said:
    """What is news when it changes."""

    state: int = int(ExecutorStatus.STATE_UNCONFIGURED)
    reason: str = ''
    source: int = Driver.HOLD.value
    selected: int = Driver.POLICY.value
    driver: str = ''
    chunk_id: int = 0
    chunk_ns: int = 0
    estop: bool = False
    teleop_alive: bool = False
    operator_required: bool = False
    operator_name: str = ''


class ExecutorReport:
    """The status and the source of control as messages, when they are due. `take` and `rest` say what is so."""

    def __init__(self) -> None:
        self._now = _Said()
        self._seen: tuple[object, ...] = ()  # what `_now` was made of
        self._step = 0
        self._told: tuple[_Said, int] | None = None
        self._source_told: tuple[tuple[int, str], int] | None = None

    def take(self, follower: Follower, now_ns: int, steady_ns: int) -> None:
        """As the follower is, while it ticks; callers hold its lock."""
        chunk = follower.followed
        self._step = 0 if chunk is None else min(max(chunk.index_at(now_ns), 0), chunk.horizon - 1)
        alive, operator = follower.teleop_alive(steady_ns), follower.operator(steady_ns)
        key = (follower.state, follower.reason, follower.source, follower.selected, follower.estop, alive, operator)
        seen = (*key, None if chunk is None else (chunk.policy_id, chunk.chunk_id, chunk.start_ns))
        if seen == self._seen:
            return
        self._seen = seen
        self._now = _Said(
            state=_STATES[follower.state],
            reason=follower.reason,
            source=follower.source.value,
            selected=follower.selected.value,
            driver='' if chunk is None else chunk.policy_id,
            chunk_id=0 if chunk is None else chunk.chunk_id,
            chunk_ns=0 if chunk is None else chunk.start_ns,
            estop=follower.estop,
            teleop_alive=alive,
            operator_required=follower.rules.operator_ns > 0,
            operator_name=operator,
        )

    def rest(self, reason: str, configured: bool) -> None:
        """Nothing ticks: the node is inactive, or not even configured."""
        state = ExecutorStatus.STATE_INACTIVE if configured else ExecutorStatus.STATE_UNCONFIGURED
        self._now, self._seen, self._step = replace(_Said(), state=state, reason=reason), (), 0

    def status_due(self, now_ns: int, steady_ns: int) -> ExecutorStatus | None:
        """The status, where it is news or is to be said again."""
        if self._told is not None and self._told[0] == self._now and steady_ns - self._told[1] < STATUS_NS:
            return None
        said = self._now
        self._told = said, steady_ns
        made = ExecutorStatus(state=said.state, reason=said.reason, source=said.source, selected=said.selected)
        set_time(made.header.stamp, now_ns)
        made.driver, made.chunk_id, made.step = said.driver, said.chunk_id, self._step
        set_time(made.chunk_stamp, said.chunk_ns)
        made.estop, made.teleop_alive = said.estop, said.teleop_alive
        made.operator_required, made.operator_name = said.operator_required, said.operator_name
        made.operator_alive = bool(said.operator_name)
        return made

    def source_due(self, now_ns: int, steady_ns: int) -> ControlSource | None:
        """Who drives, where it is news or is to be said again."""
        key = self._now.source, self._now.driver
        told, told_ns = self._source_told or (None, 0)
        if told == key and steady_ns - told_ns < SOURCE_NS:
            return None
        self._source_told = key, steady_ns
        made = ControlSource(source=key[0], driver=key[1])
        set_time(made.header.stamp, now_ns)
        return made
