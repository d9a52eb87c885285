"""The simulated robot as a ROS 2 node: it publishes and obeys the topics of a real one.

    publishes   joint_states, odom (100 Hz), the cameras of the contract, /clock (when asked), instruction (latched),
                /diagnostics, ~/real_time_factor; with an operator also the commands, subtask
    subscribes  the command topics of the contract, estop (std_msgs/Bool)
    services    ~/reset (Trigger): begins the episode that the parameters task, seed, goal and split name
                ~/success (Trigger): whether the task is done; the message is a JSON object with all of the outcome
                ~/operate (SetBool): lets the operator drive, or stops him

Commands are refused by name when they are not finite, name other joints, leave the limits, lie in the past, or while
two publishers share a topic; a kind of refusal is logged once and counted.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import TwistStamped
from ki_msgs.msg import ActionChunk, Instruction, PolicyStatus
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float32, Float64MultiArray
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from ki_common.errors import KiError
from ki_policy_node.common import process
from ki_policy_node.common.parameters import Parameters
from ki_policy_node.common.streams import controller_nodes
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.controller_kinds import CONTROLLER_KINDS
from ki_robot.contract.parts import Output as OutputSpec
from ki_robot.messages.arrays import from_chunk, set_time
from ki_sim.node.commands import reader
from ki_sim.node.operators import PlanFollower, Teleoperator, rehearse
from ki_sim.node.realtime import LiveSimulation, SimSettings
from ki_sim.node.settings import SENTENCE, Refusals, SimRobotSettings, servable
from ki_sim.record.record import Tick, jpeg
from ki_sim.record.sim_bags import EPOCH_NS, INSTRUCTION, SUBTASK, Sender
from ki_sim.world.camera_thread import Images
from ki_sim.world.world import TICK_NS

CLASSES = {
    'sensor_msgs/msg/JointState': JointState,
    'nav_msgs/msg/Odometry': Odometry,
    'sensor_msgs/msg/CompressedImage': CompressedImage,
    'sensor_msgs/msg/Image': Image,
    'trajectory_msgs/msg/JointTrajectory': JointTrajectory,
    'std_msgs/msg/Float64MultiArray': Float64MultiArray,
    'geometry_msgs/msg/TwistStamped': TwistStamped,
    'ki_msgs/msg/Instruction': Instruction,
}
SENSOR_QOS = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
COMMAND_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
WATCH_S = 0.2


class Topics:
    """Publishers where a recording would have topics; `latched` ones keep their last message for who comes late."""

    def __init__(self, node: Node, wanted: Callable[[str], bool]) -> None:
        self._node, self._wanted = node, wanted
        self._publishers: dict[str, Any] = {}

    def add_topic(self, name: str, type_name: str) -> None:
        """Makes a publisher, below the node's namespace."""
        if self._wanted(name):
            qos = LATCHED if name == INSTRUCTION else SENSOR_QOS
            self._publishers[name] = self._node.create_publisher(CLASSES[type_name], name.lstrip('/'), qos)

    def listeners(self, own: Container[str] = ()) -> int:
        """How many others hear the topic that fewest hear; `own` topics are heard here, too."""
        return min(int(each.get_subscription_count()) - (name in own) for name, each in self._publishers.items())

    def write(self, topic: str, time_ns: int, data: bytes) -> None:
        """Publishes one message in CDR."""
        self._publishers[topic].publish(data)


