"""What a message to a controller asks of the simulated world; duck-typed, so it knows no ROS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ki_robot.contract.parts import Output
from ki_robot.messages.arrays import stamp_ns, time_ns
from ki_sim.errors import SimError
from ki_sim.world.controllers import Point, TrajectoryCommand
from ki_sim.world.robot import SIDES
from ki_sim.world.world import World

# What is done to the world, whose time is behind the stamps by so many nanoseconds.
Apply = Callable[[World, int], None]


def reader(output: Output) -> Callable[[Any], Apply]:
    """What turns messages for an output into what they do; the world refuses what it cannot do, when it is done.

    Args:
        output: Of a contract that `ki_sim.node.settings.servable` let pass.
    """
    side = next((side for side in SIDES if output.columns[0].startswith(side)), '')
    kinds = {'joint_trajectory': _arm, 'forward_command': _gripper, 'twist_stamped': _base}
    read = kinds[output.kind]
    return lambda message: read(side, message)


def _arm(side: str, message: Any) -> Apply:
    points = tuple(
        Point(time_ns(p.time_from_start), p.positions, p.velocities, p.accelerations) for p in message.points
    )
    stamp, names = stamp_ns(message.header), tuple(message.joint_names)

    def apply(world: World, offset_ns: int) -> None:
        world.command_arm(side, TrajectoryCommand(names, points, stamp - offset_ns if stamp else 0))

    return apply


def _gripper(side: str, message: Any) -> Apply:
    values = tuple(message.data)

    def apply(world: World, offset_ns: int) -> None:
        if len(values) != 1:
            raise SimError(f'{side}_gripper_controller got {len(values)} numbers: send the opening alone')
        world.command_gripper(side, values[0])

    return apply


def _base(side: str, message: Any) -> Apply:
    twist, stamp = message.twist, stamp_ns(message.header)
    values = (twist.linear.x, twist.linear.y, twist.angular.z)
    return lambda world, offset_ns: world.command_base(values, stamp - offset_ns if stamp else 0)
