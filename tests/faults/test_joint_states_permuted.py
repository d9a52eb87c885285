"""joint_states in another order: the robot moves as before."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ros


def test_joints_are_matched_by_name(rig):
    rig.robot.positions |= {'joint1/position': 0.6, 'joint2/position': -0.9, 'gripper/position': 0.2}

    def reverse(message):
        message.name, message.position = message.name[::-1], message.position[::-1]
        return message

    rig.robot.spoil = reverse
    rig.start_executor()
    rig.start_policy(motion='hold')
    rig.until('commands', lambda: len(rig.commands['arm']) > 3)
    message = rig.commands['arm'][-1][1]
    assert message.joint_names == ['joint1', 'joint2']
    assert list(message.points[-1].positions) == pytest.approx([0.6, -0.9], abs=1e-6)
    assert rig.commands['hand'][-1][1].data[0] == pytest.approx(0.2, abs=1e-6)
