"""What the policy node says of itself: its state, why it holds, its times, its streams."""

from __future__ import annotations

import time
from typing import Any

from ki_msgs.msg import PolicyStatus, StreamHealth

from ki_policy_node.common import diagnostics
from ki_policy_node.common.clock_offset import ShortestLag
from ki_policy_node.cycle.continuation import Planned, Planner
from ki_policy_node.cycle.hold_reasons import HoldReason
from ki_policy_node.cycle.policy_types import Policy
from ki_policy_node.policy.run import PolicyRun
from ki_robot.messages.arrays import set_time
from ki_robot.observation.buffer import ObservationBuffer
from ki_robot.observation.observation import StreamReport, StreamState

_CODES = {
    HoldReason.NEVER_RECEIVED: PolicyStatus.HOLD_STALE_OBSERVATION,
    HoldReason.STALE: PolicyStatus.HOLD_STALE_OBSERVATION,
    HoldReason.INVALID: PolicyStatus.HOLD_STALE_OBSERVATION,
    HoldReason.FROZEN: PolicyStatus.HOLD_STALE_OBSERVATION,
    HoldReason.UNSYNCHRONIZED: PolicyStatus.HOLD_UNSYNCHRONIZED,
    HoldReason.CLOCK_JUMP: PolicyStatus.HOLD_CLOCK_JUMP,
    HoldReason.NO_INSTRUCTION: PolicyStatus.HOLD_NO_INSTRUCTION,
    HoldReason.INFERENCE_LATE: PolicyStatus.HOLD_INFERENCE_LATE,
    HoldReason.UNREACHABLE: PolicyStatus.HOLD_INFERENCE_LATE,
    HoldReason.INVALID_ACTION: PolicyStatus.HOLD_INVALID_ACTION,
}
_STREAM_LEVELS = {StreamState.OK: diagnostics.OK, StreamState.STALE: diagnostics.STALE}
_STATES = {
    value: name.removeprefix('STATE_').lower()
    for name, value in vars(PolicyStatus).items()
    if name.startswith('STATE_') and isinstance(value, int)
}


