"""Commands as controllers take them, and what each of them sends to hold."""

from __future__ import annotations

import array
import sys
import threading
import types

import numpy as np
import pytest

pytest.importorskip('rclpy')

from ki_policy_node.errors import NodeError
from ki_policy_node.executor.outputs import make_output
from ki_policy_node.executor.playback import Setpoints
from ki_robot.actions.motion import Profile
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import OutputOptions
from ki_robot.messages.arrays import time_ns
from ki_sim.world.controllers import JointTrajectoryController, Point, TrajectoryCommand
from ki_sim.world.robot import JointLimit

MS = 1_000_000
POSE = np.array([0.1, -0.2, 0.3, 0.4])


class Publisher:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.sent = []

    def publish(self, message) -> None:
        self.sent.append(message)


class Node:
    """Makes publishers, and calls back at once."""

    def create_publisher(self, kind, topic, qos):
        return Publisher()

    def create_guard_condition(self, callback):
        return types.SimpleNamespace(trigger=callback)


def output(contract: Contract, name: str):
    spec = next(each for each in contract.outputs if each.name == name)
    return make_output(Node(), spec, contract)


def command(value: float = 0.0, window: Profile | None = None) -> Setpoints:
    return Setpoints(POSE + value, window)


def window(start_ns: int = 10**12) -> Profile:
    """Two joints: one brakes from 0.5 rad/s, the other stands."""
    times = start_ns + np.array([0, 50, 100, 150]) * MS
    values = np.array([[0.1, -0.2], [0.125, -0.2], [0.1375, -0.2], [0.1375, -0.2]])
    return Profile(times, values, np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]))


@pytest.fixture
def contract(rigs) -> Contract:
    return Contract.parse(rigs.small_robot())


def test_a_window_is_stamped_with_its_first_knot_and_ends_at_rest(contract):
    arm = output(contract, 'arm')
    arm.send(command(window=window()), 10**12 + 5 * MS)
    [message] = arm.publisher.sent
    assert message.joint_names == ['joint1', 'joint2']
    assert time_ns(message.header.stamp) == 10**12
    assert [time_ns(point.time_from_start) for point in message.points] == [0, 50 * MS, 100 * MS, 150 * MS]
    assert [point.positions[0] for point in message.points] == [0.1, 0.125, 0.1375, 0.1375]
    assert [point.velocities[0] for point in message.points] == [0.5, 0.5, 0.0, 0.0]
    assert not message.points[0].accelerations, 'a quintic would be another motion'
    assert isinstance(message.points[0].positions, array.array)


def test_knots_at_which_nothing_of_this_output_changes_are_left_out(contract):
    still = Profile(window().times_ns, window().values_KN[:, [1, 1]], np.zeros((4, 2)))
    arm = output(contract, 'arm')
    arm.send(command(window=still), 10**12)
    assert len(arm.publisher.sent[0].points) == 2


def test_a_trajectory_controller_is_left_alone_while_its_window_holds(contract):
    arm = output(contract, 'arm')
    arm.send(command(), 10**12)
    assert not arm.publisher.sent


def test_a_controller_that_plays_a_window_plays_the_motion(contract):
    arm = output(contract, 'arm')
    motion = window()
    arm.send(command(window=motion), 10**12)
    [message] = arm.publisher.sent
    anywhere = JointLimit(-9.0, 9.0, 9.0, 9.0)
    controller = JointTrajectoryController('arm', dict.fromkeys(message.joint_names, anywhere), period_ns=2 * MS)
    controller.activate(10**12 - 2 * MS, [0.1, -0.2])
    points = [Point(time_ns(p.time_from_start), p.positions, p.velocities) for p in message.points]
    controller.accept(TrajectoryCommand(message.joint_names, points, time_ns(message.header.stamp)), 10**12)
    for time in range(10**12, 10**12 + 200 * MS, 2 * MS):
        assert controller.update(time, [0.0, 0.0]) == pytest.approx(motion.at(time + 2 * MS)[0], abs=1e-12)


def test_a_forward_controller_gets_every_tick(contract):
    hand = output(contract, 'hand')
    for tick in range(3):
        hand.send(command(0.01 * tick), 10**12 + tick)
    assert [message.data[0] for message in hand.publisher.sent] == pytest.approx([0.3, 0.31, 0.32])


def test_a_driver_that_follows_joint_states_gets_every_tick(contract):
    spec = contract.outputs[0].replace(kind='joint_state', topic='leader/joint_states', options=OutputOptions())
    made = make_output(Node(), spec, contract)
    made.send(command(0.5), 10**12)
    [message] = made.publisher.sent
    assert list(message.name) == [name.rpartition('/')[0] for name in spec.columns]
    np.testing.assert_allclose(
        message.position, POSE[[contract.action_names.index(name) for name in spec.columns]] + 0.5
    )
    assert message.header.stamp.sec == 1000


