"""The executor is killed: what it sent last ends at rest within 0.3 s."""

from __future__ import annotations

import signal
import time

import pytest

from ki_robot.messages.arrays import time_ns

pytestmark = pytest.mark.ros


def test_the_last_window_ends_at_rest_within_300_ms(rig):
    executor = rig.start_executor()
    rig.start_policy()
    rig.running()
    executor.send(signal.SIGKILL)
    executor.popen.wait(5.0)
    rig.until('the last command has arrived', lambda: rig.commands['arm'])
    count = len(rig.commands['arm'])
    time.sleep(0.5)
    assert len(rig.commands['arm']) - count <= 1
    for _, message in rig.commands['arm']:
        assert time_ns(message.points[-1].time_from_start) <= 300_000_000
        assert list(message.points[-1].velocities) == [0.0, 0.0]
