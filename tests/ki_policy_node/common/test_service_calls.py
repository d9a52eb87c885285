"""Calls of services come back, also when an answer is lost or the server is late."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

rclpy = pytest.importorskip('rclpy')
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

from ki_policy_node.common.service_calls import ServiceCalls  # noqa: E402
from ki_policy_node.errors import NodeError  # noqa: E402

pytestmark = pytest.mark.ros


class Server:
    """A service over DDS that counts its calls, and whose first answers are lost on the way."""

    def __init__(self, node: Any, lost: int, work_s: float = 0.0) -> None:
        self.calls, self.lost, self.work_s = 0, lost, work_s
        self.service = node.create_service(Trigger, 'work', self.work)
        self.send, self.service.send_response = self.service.send_response, self.answer

    def work(self, _: Any, response: Any) -> Any:
        self.calls += 1
        time.sleep(self.work_s)
        response.success, response.message = True, f'call {self.calls}'
        return response

    def answer(self, response: Any, header: Any) -> None:
        if self.calls > self.lost:
            self.send(response, header)


@pytest.fixture
def ends(ros_domain: int) -> Iterator[tuple[Any, ServiceCalls]]:
    """A node that serves in a thread of its own, and the calls of another."""
    context = rclpy.Context()
    rclpy.init(context=context)
    far, near = (rclpy.create_node(name, context=context) for name in ('far', 'near'))
    serving, asking = (SingleThreadedExecutor(context=context) for _ in range(2))
    serving.add_node(far)
    asking.add_node(near)
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            serving.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin)
    thread.start()
    yield far, ServiceCalls(near, lambda: asking.spin_once(timeout_sec=0.02), 'Look into the log.')
    stop.set()
    thread.join()
    for executor in (serving, asking):
        executor.shutdown()
    for node in (far, near):
        node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize('lost', [0, 1, 3])
def test_a_lost_answer_is_asked_for_again(ends: tuple[Any, ServiceCalls], lost: int) -> None:
    far, calls = ends
    Server(far, lost)
    answer = calls.call(Trigger, 'work', Trigger.Request(), timeout_s=20.0, repeat_s=0.3)
    assert (answer.success, answer.message) == (True, f'call {lost + 1}')


def test_nothing_asked_is_left_to_act_after_the_call(ends: tuple[Any, ServiceCalls]) -> None:
    far, calls = ends
    server = Server(far, 0, work_s=0.5)
    calls.call(Trigger, 'work', Trigger.Request(), timeout_s=20.0, repeat_s=0.2)
    done = server.calls
    assert done >= 2  # it was slow, so it was asked again
    time.sleep(0.8)
    assert server.calls == done


def test_a_service_that_appears_late_is_waited_for(ends: tuple[Any, ServiceCalls]) -> None:
    far, calls = ends
    later = threading.Timer(0.7, lambda: Server(far, 0))
    later.start()
    assert calls.call(Trigger, 'work', Trigger.Request(), timeout_s=20.0).success
    later.join()


def test_no_call_waits_without_saying_what_for(ends: tuple[Any, ServiceCalls]) -> None:
    far, calls = ends
    with pytest.raises(NodeError, match=r'Nobody offers the service nowhere within 0\.3 s\. Look into the log\.'):
        calls.call(SetBool, 'nowhere', SetBool.Request(), timeout_s=0.3)
    Server(far, 10**6)
    with pytest.raises(NodeError, match=r'work gave no answer within 1 s, asked \d times\. Look into the log\.'):
        calls.call(Trigger, 'work', Trigger.Request(), timeout_s=1.0, repeat_s=0.2)
