"""The parameters of synthetic_robot. No ROS here: `ki up` and the docs read them, too."""

from __future__ import annotations

from typing import ClassVar

from ki_common.errors import KiError
from ki_common.node_settings import Change, NodeSettings, setting
from ki_policy_node.errors import NodeError


class SyntheticRobotSettings(NodeSettings):
    """Parameters of synthetic_robot."""

    raises: ClassVar[type[KiError]] = NodeError

    robot: str = setting('bimanual_mobile')
    """Robot contract: a name of config/robots, or the path of a YAML file."""
    camera_rate: float = setting(30.0, unit='Hz', ge=0.1, le=1000.0)
    """Frames a second of every camera."""
    state_rate: float = setting(100.0, unit='Hz', ge=1.0, le=1000.0)
    """Joint states a second."""
    width: int = setting(640, unit='pixels', ge=16, le=4096)
    """Width of the pictures."""
    height: int = setting(480, unit='pixels', ge=16, le=4096)
    """Height of the pictures."""
    noise: float = setting(0.0, unit='grey levels', ge=0.0, le=64.0)
    """Standard deviation of the noise in the pictures; 10 makes a JPEG as large as one of a real scene."""
    silent: tuple[str, ...] = setting((), change=Change.LIVE)
    """Cameras and state streams, by their names in the contract, that send nothing: as if they had died."""
