"""Commands as controllers take them, and what each of them sends to hold."""

from __future__ import annotations

import array
import sys
import types

import numpy as np
import pytest

pytest.importorskip('rclpy')

from ki_policy_node.errors import NodeError
from ki_policy_node.executor.outputs import Plan, is_gripper, make_output
from ki_robot.contract.contract import Contract
from ki_robot.messages.arrays import time_ns

MS = 1_000_000
POSE = np.array([0.1, -0.2, 0.3, 0.4])


class Publisher:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.sent = []

    def publish(self, message) -> None:
        self.sent.append(message)


class Node:
    """Makes publishers."""

    def create_publisher(self, kind, topic, qos):
        return Publisher()


def output(contract: Contract, name: str):
    spec = next(each for each in contract.outputs if each.name == name)
    return make_output(Node(), spec, contract)


def plan(value: float = 0.0) -> Plan:
    times = np.arange(1, 7) * 50 * MS
    return Plan(POSE + value, times, np.repeat(POSE[None], 6, axis=0) + value, np.full((6, 4), 0.5))


@pytest.fixture
def contract(rigs) -> Contract:
    return Contract.parse(rigs.small_robot())


def test_a_window_starts_on_arrival_rises_in_time_and_ends_at_rest(contract):
    arm = output(contract, 'arm')
    arm.command(plan(), 10**12)
    [message] = arm.publisher.sent
    assert message.joint_names == ['joint1', 'joint2']
    assert time_ns(message.header.stamp) == 0
    times = [time_ns(point.time_from_start) for point in message.points]
    assert times == [k * 50 * MS for k in range(1, 7)]
    assert [list(point.positions) for point in message.points] == [[0.1, -0.2]] * 6
    assert list(message.points[0].velocities) == [0.5, 0.5]
    assert list(message.points[-1].velocities) == [0.0, 0.0]
    assert isinstance(message.points[0].positions, array.array)


def test_windows_are_sent_once_a_step_not_at_every_tick(contract):
    arm = output(contract, 'arm')
    for tick in range(20):
        arm.command(plan(), 10**12 + tick * 10 * MS)
    assert len(arm.publisher.sent) == 4


def test_a_shorter_window_and_straight_lines_where_the_contract_says_so(rigs):
    plain = rigs.small_robot()
    plain['outputs'][0]['options'] = {'window_s': 0.15, 'interpolation': 'linear'}
    arm = output(Contract.parse(plain), 'arm')
    arm.command(plan(), 10**12)
    [message] = arm.publisher.sent
    assert len(message.points) == 3
    assert not message.points[0].velocities


def test_the_hold_of_an_arm_is_one_point_at_rest_repeated_slowly(contract):
    arm = output(contract, 'arm')
    arm.command(plan(), 10**12)
    for tick in range(1, 60):
        arm.hold(POSE, 10**12 + tick * 10 * MS, again=tick > 1)
    holds = arm.publisher.sent[1:]
    assert len(holds) == 3, 'at once, and then every 0.2 s'
    for message in holds:
        assert [list(point.positions) for point in message.points] == [[0.1, -0.2]]
        assert list(message.points[0].velocities) == [0.0, 0.0]


def test_a_forward_controller_gets_every_tick_and_the_hold_as_a_command(contract):
    hand = output(contract, 'hand')
    for tick in range(3):
        hand.command(plan(0.01 * tick), 10**12 + tick)
    hand.hold(POSE, 10**12 + 9, again=True)
    assert [message.data[0] for message in hand.publisher.sent] == pytest.approx([0.3, 0.31, 0.32, 0.3])


def test_a_base_is_driven_by_stamped_twists_and_holds_by_zero(contract):
    base = output(contract, 'base')
    base.command(plan(), 5 * 10**9)
    base.hold(POSE, 6 * 10**9, again=False)
    driven, held = base.publisher.sent
    assert (driven.twist.linear.x, driven.twist.angular.z) == (0.4, 0.0)
    assert (driven.header.frame_id, time_ns(driven.header.stamp)) == ('base_link', 5 * 10**9)
    assert held.twist.linear.x == 0.0


def test_a_plain_twist_has_no_header(rigs):
    plain = rigs.small_robot()
    plain['outputs'][2]['kind'] = 'twist'
    base = output(Contract.parse(plain), 'base')
    base.command(plan(), 1)
    assert base.publisher.sent[0].linear.x == 0.4


def test_a_gripper_topic_is_written_on_change_and_once_a_second(rigs):
    plain = rigs.small_robot()
    plain['outputs'][1] |= {'kind': 'gripper', 'options': {'interface': 'topic', 'dead_band': 0.01}}
    hand = output(Contract.parse(plain), 'hand')
    for tick in range(150):
        hand.command(plan(0.005 if tick < 100 else 0.05), 10**12 + tick * 10 * MS)
    hand.command(plan(0.05), 10**12 + 2_100 * MS)
    assert [message.data[0] for message in hand.publisher.sent] == pytest.approx([0.305, 0.35, 0.35])


def test_a_gripper_action_without_control_msgs_is_refused_by_name(rigs):
    plain = rigs.small_robot()
    plain['outputs'][1] |= {'kind': 'gripper', 'options': {'interface': 'gripper_command'}}
    pytest.importorskip('rclpy')
    try:
        import control_msgs.action  # noqa: F401
    except ImportError:
        with pytest.raises(NodeError, match=r'Output hand of robot small .* control_msgs is not installed'):
            output(Contract.parse(plain), 'hand')
    else:
        pytest.skip('control_msgs is installed here')


class Future:
    """An answer that is there at once."""

    def __init__(self, accepted: bool) -> None:
        self.accepted = accepted

    def exception(self):
        return None

    def result(self):
        return self

    def add_done_callback(self, act) -> None:
        act(self)


class Server:
    """Stands for a gripper's action: control_msgs cannot be had everywhere."""

    def __init__(self) -> None:
        self.ready, self.accepts, self.goals = True, True, []

    def server_is_ready(self) -> bool:
        return self.ready

    def send_goal_async(self, goal) -> Future:
        self.goals.append(goal.command.position)
        return Future(self.accepts)


def test_a_goal_that_no_gripper_took_is_due_again(rigs, monkeypatch):
    import rclpy.action

    server, made = Server(), types.ModuleType('control_msgs.action')
    made.GripperCommand = types.SimpleNamespace(Goal=lambda: types.SimpleNamespace(command=types.SimpleNamespace()))
    monkeypatch.setitem(sys.modules, 'control_msgs', types.SimpleNamespace(action=made))
    monkeypatch.setitem(sys.modules, 'control_msgs.action', made)
    monkeypatch.setattr(rclpy.action, 'ActionClient', lambda *_: server)
    plain = rigs.small_robot()
    plain['outputs'][1] |= {'kind': 'gripper', 'options': {'interface': 'gripper_command'}}
    hand = output(Contract.parse(plain), 'hand')

    def command(seconds: float) -> int:
        hand.command(plan(), 10**12 + round(seconds * 1e9))
        return len(server.goals)

    assert [command(0.0), command(0.3), command(0.6)] == [1, 1, 1], 'the same value is sent once'
    server.ready = False
    assert not hand.heard()
    assert command(0.9) == 1
    server.ready, server.accepts = True, False
    assert [command(1.0), command(1.01), command(1.21)] == [2, 2, 3], 'refused: again, at most five a second'
    server.accepts = True
    assert [command(1.5), command(1.8)] == [4, 4]


def test_which_outputs_are_grippers(contract):
    assert [is_gripper(spec) for spec in contract.outputs] == [False, True, False]