class SimRobot(Node):
    """Wiring; what happens in the world is in `live`."""

    def __init__(self, **options: Any) -> None:
        super().__init__('sim_robot', automatically_declare_parameters_from_overrides=True, **options)
        self.parameters = Parameters(self, SimRobotSettings)
        settings = self.parameters.values
        self.contract = servable(load_contract(settings.robot))
        self.ended = threading.Event()
        self._refusals = Refusals()
        self._conflicts: dict[str, str] = {}
        self._quality, self._mode = settings.quality, settings.operator
        commands = {'/' + output.topic for output in self.contract.outputs}
        cameras = {'/' + camera.topic for camera in self.contract.cameras}
        streams = {'/' + stream.topic for stream in self.contract.state_streams}
        self._own = commands
        self._topics = [Topics(self, (streams | cameras | {INSTRUCTION}).__contains__)]
        self._sensors = Sender(self._topics[0], self.contract)
        self._clock_pub = self.create_publisher(Clock, '/clock', SENSOR_QOS) if settings.clock else None
        self._clock_message = Clock()
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._factor = self.create_publisher(Float32, '~/real_time_factor', 10)
        self._operator_node: Node | None = None
        if self._mode == 'expert':
            self._operator_node = self._another('operator')
            self._topics.append(Topics(self._operator_node, (commands | {SUBTASK}).__contains__))
            self._hands = Sender(self._topics[1], self.contract)
        elif self._mode == 'plan':
            self._operator_node = self._another('policy_node')
            newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
            self._chunks = self._operator_node.create_publisher(ActionChunk, '~/action_chunk', newest)
            self._status = self._operator_node.create_publisher(PolicyStatus, '~/status', LATCHED)
        self.live = LiveSimulation(
            simulated(settings, self.contract), self, tuple(output.topic for output in self.contract.outputs)
        )
        self.controllers = controller_nodes(self, self.contract.outputs)
        for output in self.contract.outputs:
            kind = CLASSES[CONTROLLER_KINDS[output.kind].messages[0]]
            controller, topic = self.controllers[output.name], self.resolve_topic_name(output.topic)
            controller.create_subscription(kind, topic, self._receiver(output), COMMAND_QOS)
        for qos in (LATCHED, SENSOR_QOS):  # what was pressed before this node came, and whoever does not latch
            self.create_subscription(Bool, 'estop', self._on_estop, qos)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(Trigger, '~/success', self._on_success)
        self.create_service(SetBool, '~/operate', self._on_operate)
        self._seen = (0, 0, time.monotonic())
        self.create_timer(WATCH_S, self._watch)
        self.create_timer(1.0, self._diagnose)
        self.live.start()
        self._tell_instruction()

    def close(self) -> None:
        """Ends the simulation; may be called twice."""
        if hasattr(self, 'live'):
            self.live.close()
        for controller in set(getattr(self, 'controllers', {}).values()):
            controller.destroy_node()
        self.controllers = {}
        operator: Node | None = getattr(self, '_operator_node', None)
        if operator is not None:
            operator.destroy_node()
            self._operator_node = None

    def _another(self, name: str) -> Node:
        # A name given to this process on the command line is meant for the robot alone.
        return rclpy.create_node(name, context=self.context, namespace=self.get_namespace(), use_global_arguments=False)

    # what the world gives ---------------------------------------------------------------------------------------

    def clock(self, time_ns: int) -> None:
        """Physics thread: what time it is."""
        assert self._clock_pub is not None
        set_time(self._clock_message.clock, time_ns)
        self._clock_pub.publish(self._clock_message)

    def senses(self, tick: Tick) -> None:
        """Physics thread: joints and base."""
        self._sensors.tick(replace(tick, time_ns=tick.time_ns - EPOCH_NS))

    def pictures(self, time_ns: int, images: Images) -> None:
        """Camera thread: a picture of every camera."""
        raw = {camera.name for camera in self.contract.cameras if camera.transport == 'raw'}
        encoded = {name: image if name in raw else jpeg(image, self._quality) for name, image in images.items()}
        self._sensors.images(time_ns, encoded)

    def refused(self, source: str, sentence: str) -> None:
        """Physics thread: a command was not taken. Each kind of it is logged once."""
        if self._refusals.add(source, sentence):
            self.get_logger().error(f'{self.resolve_topic_name(source)}: refused: {sentence[:SENTENCE]}')

    def failed(self, error: Exception) -> None:
        """Physics thread: the simulation cannot go on."""
        self.get_logger().fatal(str(error) if isinstance(error, KiError) else f'{type(error).__name__}: {error}')
        self.ended.set()

    # commands ---------------------------------------------------------------------------------------------------

    def _receiver(self, output: OutputSpec) -> Callable[[Any], None]:
        topic, read = output.topic, reader(output)

        def take(message: Any) -> None:
            asked, conflict = read(message), self._conflicts.get(topic)
            if conflict:
                self.live.refuse(topic, conflict)
            else:
                self.live.command(topic, asked)

        return take

    def _on_estop(self, message: Any) -> None:
        pressed = bool(message.data)
        self.live.call(lambda: self.live.press(pressed))
        self.get_logger().warning('the emergency stop is pressed' if pressed else 'the emergency stop is released')

    # services ---------------------------------------------------------------------------------------------------

    def _on_reset(self, request: Any, response: Any) -> Any:
        task, seed, goal, split = self.parameters.values.episode
        try:
            response.message = self.live.call(lambda: self.live.reset(seed, task, goal, split))
            response.success = True
            self._tell_instruction()
        except KiError as error:
            response.message = str(error)
        return response

    def _tell_instruction(self) -> None:
        episode, stamp = self.live.world.episode, self.live.stamp_ns or time.time_ns()
        self._sensors.text(INSTRUCTION, stamp, f'{episode.task}-{episode.seed}', episode.instruction)
        self.get_logger().info(f'{episode.task}, seed {episode.seed}: {episode.instruction}')

    def _on_success(self, request: Any, response: Any) -> Any:
        try:
            report = self.live.call(self._report)
            response.success, response.message = report['success'], json.dumps(report)
        except KiError as error:
            response.message = str(error)
        return response

    def _report(self) -> dict[str, Any]:
        counters = self.live.counters
        return {
            **self.live.monitor.report(self.live.world),
            'begun': not self.live.monitor.waits,
            'operating': self.live.operator is not None,
            'commands': counters.commands,
            'refused': counters.refused,
            'left_out': counters.left_out,
            'passed_s': counters.ticks * TICK_NS * 1e-9,
            'listeners': [topics.listeners(self._own) for topics in self._topics],
        }

    def _on_operate(self, request: Any, response: Any) -> Any:
        if self._mode == 'none':
            response.message = 'nobody is there to drive: start the simulator with operator set to expert or plan'
            return response
        try:
            operator = self._make_operator() if request.data else None
            self.live.call(lambda: self.live.operate(operator))
            response.success = True
        except KiError as error:
            response.message = str(error)
        return response

    def _make_operator(self) -> Any:
        if self._mode == 'expert':
            return Teleoperator(self._hands, self.live.settings.lock_step)
        rows = rehearse(self.live.world.episode)
        send, tell = self._send_chunk, self._tell_status
        return PlanFollower(rows, self.contract, send, tell, lambda: not self.live.monitor.waits)

    def _send_chunk(self, chunk: Any) -> None:
        self._chunks.publish(from_chunk(chunk, ActionChunk()))

    def _tell_status(self, running: bool) -> None:
        status = PolicyStatus(policy_id=PlanFollower.POLICY_ID)
        status.state = PolicyStatus.STATE_RUNNING if running else PolicyStatus.STATE_READY
        status.message = '' if running else 'the plan is over'
        self._status.publish(status)

    # what is watched --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Two publishers on one command topic: neither is obeyed, and trajectories and twists run out."""
        for output in self.contract.outputs:
            offers = self.get_publishers_info_by_topic(output.topic)
            sentence = ''
            if len(offers) > 1:
                names = sorted(f'{offer.node_namespace.rstrip("/")}/{offer.node_name}' for offer in offers)
                sentence = f'{" and ".join(names)} command it at once: end one of them; until then neither is obeyed'
            self._conflicts[output.topic] = sentence

    def _diagnose(self) -> None:
        counters, now = self.live.counters, time.monotonic()
        ticks, pictures, before = self._seen
        self._seen = (counters.ticks, counters.pictures, now)
        factor = (counters.ticks - ticks) * TICK_NS * 1e-9 / (now - before)
        self._factor.publish(Float32(data=factor))
        speed, conflicts = self.live.settings.speed, [topic for topic, text in self._conflicts.items() if text]
        slow = bool(speed) and not self.live.settings.lock_step and factor < 0.95 * speed
        message = f'real-time factor {factor:.2f}'
        if conflicts:
            message = f'two publishers on {", ".join(conflicts)}'
        level = DiagnosticStatus.ERROR if conflicts else DiagnosticStatus.WARN if slow else DiagnosticStatus.OK
        line = DiagnosticStatus(level=level, message=message, hardware_id='ki_sim')
        line.name = f'{self.get_fully_qualified_name().lstrip("/")}: simulation'
        values = {
            'real-time factor': f'{factor:.3f}',
            'pictures a second': f'{(counters.pictures - pictures) / (now - before):.1f}',
            'pictures left out': counters.left_out,
            'lost real time [ms]': round(counters.lost_ns / 1e6),
            'lateness [ms]': f'{counters.lag_ns / 1e6:.1f}',
            'commands': counters.commands,
            'commands refused': counters.refused,
            'emergency stop': self.live.stopped,
        }
        values |= {f'refused {topic}: {text}': count for (topic, text), count in self._refusals.counts()}
        line.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        array = DiagnosticArray(status=[line])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def simulated(settings: SimRobotSettings, contract: Contract) -> SimSettings:
    """What is simulated and how fast, as the parameters say, seen by the cameras that the contract names."""
    return SimSettings(
        *settings.episode,
        image_size=(settings.height, settings.width),
        cameras=contract.camera_names,
        camera_hz=settings.camera_rate,
        speed=settings.speed,
        clock=settings.clock,
        lock_step=settings.lock_step,
        operated=settings.operator == 'expert',
    )


def main(arguments: list[str] | None = None) -> int:
    """The process `sim_robot`; ends at SIGINT and SIGTERM."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: told.set())
    # Python hands its lock over every 5 ms by default: half a tick.
    sys.setswitchinterval(0.0005)
    robot, status = None, 0
    try:
        _, robot = process.start(SimRobot, arguments)
        executor = process.make_executor()
        executor.add_node(robot)
        for controller in set(robot.controllers.values()):
            executor.add_node(controller)
        while not told.is_set() and not robot.ended.is_set():
            _serve(robot, executor)
        status = 1 if robot.ended.is_set() else 0
    except KiError as error:
        print(f'sim_robot: {error}', file=sys.stderr, flush=True)
        status = 2
    finally:
        if robot is not None:
            robot.close()
            robot.destroy_node()
        rclpy.try_shutdown()
    return status


def _serve(robot: SimRobot, executor: Any) -> None:
    """One message, request or timer; what one of them does wrong does not end the others."""
    try:
        executor.spin_once(timeout_sec=0.05)
    except Exception as error:
        robot.get_logger().error(f'A callback failed: {type(error).__name__}: {error}', throttle_duration_sec=1.0)


if __name__ == '__main__':
    raise SystemExit(main())
