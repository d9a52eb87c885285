"""Somebody else commands the same controller: the executor holds and names the topic."""

from __future__ import annotations

import pytest
from ki_msgs.msg import SafetyEvent
from std_msgs.msg import Float64MultiArray

pytestmark = pytest.mark.ros


def test_a_second_publisher_on_a_command_topic_holds_the_robot(rig):
    rig.start_executor()
    rig.start_policy()
    rig.running()
    other = rig.node.create_publisher(Float64MultiArray, 'hand_controller/commands', 1)
    rig.until('a hold', lambda: 'Somebody else publishes on /hand_controller/commands' in rig.state)
    errors = [s for _, m in rig.diagnostics for s in m.status if s.level == b'\x02' and 'Somebody else' in s.message]
    rig.until(
        'a diagnostic',
        lambda: errors or any('Somebody else' in s.message for _, m in rig.diagnostics for s in m.status),
    )
    kind = SafetyEvent.KIND_FOREIGN_PUBLISHER
    event = rig.until('an event', lambda: [event for _, event in rig.events if event.kind == kind])[0]
    assert event.severity == SafetyEvent.SEVERITY_REJECTED
    assert event.message.startswith('Somebody else publishes on /hand_controller/commands')
    assert event.value == 1.0
    rig.node.destroy_publisher(other)
    rig.until('running again', lambda: rig.state == 'run')
    assert [event.kind for _, event in rig.events].count(kind) == 1, 'told once, when it appears'
