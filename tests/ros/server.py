"""A second process for the tests: talker, service, action, parameters, lifecycle, as in tutorials."""

from __future__ import annotations

from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.action import ActionServer, CancelResponse
from rclpy.executors import MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from std_msgs.msg import String
from std_srvs.srv import SetBool
from test_msgs.action import Fibonacci

from ki_policy_node.common import ros
from ki_policy_node.common.stop_request import StopRequest


class Server(LifecycleNode):
    """Talks while active, answers always."""

    def __init__(self) -> None:
        """Declares everything."""
        super().__init__('server')
        limits = ParameterDescriptor(floating_point_range=[FloatingPointRange(from_value=1.0, to_value=100.0)])
        self.declare_parameter('rate', 20.0, limits)
        self.create_service(SetBool, 'negate', self.negate)
        self.action = ActionServer(
            self, Fibonacci, 'fibonacci', self.fibonacci, cancel_callback=lambda goal: CancelResponse.ACCEPT
        )
        self.words = self.create_lifecycle_publisher(String, 'words', 10)
        self.ticks = self.create_timer(1.0 / self.get_parameter('rate').value, self.talk)

    def talk(self) -> None:
        """Says nothing while inactive: a lifecycle publisher keeps the words to itself."""
        if self.words.is_activated:
            self.words.publish(String(data='hello'))

    def negate(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """The service."""
        response.success = not request.data
        response.message = self.get_name()
        return response

    async def fibonacci(self, goal: object) -> Fibonacci.Result:
        """The action, with feedback at every step."""
        numbers = [0, 1]
        while len(numbers) <= goal.request.order:  # type: ignore[attr-defined]
            numbers.append(numbers[-1] + numbers[-2])
            goal.publish_feedback(Fibonacci.Feedback(sequence=numbers))  # type: ignore[attr-defined]
        goal.succeed()  # type: ignore[attr-defined]
        return Fibonacci.Result(sequence=numbers)

    def on_configure(self, state: object) -> TransitionCallbackReturn:
        """Refuses a rate below 2."""
        fits = self.get_parameter('rate').value >= 2.0
        return TransitionCallbackReturn.SUCCESS if fits else TransitionCallbackReturn.FAILURE


def main() -> None:
    """Spins with two threads until it is told to stop."""
    ros.start()
    executor = MultiThreadedExecutor(2)
    executor.add_node(Server())
    stop = StopRequest(executor.wake)
    while not stop.is_set():
        executor.spin_once(timeout_sec=0.5)


if __name__ == '__main__':
    main()
