"""A live operator is required, and the heartbeat stops: hold within a second, and no motion before the next enable."""

from __future__ import annotations

import threading
import time

import pytest
from ki_msgs.msg import SafetyEvent
from std_msgs.msg import String
from std_srvs.srv import SetBool

from ki_robot.messages.arrays import stamp_ns

pytestmark = pytest.mark.ros


def test_a_required_operator_who_is_lost_is_a_hold_until_enabled_again(rig):
    heartbeat = rig.node.create_publisher(String, 'operator_heartbeat', 1)
    alive = threading.Event()
    ended = threading.Event()
    beats: list[int] = []

    def beat() -> None:
        while not ended.wait(0.1):
            if alive.is_set():
                heartbeat.publish(String(data='ada'))
                beats.append(time.monotonic_ns())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        rig.start_executor(require_operator=True)
        rig.start_policy()
        rig.until('waits', lambda: rig.state == 'disabled: not enabled')
        refused = rig.call(SetBool, 'chunk_executor/enable', SetBool.Request(data=True))
        assert 'no live operator' in refused.message
        alive.set()
        rig.until('enabled', lambda: rig.call(SetBool, 'chunk_executor/enable', SetBool.Request(data=True)).success)
        rig.until('running', lambda: rig.state == 'run')

        alive.clear()
        lost_ns = time.time_ns()
        rig.until('a hold', lambda: 'The operator is not heard any more' in rig.state)
        lost = SafetyEvent.KIND_OPERATOR_LOST
        event = rig.until('told', lambda: next((event for _, event in rig.events if event.kind == lost), None))
        assert (stamp_ns(event.header) - lost_ns) / 1e9 < 1.2, 'a second, and what ticks take'
        beats.clear()
        alive.set()
        rig.until('five heartbeats more', lambda: len(beats) > 5)
        assert rig.state != 'run'
        assert rig.call(SetBool, 'chunk_executor/enable', SetBool.Request(data=True)).success
        rig.until('running again', lambda: rig.state == 'run')
    finally:
        ended.set()
        thread.join()
