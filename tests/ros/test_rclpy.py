"""What the tutorials of rclpy show works with the ROS 2 that set-up found or installed, between two processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ros


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


def call(node: Any, kind: Any, name: str, request: Any) -> Any:
    """Waits for the service and returns its answer."""
    client = node.create_client(kind, name)
    assert client.wait_for_service(15.0), f'no service {name}'
    return result_of(node, client.call_async(request))


def result_of(node: Any, future: Any) -> Any:
    """Spins until the future is done."""
    import rclpy

    rclpy.spin_until_future_complete(node, future, timeout_sec=10.0)
    assert future.done()
    return future.result()


def change_state(node: Any, transition: int) -> bool:
    """One transition of the server's lifecycle."""
    from lifecycle_msgs.srv import ChangeState

    request = ChangeState.Request()
    request.transition.id = transition
    return bool(call(node, ChangeState, 'server/change_state', request).success)


def test_a_service_answers(node: Any) -> None:
    from std_srvs.srv import SetBool

    answer = call(node, SetBool, 'negate', SetBool.Request(data=True))
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
    send = client.send_goal_async(
        Fibonacci.Goal(order=6), feedback_callback=lambda message: feedback.append(list(message.feedback.sequence))
    )
    goal = result_of(node, send)
    assert goal.accepted
    outcome = result_of(node, goal.get_result_async())
    assert outcome.status == GoalStatus.STATUS_SUCCEEDED
    assert list(outcome.result.sequence) == [0, 1, 1, 2, 3, 5, 8]
    # Feedback that arrives after the result is dropped by rclpy; what came before it must be right.
    assert feedback
    assert all(numbers == [0, 1, 1, 2, 3, 5, 8][: len(numbers)] for numbers in feedback)


def test_parameters_are_read_and_set_from_another_process_within_their_range(node: Any) -> None:
    from rcl_interfaces.srv import GetParameters, SetParameters
    from rclpy.parameter import Parameter

    def set_rate(value: float) -> Any:
        request = SetParameters.Request(parameters=[Parameter('rate', value=value).to_parameter_msg()])
        return call(node, SetParameters, 'server/set_parameters', request).results[0]

    assert set_rate(50.0).successful
    refused = set_rate(1000.0)
    assert not refused.successful
    assert 'rate' in refused.reason
    [value] = call(node, GetParameters, 'server/get_parameters', GetParameters.Request(names=['rate'])).values
    assert value.double_value == 50.0


def test_a_lifecycle_node_talks_only_while_active(node: Any) -> None:
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import GetState
    from std_msgs.msg import String

    from ki_policy_node.common import ros

    heard: list[str] = []
    node.create_subscription(String, 'words', lambda message: heard.append(message.data), 10)
    assert change_state(node, Transition.TRANSITION_CONFIGURE)
    assert not ros.spin_until(node, lambda: heard, 0.3), 'heard something from an inactive node'
    assert change_state(node, Transition.TRANSITION_ACTIVATE)
    assert ros.spin_until(node, lambda: len(heard) >= 3, 5.0)
    assert change_state(node, Transition.TRANSITION_DEACTIVATE)
    ros.spin_until(node, lambda: False, 0.2)
    heard.clear()
    assert not ros.spin_until(node, lambda: heard, 0.3)
    state = call(node, GetState, 'server/get_state', GetState.Request())
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
