"""Chunks that are dated wrongly are refused, one by one and by name; a good one after them is followed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from ki_msgs.msg import ActionChunk, PolicyStatus

from ki_robot.actions.chunk import ActionChunk as Chunk
from ki_robot.messages.arrays import MAX_ID, from_chunk

pytestmark = pytest.mark.ros
SECOND = 1_000_000_000


def test_a_chunk_of_another_time_or_form_is_refused_by_name(rig):
    chunks = rig.node.create_publisher(ActionChunk, 'policy_node/action_chunk', 1)
    status = rig.node.create_publisher(PolicyStatus, 'policy_node/status', 1)
    rig.node.create_timer(0.02, lambda: status.publish(PolicyStatus(state=PolicyStatus.STATE_RUNNING)))
    rig.start_executor()
    rig.until('the executor waits', lambda: rig.state == 'idle: waits for a chunk')
    rig.until('it listens', lambda: chunks.get_subscription_count() > 1)
    names = rig.contract.action_names
    count = 0

    def send(start_s: float = 0.0, seen_s: float = 0.0, step_ns: int = 50_000_000, **fields: str) -> int:
        nonlocal count
        count += 1
        now_ns = rig.node.get_clock().now().nanoseconds
        data = np.zeros((50, len(names)))
        data[:, 0] = np.linspace(0.0, 0.2, 50)
        start_ns, seen_ns = now_ns + round(start_s * SECOND), now_ns + round(seen_s * SECOND)
        chunks.publish(from_chunk(Chunk(start_ns, step_ns, names, data, seen_ns, count, **fields), ActionChunk()))
        return count

    wrong = [
        ({'seen_s': 5.0}, 'in the future'),
        ({'seen_s': -30.0, 'start_s': -30.0}, 'ended'),
        ({'start_s': 60.0}, 'starts in'),
        ({'step_ns': 1_000_000}, 'step'),
        ({'policy_id': 'x' * (MAX_ID + 1)}, 'id of more than'),
    ]
    for fields, says in wrong:
        time.sleep(1.1)  # events of one kind are told once a second
        sent = send(**fields)
        rig.until(
            f'a reason for {list(fields)}',
            lambda says=says, sent=sent: f'hunk {sent}' in said(rig) and says in said(rig),
        )
        assert rig.state != 'run', fields
    rig.until('idle again', lambda: send() and rig.state == 'run')
    assert all(
        abs(value) < 0.3 for _, m in list(rig.commands['arm']) for point in m.points for value in point.positions
    )


def said(rig) -> str:
    """The newest state and event of the executor."""
    return ' '.join([rig.state, *(event.message for _, event in rig.events[-1:])])
