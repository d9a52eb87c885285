"""A joint disappears from joint_states: hold, with the joint's name; go on when it is back."""

from __future__ import annotations

import pytest
from ki_msgs.msg import PolicyStatus

pytestmark = pytest.mark.ros


def test_a_missing_joint_holds_the_robot_until_it_is_back(rig):
    rig.start_executor(state_timeout=0.5)
    rig.start_policy()
    rig.running()

    def drop(message):
        message.name, message.position = message.name[1:], message.position[1:]
        return message

    rig.robot.spoil = drop
    rig.until('holding', lambda: rig.status.state == PolicyStatus.STATE_HOLDING)
    assert "lacks 'joint1'" in rig.status.message
    rig.until('the executor holds', lambda: rig.state.startswith('hold'))
    rig.robot.spoil = lambda message: message
    rig.until('running again', lambda: rig.status.state == PolicyStatus.STATE_RUNNING and rig.state == 'run')
