"""ROS time jumps back (a bag starts over): chunks and messages of the old time are void, the new time is taken up."""

from __future__ import annotations

import signal

import pytest
from builtin_interfaces.msg import Time
from ki_msgs.msg import PolicyStatus
from rosgraph_msgs.msg import Clock

from ki_robot.messages.arrays import stamp_ns

pytestmark = pytest.mark.ros


@pytest.fixture
def clock_rig(ros_domain, rigs, tmp_path):
    with rigs.make(tmp_path, sim_time=True) as made:
        clock = made.node.create_publisher(Clock, '/clock', 10)
        made.now_ns = 100 * 10**9
        made.step_ns = 10_000_000

        def tick():
            made.now_ns += made.step_ns
            clock.publish(Clock(clock=Time(sec=made.now_ns // 10**9, nanosec=made.now_ns % 10**9)))

        made.node.create_timer(0.01, tick)
        yield made


def test_a_jump_back_holds_and_then_follows_the_new_time(clock_rig):
    rig = clock_rig
    rig.start_executor(use_sim_time=True)
    rig.start_policy(use_sim_time=True)
    rig.running()
    before = len(rig.states), len(rig.chunks)
    rig.now_ns = 50 * 10**9
    rig.until('a hold', lambda: any('jumped' in state.data for _, state in rig.states[before[0] :]))
    later = 90 * 10**9
    rig.until('a chunk of the new time', lambda: any(stamp_ns(m.header) < later for _, m in rig.chunks[before[1] :]))
    rig.until('running again', lambda: rig.status.state == PolicyStatus.STATE_RUNNING and rig.state == 'run')
    assert rig.now_ns < later


def test_a_slow_clock_silences_no_watchdog_and_no_brake(clock_rig):
    rig = clock_rig
    executor = rig.start_executor(use_sim_time=True)
    rig.start_policy(use_sim_time=True)
    rig.running()
    rig.step_ns = 1_000_000
    begin = len(rig.statuses)
    rig.until('statuses', lambda: len(rig.statuses) > begin + 20, 5.0)
    assert rig.state == 'run', 'a tenth of the pace, and nobody thinks that the policy is dead'

    asked_ns = executor.send(signal.SIGINT)
    assert executor.popen.wait(4.0) == 0, 'less than what the executor waits for a brake that does not end'
    held = rig.until('a hold', lambda: rig.hold_points(asked_ns))
    assert rig.commands['arm'][-1] == held[-1]
    assert list(held[-1][1].points[-1].velocities) == [0.0, 0.0]
