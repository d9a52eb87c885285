"""Follows chunks against the clock, within limits, and decides when to hold: the executor without ROS.

States: `disabled` and `idle` command nothing; `run` follows a chunk; `hold` stands at one pose; `fault` holds until an
operator resets it. Every time is passed in: `now_ns` is ROS time (chunks), `steady_ns` never jumps (watchdogs).
Letters: H steps, N action columns, K knots of a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ki_policy_node.executor.limiter import Correction, Limiter
from ki_policy_node.executor.outputs import Plan, is_gripper
from ki_policy_node.executor.safety import Event, Kind, PolicyHealth, Rules, Severity, State
from ki_policy_node.executor.state_tracker import Measured
from ki_robot.actions import guard
from ki_robot.actions.chunk import ActionChunk, Matrix
from ki_robot.actions.interpolation import interpolate, slopes
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Limits
from ki_robot.errors import RobotError

WINDOW_NS = 300_000_000
WINDOW_KNOTS = 6
LATEST_NS = 100_000_000  # a tick later than this is not made up for in one step
INVALID_LIMIT = 3  # unusable joint states or chunks in a row that latch a fault
EVENT_PERIOD_NS = 1_000_000_000  # the same event of the same column is told once a second


@dataclass(frozen=True)
class Hold:
    """Stand at `pose_N`; velocity columns are 0. `again`: the same hold as at the tick before."""

    pose_N: Matrix
    again: bool


class Follower:
    """One robot's executor.

    Args:
        contract: Columns and outputs.
        limits: Of every action column, in order.
        rules: Watchdogs and jumps.
        period_ns: Time between two ticks.
    """

    def __init__(self, contract: Contract, limits: Sequence[Limits], rules: Rules, period_ns: int) -> None:
        self.contract = contract
        self.limits = tuple(limits)
        self.rules = rules
        self.state = State.DISABLED
        self.reason = 'not enabled'
        self.events: list[Event] = []
        self.setpoint_N: Matrix | None = None
        self._limiter = Limiter(contract.action_names, limits)
        self._period_ns = min(period_ns, WINDOW_NS // WINDOW_KNOTS // 2)
        self._limited_ns = 0  # the ROS time that the setpoint is for
        names = contract.action_names
        self._measured = Measured(contract, rules.state_timeout_ns)
        self._position_N = self._measured.position_N
        gripped = {column for output in contract.outputs if is_gripper(output) for column in output.columns}
        self._gripper_N = np.array([name in gripped for name in names])
        linear = {c for o in contract.outputs if o.options.interpolation == 'linear' for c in o.columns}
        self._linear_N = np.array([name in linear for name in names])
        self._window_ns = WINDOW_NS // WINDOW_KNOTS * np.arange(1, WINDOW_KNOTS + 1, dtype=np.int64)
        self._windows = any(output.kind == 'joint_trajectory' for output in contract.outputs)
        self._invalid_states = self._invalid_chunks = 0
        self._chunk: ActionChunk | None = None
        self._slope_HN: Matrix | None = None
        self._chunk_steady_ns = 0
        self._policy: PolicyHealth | None = None
        self._estop = False
        self._latched = ''  # why `reset_fault` is needed; neither disabling nor deactivating takes it away
        self._held_since_ns = 0
        self._hold_pose_N: Matrix | None = None
        self._hold_sent = False
        self._release = False
        self._tracking_since_ns: int | None = None
        self._told: dict[tuple[Kind, str], int] = {}

    # What comes in.

    def on_state(self, stream: str, values: Mapping[str, float], stamp_ns: int, steady_ns: int) -> None:
        """Measured values by column name; a stamp that does not advance is not news."""
        if self._measured.update(stream, values, stamp_ns, steady_ns):
            self._invalid_states = 0

    def on_invalid_state(self, message: str, non_finite: bool, steady_ns: int) -> None:
        """A measured state that cannot be used; non-finite ones in a row are a broken sensor, and a fault."""
        self._invalid_states += 1 if non_finite else 0
        if self._invalid_states >= INVALID_LIMIT and self.state in (State.RUN, State.HOLD):
            text = f'{INVALID_LIMIT} times in a row: {message}'
            self._fault(Event(Kind.NON_FINITE, Severity.FAULT, text), steady_ns)

    def on_chunk(self, chunk: ActionChunk, now_ns: int, steady_ns: int) -> None:
        """A new chunk; it is followed from the step in force now, or refused as a whole."""
        self._invalid_chunks = 0
        names = self.contract.action_names
        if chunk.names != names:
            try:
                chunk = replace(chunk, names=names, data_HN=chunk.columns(names))
            except RobotError as error:
                self._tell(Event(Kind.NON_FINITE, Severity.REJECTED, str(error), chunk.chunk_id), steady_ns)
                return
        if self._chunk is not None and chunk.observation_ns < self._chunk.observation_ns:
            return  # overtaken on the way
        measured_N = None if self._measured.stale(steady_ns) else self._measured.pose()
        verdict = guard.check(chunk, self.limits, now_ns, measured_N, self.rules.guard)
        if isinstance(verdict, guard.Reject):
            self._refuse(_event_of(verdict, chunk), steady_ns)
            return
        for clamp in verdict.clamps:
            name = clamp.kind.name.lower().replace('_', ' ')
            text = f'{clamp.column}: {clamp.value:.4g} was brought to its {name} of {clamp.limit:.4g}.'
            event = Event(clamp.kind, Severity.CLAMPED, text, chunk.chunk_id, clamp.step)
            self._tell(replace(event, column=clamp.column, value=clamp.value, limit=clamp.limit), steady_ns)
        self._chunk = verdict.chunk
        self._slope_HN = slopes(verdict.chunk.data_HN, chunk.step_ns / 1e9)
        self._chunk_steady_ns = steady_ns

    def on_invalid_chunk(self, message: str, steady_ns: int) -> None:
        """A chunk that cannot be read (NaN, wrong layout): dropped as a whole; in a row a fault."""
        self._invalid_chunks += 1
        if self._invalid_chunks >= INVALID_LIMIT and self.state is not State.DISABLED:
            text = f'{INVALID_LIMIT} times in a row: {message}'
            self._fault(Event(Kind.NON_FINITE, Severity.FAULT, text), steady_ns)
        else:
            self._tell(Event(Kind.NON_FINITE, Severity.REJECTED, message), steady_ns)

    def on_policy_health(self, policy: PolicyHealth) -> None:
        """What the policy node says of itself."""
        self._policy = policy
        self._release = policy.ended

    def on_estop(self, pressed: bool, steady_ns: int) -> None:
        """The e-stop topic; pressing latches a fault, releasing alone does not clear it."""
        if pressed and not self._estop:
            self._fault(Event(Kind.ESTOP, Severity.FAULT, 'The e-stop is pressed.'), steady_ns)
        self._estop = pressed

    def on_clock_jump(self, seconds: float, steady_ns: int) -> None:
        """ROS time has jumped: every chunk is on a clock that is no more."""
        self._chunk = None
        self._measured.on_clock_jump()
        if self.state is State.RUN:
            self._intervene(f'ROS time jumped by {seconds:.3f} s', steady_ns)

    def enable(self, on: bool, steady_ns: int) -> None:
        """The operator's switch. Off: one last hold, then silence."""
        if on and self.state is State.DISABLED:
            self._chunk = None
            if self._latched:
                self.state, self.reason = State.FAULT, self._latched
            else:
                self.state, self.reason = State.IDLE, 'waits for a policy'
        elif not on and self.state is not State.DISABLED:
            if self.state is State.RUN:
                self._hold('disabled by the operator', steady_ns)
            self.state, self.reason = State.DISABLED, 'not enabled'

    def stop(self, reason: str, steady_ns: int) -> None:
        """Holds for a reason from outside: an absent controller, a second publisher, a fault of our own."""
        if self.state is State.RUN:
            self._intervene(reason, steady_ns)
        elif self.state in (State.HOLD, State.IDLE):
            self.reason = reason
        self._chunk = None

    def unblock(self) -> None:
        """What `stop` was called for is over; the next chunk may be followed."""
        if self.state in (State.HOLD, State.IDLE):
            self.reason = 'waits for a chunk'

    def reset_fault(self) -> str:
        """Leaves a fault; returns why not, or an empty text."""
        if self._estop:
            return 'The e-stop is still pressed; release it first.'
        self._latched = ''
        if self.state is State.FAULT:
            self._chunk = None
            self._invalid_chunks = self._invalid_states = 0
            self.state = State.IDLE if self._hold_pose_N is None else State.HOLD
            self.reason = 'fault reset, waits for a chunk'
        return ''

    # What goes out.

    def tick(self, now_ns: int, steady_ns: int) -> Plan | Hold | None:
        """One control period: what to send, or None when the executor is to be silent."""
        if self.state is State.RUN:
            why = self._why_not_run(now_ns, steady_ns, tell=True)
            if why is None:
                return self._advance(now_ns, steady_ns)
            self._hold(why, steady_ns)
        elif self.state in (State.IDLE, State.HOLD) and self._may_start(now_ns, steady_ns):
            self._start(now_ns)
            return self._advance(now_ns, steady_ns)
        if self.state is State.HOLD and self._release and steady_ns - self._held_since_ns > self.rules.release_ns:
            self.state, self.reason, self._hold_pose_N = State.IDLE, 'the run is over', None
        return self._held()

    def last_word(self, reason: str, steady_ns: int) -> Hold | None:
        """The hold to send before falling silent; None when there is nothing to stop."""
        if self.state is State.RUN:
            self._hold(reason, steady_ns)
        self.state, self.reason = State.DISABLED, reason
        # Said once: by the time anything is said again, the robot may be elsewhere.
        pose_N, self._hold_pose_N, self.setpoint_N = self._hold_pose_N, None, None
        return Hold(pose_N, False) if pose_N is not None else None

    def _held(self) -> Hold | None:
        if self._hold_pose_N is None:
            return None
        if self.state is State.DISABLED and self._hold_sent:
            self._hold_pose_N = None
            return None
        again, self._hold_sent = self._hold_sent, True
        return Hold(self._hold_pose_N, again)

    def _may_start(self, now_ns: int, steady_ns: int) -> bool:
        if self._chunk is None or self._estop:
            return False
        why = self._why_not_run(now_ns, steady_ns, tell=False)
        if why is not None:
            self.reason = why
            return False
        # The robot may have moved since the chunk came, or nothing was measured then.
        chunk = self._chunk
        refused = guard.check_start(chunk, self.limits, now_ns, self._measured.pose(), self.rules.guard)
        if refused is not None:
            self._chunk = None
            self._refuse(_event_of(refused, chunk), steady_ns)
        return refused is None

    def _start(self, now_ns: int) -> None:
        """From the measured pose at rest, so that the first motion is a ramp and never a jump."""
        start_N = np.where(self._position_N, self._measured.value_N, 0.0)
        if self._hold_pose_N is not None:
            start_N = np.where(self._gripper_N, self._hold_pose_N, start_N)
        self._limiter.reset(start_N)
        self._limited_ns = now_ns
        self.setpoint_N = start_N
        self._hold_pose_N, self._tracking_since_ns = None, None
        self.state, self.reason = State.RUN, ''

    def _why_not_run(self, now_ns: int, steady_ns: int, tell: bool) -> str | None:
        """The first reason not to follow a chunk; None when there is none."""
        rules, chunk, policy = self.rules, self._chunk, self._policy
        event: Event | None = None
        if policy is not None and not policy.running:
            text = f'policy: {policy.message}'
            if tell and not policy.ended:  # that a run is over is no intervention
                self._tell(Event(Kind.HOLD, Severity.REJECTED, text), steady_ns)
            return text
        stale = self._measured.stale(steady_ns)
        if rules.status_timeout_ns and policy is None:
            return 'policy: never heard of'
        if chunk is None:
            return 'no chunk'
        if rules.status_timeout_ns and policy is not None and policy.silent_ns(steady_ns) > rules.status_timeout_ns:
            text = f'The policy node has been silent for more than {rules.status_timeout_ns / 1e9:g} s.'
            event = Event(Kind.CHUNK_TIMEOUT, Severity.REJECTED, text, chunk.chunk_id)
        elif now_ns >= chunk.end_ns:
            text = f'Chunk {chunk.chunk_id} has run out and no other came.'
            event = Event(Kind.CHUNK_EXPIRED, Severity.REJECTED, text, chunk.chunk_id, chunk.horizon - 1)
        elif rules.chunk_timeout_ns and steady_ns - self._chunk_steady_ns > rules.chunk_timeout_ns:
            text = f'No chunk for more than {rules.chunk_timeout_ns / 1e9:g} s.'
            event = Event(Kind.CHUNK_TIMEOUT, Severity.REJECTED, text, chunk.chunk_id)
        elif stale:
            event = Event(Kind.STATE_STALE, Severity.REJECTED, stale, chunk.chunk_id)
        if event is not None and tell:
            self._tell(event, steady_ns)
        return event.message if event is not None else None

    def _advance(self, now_ns: int, steady_ns: int) -> Plan:
        """Along the chunk to the next tick, over the ROS time that has passed: a late tick makes up for it."""
        assert self._chunk is not None
        assert self.setpoint_N is not None
        next_ns = now_ns + self._period_ns
        last_ns = max(self._limited_ns, next_ns - LATEST_NS)
        knots_ns = now_ns + self._window_ns if self._windows else np.empty(0, np.int64)
        values_KN, speeds_KN = self._targets(np.concatenate([[last_ns, next_ns], knots_ns]))
        if next_ns > last_ns:  # a simulated clock may stand still
            gap_s = (next_ns - last_ns) / 1e9
            clamp = self._limiter.step(values_KN[0], (values_KN[1] - values_KN[0]) / gap_s, gap_s)
            self._limited_ns = next_ns
            self.setpoint_N = self._limiter.value_N.copy()
            if clamp is not None:
                self._tell_clamp(clamp, now_ns, steady_ns)
        self._watch_tracking(steady_ns)
        if self._windows and self.state is State.RUN:
            return self._window(now_ns, values_KN[1:], speeds_KN[1:])
        empty = np.empty((0, len(self.setpoint_N)))
        return Plan(self.setpoint_N, np.empty(0, np.int64), empty, empty)

    def _tell_clamp(self, clamp: Correction, now_ns: int, steady_ns: int) -> None:
        assert self._chunk is not None
        column = self.contract.action_names[clamp.column]
        text = f'{column}: a {clamp.what} of {clamp.value:.4g} was brought to {clamp.limit:.4g}.'
        event = Event(Kind[f'{clamp.what.upper()}_LIMIT'], Severity.CLAMPED, text, self._chunk.chunk_id)
        step = max(0, self._chunk.index_at(now_ns))
        self._tell(replace(event, step=step, column=column, value=clamp.value, limit=clamp.limit), steady_ns)

    def _targets(self, times_ns: np.ndarray) -> tuple[Matrix, Matrix]:
        """Values and velocities of the chunk at some times, each column interpolated as its output asks."""
        assert self._chunk is not None
        values_KN, speeds_KN = interpolate(self._chunk, times_ns, 'cubic', self._slope_HN)
        if self._linear_N.any():
            straight_KN, pace_KN = interpolate(self._chunk, times_ns, 'linear')
            values_KN = np.where(self._linear_N, straight_KN, values_KN)
            speeds_KN = np.where(self._linear_N, pace_KN, speeds_KN)
        return values_KN, speeds_KN

    def _window(self, now_ns: int, values_KN: Matrix, speeds_KN: Matrix) -> Plan:
        """The next 0.3 s as the limiter will let them pass, without moving it; row 0 is the next tick."""
        assert self.setpoint_N is not None
        ahead = self._limiter.copy()
        times_ns = [self._limited_ns, *(now_ns + self._window_ns).tolist()]
        followed, paces = [], []
        for k in range(WINDOW_KNOTS):
            gap_s = (times_ns[k + 1] - times_ns[k]) / 1e9
            clamp = ahead.step(values_KN[k], (values_KN[k + 1] - values_KN[k]) / gap_s, gap_s)
            followed.append(ahead.value_N.copy())
            paces.append(speeds_KN[k + 1] if clamp is None else ahead.speed_N.copy())
        return Plan(self.setpoint_N, self._window_ns, np.array(followed), np.array(paces))

    def _watch_tracking(self, steady_ns: int) -> None:
        """A robot that does not follow is stuck, or somebody else's: stop pulling."""
        limit = self.rules.max_tracking_error
        if not limit or self.setpoint_N is None:
            return
        error_N = np.where(self._position_N & ~self._gripper_N, np.abs(self.setpoint_N - self._measured.value_N), 0.0)
        worst = int(np.argmax(error_N))
        if error_N[worst] <= limit:
            self._tracking_since_ns = None
        elif self._tracking_since_ns is None:
            self._tracking_since_ns = steady_ns
        elif steady_ns - self._tracking_since_ns > self.rules.tracking_time_ns:
            column, value = self.contract.action_names[worst], float(error_N[worst])
            text = f'{column} is {value:.3f} away from its setpoint; is its controller active?'
            self._fault(Event(Kind.START_JUMP, Severity.FAULT, text, 0, 0, column, value, limit), steady_ns)

    def _hold(self, reason: str, steady_ns: int) -> None:
        """From now on stand at the measured pose, or at the last setpoint when the measurement is old."""
        self.state, self.reason, self._chunk = State.HOLD, reason, None
        if self.setpoint_N is None or self._hold_pose_N is not None:
            return  # nothing was commanded, or it is held already: the pose must not creep
        unsure = bool(self._measured.stale(steady_ns))
        # A gripper keeps its last command: opening to the measured width would let go of what it holds.
        pose_N = np.where(self._gripper_N | unsure, self.setpoint_N, self._measured.value_N)
        self._hold_pose_N = np.where(self._position_N, pose_N, 0.0)
        self._hold_sent, self._held_since_ns = False, steady_ns

    def _fault(self, event: Event, steady_ns: int) -> None:
        if self.state is State.FAULT:
            return
        if self.state is State.RUN:
            self._hold(event.message, steady_ns)
        self._latched = self._latched or event.message
        if self.state is not State.DISABLED:
            self.state, self.reason = State.FAULT, self._latched
        self._chunk = None
        self.events.append(event)

    def _intervene(self, reason: str, steady_ns: int) -> None:
        """A hold for a reason that has no kind of its own."""
        self._hold(reason, steady_ns)
        self._tell(Event(Kind.HOLD, Severity.REJECTED, reason), steady_ns)

    def _refuse(self, event: Event, steady_ns: int) -> None:
        self._tell(event, steady_ns)
        if self.state in (State.IDLE, State.HOLD):
            self.reason = event.message

    def _tell(self, event: Event, steady_ns: int) -> None:
        key = (event.kind, event.column)
        last = self._told.get(key)
        if last is None or steady_ns - last >= EVENT_PERIOD_NS:
            self._told[key] = steady_ns
            self.events.append(event)


def _event_of(refused: guard.Reject, chunk: ActionChunk) -> Event:
    event = Event(refused.reason, Severity.REJECTED, refused.message, chunk.chunk_id, refused.step)
    return replace(event, column=refused.column, value=refused.value, limit=refused.limit)
