"""A controller does not listen to its command topic: the executor does not start, and says which one is missing."""

from __future__ import annotations

import time

import pytest

pytestmark = pytest.mark.ros


def remove(rig, name):
    """Ends the node of a controller."""
    controller = rig.robot.controllers.pop(name)
    rig.remove(controller)


def test_a_missing_controller_keeps_the_robot_still(rig):
    remove(rig, 'hand')
    rig.start_executor()
    rig.start_policy()
    rig.until('a chunk', lambda: rig.chunks)
    rig.until('a sentence', lambda: 'The controller /hand_controller does not listen' in rig.state)
    assert '/hand_controller/commands' in rig.state
    assert not rig.commands['arm']


def test_somebody_who_listens_is_no_controller(rig):
    """`ros2 topic echo`, or our own recorder: it hears commands, and moves nothing."""
    remove(rig, 'hand')
    from std_msgs.msg import Float64MultiArray

    rig.node.create_subscription(Float64MultiArray, 'hand_controller/commands', lambda message: None, 1)
    rig.start_executor()
    rig.start_policy()
    rig.until('a sentence', lambda: 'only /observer listens there' in rig.state)
    assert not rig.commands['arm']


def test_a_controller_that_ends_in_mid_run_holds_the_robot_within_0_3_s(rig):
    rig.start_executor()
    rig.start_policy()
    rig.running()
    asked_ns = time.monotonic_ns()
    remove(rig, 'hand')
    rig.until('a sentence', lambda: 'The controller /hand_controller does not listen' in rig.state)
    assert rig.state.startswith('hold')
    held_ns = rig.holds(asked_ns)
    assert (held_ns - asked_ns) / 1e9 < 0.3 + rig.SLOW_S