def test_a_base_is_driven_by_stamped_twists(contract):
    base = output(contract, 'base')
    base.send(command(), 5 * 10**9)
    [driven] = base.publisher.sent
    assert (driven.twist.linear.x, driven.twist.angular.z) == (0.4, 0.0)
    assert (driven.header.frame_id, time_ns(driven.header.stamp)) == ('base_link', 5 * 10**9)


def test_a_plain_twist_has_no_header(rigs):
    plain = rigs.small_robot()
    plain['outputs'][2]['kind'] = 'twist'
    base = output(Contract.parse(plain), 'base')
    base.send(command(), 1)
    assert base.publisher.sent[0].linear.x == 0.4


def test_a_gripper_topic_is_written_on_change_and_once_a_second(rigs):
    plain = rigs.small_robot()
    plain['outputs'][1] |= {'kind': 'gripper', 'options': {'interface': 'topic', 'dead_band': 0.01}}
    hand = output(Contract.parse(plain), 'hand')
    for tick in range(150):
        hand.send(command(0.005 if tick < 100 else 0.05), 10**12 + tick * 10 * MS)
    hand.send(command(0.05), 10**12 + 2_100 * MS)
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


@pytest.fixture
def server(rigs, monkeypatch) -> Server:
    """The server of every gripper action."""
    import rclpy.action

    server, made = Server(), types.ModuleType('control_msgs.action')
    made.GripperCommand = types.SimpleNamespace(Goal=lambda: types.SimpleNamespace(command=types.SimpleNamespace()))
    monkeypatch.setitem(sys.modules, 'control_msgs', types.SimpleNamespace(action=made))
    monkeypatch.setitem(sys.modules, 'control_msgs.action', made)
    monkeypatch.setattr(rclpy.action, 'ActionClient', lambda *_: server)
    return server


@pytest.fixture
def gripper(rigs) -> Contract:
    """A robot whose hand is commanded by a gripper action."""
    plain = rigs.small_robot()
    plain['outputs'][1] |= {'kind': 'gripper', 'options': {'interface': 'gripper_command'}}
    return Contract.parse(plain)


def test_a_goal_that_no_gripper_took_is_due_again(server, gripper):
    hand = output(gripper, 'hand')

    def offer(seconds: float) -> int:
        hand.send(command(), 10**12 + round(seconds * 1e9))
        return len(server.goals)

    assert [offer(0.0), offer(0.3), offer(0.6)] == [1, 1, 1], 'the same value is sent once'
    server.ready = False
    assert not hand.heard()
    assert offer(0.9) == 1
    server.ready, server.accepts = True, False
    assert [offer(1.1), offer(1.2), offer(2.0), offer(2.2)] == [2, 2, 2, 3], 'refused: again, once a second'
    server.accepts = True
    assert [offer(2.4), offer(3.3), offer(3.6), offer(9.0)] == [3, 4, 4, 4]


def test_a_gripper_that_moves_gets_one_goal_at_a_time(server, gripper):
    hand, waiting = output(gripper, 'hand'), []
    server.send_goal_async = lambda goal: (
        waiting.append(goal.command.position)
        or types.SimpleNamespace(add_done_callback=lambda act: setattr(server, 'answer', lambda: act(Future(True))))
    )
    for tick in range(90):
        hand.send(command(0.01 * tick), 10**12 + tick * 10 * MS)
    assert waiting == pytest.approx([0.3]), 'no second goal while the first has no answer'
    server.answer()
    hand.send(command(0.9), 10**12 + 900 * MS)
    hand.send(command(0.95), 10**12 + 2_000 * MS)
    assert waiting == pytest.approx([0.3, 1.2, 1.25]), 'an answer that was lost is not waited for for ever'


def test_goals_are_sent_in_the_thread_of_the_callbacks(server, gripper):
    """rclpy throws an answer away that comes before its goal is written down."""
    from ki_policy_node.common import ros

    threads = []
    server.destroy = lambda: None
    offer = server.send_goal_async
    server.send_goal_async = lambda goal: threads.append(threading.get_ident()) or offer(goal)
    with ros.node('executor') as node:
        spec = next(each for each in gripper.outputs if each.name == 'hand')
        hand = make_output(node, spec, gripper)
        dispatch = threading.Thread(target=lambda: hand.send(command(), 10**12))
        dispatch.start()
        dispatch.join()
        assert not threads
        assert ros.spin_until(node, lambda: threads, 5.0)
        hand.send(command(0.5), 10**12 + 10**9)
        hand.flush()  # at the end of the process nothing spins any more
        hand.close()
    assert threads == [threading.get_ident()] * 2


def test_every_kind_of_controller_has_a_sender() -> None:
    from ki_policy_node.executor.outputs import SENDERS
    from ki_robot.contract.controller_kinds import CONTROLLER_KINDS

    assert SENDERS.keys() == CONTROLLER_KINDS.keys()
