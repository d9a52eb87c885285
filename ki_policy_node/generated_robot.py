"""A robot without a body: cameras that see a drawn picture and joints that swing, on the topics of a contract.

For trying out what listens (recorder, viewers, a policy in dry run) where there is neither hardware nor a simulator.
Commands are not heard. The picture holds the camera's name and the time, so that a look at a recording tells
whether it is whole.

    parameters: contract (bimanual_mobile), camera_hz (30), state_hz (100), width (640), height (480),
                seconds (0: without end)
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import cv2
import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data

from ki_policy_node import ros
from ki_robot import messages
from ki_robot.contract import Contract, StateStream, load_contract


class GeneratedRobot(Node):
    """Publishes every camera and state stream of a contract."""

    def __init__(self) -> None:
        """Reads the contract and starts the timers."""
        super().__init__('generated_robot')
        self.contract: Contract = load_contract(self.declare_parameter('contract', 'bimanual_mobile').value)
        self.width = self.declare_parameter('width', 640).value
        self.height = self.declare_parameter('height', 480).value
        self.seconds = self.declare_parameter('seconds', 0.0).value
        self.start_ns = self.get_clock().now().nanoseconds
        self.cameras = [
            (camera, self.create_publisher(image_type(camera.transport), camera.topic, qos_profile_sensor_data))
            for camera in self.contract.cameras
        ]
        self.states = [
            (stream, self.create_publisher(state_type(stream), stream.topic, qos_profile_sensor_data))
            for stream in self.contract.state_streams
        ]
        self.camera_s = 1.0 / self.declare_parameter('camera_hz', 30.0).value
        self.create_timer(1.0 / self.declare_parameter('state_hz', 100.0).value, self.feel)
        if self.seconds:
            self.create_timer(self.seconds, self.end)

        # Drawing and compressing three pictures takes longer than a period of the joints, and leaves Python alone.
        threading.Thread(target=self.film, daemon=True).start()

    def film(self) -> None:
        """Looks at the rate of the cameras, in a thread of its own."""
        due = time.monotonic()
        while rclpy.ok():
            self.look()
            due = max(due + self.camera_s, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0.0))

    def look(self) -> None:
        """One picture per camera."""
        now_ns = self.get_clock().now().nanoseconds
        for camera, publisher in self.cameras:
            image = picture(self.height, self.width, camera.name, (now_ns - self.start_ns) / 1e9)
            fill = messages.fill_compressed if camera.transport == 'compressed' else messages.fill_image
            publisher.publish(fill(image_type(camera.transport)(), image, now_ns, f'{camera.name}_optical'))

    def feel(self) -> None:
        """One message per state stream: positions swing slowly, velocities are their derivative."""
        now_ns = self.get_clock().now().nanoseconds
        phase = (now_ns - self.start_ns) / 1e9
        for stream, publisher in self.states:
            message = state_type(stream)()
            if stream.type == 'joint_state':
                names = [column.name for column in self.contract.state if column.source == stream.name]
                joints = [name.removesuffix('/position') for name in names if name.endswith('/position')]
                swing = [0.1 * math.sin(phase + 0.3 * number) for number in range(len(joints))]
                messages.fill_joint_state(message, joints, swing, now_ns)
            else:
                messages.set_time(message.header.stamp, now_ns)
                message.twist.twist.linear.x = 0.1 * math.sin(phase)
            publisher.publish(message)

    def end(self) -> None:
        """Enough: with this process, what `ki up` started beside it ends too."""
        self.get_logger().info(f'{self.seconds:g} s are over')
        raise SystemExit(0)


def image_type(transport: str) -> Any:
    """Message class of a camera."""
    return ros.message_class(
        'sensor_msgs/msg/CompressedImage' if transport == 'compressed' else 'sensor_msgs/msg/Image'
    )


def state_type(stream: StateStream) -> Any:
    """Message class of a state stream."""
    return ros.message_class('sensor_msgs/msg/JointState' if stream.type == 'joint_state' else 'nav_msgs/msg/Odometry')


def picture(height: int, width: int, name: str, seconds: float) -> NDArray[np.uint8]:
    """A gradient, a disc that circles once in four seconds, the name and the time; uint8 (height, width, 3)."""
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 160, width, dtype=np.uint8)
    image[..., 1] = np.linspace(0, 160, height, dtype=np.uint8)[:, None]
    image[..., 2] = 90
    angle, radius = math.tau * seconds / 4.0, 0.3 * min(height, width)
    centre = int(width / 2 + radius * math.cos(angle)), int(height / 2 + radius * math.sin(angle))
    cv2.circle(image, centre, min(height, width) // 12, (250, 200, 40), -1, cv2.LINE_AA)
    cv2.putText(image, f'{name} {seconds:.2f}', (10, height - 14), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1)
    return image


def main() -> None:
    """Runs until it is told to stop, or its time is over."""
    ros.use_dds_profile()
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    ros.spin_until_signal(GeneratedRobot())
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
