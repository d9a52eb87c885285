"""A joystick as a human's commands: axes jog joints and drive a base, while a button is held.

With the button released, or the joystick silent, nothing is sent, and the executor holds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import JointState, Joy

from ki_policy_node.common.parameters import Parameters
from ki_policy_node.common.process import STEADY, run_plain
from ki_policy_node.common.streams import INPUT_QOS, NEWEST, message_type
from ki_policy_node.errors import NodeError
from ki_policy_node.teleop.mapping import Link, links_of
from ki_policy_node.teleop.setpoints import SetpointPublisher
from ki_policy_node.teleop.settings import JoyTeleopSettings
from ki_robot.contract.contract import load_contract
from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import StateStream
from ki_robot.errors import Rejected
from ki_robot.messages.states import StateReader, measured_columns

SILENT_S = 0.3


class Jog:
    """Targets that axes move: a position by its speed, a velocity at once. Time is passed in.

    Args:
        links: Axis numbers and columns; the scale is rad/s, m/s or SI at full deflection.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = tuple(links)
        self._targets: dict[str, float] = {}

    def release(self) -> None:
        """The button is released: what is pressed next begins where the robot is then."""
        self._targets.clear()

    def step(self, axes: Sequence[float], here: Mapping[str, float], seconds: float) -> dict[str, float]:
        """Setpoints after `seconds` of these axes; of a position that is not known, none."""
        made: dict[str, float] = {}
        for link in self._links:
            number = int(link.source)
            moved = link(axes[number]) if number < len(axes) else 0.0
            if interface_of(link.column) != 'position':
                made[link.column] = moved
            elif link.column in self._targets or link.column in here:
                self._targets[link.column] = (
                    self._targets.get(link.column, here.get(link.column, 0.0)) + moved * seconds
                )
                made[link.column] = self._targets[link.column]
        return made


class JoyTeleop(Node):
    """Wiring of joy_teleop."""

    def __init__(self) -> None:
        super().__init__('joy_teleop', automatically_declare_parameters_from_overrides=True)
        settings = Parameters(self, JoyTeleopSettings).values
        contract = load_contract(settings.robot)
        links = links_of(settings.axes, contract, 'axes')
        if not links or not all(link.source.isdecimal() for link in links):
            raise NodeError(f'Parameter axes is {list(settings.axes)}; name axes by number, as 1:=joint1/position*0.2.')
        self._jog, self._deadman = Jog(links), settings.deadman
        self._setpoints = SetpointPublisher(self, contract, 'joystick')
        self._here: dict[str, float] = {}
        self._joy: tuple[Any, float] | None = None
        for stream in contract.state_streams:
            listen = self._measured(stream, measured_columns(contract, stream))
            self.create_subscription(message_type(stream), stream.topic, listen, INPUT_QOS)
        # What is commanded goes before what is measured: an arm that sags must not be jogged down.
        self.create_subscription(JointState, 'chunk_executor/applied_command', self._on_applied, NEWEST)
        self.create_subscription(Joy, settings.topic, self._on_joy, INPUT_QOS)
        self._period_s = 1.0 / settings.rate
        self.create_timer(self._period_s, self._send, clock=STEADY)

    def _measured(self, stream: StateStream, columns: tuple[str, ...]) -> Any:
        reader = StateReader(stream, columns)

        def take(message: Any) -> None:
            try:
                found = reader.read(message)
            except Rejected:
                return
            if found is not None:
                self._here.update(zip(columns, found[1].tolist(), strict=True))

        return take

    def _on_applied(self, message: Any) -> None:
        self._here.update(zip(message.name, message.position, strict=False))

    def _on_joy(self, message: Any) -> None:
        self._joy = message, time.monotonic()

    def _send(self) -> None:
        if self._joy is None or not self._held(*self._joy):
            self._jog.release()
            return
        self._setpoints.send(self._jog.step(self._joy[0].axes, self._here, self._period_s))

    def _held(self, message: Any, heard_s: float) -> bool:
        pressed = len(message.buttons) > self._deadman and bool(message.buttons[self._deadman])
        return pressed and time.monotonic() - heard_s < SILENT_S


def main(arguments: list[str] | None = None) -> int:
    """The process `joy_teleop`."""
    return run_plain(JoyTeleop, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
