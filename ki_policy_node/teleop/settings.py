"""The parameters of joy_teleop and leader_teleop. No ROS here: `ki up` and the docs read them, too."""

from __future__ import annotations

from typing import ClassVar

from ki_common.errors import KiError
from ki_common.node_settings import NodeSettings, setting
from ki_policy_node.errors import NodeError


class JoyTeleopSettings(NodeSettings):
    """Parameters of joy_teleop."""

    raises: ClassVar[type[KiError]] = NodeError

    robot: str = setting('')
    """Robot contract: a name of config/robots, or the path of a YAML file."""
    topic: str = setting('joy')
    """Topic of sensor_msgs/Joy; let its node repeat (`autorepeat_rate: 20.0`)."""
    deadman: int = setting(4, ge=0, le=63)
    """Button that must be held: without it nothing is sent, and the robot holds."""
    axes: tuple[str, ...] = setting(())
    """What an axis moves and how fast, as `1:=base/linear/x/velocity*0.3` or `0:=joint1/position*0.2`."""
    rate: float = setting(25.0, unit='Hz', ge=5.0, le=100.0)
    """Setpoints a second."""


class LeaderTeleopSettings(NodeSettings):
    """Parameters of leader_teleop."""

    raises: ClassVar[type[KiError]] = NodeError

    robot: str = setting('')
    """Robot contract: a name of config/robots, or the path of a YAML file."""
    topic: str = setting('leader/joint_states')
    """Topic of the leader's sensor_msgs/JointState."""
    joints: tuple[str, ...] = setting(())
    """What a joint of the leader moves, as `j1:=joint1/position*-1+0.1`; empty: joints of the same name."""
