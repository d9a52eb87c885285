"""A camera repeats one frame under new stamps while the arm moves: hold, with the camera's name."""

from __future__ import annotations

import pytest
from ki_msgs.msg import PolicyStatus

pytestmark = pytest.mark.ros


def test_a_frozen_camera_holds_the_robot(rig):
    rig.start_executor()
    rig.start_policy(period=2.0)
    rig.running()
    rig.robot.frozen.add('scene')
    rig.until('holding', lambda: rig.status.state == PolicyStatus.STATE_HOLDING)
    assert rig.status.message.startswith('scene: ')
    assert 'equal frames in a row while the robot moved' in rig.status.message
    assert rig.holds(rig.statuses[-1][0] - 100_000_000)
