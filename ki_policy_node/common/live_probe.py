"""Listens to a live robot as the policy node does: states, images and the health of every stream.

The same subscriptions and the same buffer as the node's, and nothing is published. States that cannot be true are kept:
what is wrong with them is what one wants to see.
Letters: T moments, S state columns.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.parameter import Parameter

from ki_policy_node.common import ros
from ki_policy_node.common.process import make_executor
from ki_policy_node.common.streams import subscribe
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Output
from ki_robot.messages.images import Image
from ki_robot.observation.buffer import BufferSettings, ObservationBuffer
from ki_robot.observation.observation import Observation, StreamReport

PICTURE_S = 1.0  # between the pictures that are decoded
SETTLE_S = 1.0  # at most so long are cameras waited for once the states are there


@dataclass(frozen=True)
class ProbeResult:
    """What a robot showed for a while.

    Attributes:
        states_TS: float64, SI, one row per step of the contract in which every state stream was fresh.
        images: A few pictures of each camera, uint8 (h, w, 3).
        moments: How often an observation was asked for, and `blind`: how often which stream stood in the way.
        health: Every stream at the end, as the node's status shows it.
        rates_hz: Mean rate of every stream that sent something.
        seconds: How long it was listened to.
        listeners: Output of the contract -> how many nodes take its commands.
    """

    states_TS: NDArray[np.float64]
    images: Mapping[str, list[Image]]
    moments: int
    blind: Mapping[str, int]
    health: tuple[StreamReport, ...]
    rates_hz: Mapping[str, float]
    seconds: float
    listeners: Mapping[str, int]


def listen(
    contract: Contract, seconds: float = 5.0, wait_s: float = 5.0, namespace: str = '', sim_time: bool = False
) -> ProbeResult:
    """Listens to the streams of a contract; Ctrl-C ends it early.

    Args:
        contract: The robot.
        seconds: For how long, from when every state stream was heard.
        wait_s: How long that may take; where it takes longer, what came until then is told.
        namespace: Of the robot's topics.
        sim_time: Stamps are of a simulator's /clock.
    """
    options: dict[str, Any] = {'enable_rosout': False, 'start_parameter_services': False}
    if namespace:
        options['namespace'] = namespace
    if sim_time:
        options['parameter_overrides'] = [Parameter('use_sim_time', value=True)]
    with ros.node('ki_doctor', **options) as node:
        ear = _Ear(node, contract)
        executor = make_executor()
        executor.add_node(node)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                if ear.wait(executor, wait_s):
                    ear.listen(executor, seconds)
        finally:
            executor.remove_node(node)
            executor.shutdown()
        return ear.heard()


class _Ear:
    """The node's inputs and what is kept of them."""

    def __init__(self, node: Any, contract: Contract) -> None:
        self._node, self._contract = node, contract
        self._buffer = ObservationBuffer(contract, BufferSettings(require_instruction=False, plausible_only=False))
        self._rows: list[NDArray[np.float64]] = []
        self._images: defaultdict[str, list[Image]] = defaultdict(list)
        self._blind: Counter[str] = Counter()
        self._moments = 0
        self._seconds = 0.0
        self._before: Counter[str] = Counter()
        for stream in contract.streams:
            subscribe(node, stream, self._store(stream.name), partial(self._buffer.push_static, stream.name))

    def wait(self, executor: Any, wait_s: float) -> bool:
        """Whether all states were heard in time; cameras get a little longer to be found."""
        end = time.monotonic() + wait_s
        while self._buffer.state(self._now_ns()) is None and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
        if self._buffer.state(self._now_ns()) is None:
            return False
        end = min(time.monotonic() + SETTLE_S, max(end, time.monotonic()))
        while self._buffer.problems(self._now_ns()) and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
        return True

    def listen(self, executor: Any, seconds: float) -> None:
        """Takes a state every step of the contract, and a picture every second."""
        self._before = Counter({each.name: each.received for each in self._buffer.health(self._now_ns())})
        begin = time.monotonic()
        step_s, look = self._contract.step_ns / 1e9, begin
        due = begin + step_s
        try:
            while (now := time.monotonic()) < begin + seconds:
                if now < due:
                    executor.spin_once(timeout_sec=due - now)
                    continue
                due = max(due + step_s, now)
                self._take(now >= look)
                look = now + PICTURE_S if now >= look else look
        finally:
            self._seconds = time.monotonic() - begin

    def heard(self) -> ProbeResult:
        """Everything so far."""
        health = self._buffer.health(self._now_ns())
        rates = {each.name: (each.received - self._before[each.name]) / max(self._seconds, 1e-9) for each in health}
        return ProbeResult(
            states_TS=np.stack(self._rows) if self._rows else np.zeros((0, len(self._contract.state))),
            images=self._images,
            moments=self._moments,
            blind=self._blind,
            health=health,
            rates_hz={name: rate for name, rate in rates.items() if self._seconds and rate},
            seconds=self._seconds,
            listeners={each.name: self._listeners(each) for each in self._contract.outputs},
        )

    def _listeners(self, output: Output) -> int:
        if output.options.interface in ('gripper_command', 'parallel_gripper_command'):
            return int(self._node.count_publishers(f'{output.topic}/_action/status'))
        return int(self._node.count_subscribers(output.topic))

    def _take(self, look: bool) -> None:
        now_ns = self._now_ns()
        self._moments += 1
        # States are taken whether or not cameras work.
        state_S = self._buffer.state(now_ns)
        if state_S is not None:
            self._rows.append(state_S)
        # Every reason once: a stream may be named by several.
        self._blind.update({problem.stream for problem in self._buffer.problems(now_ns)})
        if look:
            seen = self._buffer.sample(now_ns)
            if isinstance(seen, Observation):
                for name, image in seen.images.items():
                    self._images[name].append(image)

    def _store(self, name: str) -> Any:
        def store(message: Any) -> None:
            self._buffer.push(name, message, self._now_ns())

        return store

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)
