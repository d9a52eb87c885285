"""A recorded bag through the code of the live node: what would the policy have done, and how far from what was done?

The cycle is the node's own (`ki_policy_node.cycle.policy_cycle`); only the clock is the bag's, and an inference takes a
stated time of it. The same bag, policy and seed give the same chunks. Letters: H steps, N columns.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ki_bags.reader import Bag, open_bag
from ki_policy_node.cycle.continuation import Planned, Planner, Timing
from ki_policy_node.cycle.instruction import checked_instruction
from ki_policy_node.cycle.policy_cycle import (
    FOREVER_NS,
    FRAME_WAIT_NS,
    Dropped,
    Held,
    Made,
    PolicyCycle,
    Ready,
    Wait,
    WakeOn,
)
from ki_policy_node.cycle.policy_types import Policy
from ki_policy_node.errors import NodeError
from ki_policy_node.replay.bag_clock import BagClock
from ki_policy_node.replay.bag_topics import match_topics
from ki_policy_node.replay.predictors import hold, velocity
from ki_policy_node.replay.recorded_commands import Recorded
from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of
from ki_robot.errors import Rejected
from ki_robot.messages.arrays import stamp_ns
from ki_robot.messages.images import Image
from ki_robot.observation.buffer import BufferSettings, ObservationBuffer
from ki_robot.observation.observation import Observation

STRIP_FRAMES = 8


@dataclass(frozen=True)
class ReplayOptions:
    """How a bag is replayed."""

    timing: Timing = field(default_factory=Timing)
    latency_ns: int = 100_000_000  # what an inference takes on the bag's clock
    frame_wait_ns: int = FRAME_WAIT_NS  # as the node's parameter frame_wait
    instruction: str = ''  # instead of the recorded ones
    remap: Mapping[str, str] = field(default_factory=dict)  # topic of the contract -> topic of the bag
    max_chunks: int = 0  # end after so many; 0: all


@dataclass(frozen=True, eq=False)
class ReplayedChunk:
    """One chunk: what it was made from, and the guesses it competes with."""

    planned: Planned
    observation_ns: int
    ages_ns: dict[str, int]
    instruction: str
    hold_N: Matrix  # the measured state carried on
    trend_N: Matrix  # its velocity, per second


@dataclass
class Replay:
    """Everything a report is made of."""

    bag: str
    contract: Contract
    policy_id: str
    backend: str
    options: ReplayOptions
    chunks: list[ReplayedChunk] = field(default_factory=list)
    recorded: Recorded | None = None
    received: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    holds: Counter[str] = field(default_factory=Counter)  # how often each reason began
    dropped: Counter[str] = field(default_factory=Counter)
    frames: list[tuple[int, dict[str, Image]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    begin_ns: int = 0
    end_ns: int = 0


def replay(path: str | Path, contract: Contract, policy: Policy, options: ReplayOptions) -> Replay:
    """Runs a policy over a bag.

    Args:
        path: A rosbag2 folder, .mcap or .db3.
        contract: The robot of the bag; the policy must fit it.
        policy: Warm; it is neither checked nor closed here.
        options: How.

    Raises:
        NodeError: a topic of the contract is not in the bag, or not one chunk could be made.
        BagError: the bag cannot be read.
    """
    bag = open_bag(path)
    run = ReplayRun(bag, contract, policy, options)
    for message in bag.messages(run.wanted):
        try:
            decoded = bag.decode(message)
        except Exception as error:  # damaged CDR raises nearly anything
            run.found.rejected.setdefault(message.topic, Counter())[f'cdr: {type(error).__name__}'] += 1
            continue
        run.take(message.topic, decoded, message.log_ns)
        if run.cycle.fault or (options.max_chunks and len(run.found.chunks) >= options.max_chunks):
            break
    return run.finish()


@dataclass(frozen=True, eq=False)
class _Inference:
    """An inference in progress."""

    made: Made
    observation: Observation
    begin_ns: int
    arrival_ns: int


class ReplayRun:
    """Drives the policy cycle on a bag's clock, one message after the other.

    Between two messages the node's own moments pass: a wait that ends, an inference that does.

    Args:
        bag: Where the messages come from.
        contract: The robot.
        policy: Warm.
        options: How.
    """

    def __init__(self, bag: Bag, contract: Contract, policy: Policy, options: ReplayOptions) -> None:
        planner = Planner(policy, options.timing)
        options = replace(options, timing=planner.timing)  # what was left to the bundle, settled
        self.found = Replay(str(bag.path), contract, policy.policy_id, policy.backend, options)
        self.found.recorded = Recorded(contract)
        self._bag, self._contract, self._options = bag, contract, options
        self._buffer = ObservationBuffer(
            contract,
            BufferSettings(require_instruction=policy.backend != 'commissioning'),
            picture_size=policy.picture_size,
        )
        self.cycle = PolicyCycle(contract, self._buffer, planner, frame_wait_ns=options.frame_wait_ns)
        if options.instruction:
            self.cycle.take_instruction(options.instruction, 'option', 0)
        self._wait = Wait(FOREVER_NS, WakeOn.MESSAGE)
        self._inference: _Inference | None = None
        self._now_ns = 0
        self._topics = match_topics(bag, contract, options.remap)
        self.wanted = {*self._topics.streams, *self._topics.outputs, *self._topics.texts, *self._topics.still}
        self._clock = BagClock(bag, contract, self._topics.streams)
        self._cameras = {camera.name for camera in contract.cameras}
        self._past: deque[tuple[int, Matrix]] = deque(maxlen=500)  # states by their time

    def take(self, topic: str, message: Any, log_ns: int) -> None:
        """One message of the bag, and whatever the node does until then and then."""
        self._clock.see(topic, message, log_ns)
        log_ns = self._clock.now(log_ns)
        if not self.found.begin_ns:
            self.found.begin_ns = log_ns
            self.cycle.begin(log_ns)
        self.advance(log_ns)
        self.found.end_ns = max(self.found.end_ns, log_ns)
        if topic in self._topics.outputs:
            self._command(topic, message, log_ns)
        for name in self._topics.still.get(topic, ()):
            self._buffer.push_static(name, message)
        looks = topic in self._topics.texts and self._hear(message, log_ns)
        if topic in self._topics.streams:
            for name in self._topics.streams[topic]:
                looks |= self._store(name, message, log_ns)
        self._watch(log_ns)
        if looks:
            self._look(log_ns)

    @property
    def thinks(self) -> bool:
        """Whether an inference is in progress."""
        return self._inference is not None

    def next_ns(self) -> int:
        """When the node does something by itself: the inference ends, or a wait does."""
        return self._wait.until_ns if self._inference is None else self._inference.arrival_ns

    def advance(self, now_ns: int) -> None:
        """Whatever the node does by itself until `now_ns`."""
        if now_ns < self._now_ns - self._buffer.settings.jump_ns:
            self.cycle.on_clock_jump(now_ns)
            self._arrive(now_ns)
        self._now_ns = now_ns
        while (moment_ns := self.next_ns()) <= now_ns:
            self._watch(moment_ns)
            self._arrive(moment_ns)
            self._look(moment_ns)

    def finish(self) -> Replay:
        """The result, once the bag is at its end."""
        found = self.found
        if self._inference is not None:
            self._arrive(self._inference.arrival_ns)
        for each in self._buffer.health(found.end_ns):
            found.received[each.name] = each.received
            if each.rejected:
                found.rejected[each.name] = Counter({str(reason): n for reason, n in each.rejected.items()})
        found.problems = [*(each.text for each in self._bag.problems), *self._clock.jumps]
        if self.cycle.fault:
            found.problems.append(f'The node would end the run in fault here: {self.cycle.fault}')
        if not found.chunks:
            why = ', '.join(f'{reason} ({count}x)' for reason, count in found.holds.most_common(3))
            why = why or ', '.join(found.dropped) or 'it holds no messages'
            raise NodeError(f'{found.bag} gave not one chunk: {why}.')
        return found

    # The cycle.

    def _look(self, now_ns: int) -> None:
        if self._inference is not None:
            return
        found = self.cycle.look(now_ns)
        self._wait = found if isinstance(found, Wait) else Wait(FOREVER_NS, WakeOn.MESSAGE)
        if isinstance(found, Held):
            self._hold(found)
        elif isinstance(found, Ready):
            arrival_ns = now_ns + self._options.latency_ns
            made = self.cycle.plan(found, lambda: arrival_ns)
            self._inference = _Inference(made, found.observation, now_ns, arrival_ns)
            if not self._options.latency_ns:
                self._arrive(now_ns)

    def _arrive(self, now_ns: int) -> None:
        """The inference in progress, if there is one, ends now."""
        inference, self._inference = self._inference, None
        if inference is None:
            return
        end = self.cycle.commit(inference.made, now_ns)
        if isinstance(end, Planned):
            self._keep(end, inference)
        elif isinstance(end, Dropped):
            self.found.dropped[end.message] += 1
        else:
            self._hold(end)
            self.found.dropped[end.message] += 1

    def _watch(self, now_ns: int) -> None:
        held = self.cycle.watch(now_ns)
        if held is not None:
            self._hold(held)

    def _hold(self, held: Held) -> None:
        if held.news:
            self.found.holds[str(held.reason)] += 1

    def _keep(self, planned: Planned, inference: _Inference) -> None:
        seen, now_ns = inference.observation, inference.begin_ns
        ages = {name: now_ns - stamp for name, stamp in seen.image_stamps_ns.items()}
        ages['state'] = now_ns - seen.state_stamp_ns
        hold_N = hold(self._contract, seen.state)
        self.found.chunks.append(
            ReplayedChunk(planned, seen.stamp_ns, ages, seen.instruction, hold_N, self._trend(seen))
        )
        self.found.frames.append((now_ns, {name: _small(image) for name, image in seen.images.items()}))

    # What arrives.

    def _store(self, name: str, message: Any, log_ns: int) -> bool:
        """Keeps a message of a stream; whether the node looks at it now."""
        usable, camera = self._buffer.push(name, message, log_ns), name in self._cameras
        if camera:
            self.cycle.on_frame(name, log_ns)
        elif usable:
            self._remember(message, log_ns)
        return self._wait.ends_with(camera, log_ns)

    def _hear(self, message: Any, log_ns: int) -> bool:
        """A recorded instruction, or the task of an episode; whether the node looks at it now."""
        if self._options.instruction or not words_of(message):
            return False
        try:
            text, _ = checked_instruction(words_of(message), '')
        except NodeError as error:
            self.found.dropped[str(error)] += 1
            return False
        self.cycle.take_instruction(text, str(getattr(message, 'id', '')), log_ns)
        return True

    def _command(self, topic: str, message: Any, log_ns: int) -> None:
        assert self.found.recorded is not None
        try:
            self.found.recorded.add(self._topics.outputs[topic], message, log_ns)
        except Rejected as error:
            self.found.rejected.setdefault(self._topics.outputs[topic].name, Counter())[str(error.reason)] += 1

    # What a chunk is compared with.

    def _trend(self, observation: Observation) -> Matrix:
        """Velocity of the measured positions, (N,); 0 where that is not known."""
        speeds = velocity(self._past, observation.state_stamp_ns)
        names, state = self._contract.action_names, self._contract.state_names
        trend_N = np.zeros(len(names))
        if speeds is not None:
            for column, speed in zip(state, speeds.tolist(), strict=True):
                if column in names and interface_of(column) == 'position':
                    trend_N[names.index(column)] = speed
        return trend_N

    def _remember(self, message: Any, log_ns: int) -> None:
        """Keeps a second of states, which a trend is taken from."""
        state = self._buffer.state(log_ns)
        if state is not None:
            self._past.append((stamp_ns(message.header) or log_ns, state))


def words_of(message: Any) -> str:
    """What an Instruction or an EpisodeMarker tells the robot to do."""
    return str(getattr(message, 'text', '') or getattr(message, 'task', ''))


def _small(image: Image) -> Image:
    """A thumbnail for the strip of the report."""
    import cv2

    height, width = image.shape[:2]
    scale = 160.0 / width
    small = cv2.resize(image, (160, max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
    return small.astype(np.uint8, copy=False)
