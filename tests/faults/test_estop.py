"""The e-stop: hold at once, latched; released and reset, the policy is followed again."""

from __future__ import annotations

import time

import pytest
from ki_msgs.msg import SafetyEvent
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

pytestmark = pytest.mark.ros


def test_the_estop_latches_until_it_is_released_and_reset(rig):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    estop = rig.node.create_publisher(Bool, 'estop', latched)
    rig.start_executor()
    rig.start_policy()
    rig.running()
    pressed_ns = time.monotonic_ns()
    estop.publish(Bool(data=True))
    rig.until('fault', lambda: rig.state == 'fault: The e-stop is pressed.')
    assert rig.holds(pressed_ns)
    event = rig.until('an event', lambda: [e for _, e in rig.events if e.kind == SafetyEvent.KIND_ESTOP])[0]
    assert event.severity == SafetyEvent.SEVERITY_FAULT

    answer = rig.call(Trigger, 'chunk_executor/reset_fault')
    assert not answer.success
    assert 'still pressed' in answer.message
    estop.publish(Bool(data=False))
    rig.until('reset', lambda: rig.call(Trigger, 'chunk_executor/reset_fault').success)
    rig.until('running again', lambda: rig.state == 'run')
