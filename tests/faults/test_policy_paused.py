"""The policy node is not heard for two seconds, as behind a network that is cut: hold at once, then on by itself."""

from __future__ import annotations

import signal
import time

import pytest

pytestmark = pytest.mark.ros


def test_the_robot_holds_while_the_policy_is_not_heard_and_goes_on_after(rig):
    rig.start_executor(status_timeout=0.2)
    policy = rig.start_policy()
    rig.running()
    cut_ns = policy.send(signal.SIGSTOP)
    assert rig.hold_delay_ms(cut_ns) < 300.0
    time.sleep(2.0)
    assert rig.state.startswith('hold: ')
    policy.send(signal.SIGCONT)
    rig.until('running again', lambda: rig.state == 'run')
