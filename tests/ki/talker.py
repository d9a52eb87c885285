"""A node for the tests: talks at `rate`, and says goodbye when it is stopped.

With `count` it ends by itself after so many ticks; with `after`, those since it has heard another say that word.
"""

from __future__ import annotations

import time

import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from ki_policy_node.common import ros


class Talker(Node):
    """Two topics, one timer. Words are followed by their number and the time they were sent at [ns]."""

    def __init__(self) -> None:
        """Declares its parameters."""
        super().__init__('talker')
        self.word = self.declare_parameter('word', 'hello').value
        self.count = self.declare_parameter('count', 0).value
        self.after = self.declare_parameter('after', '').value
        self.ticks = 0
        self.words = self.create_publisher(String, 'words', 10)
        self.states = self.create_publisher(JointState, 'joint_states', qos_profile_sensor_data)
        if self.after:
            self.create_subscription(String, 'words', self.hear, 10)
        self.create_timer(1.0 / self.declare_parameter('rate', 50.0).value, self.tick)
        self.begun = False

    def hear(self, message: String) -> None:
        """Counts from the first word of the one that was to be heard first."""
        if self.after and message.data.split()[0] == self.after:
            self.after, self.ticks = '', 0

    def tick(self) -> None:
        """Says both."""
        if not self.begun:  # not sooner: who reads it may stop the node, and only one that spins says goodbye
            self.begun = True
            self.get_logger().info(f'{self.get_fully_qualified_name()} says {self.word}')
        self.words.publish(String(data=f'{self.word} {self.ticks} {time.time_ns()}'))
        self.states.publish(JointState(name=[f'joint{number}' for number in range(20)], position=[0.5] * 20))
        self.ticks += 1
        if self.ticks == self.count and not self.after:
            raise SystemExit(3)


def main() -> None:
    """Until it is told to stop."""
    ros.use_dds_profile()
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    ros.spin_until_signal(Talker())
    print('goodbye', flush=True)


if __name__ == '__main__':
    main()
