"""The e-stop: hold at once, latched; released and reset, the policy is followed again."""

from __future__ import annotations

import time

import pytest
from ki_msgs.msg import SafetyEvent
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

pytestmark = pytest.mark.ros
# What `create_publisher(Bool, 'estop', 10)` makes, and what a driver of a button may offer.
QOS = {
    'reliable': QoSProfile(depth=10),
    'best_effort': QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT),
}


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

    assert rig.call(SetBool, 'chunk_executor/enable', SetBool.Request(data=False)).success
    estop.publish(Bool(data=True))
    rig.until('an event', lambda: [e.kind for _, e in rig.events].count(SafetyEvent.KIND_ESTOP) == 2)
    estop.publish(Bool(data=False))
    assert not rig.call(SetBool, 'chunk_executor/enable', SetBool.Request(data=True)).success
    rig.until('fault, for what was pressed while disabled', lambda: rig.state == 'fault: The e-stop is pressed.')


@pytest.mark.parametrize('reliability', list(QOS), ids=str)
def test_an_estop_is_heard_whatever_the_qos_of_its_publisher(rig, reliability):
    estop = rig.node.create_publisher(Bool, 'estop', QOS[reliability])
    rig.start_executor()
    rig.until('idle', lambda: rig.state.startswith('idle'))
    rig.until('both ends', lambda: estop.get_subscription_count() >= 1)
    estop.publish(Bool(data=True))
    rig.until('fault', lambda: rig.state == 'fault: The e-stop is pressed.')


def test_the_false_of_another_publisher_does_not_release(rig):
    from rclpy.qos import QoSProfile as Profile

    button = rig.node.create_publisher(Bool, 'estop', Profile(depth=10))
    tool = rig.robot.create_publisher(Bool, 'estop', Profile(depth=10))
    rig.start_executor()
    rig.until('idle', lambda: rig.state.startswith('idle'))
    rig.until('both heard', lambda: min(button.get_subscription_count(), tool.get_subscription_count()) >= 2)
    button.publish(Bool(data=True))
    rig.until('fault', lambda: rig.state == 'fault: The e-stop is pressed.')
    for _ in range(5):
        tool.publish(Bool(data=False))
        time.sleep(0.1)
    refused = rig.call(Trigger, 'chunk_executor/reset_fault')
    assert not refused.success
    button.publish(Bool(data=False))

    def reset() -> bool:
        tool.publish(Bool(data=False))
        return rig.call(Trigger, 'chunk_executor/reset_fault').success

    rig.until('reset', reset)
