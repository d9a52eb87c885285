"""How a new chunk joins the one that is being executed: the modes, and the planner that applies one of them.

Nothing here reads a clock or knows ROS. Letters: H steps of a chunk, N columns, K steps of the old chunk that reach
into the new one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ki_policy_node.cycle.delay import DelayEstimate
from ki_policy_node.cycle.executed import Executed, Followed
from ki_policy_node.cycle.policy_types import InvalidActionError, Policy, TooLateError
from ki_policy_node.errors import NodeError
from ki_robot.actions.chunk import ActionChunk, Matrix, ensemble, rows_at, splice
from ki_robot.errors import RobotError
from ki_robot.observation.observation import Observation
from ki_robot.policy_values import without_jumps
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.serving import ASKED_MODES

log = logging.getLogger(__name__)

ENSEMBLE_CHUNKS = 8


@dataclass(frozen=True)
class Timing:
    """How chunks follow each other.

    Raises:
        NodeError: no such mode, or a negative number of steps.
    """

    # auto: what the bundle recommends, settled by `resolved` before the first chunk: rtc, or latest.
    # In every mode a robot that stood while the policy thought begins with the step where it stands.
    # latest: the new chunk takes over as soon as it is there, its late part skipped.
    # queue: the new chunk takes over when `execute_steps` of the old one are executed, not as soon as it is there; with
    #   the step that is due then (open loop). New words do not queue.
    # temporal_ensemble: every step is the mean over the chunks that cover it, weighted exp(-coefficient * i) from the
    #   oldest on (ACT).
    # rtc: the policy itself continues the old chunk, whose first `delay` steps are fixed, as it was trained to; beyond
    #   the delay that it was trained for, the chunk is spliced as in latest.
    # guided: the same by guidance, for a policy that was not trained to: more time for an inference, and no promise.
    mode: str = 'auto'
    execute_steps: int = 0  # of a chunk, after which the next one is due; 0: what the bundle recommends
    ensemble_coefficient: float = 0.01  # of temporal_ensemble
    max_delay: int = 0  # of rtc: the longest delay that the policy was trained to continue over, in steps
    note: str = ''  # why `auto` is this mode and not rtc

    def __post_init__(self) -> None:
        if self.mode not in ASKED_MODES:
            raise NodeError(f'mode is {self.mode!r}; write one of {", ".join(ASKED_MODES)}.')
        if self.execute_steps < 0:
            raise NodeError(f"execute_steps is {self.execute_steps}; write a number from 1, or 0 for the bundle's own.")


def resolved(asked: Timing, policy: Policy) -> Timing:
    """How chunks of a policy follow each other, with everything settled that the parameters leave to its bundle.

    Args:
        asked: The parameters.
        policy: Whose `serving` recommends the rest.

    Raises:
        NodeError: the policy cannot do what is asked.
    """
    serving, mode, note = policy.serving, asked.mode, asked.note
    horizon = policy.contract.horizon
    steps = asked.execute_steps or serving.execute_steps
    if not 0 < steps < horizon:
        raise NodeError(
            f'Parameter execute_steps is {steps}; write a number from 1 to {horizon - 1}, '
            f'below the horizon of {policy.policy_id}.'
        )
    if mode == 'rtc' and not serving.max_delay:
        raise NodeError(
            f'Parameter mode is rtc, and {policy.policy_id} was not trained to continue chunks '
            '(serving.max_delay is 0), or its engine cannot; write auto, latest or guided.'
        )
    if mode == 'auto':
        mode = serving.mode
        if mode == 'rtc' and not serving.max_delay:
            mode = 'latest'
        if mode == 'latest' and not serving.max_delay:
            note = f'mode latest: {policy.policy_id} was not trained to continue chunks (serving.max_delay is 0).'
        elif mode != 'rtc':
            note = f'mode {mode}: recommended by {policy.policy_id} (serving.mode).'
    return replace(asked, mode=mode, execute_steps=steps, max_delay=serving.max_delay, note=note)


@dataclass(frozen=True, eq=False)
class Seam:
    """What the step from the old chunk to the new one asks of the robot, per column, N each."""

    position_jump_N: Matrix
    velocity_jump_N: Matrix


@dataclass(frozen=True, eq=False)
class Planned:
    """One finished inference: the chunk to publish, and how it came about."""

    chunk: ActionChunk  # joined to the one that was being executed
    raw: ActionChunk  # as the policy made it
    whole: ActionChunk  # the same, later by as long as the robot stood
    inferred: Inferred  # the same with its wall times
    epoch: int  # that it was made for; see PolicyCycle.epoch
    expected_delay: int  # steps that the policy was told the inference would take
    delay: int  # steps that it took
    ready_ns: int  # when the policy was done
    seam: Seam | None  # None where nothing was being executed
    note: str = ''  # why this chunk was not continued in the way that a policy trained for it is


class Planner:
    """Turns observations into chunks that join on to what is being executed.

    Args:
        policy: Whose chunks.
        timing: How they join, as far as it is not left to the policy; see `resolved`.

    Raises:
        NodeError: the policy cannot do what is asked.
    """

    def __init__(self, policy: Policy, timing: Timing) -> None:
        self.policy = policy
        self.timing = resolved(timing, policy)
        self._beyond = False  # what it was trained for
        self.latency = DelayEstimate()
        self.current: ActionChunk | None = None  # the chunk that was sent last; `executed` is what the robot does of it
        self._executed = Executed()
        self._step_ns = policy.contract.step_ns
        self._recent: deque[ActionChunk] = deque(maxlen=ENSEMBLE_CHUNKS)
        self._count = 0
        self._epoch = -1

    def reset(self) -> None:
        """Forgets what is being executed: after a hold, a stop, a jump of the clock. Latencies are kept."""
        self.current = None
        self._executed.clear()
        self._recent.clear()

    def on_clock_jump(self) -> None:
        """Forgets what is executed, and what was said of it on the clock before."""
        self.reset()
        self._executed.forget()

    def on_followed(self, said: Followed) -> None:
        """The executor says what it follows; may come from another thread."""
        self._executed.hear(said)

    def executed(self, now_ns: int) -> ActionChunk | None:
        """The chunk that the robot executes: the newest, unless the executor says another, or none."""
        return self._executed.now(now_ns) if self.current is not None else None

    def restart(self) -> None:
        """Begins a run: chunks count from 1 again."""
        self.reset()
        self._count = 0

    def expected_delay(self) -> int:
        """Steps that the next inference will take; 0 while nothing is executed."""
        return self.latency.expected_steps(self._step_ns) if self.current is not None else 0

    def plan(self, observation: Observation, epoch: int, now_ns: Callable[[], int]) -> Planned:
        """One chunk for one observation; nothing but the delay estimate changes here until it is committed.

        Step 0 belongs to the time of the measured state: that is what deltas are added to, and how a training sample
        pairs state and actions. A robot that stood meanwhile goes on with the step where it stands, so the steps are
        later by as long as it stood, to the nanosecond: counted in whole steps, every such seam would be off by up to
        one, and the next observation, taken at the seam, would carry that into the next.

        Args:
            observation: What to plan on.
            epoch: Handed to the policy and back.
            now_ns: The clock that the observation's stamps are on.

        Raises:
            InvalidActionError: values that are not finite, or of the wrong shape.
            TooLateError: every step was past when the policy was done.
        """
        horizon, start_ns = self.policy.contract.horizon, observation.state_stamp_ns
        # Another thread may void what is executed while the policy thinks; then this chunk is not committed.
        executed = self.executed(observation.stamp_ns)
        stands = executed is None and self.current is not None
        recent = tuple(self._recent) if epoch == self._epoch else ()  # never a mean with what other words wanted
        if stands:
            recent = ()  # nor with what was not executed
        old = executed if executed is not None and executed.end_ns > start_ns else None
        prefix_KN, expected = self._prefix(old, start_ns, epoch)
        over, note = self._continued(expected)
        inferred = self.policy.infer(observation, prefix_KN, over, epoch)
        raw = self._checked(inferred, observation)
        arrived_ns = now_ns()
        self.latency.add(arrived_ns - start_ns)
        delay = max(0, -(-(arrived_ns - start_ns) // self._step_ns))
        if delay >= horizon:
            raise TooLateError(
                f'The inference took {(arrived_ns - start_ns) / 1e9:.2f} s, longer than the chunk of '
                f'{horizon * self._step_ns / 1e9:.2f} s lasts.'
            )
        stood_ns = max(0, arrived_ns - moving_until(old, start_ns))
        before_N = None if prefix_KN is None else prefix_KN[0]
        smooth_HN = without_jumps(self.policy.contract, raw.data_HN, before_N)
        whole = replace(raw, start_ns=start_ns + stood_ns, data_HN=smooth_HN)
        hand_over = delay
        if self.timing.mode == 'queue' and old is not None and epoch == self._epoch:
            hand_over = min(max(delay, min(queued_steps(self.timing, old, start_ns), expected)), horizon - 1)
        chunk = whole if stood_ns else joined(self.timing, old, recent, whole, hand_over)
        seam = seam_between(old, chunk, arrived_ns) if old is not None else None
        if stands:
            stood = 'The executor does not follow the chunks; each begins where the robot stands.'
            note = f'{note} {stood}' if note else stood
        return Planned(chunk, raw, whole, inferred, epoch, expected, delay, arrived_ns, seam, note)

    def commit(self, planned: Planned) -> None:
        """The chunk goes out: the next one will join on to it."""
        self._count = planned.chunk.chunk_id
        if planned.epoch != self._epoch:
            self._recent.clear()
        self._epoch = planned.epoch
        self._recent.append(planned.whole)
        self.current = planned.chunk
        self._executed.send(planned.chunk, planned.ready_ns)

    def _prefix(self, old: ActionChunk | None, start_ns: int, epoch: int) -> tuple[Matrix | None, int]:
        """What the policy is told of the chunk that is executed (K, N), and how many steps it is told it will take."""
        if old is None:
            return None, 0
        horizon = self.policy.contract.horizon
        expected = min(self.expected_delay(), horizon - 1)
        prefix_KN = rows_at(old, self.policy.contract.action_names, start_ns, self._step_ns, horizon)
        if epoch != self._epoch:
            # What the old instruction wanted later must not pull the new chunk; what is executed meanwhile is fact.
            prefix_KN = prefix_KN[:expected]
        return (prefix_KN, expected) if len(prefix_KN) else (None, 0)

    def _continued(self, expected: int) -> tuple[int, str]:
        """Over how many steps the policy is to continue, 0 for not, and why not; says so when that changes."""
        most = self.timing.max_delay
        if self.timing.mode != 'rtc':
            return (expected if self.timing.mode == 'guided' else 0), self.timing.note
        beyond = expected > most
        note = (
            f'mode latest: the delay of {expected} steps is beyond the {most} that {self.policy.policy_id} was trained '
            'to continue over (serving.max_delay).'
        )
        if beyond != self._beyond and expected:
            self._beyond = beyond
            log.warning('%s', note if beyond else f'mode rtc: the delay is within the {most} trained steps again.')
        return (0, note) if beyond else (expected, '')

    def _checked(self, inferred: Inferred, observation: Observation) -> ActionChunk:
        contract, shape = self.policy.contract, inferred.data_HN.shape
        if shape != (contract.horizon, len(contract.actions)):
            raise InvalidActionError(
                f'Policy {self.policy.policy_id} returned shape {shape}; '
                f'robot {contract.name} takes {(contract.horizon, len(contract.actions))}.'
            )
        try:
            return ActionChunk(
                start_ns=observation.state_stamp_ns,
                step_ns=self._step_ns,
                names=contract.action_names,
                data_HN=np.asarray(inferred.data_HN, dtype=np.float64),
                observation_ns=observation.stamp_ns,
                chunk_id=self._count + 1,
                policy_id=self.policy.policy_id,
                instruction_id=observation.instruction_id,
            )
        except RobotError as error:
            raise InvalidActionError(f'Policy {self.policy.policy_id}: {error}') from error


def moving_until(old: ActionChunk | None, start_ns: int) -> int:
    """Until when a robot that executes `old` moves: to its last step, which it rests on. `start_ns` where it stands."""
    return start_ns if old is None else max(start_ns, old.end_ns - old.step_ns)


def queued_steps(timing: Timing, old: ActionChunk, start_ns: int) -> int:
    """Steps from `start_ns` on until `execute_steps` of the old chunk have been executed."""
    steps = min(old.frozen_prefix + timing.execute_steps, old.horizon)
    return -((start_ns - old.start_ns) // old.step_ns - steps)


def joined(
    timing: Timing, old: ActionChunk | None, recent: Sequence[ActionChunk], new: ActionChunk, steps: int
) -> ActionChunk:
    """What is executed from now on: exactly H steps, the first as they were executed.

    Args:
        timing: The mode and its settings.
        old: What is being executed; None when nothing is.
        recent: Chunks of this epoch before they were joined, oldest first.
        new: The new one.
        steps: How many of its first steps are still the old one's.
    """
    if timing.mode == 'temporal_ensemble':
        new = replace(new, data_HN=ensemble(recent, new, timing.ensemble_coefficient).data_HN)
    if timing.mode == 'latest' or old is None:
        return new
    # Mid-step of the old chunk is where its interpolation has brought the robot: seamless up to the delay.
    chunk = splice(old, new, steps)
    return chunk if chunk.horizon == new.horizon else new


def seam_between(old: ActionChunk, new: ActionChunk, now_ns: int) -> Seam | None:
    """Jump of value and of velocity where the robot leaves `old` for `new` at `now_ns`; None past either's end."""
    step = new.step_ns
    before = rows_at(old, old.names, now_ns - step, step, 2)
    after = rows_at(new, old.names, now_ns, step, 2)
    if len(before) < 2 or len(after) < 2:
        return None
    velocity_N = ((after[1] - after[0]) - (before[1] - before[0])) / (step / 1e9)
    return Seam(after[0] - before[1], velocity_N)
