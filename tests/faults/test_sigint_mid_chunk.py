"""Ctrl-C mid-chunk: the hold goes out before the process ends, with status 0, in under a second."""

from __future__ import annotations

import signal
import time

import pytest

pytestmark = pytest.mark.ros


def test_the_executor_says_hold_before_it_ends(rig):
    executor = rig.start_executor()
    rig.start_policy()
    rig.running()
    asked_ns = executor.send(signal.SIGINT)
    assert executor.popen.wait(5.0) == 0
    assert time.monotonic_ns() - asked_ns < 2_000_000_000
    held = rig.until('a hold', lambda: rig.hold_points(asked_ns))
    assert rig.commands['arm'][-1] == held[-1]
    assert list(held[-1][1].points[-1].velocities) == [0.0, 0.0]
    assert rig.commands['base'][-1][1].twist.linear.x == 0.0
    assert rig.commands['hand'][-1][0] >= asked_ns


def test_the_robot_holds_when_the_policy_is_interrupted(rig):
    rig.start_executor()
    policy = rig.start_policy()
    rig.running()
    asked_ns = policy.send(signal.SIGTERM)
    assert rig.hold_delay_ms(asked_ns) < 300.0
    assert policy.popen.wait(5.0) == 0


def test_a_second_signal_does_not_cut_the_stop_short(rig):
    """Ctrl-C under `ros2 launch` reaches a node twice: from the terminal, and from launch."""
    executor = rig.start_executor()
    rig.start_policy()
    rig.running()
    asked_ns = executor.send(signal.SIGINT)
    executor.send(signal.SIGINT)
    assert executor.popen.wait(5.0) == 0
    held = rig.until('a hold', lambda: rig.hold_points(asked_ns))
    assert rig.commands['arm'][-1] == held[-1]
