"""What the tutorials of rclpy show works with the ROS 2 that set-up found or installed, between two processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.ros

WAIT_S = 25.0  # for a process that starts, and its answer


@pytest.fixture
def server(ros_domain: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, Path(__file__).with_name('server.py')])
    yield process
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0, 'the server did not end cleanly at Ctrl-C'


@pytest.fixture
def node(server: object) -> Iterator[Any]:
    from ki_policy_node.common import ros

    with ros.node('client') as made:
        yield made


@pytest.fixture
def calls(node: Any) -> Any:
    """Services, asked until they answer."""
    import rclpy

    from ki_policy_node.common.service_calls import ServiceCalls

    return ServiceCalls(node, lambda: rclpy.spin_once(node, timeout_sec=0.1))


def answered(node: Any, ask: Callable[[], Any]) -> Any:
    """What the future of `ask()` gives; asks again where the answer is lost, as `ServiceCalls` does for services."""
    import rclpy

    for _ in range(4):
        future = ask()
        rclpy.spin_until_future_complete(node, future, timeout_sec=5.0)
        if future.done():
            return future.result()
    raise AssertionError('no answer')


def test_a_service_answers(calls: Any) -> None:
    from std_srvs.srv import SetBool

    answer = calls.call(SetBool, 'negate', SetBool.Request(data=True), WAIT_S)
    assert (answer.success, answer.message) == (False, 'server')


def test_nodes_find_each_other_without_waiting_for_the_periodic_announcement(server: object) -> None:
    from std_srvs.srv import SetBool

    from ki_policy_node.common import ros

    with ros.node('first') as first:
        assert first.create_client(SetBool, 'negate').wait_for_service(15.0), 'the server does not start'
    for number in range(8):
        with ros.node(f'client_{number}') as node:
            assert node.create_client(SetBool, 'negate').wait_for_service(2.5), f'client {number}'


def test_an_action_reports_feedback_and_a_result(node: Any) -> None:
    from action_msgs.msg import GoalStatus
    from rclpy.action import ActionClient
    from test_msgs.action import Fibonacci

    client = ActionClient(node, Fibonacci, 'fibonacci')
    assert client.wait_for_server(15.0)
    feedback: list[list[int]] = []

    def keep(message: Any) -> None:
        feedback.append(list(message.feedback.sequence))

    goal = answered(node, lambda: client.send_goal_async(Fibonacci.Goal(order=6), feedback_callback=keep))
    assert goal.accepted
    outcome = answered(node, goal.get_result_async)
    assert outcome.status == GoalStatus.STATUS_SUCCEEDED
    assert list(outcome.result.sequence) == [0, 1, 1, 2, 3, 5, 8]
    # Feedback that arrives after the result is dropped by rclpy; what came before it must be right.
    assert feedback
    assert all(numbers == [0, 1, 1, 2, 3, 5, 8][: len(numbers)] for numbers in feedback)


def test_parameters_are_read_and_set_from_another_process_within_their_range(calls: Any) -> None:
    from rcl_interfaces.srv import GetParameters, SetParameters
    from rclpy.parameter import Parameter

    def set_rate(value: float) -> Any:
        request = SetParameters.Request(parameters=[Parameter('rate', value=value).to_parameter_msg()])
        return calls.call(SetParameters, 'server/set_parameters', request, WAIT_S).results[0]

    assert set_rate(50.0).successful
    refused = set_rate(1000.0)
    assert not refused.successful
    assert 'rate' in refused.reason
    wanted = GetParameters.Request(names=['rate'])
    [value] = calls.call(GetParameters, 'server/get_parameters', wanted, WAIT_S).values
    assert value.double_value == 50.0


def test_a_lifecycle_node_talks_only_while_active(node: Any, calls: Any, rigs: ModuleType) -> None:
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import GetState
    from std_msgs.msg import String

    from ki_policy_node.common import ros

    heard: list[str] = []
    node.create_subscription(String, 'words', lambda message: heard.append(message.data), 10)
    assert rigs.change_state(calls, 'server', Transition.TRANSITION_CONFIGURE)
    assert not ros.spin_until(node, lambda: heard, 0.3), 'heard something from an inactive node'
    assert rigs.change_state(calls, 'server', Transition.TRANSITION_ACTIVATE)
    assert ros.spin_until(node, lambda: len(heard) >= 3, 5.0)
    assert rigs.change_state(calls, 'server', Transition.TRANSITION_DEACTIVATE)
    ros.spin_until(node, lambda: False, 0.2)
    heard.clear()
    assert not ros.spin_until(node, lambda: heard, 0.3)
    state = calls.call(GetState, 'server/get_state', GetState.Request(), WAIT_S)
    assert state.current_state.label == 'inactive'


def test_a_subscription_with_the_qos_of_its_publishers_hears_best_effort_latched_and_plain_ones() -> None:
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from std_msgs.msg import String

    from ki_policy_node.common import ros

    offers = {
        'sensor': QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
        'latched': QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        'plain': QoSProfile(depth=1),
    }
    with ros.node('talker_and_listener') as node:
        publishers = {name: node.create_publisher(String, name, qos) for name, qos in offers.items()}
        publishers['latched'].publish(String(data='latched'))
        heard: set[str] = set()
        for name in offers:
            assert ros.spin_until(node, lambda name=name: node.count_publishers(name), 5.0)
            qos = ros.matching_qos(node, f'/{name}')
            node.create_subscription(String, name, lambda message: heard.add(message.data), qos)
        assert ros.spin_until(node, lambda: all(p.get_subscription_count() for p in publishers.values()), 5.0)
        for name in ('sensor', 'plain'):
            publishers[name].publish(String(data=name))
        assert ros.spin_until(node, lambda: heard == set(offers), 5.0), heard
