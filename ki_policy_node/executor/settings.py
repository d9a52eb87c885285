"""The parameters of chunk_executor. No ROS here: launch files, `ki up` and the docs read them, too."""

from __future__ import annotations

from typing import ClassVar, Literal

from ki_common.errors import KiError
from ki_common.node_settings import Change, LifecycleSettings, setting
from ki_policy_node.errors import NodeError

OnLimit = Literal['clamp', 'reject']


class ChunkExecutorSettings(LifecycleSettings):
    """Parameters of chunk_executor."""

    raises: ClassVar[type[KiError]] = NodeError

    robot: str = setting('')
    """Robot contract: a name of config/robots, or the path of a YAML file."""
    rate: float = setting(100.0, unit='Hz', ge=20.0, le=1000.0)
    """Control rate: the controller_manager's update_rate, or a divisor of it."""
    priority: int = setting(40, ge=0, le=98)
    """SCHED_FIFO priority of the thread that ticks, where the system permits one (ros2_control has 50), else nice -10;
    0 leaves the executor to the scheduling of every process."""
    enabled: bool = setting(False)
    """Command the robot as soon as the node is active; else call ~/enable."""
    autostart: bool = setting(True, change=Change.READ_ONLY)
    """Configure and activate at the start; false leaves that to a lifecycle manager."""
    state_timeout: float = setting(0.2, unit='s', ge=0.01, le=10.0)
    """Age of the measured state at which the robot holds; three periods of joint_states at the least."""
    status_timeout: float = setting(0.25, unit='s', ge=0.0, le=10.0)
    """Silence of the policy node at which the robot holds; 0 does not watch it."""
    chunk_timeout: float = setting(0.0, unit='s', ge=0.0, le=60.0)
    """Time without a new chunk at which the robot holds; 0 waits for the end of the last chunk."""
    start_jump: float = setting(0.3, unit='s', ge=0.01, le=10.0)
    """A new chunk may begin as far from the robot as full speed covers in this time."""
    max_observation_age: float = setting(2.0, unit='s', ge=0.05, le=60.0)
    """Greatest age of the observation behind a new chunk."""
    on_limit: OnLimit = setting('clamp')
    """What happens to a chunk beyond a limit: clamp it, or reject it."""
    limits_file: str = setting('')
    """URDF or joint_limits YAML of the robot; the tighter of its limits and the contract's holds."""
    max_tracking_error: float = setting(0.5, unit='rad or m', ge=0.0, le=10.0)
    """Greatest distance of what is measured from what is commanded, half a second long, where the contract gives a
    column no tolerance; 0 does not watch it."""
    late_limit: float = setting(0.05, unit='s', ge=0.0, le=10.0)
    """Lateness of a tick that is told as an event; 0 tells none."""
    require_controllers: bool = setting(True)
    """Hold while no controller subscribes to a command topic."""
    exclusive: bool = setting(True)
    """Hold while another node publishes on a command topic."""
    teleop_timeout: float = setting(0.25, unit='s', ge=0.05, le=2.0)
    """Silence of a human's commands, while a human drives, at which the robot holds."""
    require_operator: bool = setting(False)
    """Move only while a live operator is heard on operator_heartbeat; when that stops, hold until enabled again."""
    operator_timeout: float = setting(0.7, unit='s', ge=0.2, le=10.0)
    """Silence of a required operator at which the robot holds."""
