"""Commands to controllers: trajectories, arrays, twists, grippers; and for each the command that means hold.

Shapes: K knots of a window, N columns of the contract, n columns of one output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ki_policy_node.errors import NodeError
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import joint_of
from ki_robot.contract.parts import MAX_WINDOW_S
from ki_robot.contract.parts import Output as OutputSpec
from ki_robot.messages.arrays import fill_multi_array, fill_trajectory, fill_twist, set_time

# Only the newest command matters; a late one must not queue behind it.
COMMAND_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
HOLD_REPEAT_NS = 200_000_000
HOLD_REACH_NS = 100_000_000  # when the joints shall be at the pose to hold
GRIPPER_PERIOD_NS = 200_000_000


@dataclass(frozen=True)
class Plan:
    """What to do from now on: the setpoint in force, and the knots after it.

    `times_ns` (K,) counts from now, ascending, above 0; `values_KN` and `velocities_KN` are the knots there,
    `setpoint_N` is in force now.
    """

    setpoint_N: np.ndarray
    times_ns: np.ndarray
    values_KN: np.ndarray
    velocities_KN: np.ndarray


class ControllerOutput(Protocol):
    """One controller's command topic or action; `publisher` is None for an action."""

    spec: OutputSpec
    publisher: Any

    def command(self, plan: Plan, now_ns: int) -> None:
        """Sends what of `plan` is due."""
        ...

    def hold(self, pose_N: np.ndarray, now_ns: int, again: bool) -> None:
        """Sends the command that stops at `pose_N`; `again` when this hold has been sent before."""
        ...

    def heard(self) -> bool:
        """Whether a controller is there to take commands."""
        ...

    def close(self) -> None:
        """Frees the topic or action."""
        ...


def window(
    joints: Sequence[str], times_ns: np.ndarray, values_Kn: np.ndarray, velocities_Kn: np.ndarray | None
) -> JointTrajectory:
    """A trajectory that starts on arrival (stamp zero) and ends at rest.

    A joint_trajectory_controller refuses a trajectory that ends in the past; stamp zero cannot, however far apart
    the clocks of two machines are. It also refuses a last velocity other than 0, and 0 is what we want there: if
    nothing follows, the arm comes to rest at the end of the window.
    """
    if velocities_Kn is not None:
        velocities_Kn = velocities_Kn.copy()
        velocities_Kn[-1] = 0.0
    return fill_trajectory(JointTrajectory(), JointTrajectoryPoint, joints, times_ns.tolist(), values_Kn, velocities_Kn)


class _Columns:
    """The columns of one output, in the order of the contract's actions."""

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract, message_type: type | None) -> None:
        self.spec, self._node = spec, node
        self._index = np.array([contract.action_names.index(name) for name in spec.columns])
        self.publisher = node.create_publisher(message_type, spec.topic, COMMAND_QOS) if message_type else None

    def heard(self) -> bool:
        """Whether somebody subscribes."""
        return bool(self.publisher.get_subscription_count())

    def close(self) -> None:
        """Frees the publisher."""
        self._node.destroy_publisher(self.publisher)


