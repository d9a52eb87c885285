"""A chunk with NaN is dropped as a whole; three in a row are a fault."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ki_msgs.msg import ActionChunk, PolicyStatus, SafetyEvent

from ki_robot.actions.chunk import ActionChunk as Chunk
from ki_robot.messages.arrays import from_chunk

pytestmark = pytest.mark.ros


class Policy:
    """The topics of a policy node, said by the test."""

    def __init__(self, rig) -> None:
        self.rig, self.count = rig, 0
        self.chunks = rig.node.create_publisher(ActionChunk, 'policy_node/action_chunk', 1)
        self.status = rig.node.create_publisher(PolicyStatus, 'policy_node/status', 1)
        rig.node.create_timer(0.02, lambda: self.status.publish(PolicyStatus(state=PolicyStatus.STATE_RUNNING)))

    def send(self, values, spoil=False):
        self.count += 1
        now_ns = self.rig.node.get_clock().now().nanoseconds
        names = self.rig.contract.action_names
        data = np.tile(values, (50, 1)) + np.linspace(0.0, 0.2, 50)[:, None] * [1.0, 1.0, 0.0, 0.0]
        message = from_chunk(Chunk(now_ns, 50_000_000, names, data, now_ns, self.count), ActionChunk())
        if spoil:
            message.data[40] = math.nan
        self.chunks.publish(message)


def test_a_chunk_with_nan_is_dropped_and_the_one_before_goes_on(rig):
    policy = Policy(rig)
    rig.start_executor()
    rig.until('the executor waits', lambda: rig.state == 'idle: waits for a chunk')
    rig.until('it listens', lambda: policy.chunks.get_subscription_count() > 1)
    policy.send([0.0, 0.0, 0.0, 0.0])
    rig.running()
    policy.send([0.0, 0.0, 0.0, 0.0], spoil=True)
    event = rig.until('an event', lambda: [e for _, e in rig.events if e.kind == SafetyEvent.KIND_NON_FINITE])[0]
    assert event.severity == SafetyEvent.SEVERITY_REJECTED
    assert 'nan in joint1/position at step 10' in event.message
    assert rig.state == 'run'

    for _ in range(3):
        policy.send([0.0, 0.0, 0.0, 0.0], spoil=True)
        count = policy.count
        rig.until('it has arrived', lambda count=count: rig.chunks and rig.chunks[-1][1].chunk_id == count)
    rig.until('fault', lambda: rig.state.startswith('fault'))
    for _, message in rig.commands['arm']:
        assert all(math.isfinite(value) for point in message.points for value in point.positions)
