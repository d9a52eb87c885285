"""A second process for the tests: sends back every message that it gets, on a topic of its own."""

from __future__ import annotations

import sys

import rclpy

from ki_policy_node.common import ros


def main(interfaces: list[str]) -> None:
    """For each interface, echoes `there/N` to `back/N`, until it is told to stop."""
    ros.start()
    node = rclpy.create_node('peer')
    for number, interface in enumerate(interfaces):
        cls = ros.message_class(interface)
        publisher = node.create_publisher(cls, f'back_{number}', 10)
        node.create_subscription(cls, f'there_{number}', publisher.publish, 10)
    ros.spin_until_signal(node)


if __name__ == '__main__':
    main(sys.argv[1:])
