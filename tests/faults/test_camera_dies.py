"""A camera dies mid-run: no chunk from an old image, the robot holds, and goes on when the camera is back."""

from __future__ import annotations

import pytest
from ki_msgs.msg import PolicyStatus

pytestmark = pytest.mark.ros


def test_a_dead_camera_holds_the_robot_and_names_its_topic(rig):
    rig.start_executor()
    rig.start_policy()
    rig.running()
    rig.robot.silent.add('wrist')
    rig.until('holding', lambda: rig.status.state == PolicyStatus.STATE_HOLDING)
    seen_ns = rig.statuses[-1][0]
    assert rig.status.hold_reason == PolicyStatus.HOLD_STALE_OBSERVATION
    assert 'wrist' in rig.status.message
    assert rig.holds(seen_ns - 100_000_000)
    published = rig.status.chunks_published
    rig.until('a second of silence', lambda: rig.statuses[-1][0] - seen_ns > 700_000_000)
    assert rig.status.chunks_published == published

    rig.robot.silent.clear()
    rig.until('running again', lambda: rig.status.state == PolicyStatus.STATE_RUNNING and rig.state == 'run')
