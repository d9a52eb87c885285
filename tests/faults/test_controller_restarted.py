"""A controller is started again in mid-run, the arm elsewhere by then: a hold with its name, then a fresh beginning."""

from __future__ import annotations

import numpy as np
import pytest
from ki_msgs.msg import SafetyEvent

pytestmark = pytest.mark.ros


def test_a_restarted_controller_is_named_and_the_next_motion_begins_where_the_arm_is(rig):
    rig.start_executor()
    rig.start_policy(amplitude=0.2)
    rig.running()
    rig.restart_controller('arm', {'joint1/position': 0.25, 'joint2/position': -0.25})
    rig.until('an event', lambda: [e for _, e in rig.events if 'The controller /arm_controller' in e.message])
    [event] = [e for _, e in rig.events if 'The controller /arm_controller' in e.message]
    assert event.kind == SafetyEvent.KIND_HOLD
    again = len(rig.commands['arm'])
    rig.until('running again', lambda: rig.state == 'run', 20.0)
    rig.until('commands', lambda: len(rig.commands['arm']) > again + 3)
    first = rig.commands['arm'][again][1]
    np.testing.assert_allclose(first.points[0].positions, [0.25, -0.25], atol=0.02)
