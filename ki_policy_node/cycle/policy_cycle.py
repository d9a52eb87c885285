"""One policy cycle: is a chunk due, may one be made, is what was made still wanted?

No ROS, no clock and no thread in here: times are passed in. The node drives the cycle on ROS time, a replay on a bag's,
the closed-loop evaluation on the simulator's, so all three make the same chunks of the same messages. A driver repeats

    found = cycle.look(now)         a Wait, a Held, or Ready with an observation
    made = cycle.plan(found, now)   the inference, as long as it takes
    end = cycle.commit(made, now)   Planned: send its chunk; Dropped or Held: do not

and tells what happens meanwhile. One thread looks, plans and commits; others may tell it things at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ki_policy_node.cycle.cadence import Cadence
from ki_policy_node.cycle.continuation import Planned, Planner
from ki_policy_node.cycle.executed import Followed
from ki_policy_node.cycle.hold_reasons import HoldReason
from ki_policy_node.cycle.policy_types import InvalidActionError, TooLateError, UnreachableError
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import InputFault, NotReady, Observation, StreamProblem

NOT_INPUTS = (HoldReason.INFERENCE_LATE, HoldReason.INVALID_ACTION, HoldReason.UNREACHABLE)
FAILURE_LIMIT = 3  # inferences in a row that fail before the fault is latched
FOREVER_NS = 2**63 - 1
RETRY_NS = 10_000_000  # until inputs that were out of step are looked at again
FRAME_WAIT_NS = 50_000_000  # how long a due chunk waits for a fresh frame of every camera


class Observations(Protocol):
    """Where observations come from: `ki_robot.observation.buffer.ObservationBuffer`, or a simulator."""

    @property
    def epoch(self) -> int:
        """Changes when the clock jumps."""
        ...

    def sample(self, now_ns: int) -> Observation | NotReady:
        """The observation at `now_ns`, or every reason why there is none."""
        ...

    def problems(self, now_ns: int) -> tuple[StreamProblem, ...]:
        """The same reasons, found without decoding an image."""
        ...

    def decode(self, names: Iterable[str]) -> None:
        """Decodes the newest frames of some cameras ahead of `sample`, or has that done."""
        ...

    def set_instruction(self, text: str, instruction_id: str = '') -> None:
        """The instruction of every later observation."""
        ...

    def flush(self) -> None:
        """Forgets all messages and begins a new epoch."""
        ...


class WakeOn(Enum):
    """Which message ends a `Wait` before its time."""

    NOTHING = 'nothing'
    FRAME = 'a camera frame'
    MESSAGE = 'any message'


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until_ns`, unless such a message comes."""

    until_ns: int
    wake_on: WakeOn = WakeOn.NOTHING

    def ends_with(self, camera: bool, now_ns: int) -> bool:
        """Whether to look again, as a message has come: of a camera, or of a state stream."""
        if now_ns >= self.until_ns or self.wake_on is WakeOn.MESSAGE:
            return True
        return camera and self.wake_on is WakeOn.FRAME


@dataclass(frozen=True)
class Held:
    """No chunk may be made now; the executor stands still."""

    reason: HoldReason
    message: str  # one sentence for the operator
    news: bool = True  # False while it is the hold that was told before
    fault: bool = False  # no chunk before `reset_fault`


@dataclass(frozen=True, eq=False)
class Ready:
    """A chunk is due and its observation is complete."""

    observation: Observation
    epoch: int


@dataclass(frozen=True)
class Failed:
    """An inference without a chunk."""

    reason: HoldReason
    message: str
    epoch: int


@dataclass(frozen=True)
class Dropped:
    """A chunk that nobody wants any more: words, run or clock changed while it was made."""

    message: str = 'words, run or clock changed while it was made'


Made = Planned | Failed  # by an inference


