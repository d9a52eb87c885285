"""joint_states with NaN: no command follows from it, the executor latches a fault, an operator resets it."""

from __future__ import annotations

import math

import pytest
from ki_msgs.msg import SafetyEvent
from std_srvs.srv import Trigger

pytestmark = pytest.mark.ros


def test_nan_from_the_joints_is_a_fault_until_reset(rig):
    rig.start_executor()
    rig.start_policy()
    rig.running()

    def poison(message):
        message.position[0] = math.nan
        return message

    rig.robot.spoil = poison
    rig.until('fault', lambda: rig.state.startswith('fault'))
    assert 'nan in joint1/position' in rig.state
    event = rig.until('an event', lambda: [e for _, e in rig.events if e.severity == SafetyEvent.SEVERITY_FAULT])[0]
    assert event.kind == SafetyEvent.KIND_NON_FINITE
    for _, message in rig.commands['arm']:
        assert all(math.isfinite(value) for point in message.points for value in point.positions)

    rig.robot.spoil = lambda message: message
    # A second later: what was measured last is still not believed.
    rig.until('reset', lambda: rig.call(Trigger, 'chunk_executor/reset_fault').success)
    rig.until('running again', lambda: rig.state == 'run')
