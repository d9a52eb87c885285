"""Commands to controllers: trajectories, arrays, twists, grippers. A hold is a command like any other.

N columns of the contract, n columns of one output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ki_policy_node.errors import NodeError
from ki_policy_node.executor.playback import Setpoints, windowed_columns
from ki_robot.contract.contract import Contract
from ki_robot.contract.controller_kinds import ControllerKindName
from ki_robot.contract.names import joint_of
from ki_robot.contract.parts import Output as OutputSpec
from ki_robot.messages.arrays import fill_joint_state, fill_multi_array, fill_trajectory, fill_twist, set_time
from ki_robot.messages.poses import fill_pose

# Only the newest command matters; a late one must not queue behind it.
COMMAND_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
GRIPPER_PERIOD_NS = 200_000_000
ANSWER_NS = 1_000_000_000  # a goal without an answer, or refused, is sent again after this


class ControllerOutput(Protocol):
    """One controller's command topic or action; `publisher` is None for an action."""

    spec: OutputSpec
    publisher: Any

    def send(self, command: Setpoints, now_ns: int) -> None:
        """Sends what of `command` is this controller's, and due."""
        ...

    def heard(self) -> bool:
        """Whether a controller is there to take commands."""
        ...

    def flush(self) -> None:
        """Sends what waits for the thread of the node's callbacks; to be called there."""
        ...

    def close(self) -> None:
        """Frees the topic or action."""
        ...


class _Columns:
    """The columns of one output, in the order of the contract's actions."""

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract, message_type: type | None) -> None:
        self.spec, self._node = spec, node
        self._index = np.array([contract.action_names.index(name) for name in spec.columns])
        self.publisher: Any = node.create_publisher(message_type, spec.topic, COMMAND_QOS) if message_type else None

    def heard(self) -> bool:
        """Whether somebody subscribes."""
        return bool(self.publisher.get_subscription_count())

    def flush(self) -> None:
        """Nothing waits: a topic is published at once."""

    def close(self) -> None:
        """Frees the publisher."""
        self._node.destroy_publisher(self.publisher)


class TrajectoryOutput(_Columns):
    """Windows for a joint_trajectory_controller, each a motion that ends at rest, stamped with the time it begins.

    Positions and velocities, so that the controller plays cubics; with accelerations it would play quintics, which
    are another motion where an acceleration jumps. The first point is not in the future, except where a fresh motion
    begins: up to there the controller leads from where it stands, at rest.
    """

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract) -> None:
        super().__init__(node, spec, contract, JointTrajectory)
        self._joints = [joint_of(name) for name in spec.columns]
        windowed = windowed_columns(contract)
        self._place_n = np.array([windowed.index(name) for name in spec.columns])

    def send(self, command: Setpoints, now_ns: int) -> None:
        """Sends a new window, where there is one."""
        if command.window is None:
            return
        mine = command.window.columns(self._place_n)
        start_ns = int(mine.times_ns[0])
        times_ns = (mine.times_ns - start_ns).tolist()
        message, knots = JointTrajectory(), (times_ns, mine.values_KN, mine.rates_KN)
        self.publisher.publish(fill_trajectory(message, JointTrajectoryPoint, self._joints, *knots, stamp=start_ns))


class ForwardOutput(_Columns):
    """One value a column at every tick, for a forward_command_controller; what was sent last stays in force."""

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract) -> None:
        super().__init__(node, spec, contract, Float64MultiArray)

    def send(self, command: Setpoints, now_ns: int) -> None:
        """Sends the setpoint."""
        self.publisher.publish(fill_multi_array(Float64MultiArray(), command.setpoint_N[self._index]))


class JointStateOutput(_Columns):
    """One JointState at every tick, for a driver that follows one; what was sent last stays in force."""

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract) -> None:
        super().__init__(node, spec, contract, JointState)
        self._joints = [joint_of(name) for name in spec.columns]

    def send(self, command: Setpoints, now_ns: int) -> None:
        """Sends the setpoint."""
        values_n = command.setpoint_N[self._index]
        self.publisher.publish(fill_joint_state(JointState(), self._joints, values_n, now_ns))