class TrajectoryOutput(_Columns):
    """Short windows for a joint_trajectory_controller; each replaces the one before."""

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract) -> None:
        super().__init__(node, spec, contract, JointTrajectory)
        self._joints = [joint_of(name) for name in spec.columns]
        self._cubic = spec.options.interpolation != 'linear'
        self._window_ns = round((spec.options.window_s or MAX_WINDOW_S) * 1e9)
        # Two windows before one runs out: a lost message, or a late tick, does not stop the arm.
        self._period_ns = min(contract.step_ns, self._window_ns // 3)
        self._sent_ns = 0

    def command(self, plan: Plan, now_ns: int) -> None:
        """Sends the knots inside the window, once a step."""
        if 0 <= now_ns - self._sent_ns < self._period_ns:
            return
        self._sent_ns = now_ns
        inside = max(1, int(np.searchsorted(plan.times_ns, self._window_ns, side='right')))
        values_Kn = plan.values_KN[:inside, self._index]
        velocities_Kn = plan.velocities_KN[:inside, self._index] if self._cubic else None
        self.publisher.publish(window(self._joints, plan.times_ns[:inside], values_Kn, velocities_Kn))

    def hold(self, pose_N: np.ndarray, now_ns: int, again: bool) -> None:
        """Sends one point at the pose, at rest."""
        if again and 0 <= now_ns - self._sent_ns < HOLD_REPEAT_NS:
            return
        self._sent_ns = now_ns
        pose_1n = pose_N[None, self._index]
        self.publisher.publish(window(self._joints, np.array([HOLD_REACH_NS]), pose_1n, np.zeros_like(pose_1n)))


class ForwardOutput(_Columns):
    """One value a column at every tick, for a forward_command_controller.

    It never times out: what was sent last stays in force, so the hold is sent like any other command.
    """

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract) -> None:
        super().__init__(node, spec, contract, Float64MultiArray)

    def command(self, plan: Plan, now_ns: int) -> None:
        """Sends the setpoint."""
        self._send(plan.setpoint_N)

    def hold(self, pose_N: np.ndarray, now_ns: int, again: bool) -> None:
        """Sends the pose."""
        self._send(pose_N)

    def _send(self, values_N: np.ndarray) -> None:
        self.publisher.publish(fill_multi_array(Float64MultiArray(), values_N[self._index]))


class TwistOutput(_Columns):
    """A velocity of a base at every tick, stamped or not."""

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract) -> None:
        self._stamped = spec.kind == 'twist_stamped'
        super().__init__(node, spec, contract, TwistStamped if self._stamped else Twist)

    def command(self, plan: Plan, now_ns: int) -> None:
        """Sends the setpoint."""
        self._send(plan.setpoint_N[self._index], now_ns)

    def hold(self, pose_N: np.ndarray, now_ns: int, again: bool) -> None:
        """Sends zeros: a base holds by standing still."""
        self._send(np.zeros(len(self._index)), now_ns)

    def _send(self, values_n: np.ndarray, now_ns: int) -> None:
        if not self._stamped:
            self.publisher.publish(fill_twist(Twist(), self.spec.columns, values_n))
            return
        message = TwistStamped()
        set_time(message.header.stamp, now_ns)
        message.header.frame_id = self.spec.frame_id
        fill_twist(message.twist, self.spec.columns, values_n)
        self.publisher.publish(message)


class GripperTopicOutput(_Columns):
    """The opening of a gripper on a Float64MultiArray topic, sent on change beyond a dead band and once a second."""

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract) -> None:
        super().__init__(node, spec, contract, Float64MultiArray)
        self._sender = _OnChange(spec.options.dead_band or 0.0, 1_000_000_000)

    def command(self, plan: Plan, now_ns: int) -> None:
        """Sends the setpoint when it has changed."""
        self._send(float(plan.setpoint_N[self._index[0]]), now_ns)

    def hold(self, pose_N: np.ndarray, now_ns: int, again: bool) -> None:
        """Sends the pose: for a gripper that is the last command, so that what it grips stays gripped."""
        self._send(float(pose_N[self._index[0]]), now_ns)

    def _send(self, value: float, now_ns: int) -> None:
        if self._sender.due(value, now_ns):
            self.publisher.publish(fill_multi_array(Float64MultiArray(), [value]))


