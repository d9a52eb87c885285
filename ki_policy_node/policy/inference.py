"""From one observation to one chunk, on time: what a policy is, how its chunks join, and the thread that owns it.

`Planner` reads no clock and knows no ROS: the node and the replay of a bag run the same one.
Letters: H steps of a chunk, N columns, K steps of the old chunk that reach into the new one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ki_policy_node.errors import NodeError
from ki_policy_node.policy.settings import MODES
from ki_robot.actions.chunk import ActionChunk, Matrix, enqueue, ensemble, rows_at, slice_steps, splice
from ki_robot.contract.contract import Contract
from ki_robot.errors import RobotError
from ki_robot.observation.observation import Hold, Observation

LATENCIES = 10  # the delay is the largest of the last so many
ENSEMBLE_CHUNKS = 8
STARVED_NS = 300_000_000  # how long a due chunk may wait for inputs that agree in time


@dataclass(frozen=True)
class Inferred:
    """What a policy returns: H x N absolute SI values whose step 0 is at the observation, and wall times [ns]."""

    data_HN: Matrix
    preprocess_ns: int = 0
    inference_ns: int = 0
    postprocess_ns: int = 0


class Policy(Protocol):
    """A policy as the node sees it. All calls come from one thread."""

    policy_id: str
    backend: str
    contract: Contract

    def warm_up(self) -> None:
        """Runs often enough that the next inference is as fast as any."""
        ...

    def infer(self, observation: Observation, prefix_KN: Matrix | None, delay_steps: int, epoch: int) -> Inferred:
        """One chunk.

        Args:
            observation: What the robot sees and where it is.
            prefix_KN: The chunk that is being executed, absolute, at the times of the new chunk's first K steps; its
                first `delay_steps` rows will have been executed when the new chunk is there. None when nothing is
                executed.
            delay_steps: How many steps the inference is expected to take.
            epoch: Changes with the instruction, the clock and the run; state kept from another epoch is void.
        """
        ...

    def close(self) -> None:
        """Frees the engine."""
        ...


@dataclass(frozen=True)
class Timing:
    """How chunks follow each other.

    mode: `latest`: the new chunk takes over as soon as it is there, its late part skipped. `queue`: `execute_steps`
    of each chunk are executed, then the next one begins with its first step, however old (open loop).
    `temporal_ensemble`: every step is the mean over the chunks that cover it, weighted exp(-coefficient * i) from
    the oldest on (ACT). `rtc`: the policy itself continues the old chunk, whose first `delay` steps are fixed.

    Raises:
        NodeError: no such mode, or no step to execute.
    """

    mode: str = 'rtc'
    execute_steps: int = 25
    ensemble_coefficient: float = 0.01

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise NodeError(f'mode is {self.mode!r}; write one of {", ".join(MODES)}.')
        if self.execute_steps < 1:
            raise NodeError(f'execute_steps is {self.execute_steps}; write a number from 1.')


@dataclass(frozen=True)
class Seam:
    """What the step from the old chunk to the new one asks of the robot, per column, N each."""

    position_jump_N: Matrix
    velocity_jump_N: Matrix


@dataclass(frozen=True)
class Planned:
    """One finished cycle: the chunk to publish, and how it came about."""

    chunk: ActionChunk
    raw: ActionChunk
    inferred: Inferred
    epoch: int
    expected_delay: int
    delay: int
    seam: Seam | None


class Planner:
    """Turns observations into chunks that join on to what is being executed.

    Args:
        policy: Whose chunks.
        timing: How they join.

    Raises:
        NodeError: `execute_steps` does not leave room in the policy's horizon.
    """

    def __init__(self, policy: Policy, timing: Timing) -> None:
        horizon = policy.contract.horizon
        if not 0 < timing.execute_steps < horizon:
            raise NodeError(
                f'Parameter execute_steps is {timing.execute_steps}; write a number from 1 to {horizon - 1}, '
                f'below the horizon of {policy.policy_id}.'
            )
        self.policy = policy
        self.timing = timing
        self._step_ns = policy.contract.step_ns
        self._latencies_ns: deque[int] = deque(maxlen=LATENCIES)
        self._recent: deque[ActionChunk] = deque(maxlen=ENSEMBLE_CHUNKS)
        self._cold = True
        self._count = 0
        self._epoch = -1
        self.current: ActionChunk | None = None

    def reset(self) -> None:
        """Forgets what is being executed: after a hold, a stop, a jump of the clock. Latencies are kept."""
        self.current = None
        self._recent.clear()

    def restart(self) -> None:
        """Begins a run: chunks count from 1 again."""
        self.reset()
        self._count = 0

    @property
    def expected_latency_ns(self) -> int:
        """From the state's stamp to the published chunk: the largest of late."""
        return max(self._latencies_ns, default=0)

    def expected_delay(self) -> int:
        """The same in steps, rounded up; 0 while nothing is executed."""
        return -(-self.expected_latency_ns // self._step_ns) if self.current is not None else 0

    def due_ns(self) -> int:
        """When the next observation should be taken; 0 when at once."""
        if self.current is None:
            return 0
        steps = self.current.frozen_prefix if self.timing.mode == 'queue' else 0
        due = self.current.start_ns + (steps + self.timing.execute_steps) * self._step_ns
        return due - self.expected_latency_ns if self.timing.mode == 'queue' else due

    def plan(self, observation: Observation, epoch: int, now_ns: Callable[[], int]) -> Planned:
        """One chunk for one observation; nothing changes here until it is committed.

        Step 0 belongs to the time of the measured state: that is what deltas are added to, and how a training sample
        pairs state and actions.

        Args:
            observation: What to plan on.
            epoch: Handed to the policy and back.
            now_ns: The clock that the observation's stamps are on.

        Raises:
            InvalidActionError: values that are not finite, or of the wrong shape.
            TooLateError: every step was past when the policy was done.
        """
        contract, start_ns = self.policy.contract, observation.state_stamp_ns
        names, horizon = contract.action_names, contract.horizon
        old = self.current if self.current is not None and self.current.end_ns > start_ns else None
        expected = min(self.expected_delay(), horizon - 1) if old is not None else 0
        prefix_KN = rows_at(old, names, start_ns, self._step_ns, horizon) if old is not None else None
        if prefix_KN is not None and epoch != self._epoch:
            # What the old instruction wanted later must not pull the new chunk; what is executed meanwhile is fact.
            prefix_KN = prefix_KN[:expected]
        if prefix_KN is not None and not len(prefix_KN):
            prefix_KN, expected = None, 0
        inferred = self.policy.infer(observation, prefix_KN, expected, epoch)
        raw = self._checked(inferred, observation)
        arrived_ns = now_ns()
        self._learn(arrived_ns - start_ns)
        delay = max(0, -(-(arrived_ns - start_ns) // self._step_ns))
        if delay >= horizon:
            raise TooLateError(
                f'The inference took {(arrived_ns - start_ns) / 1e9:.2f} s, longer than the chunk of '
                f'{horizon * self._step_ns / 1e9:.2f} s lasts.'
            )
        chunk = self._join(old, raw, delay, arrived_ns)
        seam = seam_between(old, chunk, arrived_ns) if old is not None else None
        return Planned(chunk, raw, inferred, epoch, expected, delay, seam)

    def commit(self, planned: Planned) -> None:
        """The chunk goes out: the next one will join on to it."""
        self._count = planned.chunk.chunk_id
        self._epoch = planned.epoch
        self._recent.append(planned.raw)
        self.current = planned.chunk

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

    def _learn(self, latency_ns: int) -> None:
        """The first inference of a policy is cold: it must not make every later one start from the far future."""
        if self._cold:
            self._cold = False
        else:
            self._latencies_ns.append(max(0, latency_ns))

    def _join(self, old: ActionChunk | None, raw: ActionChunk, delay: int, now_ns: int) -> ActionChunk:
        """What is executed from now on: exactly H steps, the late ones as they were executed."""
        mode = self.timing.mode
        if mode == 'queue':
            committed = None
            if old is not None:
                committed = slice_steps(old, 0, old.frozen_prefix + self.timing.execute_steps)
            joined = enqueue(committed, raw, now_ns)
            frozen = joined.horizon - raw.horizon
            cut = slice_steps(joined, 0, raw.horizon)
            assert cut is not None
            return replace(cut, frozen_prefix=min(frozen, raw.horizon - 1))
        if mode == 'temporal_ensemble':
            data_HN = ensemble(self._recent, raw, self.timing.ensemble_coefficient).data_HN
            raw = replace(raw, data_HN=data_HN)
        if mode == 'latest' or old is None:
            return raw
        # Mid-step of the old chunk is where its interpolation has brought the robot: seamless up to the delay.
        joined = splice(old, raw, delay)
        return joined if joined.horizon == raw.horizon else raw


class Cadence:
    """When to take the next observation: when a chunk is due, and then as soon as the view is complete.

    Sampling right after the last camera has spoken spares half a frame period of age on average. Times of one clock
    are passed in: the steady one by the node, the bag's by a replay.

    Args:
        contract: Whose required cameras are waited for.
        wait_ns: The longest wait for them.
    """

    def __init__(self, contract: Contract, wait_ns: int) -> None:
        self._required = {camera.name for camera in contract.cameras if camera.required}
        self._wait_ns = wait_ns
        self._since_ns: int | None = None
        self._seen: set[str] = set()

    def on_frame(self, camera: str) -> None:
        """A frame has arrived."""
        self._seen.add(camera)

    @property
    def seen(self) -> tuple[str, ...]:
        """Cameras that have spoken since a chunk is due."""
        return tuple(self._seen)

    def reset(self) -> None:
        """The observation is taken, or nothing is due any more."""
        self._since_ns = None

    def wait(self, now_ns: int) -> int:
        """How long to wait for the view at most, once a chunk is due; 0 when it is time."""
        if self._since_ns is None or now_ns < self._since_ns:
            self._since_ns = now_ns
            self._seen.clear()
        if self._required <= self._seen:
            return 0
        return max(0, self._wait_ns - (now_ns - self._since_ns))

    def forgives(self, hold: Hold, now_ns: int) -> bool:
        """Whether to try again instead of holding: inputs that are only out of step may be in step a frame later."""
        return hold is Hold.UNSYNCHRONIZED and self._since_ns is not None and now_ns - self._since_ns < STARVED_NS


class InvalidActionError(NodeError):
    """The policy returned something that no robot may execute."""


class TooLateError(NodeError):
    """The chunk was past before it was there."""


def seam_between(old: ActionChunk, new: ActionChunk, now_ns: int) -> Seam | None:
    """Jump of value and of velocity where the robot leaves `old` for `new` at `now_ns`; None past either's end."""
    step = new.step_ns
    before = rows_at(old, old.names, now_ns - step, step, 2)
    after = rows_at(new, old.names, now_ns, step, 2)
    if len(before) < 2 or len(after) < 2:
        return None
    velocity_N = ((after[1] - after[0]) - (before[1] - before[0])) / (step / 1e9)
    return Seam(after[0] - before[1], velocity_N)


class InferenceThread:
    """The one thread that owns the engine.

    It runs `cycle` whenever it is awake and `active`; `call` has something else run in it (loading, warming up: an
    engine's graphs belong to the thread that made them). `cycle` returns how long to sleep until the next one [s]; an
    arriving message cuts the sleep short.

    Args:
        cycle: One look at the world; must not raise.
    """

    def __init__(self, cycle: Callable[[], float]) -> None:
        self._cycle = cycle
        self._wake = threading.Event()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closed = False
        self.active = False
        self.wants_messages = False
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Ends the present sleep."""
        self._wake.set()

    def on_message(self) -> None:
        """A message has been stored; wakes the thread only if it waits for one."""
        if self.wants_messages:
            self._wake.set()

    def call(self, function: Callable[[], Any], timeout_s: float | None = None) -> Any:
        """Runs `function` in the thread, after the cycle in progress, and returns what it returns or raises."""
        future: Future[Any] = Future()
        self._calls.append((function, future))
        self._wake.set()
        return future.result(timeout_s)

    def close(self, timeout_s: float = 1.0) -> bool:
        """Ends the thread after the cycle in progress; False when that takes longer than `timeout_s`."""
        self._closed = True
        self.active = False
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = 0.05
        while not self._closed:
            self._wake.wait(pause)
            self._wake.clear()
            while self._calls:
                function, future = self._calls.popleft()
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            pause = self._cycle() if self.active else 0.05