class StatusReport:
    """The state of the node as others see it; callers hold the node's lock.

    Args:
        node: Whose names and clock are used.
    """

    def __init__(self, node: Any) -> None:
        self._node = node
        self.state = int(PolicyStatus.STATE_UNCONFIGURED)
        self.hold_reason = int(PolicyStatus.HOLD_NONE)
        self.message = ''
        self._policy: tuple[str, str] = ('', '')
        self._instruction_id = ''
        self._run: PolicyRun | None = None
        self._dry = True
        self._planned: Planned | None = None
        self._cycle = diagnostics.Durations()
        self._age = diagnostics.Durations()
        self._picture_age = diagnostics.Durations()
        self.executor_lag = ShortestLag()

    def say(self, message: str) -> None:
        """Sets the sentence of the status."""
        self.message = message

    def ready(self, policy: Policy) -> None:
        """Loaded, no run."""
        self.state, self.hold_reason, self.message = PolicyStatus.STATE_READY, PolicyStatus.HOLD_NONE, ''
        self._policy = (policy.policy_id, policy.backend)

    def begin(self, run: PolicyRun, dry: bool) -> None:
        """A run begins."""
        self._run, self._dry, self._planned = run, dry, None
        self._cycle.clear()
        self._age.clear()
        self._picture_age.clear()
        self._go('waits for the first chunk')

    def shows(self, dry: bool) -> bool:
        """Takes up that a run is now dry, or is no longer; True when that is news."""
        if dry == self._dry:
            return False
        self._dry = dry
        if self.state in (PolicyStatus.STATE_RUNNING, PolicyStatus.STATE_DRY_RUN):
            self._go('dry run' if dry else 'waits for the first chunk')
        return True

    def chunk(
        self, planned: Planned, run: PolicyRun, dry: bool, cycle_ns: int, age_ns: int, picture_age_ns: int
    ) -> None:
        """A chunk went out, `cycle_ns` after its observation was sampled.

        The oldest input of that was stamped `age_ns` before, the newest picture `picture_age_ns`.
        """
        self._dry, self._planned = dry, planned
        self._instruction_id = planned.chunk.instruction_id
        self._cycle.add(cycle_ns - planned.inferred.inference_ns)
        self._age.add(age_ns - planned.inferred.inference_ns)
        self._picture_age.add(picture_age_ns - planned.inferred.inference_ns)
        network = diagnostics.milliseconds(planned.inferred.network_ns)
        way = f'network {network:.1f} ms' if network else ''
        self._go('; '.join(filter(None, ('dry run' if dry else '', planned.note, way))))

    def hold(self, reason: HoldReason, message: str) -> bool:
        """A run is on and makes no chunks; True when that is news."""
        if self.state == PolicyStatus.STATE_FAULT:
            return False
        code = _CODES[reason]
        news = (self.state, self.hold_reason) != (PolicyStatus.STATE_HOLDING, code)
        self.state, self.hold_reason, self.message = PolicyStatus.STATE_HOLDING, code, message
        return news

    def fault(self, reason: HoldReason, message: str) -> None:
        """Latched until reset."""
        self.state, self.hold_reason, self.message = PolicyStatus.STATE_FAULT, _CODES[reason], message

    def _go(self, message: str) -> None:
        self.state = PolicyStatus.STATE_DRY_RUN if self._dry else PolicyStatus.STATE_RUNNING
        self.hold_reason, self.message = PolicyStatus.HOLD_NONE, message

    def message_now(self, buffer: ObservationBuffer | None, planner: Planner | None, now_ns: int) -> PolicyStatus:
        """The whole status."""
        made = PolicyStatus(state=self.state, hold_reason=self.hold_reason, message=self.message)
        set_time(made.header.stamp, now_ns)
        made.policy_id, made.backend = self._policy
        made.instruction_id = self._instruction_id
        if self._run is not None:
            made.chunks_published, made.chunks_dropped = self._run.published, self._run.dropped
        current = planner.current if planner is not None else None
        if current is not None:
            made.steps_queued = min(max(current.horizon - max(current.index_at(now_ns), 0), 0), current.horizon)
        if self._planned is not None:
            inferred, chunk = self._planned.inferred, self._planned.chunk
            set_time(made.preprocess_time, inferred.preprocess_ns)
            set_time(made.inference_time, inferred.inference_ns)
            set_time(made.postprocess_time, inferred.postprocess_ns)
            set_time(made.observation_to_action, max(0, chunk.start_ns - chunk.observation_ns))
        lag_ns = self.executor_lag.shortest(time.monotonic_ns())
        if lag_ns is not None:
            made.executor_heard = True
            set_time(made.executor_lag, lag_ns)
        if buffer is not None:
            made.streams = [self._stream(each) for each in buffer.health(now_ns)]
        return made

    def _stream(self, each: StreamReport) -> StreamHealth:
        topic = self._node.resolve_topic_name(each.topic)
        made = StreamHealth(key=each.name, topic=topic, state=int(each.state), rate=each.rate_hz)
        made.received, made.rejected = each.received, sum(each.rejected.values())
        set_time(made.age, max(0, each.age_ns or 0))
        set_time(made.max_age, each.max_age_ns)
        return made

    def diagnostics(self, buffer: ObservationBuffer | None, planner: Planner | None, now_ns: int) -> Any:
        """The same for /diagnostics, one line for the node and one for every stream."""
        name = self._node.get_fully_qualified_name().lstrip('/')
        run = self._run
        level = {
            PolicyStatus.STATE_FAULT: diagnostics.ERROR,
            PolicyStatus.STATE_HOLDING: diagnostics.WARN,
        }.get(self.state, diagnostics.OK)
        if self.state == PolicyStatus.STATE_UNCONFIGURED and self.message:
            level = diagnostics.ERROR
        expected_ns = planner.latency.expected_ns if planner is not None else 0
        values: dict[str, object] = {
            'policy': self._policy[0],
            'backend': self._policy[1],
            'chunks published': run.published if run is not None else 0,
            'chunks dropped': run.dropped if run is not None else 0,
            'inference p50 [ms]': diagnostics.milliseconds(run.inference.percentile_ns(50)) if run is not None else 0.0,
            'inference p99 [ms]': diagnostics.milliseconds(run.inference.percentile_ns(99)) if run is not None else 0.0,
            # Without the engine, up to the published chunk: from sampling, from the stamp of the oldest input, and from
            # that of the newest picture, which a joint state is up to its period older than.
            'node p50 [ms]': diagnostics.milliseconds(self._cycle.percentile_ns(50)),
            'node p99 [ms]': diagnostics.milliseconds(self._cycle.percentile_ns(99)),
            'stamp to chunk p50 [ms]': diagnostics.milliseconds(self._age.percentile_ns(50)),
            'stamp to chunk p99 [ms]': diagnostics.milliseconds(self._age.percentile_ns(99)),
            'picture to chunk p50 [ms]': diagnostics.milliseconds(self._picture_age.percentile_ns(50)),
            'picture to chunk p99 [ms]': diagnostics.milliseconds(self._picture_age.percentile_ns(99)),
            'expected latency [ms]': diagnostics.milliseconds(expected_ns),
        }
        message = f'{_STATES[self.state]}: {self.message}' if self.message else _STATES[self.state]
        lines = [diagnostics.status(level, f'{name}: policy', message, self._policy[0], values)]
        for each in buffer.health(now_ns) if buffer is not None else ():
            level = _STREAM_LEVELS.get(each.state, diagnostics.ERROR)
            about = {'rate [Hz]': each.rate_hz, 'received': each.received}
            about |= {f'rejected: {reason}': count for reason, count in each.rejected.items()}
            if each.age_ns is not None:
                about['age [ms]'] = diagnostics.milliseconds(each.age_ns)
            text = each.last_error or each.state.name.lower()
            lines.append(diagnostics.status(level, f'{name}: {each.name}', text, each.topic, about))
        return diagnostics.array(self._node.get_clock().now().to_msg(), lines)