class GripperActionOutput(_Columns):
    """The opening of a gripper as goals of a gripper action; needs the package control_msgs."""

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract) -> None:
        super().__init__(node, spec, contract, None)
        interface = spec.options.interface
        try:
            import control_msgs.action
            from rclpy.action import ActionClient
        except ImportError as error:
            raise NodeError(
                f'Output {spec.name} of robot {contract.name} uses the action {interface}, and the package '
                f'control_msgs is not installed; install ros-$ROS_DISTRO-control-msgs, or set options.interface: topic.'
            ) from error
        self._parallel = interface == 'parallel_gripper_command'
        self._type = getattr(control_msgs.action, 'ParallelGripperCommand' if self._parallel else 'GripperCommand')
        self._client = ActionClient(node, self._type, spec.topic)
        self._sender = _OnChange(spec.options.dead_band or 0.002, GRIPPER_PERIOD_NS)
        self._sender.repeat_ns = 0

    def command(self, plan: Plan, now_ns: int) -> None:
        """Sends a goal when the setpoint has changed beyond the dead band, at most five a second."""
        self._send(float(plan.setpoint_N[self._index[0]]), now_ns)

    def hold(self, pose_N: np.ndarray, now_ns: int, again: bool) -> None:
        """Sends the pose: for a gripper that is the last command, so that what it grips stays gripped."""
        self._send(float(pose_N[self._index[0]]), now_ns)

    def heard(self) -> bool:
        """Whether the action is served."""
        return bool(self._client.server_is_ready())

    def close(self) -> None:
        """Frees the client."""
        self._client.destroy()

    def _send(self, value: float, now_ns: int) -> None:
        if not self.heard():
            self._sender.forget()  # a goal to nobody is lost, and the value is due when the server is back
            return
        if not self._sender.due(value, now_ns):
            return
        goal = self._type.Goal()
        effort = self.spec.options.max_effort or 0.0
        if self._parallel:
            goal.command.name = [joint_of(self.spec.columns[0])]
            goal.command.position = [value]
            goal.command.effort = [effort] if effort else []
        else:
            goal.command.position = value
            goal.command.max_effort = effort
        self._client.send_goal_async(goal).add_done_callback(self._on_answer)

    def _on_answer(self, future: Any) -> None:
        if future.exception() is not None or not future.result().accepted:
            self._sender.forget()


class _OnChange:
    """Says when a value that moves slowly is worth sending again."""

    def __init__(self, dead_band: float, repeat_ns: int) -> None:
        self._dead_band = dead_band
        self.repeat_ns = repeat_ns  # 0: an unchanged value is not repeated
        self._value: float | None = None
        self._sent_ns = 0

    def due(self, value: float, now_ns: int) -> bool:
        """Whether to send `value` now; remembers it if so."""
        age = now_ns - self._sent_ns
        changed = self._value is None or abs(value - self._value) > self._dead_band
        repeat = self.repeat_ns > 0 and (age >= self.repeat_ns or age < 0)
        limited = self.repeat_ns == 0 and self._sent_ns > 0 and 0 <= age < GRIPPER_PERIOD_NS
        if not repeat and (not changed or limited):
            return False
        self._value, self._sent_ns = value, now_ns
        return True

    def forget(self) -> None:
        """What was sent last did not arrive."""
        self._value = None


def is_gripper(spec: OutputSpec) -> bool:
    """Whether a hold keeps the last command of this output, because opening to the measured width would let go."""
    return spec.kind == 'gripper' or all('gripper' in column for column in spec.columns)


def make_output(node: Any, spec: OutputSpec, contract: Contract) -> ControllerOutput:
    """The sender for one output of a contract.

    Raises:
        NodeError: a gripper action without control_msgs.
    """
    if spec.kind == 'joint_trajectory':
        return TrajectoryOutput(node, spec, contract)
    if spec.kind == 'forward_command':
        return ForwardOutput(node, spec, contract)
    if spec.kind in ('twist', 'twist_stamped'):
        return TwistOutput(node, spec, contract)
    if spec.options.interface in (None, 'topic'):
        return GripperTopicOutput(node, spec, contract)
    return GripperActionOutput(node, spec, contract)


def in_the_way(
    node: Any, outputs: Sequence[ControllerOutput], exclusive: bool, needs_listeners: bool
) -> tuple[str, int]:
    """Why nothing may be commanded: others on a command topic (if `exclusive`), or nobody (if `needs_listeners`).

    Returns:
        The sentence for the operator, empty when the way is free; and how many others publish there.
    """
    for output in outputs:
        topic = node.resolve_topic_name(output.spec.topic)
        strangers = node.count_publishers(topic) - 1 if exclusive and output.publisher is not None else 0
        if strangers > 0:
            return f'Somebody else publishes on {topic}; end it, or give this robot a namespace or domain.', strangers
        if needs_listeners and not output.heard():
            return f'Nobody listens to {topic}; start or activate the controller of output {output.spec.name}.', 0
    return '', 0
