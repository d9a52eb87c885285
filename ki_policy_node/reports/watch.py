"""A look at a running stack from outside: what it says of itself, in numbers for one line; and its recorder's hand."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ki_msgs.action import RecordEpisode
from ki_msgs.msg import ActionChunk, PolicyStatus, SafetyEvent
from rclpy.action import ActionClient
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from ki_policy_node.common.ros import spin_once
from ki_policy_node.errors import NodeError
from ki_robot.messages.arrays import time_ns

NEWEST = QoSProfile(depth=1)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
PATIENCE_S = 20.0


@dataclass
class Seen:
    """What was seen of one episode so far.

    `age_ms`: from the stamp of its observation to the arrival of the newest chunk. `latency_ms`: of the last
    inference, 0 where nobody tells. `rates_hz`: of every recorded topic over the last second. `hold`: the last reason.
    """

    executor: str = ''
    chunks: int = 0
    age_ms: float = 0.0
    latency_ms: float = 0.0
    events: int = 0
    hold: str = ''
    rates_hz: dict[str, float] = field(default_factory=dict)


class Watch:
    """Listens on a node of its user, who spins it.

    Args:
        node: Where subscriptions are made, below its namespace.
    """

    def __init__(self, node: Any) -> None:
        self._node = node
        self.seen = Seen()
        self._recording = False
        node.create_subscription(ActionChunk, 'policy_node/action_chunk', self._on_chunk, NEWEST)
        node.create_subscription(PolicyStatus, 'policy_node/status', self._on_status, NEWEST)
        node.create_subscription(SafetyEvent, 'chunk_executor/safety_event', self._on_event, QoSProfile(depth=100))
        node.create_subscription(String, 'chunk_executor/state', self._on_state, LATCHED)
        self._recorder = ActionClient(node, RecordEpisode, 'recorder/record')

    def record(self, task: str, policy_id: str, topics: Iterable[str]) -> None:
        """Begins a recording, and returns when the recorder hears all of `topics`; ~/stop_recording ends it.

        Raises:
            NodeError: no recorder, it refuses, or topics that nobody publishes.
        """
        executor = self.seen.executor
        self.seen = Seen(executor)
        goal = RecordEpisode.Goal(task=task, policy_id=policy_id)
        if not self._recorder.wait_for_server(PATIENCE_S):
            raise NodeError(
                f'There is no recorder within {PATIENCE_S:g} s: start ki_policy_node.recorder.recorder_node.'
            )
        sent = self._recorder.send_goal_async(goal, self._on_feedback)
        wanted = {self._node.resolve_topic_name(topic) for topic in topics}
        end = time.monotonic() + PATIENCE_S
        # Feedback of the goal says that it was accepted, also where that answer was lost on the way.
        while not wanted <= set(self.seen.rates_hz):
            if sent.done() and not sent.result().accepted:
                raise NodeError('The recorder refuses: another episode is being recorded, stop that one first.')
            if time.monotonic() > end:
                missing = ', '.join(sorted(wanted - set(self.seen.rates_hz))) or 'the recorder'
                raise NodeError(f'Nothing was heard of {missing} within {PATIENCE_S:g} s.')
            spin_once(self._node, 0.05)
        self._recording = True

    def stop(self, port: Any, outcome: int) -> str:
        """Ends the recording with an EpisodeMarker outcome; the folder of its bag, empty when there is none.

        Args:
            port: Has `stop_recording(outcome)`, which returns the folder.
            outcome: EpisodeMarker.OUTCOME_*.
        """
        if not self._recording:
            return ''
        self._recording = False
        return str(port.stop_recording(outcome))

    def topic(self, name: str) -> str:
        """The full name of a relative topic, as `Seen.rates_hz` has it."""
        return str(self._node.resolve_topic_name(name))

    def _on_feedback(self, message: Any) -> None:
        self.seen.rates_hz = {each.key: each.rate for each in message.feedback.streams}

    def _on_chunk(self, message: Any) -> None:
        self.seen.chunks += 1
        self.seen.age_ms = (self._node.get_clock().now().nanoseconds - time_ns(message.observation_stamp)) / 1e6

    def _on_status(self, message: Any) -> None:
        self.seen.latency_ms = time_ns(message.inference_time) / 1e6
        if message.state in (PolicyStatus.STATE_HOLDING, PolicyStatus.STATE_FAULT):
            self.seen.hold = message.message

    def _on_event(self, _: Any) -> None:
        self.seen.events += 1

    def _on_state(self, message: Any) -> None:
        state, _, reason = message.data.partition(': ')
        self.seen.executor = state
        if state in ('hold', 'fault', 'idle') and self.seen.chunks:
            self.seen.hold = reason