class PoseOutput(_Columns):
    """A pose of one hand at every tick, for a Cartesian controller or MoveIt Servo."""

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract) -> None:
        super().__init__(node, spec, contract, PoseStamped)

    def send(self, command: Setpoints, now_ns: int) -> None:
        """Sends the setpoint."""
        values_n, frame = command.setpoint_N[self._index], self.spec.frame_id
        self.publisher.publish(fill_pose(PoseStamped(), self.spec.columns, values_n, now_ns, frame))


class TwistOutput(_Columns):
    """A velocity of a base at every tick, stamped or not."""

    def __init__(self, node: Any, spec: OutputSpec, contract: Contract) -> None:
        self._stamped = spec.kind == 'twist_stamped'
        super().__init__(node, spec, contract, TwistStamped if self._stamped else Twist)

    def send(self, command: Setpoints, now_ns: int) -> None:
        """Sends the setpoint."""
        values_n = command.setpoint_N[self._index]
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

    def send(self, command: Setpoints, now_ns: int) -> None:
        """Sends the setpoint when it has changed."""
        value = float(command.setpoint_N[self._index[0]])
        if self._sender.due(value, now_ns):
            self.publisher.publish(fill_multi_array(Float64MultiArray(), [value]))


class GripperActionOutput(_Columns):
    """The opening of a gripper as goals of a gripper action; needs the package control_msgs.

    Goals are sent in the thread of the node's callbacks: an answer that is taken there before the sending thread has
    written down its goal would be thrown away.
    """

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
        self._wake = node.create_guard_condition(self.flush)
        self._sender = _OnChange(spec.options.dead_band or 0.002, 0)
        self._goals: deque[float] = deque(maxlen=1)  # what the callbacks' thread is to send: the newest
        self._asked_ns: int | None = None  # when the goal was due that has no answer yet, or was refused

    def send(self, command: Setpoints, now_ns: int) -> None:
        """Has a goal sent when the setpoint has changed beyond the dead band: one at a time, at most five a second."""
        value = float(command.setpoint_N[self._index[0]])
        if not self.heard():
            self._sender.forget()  # a goal to nobody is lost, and the value is due when the server is back
            self._asked_ns = None
            return
        if self._asked_ns is not None:
            if 0 <= now_ns - self._asked_ns < ANSWER_NS:
                return
            self._sender.forget()
        if self._sender.due(value, now_ns):
            self._asked_ns = now_ns
            self._goals.append(value)
            self._wake.trigger()

    def flush(self) -> None:
        """Sends the goal that waits."""
        while self._goals:
            self._offer(self._goals.pop())

    def heard(self) -> bool:
        """Whether the action is served."""
        return bool(self._client.server_is_ready())

    def close(self) -> None:
        """Frees the client."""
        self._node.destroy_guard_condition(self._wake)
        self._client.destroy()

    def _offer(self, value: float) -> None:
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
        if future.exception() is None and future.result().accepted:
            self._asked_ns = None


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


def _gripper(node: Any, spec: OutputSpec, contract: Contract) -> ControllerOutput:
    kind = GripperTopicOutput if spec.options.interface in (None, 'topic') else GripperActionOutput
    return kind(node, spec, contract)


# What sends the commands of each kind of `ki_robot.contract.controller_kinds`.
SENDERS: dict[ControllerKindName, Callable[[Any, OutputSpec, Contract], ControllerOutput]] = {
    'joint_trajectory': TrajectoryOutput,
    'forward_command': ForwardOutput,
    'joint_state': JointStateOutput,
    'twist_stamped': TwistOutput,
    'twist': TwistOutput,
    'pose_stamped': PoseOutput,
    'gripper': _gripper,
}


def make_output(node: Any, spec: OutputSpec, contract: Contract) -> ControllerOutput:
    """The sender for one output of a contract.

    Raises:
        NodeError: a gripper action without control_msgs.
    """
    return SENDERS[spec.kind](node, spec, contract)
