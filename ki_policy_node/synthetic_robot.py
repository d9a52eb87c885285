"""A robot made of topics alone: it shows moving pictures, measures joints, and goes where its controllers are sent.

For trying the wiring of a contract, for benchmarks and for tests, where no robot and no simulator is at hand. Faults
are made while it runs: by the parameter `silent`, or from Python by the public attributes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState

from ki_policy_node.common import process
from ki_policy_node.common.parameters import Parameters
from ki_policy_node.common.ros import message_class
from ki_policy_node.common.streams import controller_nodes, message_type
from ki_policy_node.errors import NodeError
from ki_policy_node.synthetic_settings import SyntheticRobotSettings
from ki_robot.actions.motion import Profile
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.controller_kinds import CONTROLLER_KINDS
from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import Camera, Output, StateStream
from ki_robot.messages.arrays import (
    fill_compressed,
    fill_image,
    fill_joint_columns,
    fill_twist,
    set_time,
    stamp_ns,
    time_ns,
)
from ki_robot.messages.commands import read_command
from ki_robot.messages.states import measured_columns
from ki_robot.messages.video import VIDEO_MESSAGES

SENSOR_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
COMMAND_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
FRAMES = 8


class SyntheticRobot(Node):
    """The topics of a contract, from the robot's side.

    Attributes:
        silent: Streams that send nothing, besides those of the parameter. frozen: cameras that repeat one picture under
            new stamps.
        spoil: Called with every outgoing state message, may change it.
        heard: Called with every command: name of the output, steady time of its arrival [ns], message. None is kept.
        positions: Where the joints are, by column name.
    """

    def __init__(self, contract: Contract | None = None, **options: Any) -> None:
        super().__init__('synthetic_robot', automatically_declare_parameters_from_overrides=True, **options)
        parameters = Parameters(self, SyntheticRobotSettings)
        settings = parameters.values
        self.contract = (contract or load_contract(settings.robot)).robot  # it has joints, and knows no hands
        self._streams = {stream.name for stream in self.contract.streams}
        if why := self._unknown(settings.silent):
            raise NodeError(why)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.silent: set[str] = set()
        self.frozen: set[str] = set()
        self.spoil: Callable[[Any], Any] = lambda message: message
        self.heard: Callable[[str, int, Any], None] = lambda output, steady_ns, message: None
        self.positions = {
            c.name: 0.5 * ((c.limits.lower or 0.0) + (c.limits.upper or 0.0)) for c in self.contract.actions
        }
        self.velocities: dict[str, float] = defaultdict(float)
        self._targets: dict[str, tuple[list[str], Profile]] = {}
        self._count = 0
        size = (settings.height, settings.width)
        self._pictures = [picture(size, index, settings.noise) for index in range(FRAMES)]
        self._messages = {camera.name: self._frames(camera) for camera in self.contract.cameras}
        self._sensors = {
            stream.name: self.create_publisher(message_type(stream), stream.topic, SENSOR_QOS)
            for stream in self.contract.streams
        }
        self.controllers: dict[str, Node] = {}
        for output in self.contract.outputs:
            self.connect(output.name)
        self.create_timer(1.0 / settings.camera_rate, self.send_cameras)
        self.create_timer(1.0 / settings.state_rate, self.send_states)

    def autostart(self) -> bool:
        """It has no lifecycle."""
        return False

    def connect(self, name: str) -> Node:
        """Starts the controller of an output; its node, to be spun with this one."""
        [output] = [each for each in self.contract.outputs if each.name == name]
        controller = self.controllers[name] = controller_nodes(self, [output])[name]
        kind, topic = message_class(CONTROLLER_KINDS[output.kind].messages[0]), self.resolve_topic_name(output.topic)
        controller.create_subscription(kind, topic, self._receive(output), COMMAND_QOS)
        return controller

    def release(self, name: str) -> None:
        """The joints of an output go nowhere any more: its controller is gone."""
        [output] = [each for each in self.contract.outputs if each.name == name]
        for column in output.columns:
            self._targets.pop(column, None)

    def companions(self) -> Iterable[Node]:
        """The nodes to spin with this one: its controllers."""
        return set(self.controllers.values())

    def close(self) -> None:
        """Ends the controllers."""
        for controller in self.companions():
            controller.destroy_node()

    def send_cameras(self) -> None:
        """One frame of every camera, all with one stamp."""
        self._count += 1
        now_ns = self._now_ns()
        silent = self._silent()
        for camera in self.contract.cameras:
            if camera.name in silent:
                continue
            message = self._messages[camera.name][0 if camera.name in self.frozen else self._count % FRAMES]
            set_time(message.header.stamp, now_ns)
            self._sensors[camera.name].publish(message)

    def send_states(self) -> None:
        """Moves the joints to where they are sent, and measures them."""
        self._move(time.monotonic_ns())
        silent = self._silent()
        for stream in self.contract.state_streams:
            if stream.name not in silent:
                message = self.spoil(self._measure(stream, self._now_ns()))
                if message is not None:
                    self._sensors[stream.name].publish(message)

    def _silent(self) -> set[str]:
        return self.silent | set(self.get_parameter('silent').value or ())

    def _unknown(self, names: Iterable[str]) -> str:
        """Why these cannot be silent; empty when they can."""
        wrong = sorted(set(names) - self._streams)
        known = ', '.join(sorted(self._streams))
        return f'silent: {self.contract.name} has no stream {wrong[0]!r}; write some of {known}.' if wrong else ''

    def _on_parameters(self, changes: Iterable[Parameter]) -> SetParametersResult:
        why = next((self._unknown(each.value) for each in changes if each.name == 'silent'), '')
        return SetParametersResult(successful=not why, reason=why)

    def _frames(self, camera: Camera) -> list[Any]:
        if camera.transport in VIDEO_MESSAGES:
            raise NodeError(f'Camera {camera.name} is {camera.transport}; a made-up robot has raw and compressed ones.')
        if camera.transport == 'compressed':
            return [fill_compressed(CompressedImage(), image, 1, camera.name) for image in self._pictures]
        return [fill_image(Image(), image, 1, camera.name) for image in self._pictures]

    def _measure(self, stream: StateStream, now_ns: int) -> Any:
        columns = measured_columns(self.contract, stream)
        if stream.type == 'odometry':
            message = Odometry()
            set_time(message.header.stamp, now_ns)
            fill_twist(message.twist.twist, columns, [self.velocities[name] for name in columns])
            return message
        return fill_joint_columns(JointState(), self.positions, columns, now_ns, stream.prefix)

    def _receive(self, output: Output) -> Callable[[Any], None]:
        def keep(message: Any) -> None:
            steady_ns = time.monotonic_ns()
            self.heard(output.name, steady_ns, message)
            if hasattr(message, 'points'):
                self._follow(message, steady_ns)
                return
            for name, value in zip(output.columns, read_command(message, output.columns).values[-1], strict=True):
                (self.positions if interface_of(name) == 'position' else self.velocities)[name] = float(value)

        return keep

    def _follow(self, message: Any, steady_ns: int) -> None:
        """A trajectory replaces the one before; a first point in the future is led to from where the joints are now."""
        names = [f'{joint}/position' for joint in message.joint_names]
        stamp = stamp_ns(message.header)
        start_ns = steady_ns + (stamp - self._now_ns() if stamp else 0)
        times = [start_ns + time_ns(point.time_from_start) for point in message.points]
        values = [list(point.positions) for point in message.points]
        rates = [list(point.velocities) or [0.0] * len(names) for point in message.points]
        if times[0] > steady_ns:
            times.insert(0, steady_ns)
            values.insert(0, [self.positions[name] for name in names])
            rates.insert(0, [0.0] * len(names))
        self._targets[names[0]] = names, Profile(np.array(times), np.array(values), np.array(rates))

    def _move(self, steady_ns: int) -> None:
        for names, profile in self._targets.values():
            values_n, _ = profile.at(steady_ns)
            self.positions.update(zip(names, values_n.tolist(), strict=True))

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def picture(size: tuple[int, int], index: int, noise: float = 0.0) -> np.ndarray:
    """A smooth picture with a bright spot that moves with `index`, uint8 RGB (height, width, 3), and with noise."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    spot = np.exp(-(((columns / width - (index + 0.5) / FRAMES) ** 2) + (rows / height - 0.5) ** 2) / 0.01)
    image = np.stack([columns * (200.0 / width), rows * (200.0 / height), 200.0 * spot], axis=-1) + 20.0
    if noise:
        image += np.random.default_rng(index).normal(0.0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def main(arguments: list[str] | None = None) -> int:
    """The process `synthetic_robot`."""
    return process.run(SyntheticRobot, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
