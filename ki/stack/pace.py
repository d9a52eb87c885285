"""Whether this machine keeps up with real time, and how slowly the simulator is to go where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ki_robot.messages.arrays import time_ns

LEAST_FACTOR = 0.9  # simulated seconds a second: below, cameras and controllers fall behind
MOST_LATENESS = 1.0  # of the executor's ticks, p99, in control steps
MOST_LATENCY = 10.0  # of an inference, in control steps: beyond what policies are trained to bridge
SPEEDS = (0.5, 0.25)  # of real time, for a simulator that others have to keep up with
SHARE = 0.75  # of each limit that a slower simulator may use


@dataclass(frozen=True)
class Load:
    """What real time asked of the machine during an episode.

    Attributes:
        factor: Median of the simulator's real-time factor.
        lateness: p99 of the executor's ticks, in control steps.
        latency: Median of the inferences, in control steps.
        missed: Whether an inference took longer than a chunk lasts.
    """

    factor: float = 1.0
    lateness: float = 0.0
    latency: float = 0.0
    missed: bool = False

    @property
    def too_slow(self) -> str:
        """Why the machine does not keep up, as the beginning of a sentence; empty where it does."""
        said = []
        if self.factor < LEAST_FACTOR:
            said.append(f'a second of simulation took {1 / max(self.factor, 1e-3):.1f} s')
        if self.lateness > MOST_LATENESS:
            said.append(f'the executor was up to {self.lateness:.1f} control steps late')
        if self.latency > MOST_LATENCY:
            said.append(f'an inference took {self.latency:.0f} control steps')
        elif self.missed:
            said.append('an inference took longer than a chunk lasts')
        return ', '.join(said)

    @property
    def speed(self) -> float:
        """How fast the simulator may go, in parts of real time."""
        need = max(LEAST_FACTOR / max(self.factor, 1e-3), self.lateness / MOST_LATENESS, self.latency / MOST_LATENCY)
        fitting = [] if self.missed else [speed for speed in SPEEDS if speed * need <= SHARE]
        return fitting[0] if fitting else SPEEDS[-1]


class LoadMeter:
    """Listens to the simulator, the executor and the policy node, on a node that its user spins.

    Args:
        node: Where subscriptions are made, below its namespace.
        step_ns: One control step.
    """

    def __init__(self, node: Any, step_ns: int) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from ki_msgs.msg import PolicyStatus
        from std_msgs.msg import Float32

        self._step_ms, self._published = step_ns / 1e6, 0
        self.begin()
        node.create_subscription(Float32, 'sim_robot/real_time_factor', self._on_factor, 10)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        node.create_subscription(PolicyStatus, 'policy_node/status', self._on_status, 10)

    def begin(self) -> None:
        """Another episode begins."""
        self._factors: list[float] = []
        self._latencies_ms: list[float] = []
        self._lateness_ms = 0.0
        self._missed = False

    def load(self) -> Load:
        """What was measured since."""
        factor = float(np.median(self._factors)) if self._factors else 1.0
        latency_ms = float(np.median(self._latencies_ms)) if self._latencies_ms else 0.0
        return Load(factor, self._lateness_ms / self._step_ms, latency_ms / self._step_ms, self._missed)

    def _on_factor(self, message: Any) -> None:
        self._factors.append(message.data)

    def _on_diagnostics(self, message: Any) -> None:
        for line in message.status:
            if line.name.endswith('chunk_executor: commands'):
                values = {each.key: each.value for each in line.values}
                self._lateness_ms = float(values.get('lateness p99 [ms]', self._lateness_ms))

    def _on_status(self, message: Any) -> None:
        stopped = message.state in (message.STATE_HOLDING, message.STATE_FAULT)
        if stopped and message.hold_reason == message.HOLD_INFERENCE_LATE:
            self._missed = True
        if message.chunks_published != self._published and time_ns(message.inference_time):
            self._published = message.chunks_published
            self._latencies_ms.append(time_ns(message.inference_time) / 1e6)
