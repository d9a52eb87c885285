"""A joint is measured where it cannot be, in the robot's own messages: braked, and a fault with the column's name."""

from __future__ import annotations

import numpy as np
import pytest
from std_srvs.srv import Trigger

pytestmark = pytest.mark.ros


def test_a_joint_beyond_its_limits_is_not_believed_and_named(rig):
    rig.start_executor()
    rig.start_policy(amplitude=0.2)
    rig.running()

    def far(message):
        message.position[message.name.index('joint2')] += 6.0
        return message

    rig.robot.spoil = far
    rig.until('a fault', lambda: rig.state.startswith('fault: ') and 'joint2/position' in rig.state)
    assert not rig.call(Trigger, 'chunk_executor/reset_fault').success, 'the cause is still there'
    sent = np.array([point.positions for _, m in list(rig.commands['arm']) for point in m.points])
    assert np.abs(sent).max() < 0.5, 'no command follows the measured value'
    rig.robot.spoil = lambda message: message
    rig.until('reset', lambda: rig.call(Trigger, 'chunk_executor/reset_fault').success)
    rig.until('running again', lambda: rig.state == 'run')
