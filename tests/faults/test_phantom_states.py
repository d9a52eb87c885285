"""Somebody else measures the robot as well, and says zeros: nothing goes there, and the publishers are named."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from ki_robot.messages.arrays import fill_joint_state

pytestmark = pytest.mark.ros
JOINTS = ['joint1', 'joint2', 'gripper']


def test_zeros_of_a_second_publisher_are_not_believed_and_it_is_named(rig):
    for name in ('joint1/position', 'joint2/position'):
        rig.robot.positions[name] = 1.2
    rig.start_executor()
    rig.start_policy(amplitude=0.1)
    rig.running()
    phantom = rig.node.create_publisher(JointState, 'joint_states', 10)

    def says_zeros() -> bool:
        now_ns = rig.node.get_clock().now().nanoseconds
        phantom.publish(fill_joint_state(JointState(), JOINTS, [0.0, 0.0, 0.0], now_ns))
        return '/observer, /synthetic_robot' in rig.state

    before = len(rig.commands['arm'])
    rig.until('a sentence', says_zeros)
    sent = np.array([point.positions for _, m in rig.commands['arm'][before:] for point in m.points])
    assert np.abs(sent - 1.2).max() < 0.3, 'no command towards zero'
    rig.node.destroy_publisher(phantom)
    rig.until('reset', lambda: rig.call(Trigger, 'chunk_executor/reset_fault').success)
    rig.until('running again', lambda: rig.state == 'run', 20.0)
