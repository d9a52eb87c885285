"""Sends one image to another process and its stamp back: does ROS 2 carry camera images on this machine?

`python -m ki.stack.roundtrip` is the far end; `measure` starts it, and is the near end.
"""

from __future__ import annotations

import array
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

IMAGE, ECHO = 'ki_roundtrip/image', 'ki_roundtrip/echo'
HEIGHT, WIDTH, RATE_HZ = 480, 640, 30.0


@dataclass(frozen=True)
class DdsRoundTrip:
    """What came back: images sent, echoes received, median time there and back [s], time to find each other [s]."""

    sent: int
    received: int
    median_s: float
    discovery_s: float


def measure(count: int = 30, timeout_s: float = 15.0) -> DdsRoundTrip:
    """Sends `count` best-effort 640x480 images to a second process and times the answers.

    A process that never answers gives `received` 0.
    """
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from ki_policy_node.common import ros

    sent: dict[int, float] = {}
    times: list[float] = []

    def back(header: Any) -> None:
        times.append(time.perf_counter() - sent[header.stamp.nanosec])

    with ros.node('ki_roundtrip_near', enable_rosout=False, start_parameter_services=False) as node:
        publisher = node.create_publisher(Image, IMAGE, qos_profile_sensor_data)
        node.create_subscription(Header, ECHO, back, 10)
        image = Image(height=HEIGHT, width=WIDTH, step=3 * WIDTH, encoding='rgb8')
        image.data = array.array('B', bytes(3 * WIDTH * HEIGHT))
        start = time.perf_counter()
        far = subprocess.Popen([sys.executable, '-m', 'ki.stack.roundtrip'], stdout=subprocess.DEVNULL)
        try:
            # Both directions must be matched, or the first answers are lost.
            found = ros.spin_until(
                node, lambda: publisher.get_subscription_count() and node.count_publishers(ECHO), timeout_s
            )
            discovery_s = time.perf_counter() - start
            for number in range(count if found else 0):
                image.header.stamp.nanosec = number
                sent[number] = time.perf_counter()
                publisher.publish(image)
                ros.spin_until(node, lambda: len(times) > number, 1.0 / RATE_HZ)  # noqa: B023 - called at once
            ros.spin_until(node, lambda: len(times) == len(sent), 0.5)
        finally:
            far.terminate()
            far.wait()
    times.sort()
    return DdsRoundTrip(len(sent), len(times), times[len(times) // 2] if times else float('nan'), discovery_s)


def main() -> None:
    """The far end: answers every image with its header, until it is told to stop."""
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from ki_policy_node.common import ros

    ros.start()
    node = rclpy.create_node('ki_roundtrip_far')
    publisher = node.create_publisher(Header, ECHO, 10)

    def answer(image: Image) -> None:
        publisher.publish(image.header)

    node.create_subscription(Image, IMAGE, answer, qos_profile_sensor_data)
    ros.spin_until_signal(node)


if __name__ == '__main__':
    main()
