"""A leader arm as a human's commands: its joint states, by name, as setpoints of the robot's columns.

It sends whatever the leader measures; the executor follows it only while a human drives, within its limits.
"""

from __future__ import annotations

import math
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import JointState

from ki_policy_node.common.parameters import Parameters
from ki_policy_node.common.process import run_plain
from ki_policy_node.common.streams import INPUT_QOS
from ki_policy_node.errors import NodeError
from ki_policy_node.teleop.mapping import Link, links_of
from ki_policy_node.teleop.setpoints import SetpointPublisher
from ki_policy_node.teleop.settings import LeaderTeleopSettings
from ki_robot.contract.contract import load_contract
from ki_robot.contract.names import interface_of, joint_of


class LeaderTeleop(Node):
    """Wiring of leader_teleop."""

    def __init__(self) -> None:
        super().__init__('leader_teleop', automatically_declare_parameters_from_overrides=True)
        settings = Parameters(self, LeaderTeleopSettings).values
        contract = load_contract(settings.robot)
        same = [name for name in contract.robot.action_names if interface_of(name) == 'position']
        self._links = links_of(settings.joints, contract, 'joints') or tuple(
            Link(joint_of(name), name) for name in same
        )
        self._setpoints = SetpointPublisher(self, contract, 'leader arm')
        self.create_subscription(JointState, settings.topic, self._on_states, INPUT_QOS)

    def _on_states(self, message: Any) -> None:
        try:
            self._setpoints.send(leader_values(message, self._links))
        except NodeError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=1.0)


def leader_values(message: Any, links: tuple[Link, ...]) -> dict[str, float]:
    """Values by column from a leader's joint state.

    Raises:
        NodeError: a joint is missing, or its position is not finite.
    """
    places = {name: place for place, name in enumerate(message.name)}
    values = {}
    for link in links:
        place = places.get(link.source, len(message.position))
        if place >= len(message.position) or not math.isfinite(message.position[place]):
            raise NodeError(f'The leader says no position of {link.source}; name its joints in the parameter joints.')
        values[link.column] = link(message.position[place])
    return values


def main(arguments: list[str] | None = None) -> int:
    """The process `leader_teleop`."""
    return run_plain(LeaderTeleop, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
