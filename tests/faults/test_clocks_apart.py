"""The clock of the policy's machine is ahead: how far is measured and told, and a chunk is judged by our clock."""

from __future__ import annotations

import numpy as np
import pytest
from ki_msgs.msg import ActionChunk, ExecutorStatus, PolicyStatus

from ki_robot.actions.chunk import ActionChunk as Chunk
from ki_robot.messages.arrays import from_chunk, set_time, stamp_ns

pytestmark = pytest.mark.ros
AHEAD_NS = 200_000_000


def test_clocks_that_are_apart_are_measured_and_told(rig):
    chunks = rig.node.create_publisher(ActionChunk, 'policy_node/action_chunk', 1)
    statuses = rig.node.create_publisher(PolicyStatus, 'policy_node/status', 1)
    lags: list[int] = []

    def now_there_ns() -> int:
        return rig.node.get_clock().now().nanoseconds + AHEAD_NS

    def status() -> None:
        message = PolicyStatus(state=PolicyStatus.STATE_RUNNING, executor_heard=bool(lags))
        set_time(message.header.stamp, now_there_ns())
        set_time(message.executor_lag, min(lags, default=0))
        statuses.publish(message)

    told: list[ExecutorStatus] = []

    def on_executor(message: ExecutorStatus) -> None:
        lags.append(now_there_ns() - stamp_ns(message.header))
        told.append(message)

    rig.node.create_subscription(ExecutorStatus, 'chunk_executor/status', on_executor, 10)
    rig.node.create_timer(0.02, status)
    rig.start_executor()
    rig.until(
        'it is told', lambda: any("The policy's clock is 0." in text and 'ahead of' in text for text in lines(rig))
    )
    found_s = [message.policy_clock_ahead.nanosec / 1e9 for message in told if message.policy_clock_ahead.nanosec]
    assert found_s[-1] == pytest.approx(0.2, abs=0.05)

    names = rig.contract.action_names
    ahead = Chunk(now_there_ns(), 50_000_000, names, np.zeros((50, len(names))), now_there_ns(), 1)
    chunks.publish(from_chunk(ahead, ActionChunk()))
    rig.until('the chunk is judged by our clock', lambda: 'in the future' in rig.state)


def lines(rig) -> list[str]:
    """What /diagnostics said."""
    return [status.message for _, array in list(rig.diagnostics) for status in array.status]
