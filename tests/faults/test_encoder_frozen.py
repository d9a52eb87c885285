"""The measured joints stand still while the robot is commanded: braked, and a fault with the column's name."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ros


def test_a_robot_that_is_not_seen_to_follow_is_a_fault(rig):
    rig.start_executor(max_tracking_error=0.05)
    rig.start_policy(amplitude=0.3)
    rig.running()

    first = [rig.robot.positions[f'{joint}/position'] for joint in ('joint1', 'joint2', 'gripper')]

    def stand_still(message):
        message.position = first
        return message

    rig.robot.spoil = stand_still
    rig.until('a fault', lambda: rig.state.startswith('fault: joint'))
    assert 'is measured' in rig.state
