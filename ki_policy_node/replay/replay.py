"""A recorded bag through the code of the live node: what would the policy have done, and how far from what was done?

Messages, observations, cadence, inference and joining of chunks are those of the node; only the clock is the bag's, and
an inference takes a stated time of it. The same bag, policy and seed give the same chunks. Letters: H steps, N columns.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ki_bags.reader import Bag, open_bag
from ki_policy_node.common.streams import joint_columns
from ki_policy_node.errors import NodeError
from ki_policy_node.policy.inference import Cadence, InvalidActionError, Planned, Planner, Policy, Timing, TooLateError
from ki_policy_node.replay.bag_topics import match_topics
from ki_policy_node.replay.predictors import hold, velocity
from ki_policy_node.replay.recorded_commands import Recorded
from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of
from ki_robot.errors import Rejected
from ki_robot.messages.arrays import joint_values, stamp_ns
from ki_robot.observation.buffer import ObservationBuffer, Settings
from ki_robot.observation.observation import NotReady, Observation

STRIP_FRAMES = 8


@dataclass(frozen=True)
class Options:
    """How a bag is replayed.

    latency_ns: what an inference takes on the bag's clock. instruction: instead of the recorded one. remap: topic of
    the contract -> topic of the bag. max_chunks: end after so many, 0 for all. frame_wait_ns: as the node's parameter.
    """

    timing: Timing = field(default_factory=Timing)
    latency_ns: int = 100_000_000
    frame_wait_ns: int = 50_000_000
    instruction: str = ''
    remap: Mapping[str, str] = field(default_factory=dict)
    max_chunks: int = 0


@dataclass(frozen=True, eq=False)
class Cycle:
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
    options: Options
    cycles: list[Cycle] = field(default_factory=list)
    recorded: Recorded | None = None
    received: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    holds: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    frames: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    begin_ns: int = 0
    end_ns: int = 0


def replay(path: str | Path, contract: Contract, policy: Policy, options: Options) -> Replay:
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
    run = _Run(bag, contract, policy, options)
    for message in bag.messages(run.wanted):
        try:
            decoded = bag.decode(message)
        except Exception as error:  # damaged CDR raises nearly anything
            run.found.rejected.setdefault(message.topic, Counter())[f'cdr: {type(error).__name__}'] += 1
            continue
        run.take(message.topic, decoded, message.log_ns)
        if options.max_chunks and len(run.found.cycles) >= options.max_chunks:
            break
    return run.finish()


class _Run:
    """The node's cycle on a bag's clock."""

    def __init__(self, bag: Bag, contract: Contract, policy: Policy, options: Options) -> None:
        self.found = Replay(str(bag.path), contract, policy.policy_id, policy.backend, options)
        self.found.recorded = Recorded(contract)
        self._bag, self._contract, self._options = bag, contract, options
        self._buffer = ObservationBuffer(contract, Settings(require_instruction=policy.backend != 'commissioning'))
        self._buffer.set_instruction(options.instruction, 'option' if options.instruction else '')
        self._planner = Planner(policy, options.timing)
        self._cadence = Cadence(contract, options.frame_wait_ns)
        self._busy_until_ns = 0
        self._epoch = self._buffer_epoch = 0
        self._instruction = options.instruction
        self._topics = match_topics(bag, contract, options.remap)
        self.wanted = {*self._topics.streams, *self._topics.outputs, *self._topics.texts}
        self._cameras = {camera.name for camera in contract.cameras}
        self._past: dict[str, deque[tuple[int, Matrix]]] = defaultdict(lambda: deque(maxlen=500))

    def take(self, topic: str, message: Any, log_ns: int) -> None:
        """One message of the bag, and whatever the node would do now."""
        self.found.begin_ns = self.found.begin_ns or log_ns
        self.found.end_ns = max(self.found.end_ns, log_ns)
        if topic in self._topics.texts:
            self._hear(message)
        elif topic in self._topics.outputs:
            self._command(topic, message, log_ns)
        if topic in self._topics.streams:
            name = self._topics.streams[topic]
            usable = self._buffer.push(name, message, log_ns)
            if name in self._cameras:
                self._cadence.on_frame(name)
            elif usable:
                self._remember(name, message, log_ns)
        if log_ns >= self._busy_until_ns:
            self._cycle(log_ns)

    def finish(self) -> Replay:
        """The result, once the bag is at its end."""
        found = self.found
        for each in self._buffer.health(found.end_ns):
            found.received[each.name] = each.received
            if each.rejected:
                found.rejected[each.name] = Counter({str(reason): n for reason, n in each.rejected.items()})
        found.problems = [str(problem) for problem in self._bag.problems]
        if not found.cycles:
            why = ', '.join(f'{reason} ({count}x)' for reason, count in found.holds.most_common(3))
            why = why or ', '.join(found.dropped) or 'it holds no messages'
            raise NodeError(f'{found.bag} gave not one chunk: {why}.')
        return found

    def _cycle(self, now_ns: int) -> None:
        if self._buffer.epoch != self._buffer_epoch:
            self._buffer_epoch = self._buffer.epoch
            self._epoch += 1
            self._planner.reset()
        if now_ns < self._planner.due_ns():
            self._cadence.reset()
            return
        if self._cadence.wait(now_ns):
            return
        observation = self._buffer.sample(now_ns)
        if isinstance(observation, NotReady):
            self.found.holds[str(observation.hold)] += 1
            if self._planner.current is None or not self._cadence.forgives(observation.hold, now_ns):
                self._planner.reset()
            return
        self._cadence.reset()
        self._plan(observation, now_ns)

    def _plan(self, observation: Observation, now_ns: int) -> None:
        arrival_ns = now_ns + self._options.latency_ns
        try:
            planned = self._planner.plan(observation, self._epoch, lambda: arrival_ns)
        except (InvalidActionError, TooLateError) as error:
            self.found.dropped[str(error)] += 1
            self._planner.reset()
            return
        self._planner.commit(planned)
        self._busy_until_ns = arrival_ns
        hold_N = hold(self._contract, observation.state)
        ages = {name: now_ns - stamp for name, stamp in observation.image_stamps_ns.items()}
        ages['state'] = now_ns - observation.state_stamp_ns
        cycle = Cycle(planned, observation.stamp_ns, ages, observation.instruction, hold_N, self._trend(observation))
        self.found.cycles.append(cycle)
        self.found.frames.append((now_ns, {name: _small(image) for name, image in observation.images.items()}))

    def _trend(self, observation: Observation) -> Matrix:
        """Velocity of the measured positions, (N,); 0 where that is not known."""
        names = self._contract.action_names
        trend_N = np.zeros(len(names))
        for stream in self._contract.state_streams:
            speeds = velocity(self._past[stream.name], observation.state_stamp_ns)
            if speeds is None:
                continue
            for column, speed in zip(joint_columns(self._contract, stream), speeds, strict=True):
                if column in names and interface_of(column) == 'position':
                    trend_N[names.index(column)] = speed
        return trend_N

    def _remember(self, name: str, message: Any, log_ns: int) -> None:
        """Keeps a second of a state stream, which a trend is taken from."""
        stream = next(each for each in self._contract.state_streams if each.name == name)
        if stream.type == 'joint_state':
            values = joint_values(message, joint_columns(self._contract, stream), stream.prefix, stream.extra_joints)
            self._past[name].append((stamp_ns(message.header) or log_ns, values))

    def _hear(self, message: Any) -> None:
        """A recorded instruction, or the task of an episode."""
        text = words_of(message)
        if not self._options.instruction and text and text != self._instruction:
            self._instruction = text
            self._epoch += 1
            self._buffer.set_instruction(text, str(getattr(message, 'id', '')))

    def _command(self, topic: str, message: Any, log_ns: int) -> None:
        assert self.found.recorded is not None
        try:
            self.found.recorded.add(self._topics.outputs[topic], message, log_ns)
        except Rejected as error:
            self.found.rejected.setdefault(self._topics.outputs[topic].name, Counter())[str(error.reason)] += 1


def words_of(message: Any) -> str:
    """What an Instruction or an EpisodeMarker tells the robot to do."""
    return str(getattr(message, 'text', '') or getattr(message, 'task', ''))


def _small(image: np.ndarray) -> np.ndarray:
    """A thumbnail for the strip of the report."""
    import cv2

    height, width = image.shape[:2]
    scale = 160.0 / width
    return cv2.resize(image, (160, max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
