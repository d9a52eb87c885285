"""Nobody listens to a command topic: the executor does not start, and says which controller is missing."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ros


def test_a_missing_controller_keeps_the_robot_still(rig):
    subscription = next(s for s in rig.robot.subscriptions if s.topic_name == '/hand_controller/commands')
    rig.robot.destroy_subscription(subscription)
    rig.start_executor()
    rig.start_policy()
    rig.until('a chunk', lambda: rig.chunks)
    rig.until('a sentence', lambda: 'Nobody listens to /hand_controller/commands' in rig.state)
    assert 'output hand' in rig.state
    assert not rig.robot.commands['arm']
