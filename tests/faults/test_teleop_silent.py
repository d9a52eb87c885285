"""A human drives through a teleoperation node and falls silent: hold, the policy does not take over; and it is recorded
who drove.
"""

from __future__ import annotations

import itertools
import time

import pytest
from ki_msgs.msg import ControlSource, ExecutorStatus
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

pytestmark = pytest.mark.ros
LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_a_human_who_falls_silent_is_a_hold_until_the_policy_is_given_back_to(rig):
    statuses: list[ExecutorStatus] = []
    sources: list[ControlSource] = []
    rig.node.create_subscription(ExecutorStatus, 'chunk_executor/status', statuses.append, LATCHED)
    rig.node.create_subscription(ControlSource, 'control_source', sources.append, LATCHED)
    leader = rig.node.create_publisher(JointTrajectory, 'teleop/arm_controller/joint_trajectory', 1)
    rig.start_executor()
    rig.start_policy()
    rig.running()
    rig.until('said who drives', lambda: statuses[-1].source == ExecutorStatus.SOURCE_POLICY and statuses[-1].chunk_id)
    rig.until('not by itself', lambda: statuses[-1].chunk_id > 1)
    assert statuses[-1].driver.startswith('commissioning')

    assert rig.call(SetBool, 'chunk_executor/take_over', SetBool.Request(data=True)).success
    rig.until('a hold between the two', lambda: statuses[-1].state == ExecutorStatus.STATE_HOLD)

    def send() -> bool:
        point = JointTrajectoryPoint(positions=[0.1, 0.1])
        leader.publish(JointTrajectory(joint_names=['joint1', 'joint2'], points=[point]))
        time.sleep(0.02)
        return statuses[-1].source == ExecutorStatus.SOURCE_HUMAN

    rig.until('a human', send)
    assert statuses[-1].driver == 'teleop/arm_controller/joint_trajectory'
    stopped_ns = time.monotonic_ns()
    rig.until('a hold', lambda: 'has fallen silent' in rig.state)
    assert rig.holds(stopped_ns)
    time.sleep(0.5)
    assert statuses[-1].state == ExecutorStatus.STATE_HOLD, 'the policy, which runs, does not take over'
    assert rig.call(SetBool, 'chunk_executor/take_over', SetBool.Request(data=False)).success
    rig.until('the policy again', lambda: statuses[-1].source == ExecutorStatus.SOURCE_POLICY)

    nobody, policy, human = ControlSource.SOURCE_HOLD, ControlSource.SOURCE_POLICY, ControlSource.SOURCE_HUMAN

    def drivers() -> list[int]:
        return [source for source, _ in itertools.groupby(each.source for each in sources if each.source != nobody)]

    rig.until('every change of who drives', lambda: drivers() == [policy, human, policy])
    told = [source for source, _ in itertools.groupby(each.source for each in sources)]
    assert all(nobody in pair for pair in itertools.pairwise(told)), f'nobody drives between two who do: {told}'