class PolicyCycle:
    """When a chunk is made, when not, and which of them count.

    Args:
        contract: The robot.
        observations: Where observations come from.
        planner: Makes the chunks and joins them.
        frame_wait_ns: How long a due chunk waits for a fresh frame of every required camera.

    Attributes:
        epoch: Changes with words, run and clock; a chunk of another epoch than the present one is never committed.
        fault: Why no chunk is made before `reset_fault`; empty without a fault.
    """

    def __init__(
        self, contract: Contract, observations: Observations, planner: Planner, frame_wait_ns: int = FRAME_WAIT_NS
    ) -> None:
        self.observations, self.planner = observations, planner
        self.epoch = 0
        self.running = False
        self.fault = ''
        self._lock = threading.RLock()
        self._cadence = Cadence(contract, planner.timing, frame_wait_ns)
        self._instruction = ('', '')
        self._clock_epoch = observations.epoch
        self._holding: HoldReason | None = None
        self._failures = 0

    # What happens.

    def begin(self, now_ns: int) -> None:
        """A run begins: chunks count from 1, and the first is due at once."""
        with self._lock:
            self.epoch += 1
            self.running, self._holding, self._failures = True, None, 0
            self.planner.restart()
            self._cadence.hurry(now_ns)

    def end(self) -> None:
        """The run is over; a chunk that is being made is dropped."""
        with self._lock:
            self.epoch += 1
            self.running = False

    def take_instruction(self, text: str, instruction_id: str, now_ns: int) -> bool:
        """From now on this is what to do; True when the words are new: then a chunk for them is due at once.

        A chunk for the old words that is still being made is dropped. Words that are heard again count once.
        """
        with self._lock:
            before, before_id = self._instruction
            if text == before and instruction_id in ('', before_id):
                return False
            if text != before:
                self.epoch += 1
                self._cadence.hurry(now_ns)
            self._instruction = (text, instruction_id)
            self.observations.set_instruction(text, instruction_id)
            return text != before

    def on_frame(self, camera: str, now_ns: int) -> None:
        """A frame of a camera has arrived."""
        self._cadence.on_frame(camera, now_ns)

    def on_followed(self, said: Followed) -> None:
        """The executor says which chunk it follows: the next one goes on from that one, or joins on to nothing."""
        self.planner.on_followed(said)

    def on_clock_jump(self, now_ns: int) -> None:
        """The clock has jumped, and now says `now_ns`: nothing that was seen or planned before has a time any more."""
        with self._lock:
            self.observations.flush()
            self._follow_clock(now_ns)

    def start_over(self, now_ns: int) -> None:
        """What was sent is void: the next chunk joins on to nothing."""
        with self._lock:
            self.epoch += 1
            self._forget_executed(now_ns)

    def fail(self, reason: HoldReason, message: str) -> Held:
        """Latches a fault."""
        with self._lock:
            self.fault, self._holding = message, reason
            return Held(reason, message, fault=True)

    def reset_fault(self, now_ns: int) -> None:
        """Leaves a fault."""
        with self._lock:
            self.fault, self._failures, self._holding = '', 0, None
            self._forget_executed(now_ns)

    # What is to be done.

    def look(self, now_ns: int) -> Wait | Held | Ready:
        """Whether to plan now, and on what; else until when to wait, or why nothing may be made."""
        with self._lock:
            if not self.running or self.fault:
                return Wait(FOREVER_NS)
            self._follow_clock(now_ns)
            epoch, due_ns = self.epoch, self._due_ns()
        if now_ns < due_ns:
            return Wait(due_ns)
        take_ns = self._cadence.take_ns(due_ns)
        if now_ns < take_ns:
            # So that only the last camera's frame is still to be decoded when it comes. Frames that came before the
            # chunk was due are never decoded: the observation will hold newer ones.
            self.observations.decode(self._cadence.fresh(due_ns))
            return Wait(take_ns, WakeOn.FRAME)
        # Outside the lock: it decodes images, and words must not wait for a JPEG.
        observation = self.observations.sample(now_ns)
        with self._lock:
            if epoch != self.epoch:
                return Wait(now_ns)  # new words came meanwhile, and still want a chunk at once
            if isinstance(observation, NotReady):
                return self._not_ready(observation, due_ns, now_ns)
            self._cadence.taken()
            return Ready(observation, epoch)

    def plan(self, ready: Ready, now_ns: Callable[[], int]) -> Made:
        """The inference. Nothing is changed by it before it is committed; an error of the policy is a `Failed`.

        Args:
            ready: Of `look`.
            now_ns: Read when the policy is done, on the clock of the observation's stamps.
        """
        try:
            return self.planner.plan(ready.observation, ready.epoch, now_ns)
        except TooLateError as error:
            return Failed(HoldReason.INFERENCE_LATE, str(error), ready.epoch)
        except UnreachableError as error:
            return Failed(HoldReason.UNREACHABLE, str(error), ready.epoch)
        except InvalidActionError as error:
            return Failed(HoldReason.INVALID_ACTION, str(error), ready.epoch)
        except Exception as error:  # whatever a policy raises must not end the thread that watches over it
            message = f'The inference failed: {type(error).__name__}: {error}'
            return Failed(HoldReason.INVALID_ACTION, message, ready.epoch)

    def commit(self, made: Made, now_ns: int) -> Planned | Dropped | Held:
        """What was made counts from now on, unless the world has moved on; the next chunk joins on to it."""
        with self._lock:
            self._follow_clock(now_ns)
            if made.epoch != self.epoch or not self.running or self.fault:
                return Dropped()
            if isinstance(made, Failed):
                return self._failed(made, now_ns)
            self.planner.commit(made)
            self._cadence.taken()  # where the last chunk ran out meanwhile, this is the one that was asked for
            self._failures, self._holding = 0, None
            return made

    def watch(self, now_ns: int) -> Held | None:
        """What must stop the robot even while an inference is going on: to be called many times a second."""
        with self._lock:
            if not self.running or self.fault:
                return None
            self._follow_clock(now_ns)
            current = self.planner.current
            if current is not None and now_ns >= current.end_ns:
                message = 'The last chunk has run out and the next is not ready.'
                return self._hold(HoldReason.INFERENCE_LATE, message, now_ns)
            if self._holding is not None:
                return None
            # Whether inputs agree in time matters when an observation is taken, not at every moment between.
            found = [each for each in self.observations.problems(now_ns) if each.hold is not InputFault.UNSYNCHRONIZED]
            if not found:
                return None
            message = ' '.join(problem.message for problem in found)
            return self._hold(HoldReason(found[0].hold.value), message, now_ns)

    # Details; callers hold the lock.

    def _due_ns(self) -> int:
        return self._cadence.due_ns(self.planner.current, self.planner.latency.expected_ns)

    def _follow_clock(self, now_ns: int) -> None:
        """The buffer has seen the clock jump: what was planned on the clock before is void."""
        if self.observations.epoch != self._clock_epoch:
            self._clock_epoch = self.observations.epoch
            self.epoch += 1
            self.planner.on_clock_jump()
            self._cadence.on_clock_jump(now_ns)

    def _not_ready(self, found: NotReady, due_ns: int, now_ns: int) -> Wait | Held:
        reason = HoldReason(found.hold.value)
        if self.planner.current is not None and self._cadence.forgives(reason, due_ns, now_ns):
            return Wait(now_ns + RETRY_NS, WakeOn.FRAME)
        return self._hold(reason, str(found), now_ns)

    def _failed(self, made: Failed, now_ns: int) -> Held:
        if made.reason is HoldReason.INVALID_ACTION:  # a chunk that is late, or a server that is away, comes back
            self._failures += 1
        if self._failures < FAILURE_LIMIT:
            return self._hold(made.reason, made.message, now_ns)
        self._forget_executed(now_ns)
        return self.fail(made.reason, f'{made.message} ({self._failures} times in a row)')

    def _hold(self, reason: HoldReason, message: str, now_ns: int) -> Held:
        """What was being executed is void, and so is a chunk that is being made on what was seen before."""
        news, self._holding = reason is not self._holding, reason
        if news and reason not in NOT_INPUTS:
            self.epoch += 1
        self._forget_executed(now_ns)
        return Held(reason, message, news)

    def _forget_executed(self, now_ns: int) -> None:
        self.planner.reset()
        self._cadence.ask(now_ns)
