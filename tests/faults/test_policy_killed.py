"""The policy process is killed: the robot holds within 0.3 s."""

from __future__ import annotations

import signal

import pytest

pytestmark = pytest.mark.ros


def test_the_robot_holds_within_300_ms_of_a_sigkill(rig):
    rig.start_executor(status_timeout=0.2)
    policy = rig.start_policy()
    rig.running()
    killed_ns = policy.send(signal.SIGKILL)
    assert rig.hold_delay_ms(killed_ns) < 300.0
    point = rig.hold_points(killed_ns)[0][1].points[-1]
    assert list(point.velocities) == [0.0, 0.0]
    assert rig.commands['base'][-1][1].twist.linear.x == 0.0
    assert 'silent' in rig.until('a reason', lambda: rig.state.startswith('hold') and rig.state)
    assert rig.events[-1][1].message == rig.state.removeprefix('hold: ')


def test_a_policy_that_comes_back_is_followed_again(rig):
    rig.start_executor()
    rig.start_policy().send(signal.SIGKILL)
    rig.start_policy()
    rig.running()
