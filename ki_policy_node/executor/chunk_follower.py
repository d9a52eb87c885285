"""Follows chunks against the clock, within limits, and decides when to brake: the executor without ROS.

States: `run` follows a chunk; every other state brakes what moves to rest, within limits, from where it was
commanded, and is then silent. `fault` lasts until an operator resets it. What begins afresh begins at rest where the
robot is measured. One source is followed at a time, a policy or a human, and between them lies a brake. Every time is
passed in: `now_ns` is ROS time (chunks), `steady_ns` never jumps (watchdogs). N action columns of the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ki_policy_node.executor.hand_chunks import clamped, rejected
from ki_policy_node.executor.playback import MotionPlayback, Setpoints, windowed_columns
from ki_policy_node.executor.safety import Driver, Event, Kind, PolicyHealth, Rules, Severity, State
from ki_policy_node.executor.speakers import Speakers
from ki_policy_node.executor.state_tracker import Measured
from ki_policy_node.executor.teleop import HumanCommands
from ki_robot.actions import guard
from ki_robot.actions.chunk import ActionChunk, Matrix
from ki_robot.actions.motion import Vector, bounds_of
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Limits
from ki_robot.errors import Rejected, RobotError
from ki_robot.space.checker import Violation

SAID_NS = 250_000_000  # how long rest is said before silence: more than a gripper's dead time
NEAR_S = 0.02  # of full speed: a column measured this near its command has not been moved
STEP_SLACK = 1e-3  # relative: how far a chunk's step may be from the contract's
GAP_NS = 100_000_000  # a robot stands still after so long without a setpoint
BEHIND_S = 0.1  # of full speed: a column further behind its chunk is told
ARRIVED_S = 0.02  # of the approach's own speed: an approach this near its chunk is over
INVALID_LIMIT = 3  # unusable joint states or chunks in a row that latch a fault
IMPLAUSIBLE_NS = 1_000_000_000  # so many implausible states within this time are a fault, others in between or not
OPERATOR_NS = 2_000_000_000  # an operator who has been silent for this long is gone, unless a rule says another time
EVENT_PERIOD_NS = 1_000_000_000  # the same event of the same column is told once a second


class Follower:
    """One robot's executor.

    Args:
        contract: Columns and outputs.
        limits: Of every action column, in order.
        rules: Watchdogs and jumps.
        period_ns: Time between two ticks.
    """

    def __init__(self, contract: Contract, limits: Sequence[Limits], rules: Rules, period_ns: int) -> None:
        self.contract, self.limits, self.rules = contract, tuple(limits), rules
        self.state, self.reason = State.DISABLED, 'not enabled'
        self.events: list[Event] = []
        self._measured = Measured(contract, rules.state_timeout_ns)
        self._playback = MotionPlayback(contract, limits, period_ns)
        grips = {c for o in contract.outputs if o.role == 'gripper' or o.kind == 'gripper' for c in o.columns}
        self._gripper_N = np.array([name in grips for name in contract.action_names], bool)
        forces = {c for o in contract.outputs if o.on_hold == 'keep_force' for c in o.columns}
        self._held_N = self._gripper_N | np.array([name in forces for name in contract.action_names], bool)
        windowed = windowed_columns(contract)
        self._windowed_N = np.array([name in windowed for name in contract.action_names], bool)
        self._near_N = NEAR_S * bounds_of(contract.action_names, limits, period_ns / 1e9).speed_N
        tolerances = [column.tolerance or rules.max_tracking_error or np.inf for column in contract.actions]
        # A gripper may stand far from its command: it grips something.
        self._tolerance_N = np.where(self._measured.position_N & ~self._gripper_N, tolerances, np.inf)
        self._period_ns, self._ticked_ns = period_ns, -1
        self._invalid_states = self._invalid_chunks = 0
        self._implausible_ns: list[int] = []
        self._disbelieved = (-IMPLAUSIBLE_NS, '')  # the last state that was: when, and why
        self._chunk: ActionChunk | None = None
        self._chunk_steady_ns = 0
        self._speakers = Speakers()
        self._policy: PolicyHealth | None = None
        self.selected = Driver.POLICY  # who is followed; the other is not
        self._human = HumanCommands(contract, rules.teleop_ns)
        self._operator: tuple[str, int] | None = None  # who was heard last, and when
        self._unattended = 'No live operator has enabled it.' if rules.operator_ns else ''  # until the next `enable`
        self._estop = False
        self._latched = ''  # why `reset_fault` is needed; neither disabling nor deactivating takes it away
        self._fresh = True  # the next motion begins where the robot is measured
        self._speaks = False  # something was commanded, and has not come to rest and been said to
        self._rested_ns: int | None = None
        self._approaches = False
        self._kept_N: Vector | None = None  # what was commanded last, as long as the controllers may still hold it
        self._grips = False  # whether grippers may still hold something
        self._tracking_since_ns: int | None = None
        self._told: dict[tuple[Kind, str], int] = {}

    @property
    def setpoint_N(self) -> Vector | None:
        """What was commanded last, for every column; None before anything was."""
        return self._playback.setpoint_N

    @property
    def where_N(self) -> Matrix:
        """Where the next command begins: the setpoint while commanding, else what is measured; NaN where unknown."""
        setpoint_N = self._playback.setpoint_N
        return setpoint_N if self._speaks and setpoint_N is not None else self._measured.pose()

    @property
    def followed(self) -> ActionChunk | None:
        """The chunk that is followed; None in every state but a run."""
        return self._chunk if self.state is State.RUN else None

    @property
    def source(self) -> Driver:
        """Who drives now."""
        return self.selected if self.state is State.RUN else Driver.HOLD

    @property
    def estop(self) -> bool:
        """Whether the e-stop is pressed."""
        return self._estop

    def operator(self, steady_ns: int) -> str:
        """The live operator; empty when none is heard."""
        name, heard_ns = self._operator or ('', 0)
        return name if steady_ns - heard_ns <= (self.rules.operator_ns or OPERATOR_NS) else ''

    def teleop_alive(self, steady_ns: int) -> bool:
        """Whether a human's commands arrive, followed or not."""
        return self._human.alive(steady_ns)

    @property
    def silent(self) -> bool:
        """Whether there is nothing to say: all has come to rest, and has been said to."""
        return not self._speaks

    # What comes in.

    def on_state(
        self,
        stream: str,
        values: Mapping[str, float],
        stamp_ns: int,
        steady_ns: int,
        who: Callable[[], str] = str,
    ) -> None:
        """Measured values by column name; a stamp that does not advance is not news. `who` names who measures."""
        if not self._speaks:
            # Nothing is commanded: the robot may be moved by hand, or come up elsewhere. A motion begins where it
            # stands still (`Measured.moving`).
            self._measured.forget()
        try:
            if self._measured.update(stream, values, stamp_ns, steady_ns):
                self._invalid_states = 0
        except Rejected as error:
            self._disbelieved = steady_ns, str(error)
            self._implausible_ns = [at for at in self._implausible_ns if steady_ns - at < IMPLAUSIBLE_NS] + [steady_ns]
            if len(self._implausible_ns) >= INVALID_LIMIT and self.state in (State.RUN, State.HOLD):
                names = who()
                text = f'{INVALID_LIMIT} states that cannot be true within a second: {error}'
                text += f' Measured by {names}.' if names else ''
                self._fault(Event(Kind.STATE_IMPLAUSIBLE, Severity.FAULT, text), steady_ns)

    def on_invalid_state(self, message: str, non_finite: bool, steady_ns: int) -> None:
        """A measured state that cannot be used; non-finite ones in a row are a broken sensor, and a fault."""
        if non_finite:
            self._invalid_states += 1
            self._disbelieved = steady_ns, message
        if self._invalid_states >= INVALID_LIMIT and self.state in (State.RUN, State.HOLD):
            text = f'{INVALID_LIMIT} times in a row: {message}'
            self._fault(Event(Kind.NON_FINITE, Severity.FAULT, text), steady_ns)

    def on_chunk(self, chunk: ActionChunk, now_ns: int, steady_ns: int, source: Driver = Driver.POLICY) -> None:
        """A new chunk; it is followed from the step in force now, or refused as a whole and forgotten.

        Of who is not selected it is forgotten at once.
        """
        if source is Driver.HUMAN:
            self._human.note(steady_ns)
        if source is not self.selected:
            return
        self._invalid_chunks = 0
        try:
            chunk = self._as_contracted(chunk)
        except RobotError as error:
            self._tell(Event(Kind.NON_FINITE, Severity.REJECTED, str(error), chunk.chunk_id), steady_ns)
            return
        if self._chunk is not None and chunk.observation_ns < self._chunk.observation_ns:
            return  # overtaken on the way
        verdict = guard.check(chunk, self.limits, now_ns, self._start_to_keep(steady_ns), self.rules.guard)
        if isinstance(verdict, guard.Reject):
            self._refuse(rejected(verdict, chunk), steady_ns)
            return
        if source is Driver.POLICY and self._has_rival(chunk, steady_ns):
            return
        for clamp in verdict.clamps:
            self._tell(clamped(clamp, chunk), steady_ns)
        self._chunk, self._chunk_steady_ns = verdict.chunk, steady_ns
        self._playback.aim(verdict.chunk)
        if source is Driver.HUMAN:
            self._approach_if_far(verdict.chunk, now_ns, now_ns)

    def on_human(self, topic: str, values: Mapping[str, float], now_ns: int, steady_ns: int) -> ActionChunk | None:
        """A human's setpoint of some columns; the chunk that it makes, to be checked and given to `on_chunk`.

        Raises:
            RobotError: a column that the contract does not command.
        """
        self._human.note(steady_ns)
        if self.selected is not Driver.HUMAN:
            return None
        chunk = self._human.take(topic, values, self._stand(), now_ns, steady_ns)
        if chunk is not None:
            self._approach_if_far(chunk, chunk.end_ns - 1, now_ns)
        return chunk

    def _approach_if_far(self, chunk: ActionChunk, step_at_ns: int, now_ns: int) -> None:
        """A leader arm that is suddenly elsewhere is approached slowly, as at the start."""
        if self.state is State.RUN:
            here_N = self._playback.commanded(now_ns)
            far = guard.check_start(chunk, self.limits, step_at_ns, here_N, self.rules.guard)
            self._approaches |= far is not None

    def _stand(self) -> Matrix:
        """Where every column stays that nobody commands: velocities at 0, what is gripped gripped."""
        setpoint_N = self._playback.setpoint_N
        if self._speaks and setpoint_N is not None:
            stand_N = setpoint_N
        elif self._kept_N is not None and self._grips:
            stand_N = np.where(self._held_N, self._kept_N, self._measured.value_N)
        else:
            stand_N = self._measured.value_N
        return np.where(self._measured.position_N | self._held_N, stand_N, 0.0)

    def take_over(self, on: bool, steady_ns: int) -> None:
        """A human drives from now on, or the policy again: what moves brakes, and who is next goes on from there."""
        selected = Driver.HUMAN if on else Driver.POLICY
        if selected is self.selected:
            return
        self.selected = selected
        self._human.begin()
        text = 'A human takes over.' if on else 'The human gives back to the policy.'
        if self.state is State.RUN:
            self._hold(text)
        if self.state in (State.HOLD, State.IDLE):
            self.reason = 'waits for the commands of a human' if on else 'waits for a chunk'
        self._chunk = None
        self._speakers.forget()
        self.events.append(Event(Kind.TAKEOVER, Severity.INFO, text))

    def on_operator(self, name: str, steady_ns: int) -> None:
        """The heartbeat of a live operator; without a name, one who leaves."""
        self._operator = (name, steady_ns) if name else None

    def _as_contracted(self, chunk: ActionChunk) -> ActionChunk:
        """The chunk with its columns in the contract's order; RobotError where it is none of this contract's."""
        names, step_ns = self.contract.action_names, self.contract.step_ns
        if abs(chunk.step_ns - step_ns) > STEP_SLACK * step_ns:
            raise RobotError(
                f'Chunk {chunk.chunk_id} has a step of {chunk.step_ns / 1e9:g} s; '
                f'the contract of {self.contract.name} has {step_ns / 1e9:g} s.'
            )
        return chunk if chunk.names == names else replace(chunk, names=names, data_HN=chunk.columns(names))

    def _start_to_keep(self, steady_ns: int) -> Matrix | None:
        """Where a chunk must begin; None where nothing is known of it, or where a far start is approached."""
        far_is_fine = self.contract.on_far_start == 'approach' and (self.state is not State.RUN or self._approaches)
        far_is_fine |= self.selected is Driver.HUMAN  # a leader arm may be anywhere: it is approached
        return None if far_is_fine or self._measured.stale(steady_ns) else self._measured.pose()

    def _has_rival(self, chunk: ActionChunk, steady_ns: int) -> bool:
        """Whether two policies speak in turn; then neither is followed. That one takes over from another is fine."""
        names = self._speakers.rivals(chunk.policy_id, chunk.chunk_id, steady_ns)
        if not names:
            return False
        text = f'Several policies send chunks in turn ({", ".join(map(repr, names))}); end all but one.'
        self._tell(Event(Kind.FOREIGN_PUBLISHER, Severity.REJECTED, text, chunk.chunk_id), steady_ns)
        if self.state is State.RUN:
            self._hold(text)
        self._chunk = None
        return True

    def on_violation(self, chunk: ActionChunk, violation: Violation, steady_ns: int) -> None:
        """A chunk that would bring links together, or out of their box: refused as a whole."""
        text = f'Chunk {chunk.chunk_id} is refused: {violation.text}.'
        self._refuse(Event(Kind.WORKSPACE, Severity.REJECTED, text, chunk.chunk_id, violation.step), steady_ns)

    def on_solved(self, events: Sequence[Event], steady_ns: int) -> None:
        """What is to be told of a chunk of hand poses; refusals among it change nothing, like those of `on_chunk`."""
        for event in events:
            (self._refuse if event.severity is Severity.REJECTED else self._tell)(event, steady_ns)

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

    def on_estop(self, pressed: bool, steady_ns: int) -> None:
        """The e-stop topic; pressing latches a fault, releasing alone does not clear it."""
        if pressed and not self._estop:
            self._fault(Event(Kind.ESTOP, Severity.FAULT, 'The e-stop is pressed.'), steady_ns)
        self._estop = pressed

    def on_clock_jump(self, seconds: float, steady_ns: int) -> None:
        """ROS time has jumped: every chunk is on a clock that is no more."""
        self._chunk, self._fresh = None, True
        self._measured.on_clock_jump()
        self._human.begin()
        self._playback.shift(round(seconds * 1e9))
        if self.state is State.RUN:
            self._intervene(f'ROS time jumped by {seconds:.3f} s', steady_ns)

    def enable(self, on: bool, steady_ns: int) -> str:
        """The operator's switch; returns why not, or an empty text. Off: what moves brakes to rest, then silence."""
        if on and self.rules.operator_ns:
            if not self.operator(steady_ns):
                return 'require_operator is true and no live operator is heard; open the console, and enable there.'
            self._unattended = ''
        if on and self.state is State.DISABLED:
            self._chunk, self._fresh, self._grips = None, True, False
            self._human.begin()
            if self._latched:
                self.state, self.reason = State.FAULT, self._latched
            else:
                self.state, self.reason = State.IDLE, 'waits for a policy'
        elif not on and self.state is not State.DISABLED:
            self._hold('disabled by the operator')
            self.state, self.reason = State.DISABLED, 'not enabled'
        return ''

    def stop(self, reason: str, steady_ns: int) -> None:
        """Brakes for a reason from outside: an absent controller, a second publisher, a fault of our own.

        Whoever is back afterwards may stand elsewhere: the next motion begins where the robot is measured then.
        """
        self._fresh, self._kept_N = True, None
        if self.state is State.RUN:
            self._intervene(reason, steady_ns)
        elif self.state in (State.HOLD, State.IDLE):
            self.reason = reason
        self._chunk = None

    def unblock(self) -> None:
        """What `stop` was called for is over; the next chunk may be followed."""
        if self.state in (State.HOLD, State.IDLE):
            self.reason = 'waits for a chunk'

    def reset_fault(self, steady_ns: int) -> str:
        """Leaves a fault; returns why not, or an empty text."""
        if self._estop:
            return 'The e-stop is still pressed; release it first.'
        at_ns, why = self._disbelieved
        if self._latched and steady_ns - at_ns < IMPLAUSIBLE_NS:
            return f'A measured state is still not believed: {why}'
        self._latched = ''
        if self.state is State.FAULT:
            self._chunk, self._fresh = None, True
            self._human.begin()
            self._invalid_chunks = self._invalid_states = 0
            self._implausible_ns.clear()
            self.state = State.HOLD if self._speaks else State.IDLE
            self.reason = 'fault reset, waits for a chunk'
        return ''

    def end(self, reason: str) -> None:
        """The last word: tick on until `silent`, and nothing moves any more."""
        self._hold(reason)
        self.state, self.reason, self._fresh, self._grips = State.DISABLED, reason, True, False

    # What goes out.

    def tick(self, now_ns: int, steady_ns: int) -> Setpoints | None:
        """One control period: what to send, or None when the executor is to be silent."""
        late_ns = self._watch_lateness(steady_ns)
        self._watch_operator(steady_ns)
        if self.state is State.RUN:
            self._watch_tracking(now_ns, steady_ns)
        if self.state is State.RUN:
            why = self._why_not_run(now_ns, steady_ns, tell=True)
            if why is not None:
                self._hold(why)
        elif self.state in (State.IDLE, State.HOLD) and self._may_start(now_ns, steady_ns):
            self._start(now_ns)
        if self._speaks and late_ns >= GAP_NS:
            self._playback.gap()
        command = self._command(now_ns, steady_ns) if self._speaks else None
        if self.state is State.HOLD and self._policy is not None and self._policy.ended and not self._speaks:
            self.state, self.reason = State.IDLE, 'the run is over'
        return command

    def _command(self, now_ns: int, steady_ns: int) -> Setpoints:
        """One period on: along the chunk in a run, else braking."""
        follows = self.state is State.RUN
        command = self._playback.advance(now_ns, follows, self.contract.start_speed if self._approaches else 1.0)
        if follows:
            self._kept_N, self._grips = command.setpoint_N, True
            self._watch_following(now_ns, steady_ns)
        elif self._kept_N is not None:
            self._kept_N = command.setpoint_N
        # Rest is said for a moment and then no more: by the time it would be, the robot may be elsewhere.
        if not command.still:
            self._rested_ns = None
        elif self._rested_ns is None:
            self._rested_ns = steady_ns
        elif steady_ns - self._rested_ns >= SAID_NS:
            self._speaks, self._fresh = False, True
        return command

    def _may_start(self, now_ns: int, steady_ns: int) -> bool:
        if self._chunk is None or self._estop:
            return False
        if self._fresh and self._speaks and self._rested_ns is None:
            return False  # first to rest
        why = self._why_not_run(now_ns, steady_ns, tell=False)
        why = why or (self._measured.moving(steady_ns) if self._fresh else '')
        if why:
            self.reason = why
            return False
        # The robot may have moved since the chunk came, or nothing was measured then.
        chunk = self._chunk
        refused = guard.check_start(chunk, self.limits, now_ns, self._measured.pose(), self.rules.guard)
        approach = self.contract.on_far_start == 'approach' or self.selected is Driver.HUMAN
        self._approaches = refused is not None and approach
        if refused is not None and not self._approaches:
            self._chunk = None
            self._refuse(rejected(refused, chunk), steady_ns)
            return False
        return True

    def _start(self, now_ns: int) -> None:
        """On from the brake that is under way, or afresh: at rest where the robot is measured."""
        self.state, self.reason, self._tracking_since_ns, self._rested_ns = State.RUN, '', None, None
        if not self._fresh:
            return
        start_N = np.where(self._measured.position_N, self._measured.value_N, 0.0)
        if self._kept_N is not None:
            # A joint that sags a little below its command is still held there, and does not jump when it goes on from
            # there; of one trajectory controller either all or none. What a gripper holds stays gripped.
            near_N = np.abs(start_N - self._kept_N) <= self._near_N
            kept_N = near_N & (~self._windowed_N | near_N[self._windowed_N].all())
            start_N = np.where(kept_N | (self._held_N & self._grips), self._kept_N, start_N)
        self._playback.begin(start_N, now_ns, self._kept_N)
        self._speaks, self._fresh = True, False

    def _why_not_run(self, now_ns: int, steady_ns: int, tell: bool) -> str | None:
        """The first reason not to follow a chunk; None when there is none."""
        if self._unattended:
            return self._unattended
        if self.selected is Driver.HUMAN:
            return self._why_not_human(now_ns, steady_ns, tell)
        rules, chunk, policy = self.rules, self._chunk, self._policy
        event: Event | None = None
        if policy is not None and not policy.running:
            text = f'policy: {policy.message}'
            if tell and not policy.ended:  # that a run is over is no intervention
                self._tell(Event(Kind.HOLD, Severity.REJECTED, text), steady_ns)
            return text
        stale = self._measured.stale(steady_ns, now_ns)
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

    def _why_not_human(self, now_ns: int, steady_ns: int, tell: bool) -> str | None:
        """The first reason not to follow a human; None when there is none."""
        chunk, stale = self._chunk, self._measured.stale(steady_ns, now_ns)
        if chunk is None:
            return 'no commands of a human'
        if now_ns >= chunk.end_ns:
            text = self._human.silent(steady_ns) or f'A human drives, and {chunk.policy_id} has fallen silent.'
            event = Event(Kind.CHUNK_TIMEOUT, Severity.REJECTED, text, chunk.chunk_id)
        elif stale:
            event = Event(Kind.STATE_STALE, Severity.REJECTED, stale, chunk.chunk_id)
        else:
            return None
        if tell:
            self._tell(event, steady_ns)
        return event.message

    def _watch_operator(self, steady_ns: int) -> None:
        """Where a live operator is required, nothing goes on without one, nor by itself when one is back."""
        if not self.rules.operator_ns or self._unattended or self.operator(steady_ns):
            return
        self._unattended = 'The operator is not heard any more; enable again when one is back.'
        if self.state is State.RUN:
            self._hold(self._unattended)
            self._tell(Event(Kind.OPERATOR_LOST, Severity.REJECTED, self._unattended), steady_ns)
        elif self.state in (State.IDLE, State.HOLD):
            self.reason = self._unattended

    def _watch_following(self, now_ns: int, steady_ns: int) -> None:
        """Tells what the limits make late, and ends an approach that has arrived."""
        behind_N, time_N = self._playback.behind()
        worst = int(np.argmax(time_N))
        if self._approaches:
            self._approaches = bool(time_N[worst] > ARRIVED_S * self.contract.start_speed)
        elif time_N[worst] > BEHIND_S and self._playback.settled(now_ns):
            assert self._chunk is not None
            column, value = self.contract.action_names[worst], float(behind_N[worst])
            text = f'{column} is {value:.4g} behind its chunk, which asks for more than its limits allow.'
            event = Event(Kind.VELOCITY_LIMIT, Severity.CLAMPED, text, self._chunk.chunk_id)
            step = max(0, self._chunk.index_at(now_ns))
            self._tell(replace(event, step=step, column=column, value=value), steady_ns)

    def _watch_lateness(self, steady_ns: int) -> int:
        """Tells a tick that came late in motion; how late, in ns."""
        late_ns = steady_ns - self._ticked_ns - self._period_ns if self._ticked_ns >= 0 else 0
        self._ticked_ns = steady_ns
        if self._speaks and self.rules.late_ns and late_ns > self.rules.late_ns:
            text = f'A tick came {late_ns / 1e6:.0f} ms late; what is sent tick by tick follows its chunk later.'
            event = Event(Kind.HOLD, Severity.INFO, text, value=late_ns / 1e9, limit=self.rules.late_ns / 1e9)
            self._tell(event, steady_ns)
        return late_ns

    def _watch_tracking(self, now_ns: int, steady_ns: int) -> None:
        """A robot that is not where it is commanded is stuck, or somebody else's, or measured wrongly."""
        error_N = np.abs(self._playback.commanded(now_ns) - self._measured.value_N) / self._tolerance_N
        worst = int(np.argmax(np.where(np.isfinite(self._tolerance_N), error_N, 0.0)))
        if not error_N[worst] > 1.0:
            self._tracking_since_ns = None
        elif self._tracking_since_ns is None:
            self._tracking_since_ns = steady_ns
        elif steady_ns - self._tracking_since_ns > self.rules.tracking_time_ns:
            column, limit = self.contract.action_names[worst], float(self._tolerance_N[worst])
            value = float(error_N[worst]) * limit
            text = f'{column} is measured {value:.3f} away from its command; is its controller active?'
            self._fault(Event(Kind.START_JUMP, Severity.FAULT, text, 0, 0, column, value, limit), steady_ns)

    def _hold(self, reason: str) -> None:
        """From now on brake, from where and as fast as commanded, to rest; and stay there."""
        if self.state is not State.FAULT:
            self.state, self.reason = State.HOLD, reason
        self._chunk, self._approaches = None, False

    def _fault(self, event: Event, steady_ns: int) -> None:
        if self.state is State.FAULT:
            return
        if self.state is State.RUN:
            self._hold(event.message)
        self._latched = self._latched or event.message
        if self.state is not State.DISABLED:
            self.state, self.reason = State.FAULT, self._latched
        self._chunk = None
        self.events.append(event)

    def _intervene(self, reason: str, steady_ns: int) -> None:
        """A hold for a reason that has no kind of its own."""
        self._hold(reason)
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
