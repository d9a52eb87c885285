"""The chunk executor: a process of its own between policy and controllers, without a model and without torch.

The IO thread stores what arrives; a dispatch thread ticks at the control rate. What is decided is in `follower`, what
is sent in `outputs`. If the policy process dies, this one holds the robot.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from ki_msgs.msg import ActionChunk as ActionChunkMessage
from ki_msgs.msg import ControlSource, ExecutorStatus, PolicyStatus, SafetyEvent
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from ki_policy_node.common import diagnostics, process
from ki_policy_node.common.clock_offset import ShortestLag, ahead_ns, in_words
from ki_policy_node.common.parameters import Parameters
from ki_policy_node.common.ros import message_class
from ki_policy_node.common.streams import (
    INPUT_QOS,
    LATCHED,
    NEWEST,
    STATIC_QOS,
    message_type,
    on_incompatible,
)
from ki_policy_node.errors import NodeError
from ki_policy_node.executor.chunk_follower import Follower
from ki_policy_node.executor.controllers import ControllerWatch, full_name
from ki_policy_node.executor.estop import EstopListener
from ki_policy_node.executor.executor_report import ExecutorReport
from ki_policy_node.executor.hand_chunks import HandChunks
from ki_policy_node.executor.outputs import ControllerOutput, make_output
from ki_policy_node.executor.playback import Setpoints
from ki_policy_node.executor.safety import Driver, Event, Kind, PolicyHealth, Severity, State, lines_of, rules_of
from ki_policy_node.executor.scheduling import Granted, QuietCollector, lead, lower_priority, raise_priority
from ki_policy_node.executor.settings import ChunkExecutorSettings
from ki_policy_node.executor.teleop import setpoint_of
from ki_policy_node.executor.tick_lateness import TickLateness
from ki_robot.actions.chunk import ActionChunk, first_step_due
from ki_robot.contract.contract import contract_file, load_contract
from ki_robot.contract.controller_kinds import CONTROLLER_KINDS
from ki_robot.contract.limits import action_limits, read_limits
from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import Output as OutputSpec
from ki_robot.contract.parts import StateStream
from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.arrays import fill_joint_state, set_time, stamp_ns, time_ns, to_chunk
from ki_robot.messages.commands import read_command
from ki_robot.messages.states import StateReader, measured_columns, static_topic
from ki_robot.space.checker import SpaceChecker

WATCH_S = 0.1
BRAKE_S = 5.0  # no brake takes longer
MAX_NAME = 100  # characters of an operator's name
MOST_TICKS = 10  # at once, where simulated time runs faster than the executor ticks
DISCOVERY_S = 1.5  # how long controllers may take to be discovered before their absence is an error
LOOKING = 'looks for its controllers'
UNCLEAR = (
    'Several publish the e-stop, and it is not clear who has released it: let each of them say False once more, '
    'or end those that are not needed.'
)
FOLLOWED = (PolicyStatus.STATE_RUNNING,)
ENDED = (PolicyStatus.STATE_READY, PolicyStatus.STATE_DRY_RUN, PolicyStatus.STATE_UNCONFIGURED)


class ChunkExecutor(LifecycleNode):
    """Wiring of the executor; every decision is the follower's."""

    def __init__(self) -> None:
        super().__init__('chunk_executor', automatically_declare_parameters_from_overrides=True)
        self._follower: Follower | None = None
        self._outputs: list[ControllerOutput] = []
        self._inputs: list[Any] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._dispatch: threading.Thread | None = None
        self._rate = 100.0  # of the ticks [Hz], as configured
        self._lateness = TickLateness(self._rate, 0)
        self._granted = Granted('default')
        self._collector: QuietCollector | None = None
        self._blocked = ''
        self._begin_s = 0.0
        self._ticked_ns = 0
        self._simulated = False
        self._ending = False
        self._said = ''
        self._jump: Any = None
        self._controllers: ControllerWatch | None = None
        self._space: SpaceChecker | None = None
        self._hands: HandChunks | None = None
        self._measured: dict[str, float] = {}  # newest values by column of the robot
        self._estop: EstopListener | None = None
        self._policy_lag = ShortestLag()
        self._policy_ahead_ns: int | None = None
        self.parameters = Parameters(self, ChunkExecutorSettings, lambda: self._follower is not None)
        self._state_pub = self.create_publisher(String, '~/state', LATCHED)
        self._status_pub = self.create_publisher(ExecutorStatus, '~/status', LATCHED)
        self._source_pub = self.create_publisher(ControlSource, 'control_source', LATCHED)
        self._report = ExecutorReport()
        self._event_pub = self.create_publisher(SafetyEvent, '~/safety_event', 100)  # a chunk may tell one a column
        self._applied_pub = self.create_publisher(JointState, '~/applied_command', NEWEST)
        self._diagnostics_pub = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_service(SetBool, '~/enable', self._on_enable)
        self.create_service(Trigger, '~/reset_fault', self._on_reset_fault)
        self.create_service(SetBool, '~/take_over', self._on_take_over)
        self.create_timer(WATCH_S, self._watch, clock=process.STEADY)
        self.create_timer(1.0, self._diagnose, clock=process.STEADY)
        self._say('unconfigured')

    def autostart(self) -> bool:
        """Whether to configure and activate without being asked."""
        return self.parameters.values.autostart

    def nodes_beside(self) -> list[Node]:
        """Nodes of its own that listen for it in other threads."""
        return [] if self._estop is None else [self._estop.node]

    # Lifecycle.

    def on_configure(self, state: LifecycleState) -> Any:
        """Reads the contract, makes every publisher and subscription."""
        done = process.told(self, self._configure, state, self._publish_state)
        if done != TransitionCallbackReturn.SUCCESS:
            self._forget()
        return done

    def _configure(self, state: LifecycleState) -> None:
        settings = self.parameters.values
        told = load_contract(settings.robot)
        contract = told.robot  # below the hands, whose chunks are solved before they are followed
        files = [read_limits(Path(name)) for name in (settings.limits_file,) if name]
        limits, rules = action_limits(contract, *files), rules_of(settings)
        measured = set(contract.state_names)
        for column in contract.actions:
            if interface_of(column.name) == 'position' and column.name not in measured:
                raise NodeError(
                    f'Robot {contract.name} commands {column.name} but does not measure it, so no hold is possible; '
                    'add it to the state of the contract.'
                )
        for spec in contract.outputs:
            self._outputs.append(make_output(self, spec, contract))
        if contract.space is not None:
            folder = contract_file(settings.robot).parent
            self._space = SpaceChecker(contract.space, contract.action_names, folder)
        self._hands, self._measured = HandChunks(told, rules.guard), {}
        self._controllers = ControllerWatch(
            self, contract, self._outputs, settings.exclusive, settings.require_controllers
        )
        self._rate = settings.rate
        self._follower = Follower(contract, limits, rules, round(1e9 / settings.rate))
        for stream in contract.state_streams:
            columns = measured_columns(contract, stream)
            reader = StateReader(stream, columns)
            self._listen(message_type(stream), stream.topic, self._on_state(stream, columns, reader), INPUT_QOS)
            if static_topic(stream):
                self._listen(message_type(stream), static_topic(stream), self._on_static(stream, reader), STATIC_QOS)
        self._listen(ActionChunkMessage, 'policy_node/action_chunk', self._on_chunk, NEWEST)
        self._listen(PolicyStatus, 'policy_node/status', self._on_status, NEWEST)
        self._listen(ActionChunkMessage, 'teleop', self._on_teleop_chunk, NEWEST)
        for spec in contract.outputs:
            kind = message_class(CONTROLLER_KINDS[spec.kind].messages[0])
            topic = f'teleop/{spec.topic.lstrip("/")}'
            self._listen(kind, topic, self._on_teleop(topic, spec), INPUT_QOS)
        self._listen(String, 'operator_heartbeat', self._on_operator, INPUT_QOS)
        self._estop = EstopListener(self, self._on_estop)
        self._jump = process.on_clock_jump(self, self._on_clock_jump)
        self._say('inactive')

    def on_activate(self, state: LifecycleState) -> Any:
        """Starts to tick; commands only once enabled."""
        return process.told(self, self._activate, state, self._publish_state)

    def _activate(self, state: LifecycleState) -> None:
        assert self._follower is not None
        if self.parameters.values.enabled and (why := self._follower.enable(True, time.monotonic_ns())):
            self.get_logger().warning(f'Parameter enabled is true, and it stays disabled: {why}')
        self._simulated = bool(self.get_parameter('use_sim_time').value)
        self._stopping.clear()
        # Nothing is commanded before the first look has found every controller.
        self._blocked, self._begin_s = LOOKING, time.monotonic()
        self._lateness = TickLateness(self._rate, self._follower.rules.late_ns)
        self._granted = raise_priority(self.parameters.values.priority)
        if self._granted.advice:
            self.get_logger().warning(self._granted.advice)
        self._collector = QuietCollector(round(1e9 / self._rate))
        self._collector.begin()
        self._dispatch = threading.Thread(target=self._run, name='dispatch', daemon=True)
        self._dispatch.start()

    def on_deactivate(self, state: LifecycleState) -> Any:
        """Brakes to rest, then falls silent."""
        self._last_word('deactivated')
        self._say('inactive')
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> Any:
        """Frees what configure made."""
        self._forget()
        self._say('unconfigured')
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> Any:
        """Brakes to rest."""
        self._last_word('shut down')
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """The end of the process: the brake is played and acknowledged before the context dies."""
        self._last_word('the executor ends')
        if self._estop is not None:
            self._estop.close()
        self._say('ended')

    def _forget(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        for output in self._outputs:
            output.close()
        if self._jump is not None:
            self._jump.unregister()
        if self._controllers is not None:
            self._controllers.close()
        if self._estop is not None:
            self._estop.close()
        self._inputs, self._outputs, self._follower, self._jump = [], [], None, None
        self._controllers, self._space, self._estop, self._hands = None, None, None, None

    def _last_word(self, reason: str) -> None:
        """Brakes what moves to rest, tick by tick, and only then stops to tick."""
        if self._follower is not None and self._dispatch is not None:
            with self._lock:
                self._follower.end(reason)
                self._ending = True
            latest_s = time.monotonic() + BRAKE_S
            while not self._follower.silent and self._dispatch.is_alive() and time.monotonic() < latest_s:
                time.sleep(0.005)
        self._stopping.set()
        self._ending = False
        if self._dispatch is not None:
            self._dispatch.join(1.0)
            self._dispatch = None
            lower_priority(self._granted)
        if self._collector is not None:
            self._collector.end()
            self._collector = None
        for output in self._outputs:
            output.flush()
        process.flush([output.publisher for output in self._outputs if output.publisher is not None])

    # What arrives.

    def _listen(self, kind: type, topic: str, callback: Any, qos: QoSProfile) -> None:
        self._inputs.append(
            self.create_subscription(kind, topic, callback, qos, event_callbacks=on_incompatible(self, topic))
        )

    def _follow(self, act: Callable[[Follower], None]) -> None:
        """Tells the follower something, under the lock; a message that comes after the cleanup is for nobody."""
        follower = self._follower
        if follower is not None:
            with self._lock:
                act(follower)

    def _on_state(self, stream: StateStream, columns: tuple[str, ...], reader: StateReader) -> Any:
        def who() -> str:
            speakers = self.get_publishers_info_by_topic(self.resolve_topic_name(stream.topic))
            return ', '.join(sorted(map(full_name, speakers)))

        def store(message: Any) -> None:
            steady_ns = time.monotonic_ns()
            try:
                found = reader.read(message)
            except Rejected as error:
                text, non_finite = str(error), error.reason is Reason.NON_FINITE
                self._follow(lambda follower: follower.on_invalid_state(text, non_finite, steady_ns))
                if error.reason is Reason.OTHER_JOINTS:  # usually of another driver on the same topic
                    self.get_logger().info(f'{stream.topic}: {error}', once=True)
                else:
                    self.get_logger().warning(f'{stream.topic}: {error}', throttle_duration_sec=1.0)
                return
            if found is None:
                return
            stamp = 0 if stream.stamp == 'receive' else found[0]
            pairs, stamp = dict(zip(columns, found[1].tolist(), strict=True)), stamp or self._now_ns()
            self._measured.update(pairs)
            self._follow(lambda follower: follower.on_state(stream.name, pairs, stamp, steady_ns, who))

        return store

    def _on_static(self, stream: StateStream, reader: StateReader) -> Any:
        def store(message: Any) -> None:
            try:
                reader.read_static(message)
            except Rejected as error:
                self.get_logger().warning(f'{static_topic(stream)}: {error}', throttle_duration_sec=1.0)

        return store

    def _on_chunk(self, message: Any) -> None:
        steady_ns = time.monotonic_ns()
        try:
            chunk = to_chunk(message)
        except Rejected as error:
            text = str(error)
            self._follow(lambda follower: follower.on_invalid_chunk(text, steady_ns))
            return
        self._take(chunk, Driver.POLICY, steady_ns)

    def _take(self, chunk: ActionChunk, source: Driver, steady_ns: int) -> None:
        """A chunk of a policy or of a human, to be followed if it may be."""
        follower, hands, space = self._follower, self._hands, self._space
        if follower is None or hands is None:
            return
        made, selected = chunk, source is follower.selected
        # Some milliseconds where there are hands or a space, and therefore not under the lock: the dispatch goes on.
        if selected:
            with self._lock:
                here_N = follower.where_N
            solved = hands.solve(chunk, self._now_ns(), here_N, self._measured)
            self._follow(lambda follower: follower.on_solved(solved.events, steady_ns))
            if solved.chunk is None:
                return
            made = solved.chunk
        if selected and space is not None:
            ahead_HN = made.columns(follower.contract.action_names)[first_step_due(made, self._now_ns()) :]
            violation = space.check(ahead_HN, here_N) if len(ahead_HN) else None
            if violation is not None:
                self._follow(lambda follower: follower.on_violation(made, violation, steady_ns))
                return
        self._follow(lambda follower: follower.on_chunk(made, self._now_ns(), steady_ns, source))

    def _on_teleop(self, topic: str, spec: OutputSpec) -> Any:
        """A human's commands to one controller."""

        def take(message: Any) -> None:
            try:
                command = read_command(message, spec.columns)
                self._teleoperate(topic, setpoint_of(spec.columns, command.values[-1]))
            except RobotError as error:
                self.get_logger().warning(f'{topic}: {error}', throttle_duration_sec=1.0)

        return take

    def _on_teleop_chunk(self, message: Any) -> None:
        """A human's chunk: one step is a setpoint of its columns, more are followed as they are timed."""
        try:
            chunk = to_chunk(message)
            if chunk.horizon == 1:
                self._teleoperate(chunk.policy_id or 'teleop', setpoint_of(chunk.names, chunk.data_HN[0]))
            else:
                self._take(chunk, Driver.HUMAN, time.monotonic_ns())
        except RobotError as error:
            self.get_logger().warning(f'teleop: {error}', throttle_duration_sec=1.0)

    def _teleoperate(self, driver: str, values: dict[str, float]) -> None:
        follower, steady_ns = self._follower, time.monotonic_ns()
        if follower is None:
            return
        with self._lock:
            chunk = follower.on_human(driver, values, self._now_ns(), steady_ns)
        if chunk is not None:
            self._take(chunk, Driver.HUMAN, steady_ns)

    def _on_operator(self, message: Any) -> None:
        self._follow(lambda follower: follower.on_operator(message.data[:MAX_NAME], time.monotonic_ns()))

    def _on_status(self, message: Any) -> None:
        policy = PolicyHealth(
            running=message.state in FOLLOWED,
            ended=message.state in ENDED,
            message=message.message or 'not running',
            steady_ns=time.monotonic_ns(),
        )
        self._policy_lag.add(stamp_ns(message.header), self._now_ns(), policy.steady_ns)
        there_ns = time_ns(message.executor_lag) if message.executor_heard else None
        self._policy_ahead_ns = ahead_ns(self._policy_lag.shortest(policy.steady_ns), there_ns)
        self._follow(lambda follower: follower.on_policy_health(policy))

    def _on_estop(self, pressed: bool) -> None:
        self._follow(lambda follower: follower.on_estop(pressed, time.monotonic_ns()))

    def _on_clock_jump(self, seconds: float) -> None:
        self._policy_lag = ShortestLag()
        self._follow(lambda follower: follower.on_clock_jump(seconds, time.monotonic_ns()))

    def _on_enable(self, request: Any, response: Any) -> Any:
        response.success = self._follower is not None and self._dispatch is not None
        if not response.success:
            response.message = 'The executor is not active; configure and activate it first.'
            return response
        assert self._follower is not None
        with self._lock:
            why = self._follower.enable(request.data, time.monotonic_ns())
            state, reason = self._follower.state, self._follower.reason
        response.success, response.message = not why, why or ('enabled' if request.data else 'disabled')
        if state is State.FAULT:
            response.success, response.message = False, f'In fault: {reason} Call ~/reset_fault.'
        return response

    def _on_take_over(self, request: Any, response: Any) -> Any:
        response.success = self._follower is not None and self._dispatch is not None
        response.message = 'a human drives' if request.data else 'the policy drives'
        if not response.success:
            response.message = 'The executor is not active; configure and activate it first.'
        elif self._follower is not None:
            with self._lock:
                self._follower.take_over(request.data, time.monotonic_ns())
        return response

    def _on_reset_fault(self, request: Any, response: Any) -> Any:
        if self._follower is None:
            response.success, response.message = False, 'The executor is not configured.'
            return response
        with self._lock:
            response.message = self._follower.reset_fault(time.monotonic_ns())
        if response.message and self._estop is not None and self._estop.latch.unclear:
            response.message = UNCLEAR
        response.success = not response.message
        return response

    # What goes out.

    def _run(self) -> None:
        """The dispatch thread: one tick a period on the steady clock, a missed one is not made up for."""
        collector, period_ns = self._collector, round(1e9 / self._rate)
        assert collector is not None
        lead(self.parameters.values.priority, self._granted)
        applied_every = max(1, round(self._rate / 20.0))
        due_ns, count = time.monotonic_ns(), 0
        while not self._stopping.is_set():
            due_ns += period_ns
            wait_ns = due_ns - time.monotonic_ns()
            if wait_ns > 0:
                time.sleep(wait_ns / 1e9)
            steady_ns = time.monotonic_ns()
            self._lateness.add(steady_ns - due_ns)
            if steady_ns - due_ns > period_ns:
                due_ns = steady_ns
            count += 1
            try:
                self._tick(steady_ns, count % applied_every == 0)
            except Exception as error:
                self._fail(error)
            collector.collect(due_ns + period_ns)

    def _tick(self, steady_ns: int, show: bool) -> None:
        assert self._follower is not None
        with self._lock:
            if self._stopping.is_set():
                return
            now_ns = self._now_ns()
            if self._blocked:
                self._follower.stop(self._blocked, steady_ns)
            for at_ns in self._due(now_ns):
                command = self._follower.tick(at_ns, steady_ns)
                if command is not None:
                    for output in self._outputs:
                        output.send(command, at_ns)
            events, self._follower.events = self._follower.events, []
            state, reason = self._follower.state, self._follower.reason
            self._report.take(self._follower, now_ns, steady_ns)
        self._tell_status(now_ns)
        for event in events:
            self._publish_event(event, now_ns)
        for severity, line in lines_of(events):
            # A line of code logs with one severity: rclpy raises where a second one comes.
            if severity is Severity.INFO:
                self.get_logger().info(line)
            else:
                self.get_logger().warning(line)
        if show and command is not None:
            self._publish_applied(command, now_ns)
        self._say(f'{state.value}: {reason}' if reason else state.value)

    def _due(self, now_ns: int) -> list[int]:
        """The ROS times to tick for."""
        if self._simulated and self._ending:
            # The thread that reads the clock waits for the brake: time goes on without it.
            now_ns = max(now_ns, self._ticked_ns + round(1e9 / self._rate))
        before_ns, self._ticked_ns = self._ticked_ns, now_ns
        return due_ticks(before_ns, now_ns, self._rate) if self._simulated else [now_ns]

    def _fail(self, error: Exception) -> None:
        """A fault of our own: brake, as far as that still works."""
        assert self._follower is not None
        self.get_logger().error(f'The dispatch failed, the robot holds: {type(error).__name__}: {error}')
        with self._lock:
            self._follower.stop(f'{type(error).__name__}: {error}', time.monotonic_ns())

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _say(self, text: str) -> None:
        if text != self._said:
            self._publish_state(text)
            self.get_logger().info(text)

    def _publish_state(self, text: str) -> None:
        self._said = text
        self._state_pub.publish(String(data=text))
        if self._dispatch is None:
            self._report.rest(text, configured=self._follower is not None)
            self._tell_status(self._now_ns())

    def _tell_status(self, now_ns: int) -> None:
        """Says what it follows and who drives, where that is news or was said a while ago."""
        steady_ns = time.monotonic_ns()
        if (status := self._report.status_due(now_ns, steady_ns)) is not None:
            set_time(status.policy_clock_ahead, self._policy_ahead_ns or 0)
            self._status_pub.publish(status)
        if (source := self._report.source_due(now_ns, steady_ns)) is not None:
            self._source_pub.publish(source)

    def _publish_event(self, event: Event, now_ns: int) -> None:
        message = SafetyEvent(kind=event.kind.value, severity=event.severity.value, chunk_id=event.chunk_id)
        message.step, message.interface_name, message.message = event.step, event.column, event.message
        message.value, message.limit = event.value, event.limit
        set_time(message.header.stamp, now_ns)
        self._event_pub.publish(message)

    def _publish_applied(self, command: Setpoints, now_ns: int) -> None:
        assert self._follower is not None
        names = self._follower.contract.action_names
        self._applied_pub.publish(fill_joint_state(JointState(), names, command.setpoint_N, now_ns))

    # What is watched.

    def _watch(self) -> None:
        """Controllers that do not listen, and strangers that command the same topic."""
        if self._follower is None or self._dispatch is None:
            self._tell_status(self._now_ns())
            return
        assert self._controllers is not None
        look = self._controllers.look()
        blocked, strangers = look.blocked, look.strangers
        settling = time.monotonic() - self._begin_s < DISCOVERY_S
        if blocked and settling:
            blocked = LOOKING
        elif blocked and blocked != self._blocked:
            self.get_logger().error(blocked)
            if strangers > 0:
                event = Event(Kind.FOREIGN_PUBLISHER, Severity.REJECTED, blocked, value=float(strangers))
                self._publish_event(event, self._now_ns())
        if not blocked:
            self._begin_s = -DISCOVERY_S  # they were all found: from now on an absent one is told at once
        if self._blocked and not blocked:
            with self._lock:
                self._follower.unblock()
        self._blocked = blocked

    def _diagnose(self) -> None:
        follower = self._follower
        state = follower.state if follower is not None else State.DISABLED
        level = {State.HOLD: diagnostics.WARN, State.FAULT: diagnostics.ERROR}.get(state, diagnostics.OK)
        if self._blocked not in ('', LOOKING):
            level = diagnostics.ERROR
        late, slow = self._lateness.figures(), self._lateness.complaint(self._granted.advice)
        values: dict[str, object] = {
            'state': state.value,
            'lateness p50 [ms]': diagnostics.milliseconds(late.p50_ns),
            'lateness p99 [ms]': diagnostics.milliseconds(late.p99_ns),
            'lateness max [ms]': diagnostics.milliseconds(late.worst_ns),
            'late ticks [%]': 100.0 * late.late_share,
            'scheduling': self._granted.policy,
        }
        if self._policy_ahead_ns is not None:
            values["policy's clock ahead [ms]"] = diagnostics.milliseconds(self._policy_ahead_ns)
        if apart := in_words(self._policy_ahead_ns):
            level = max(level, diagnostics.WARN)
            self.get_logger().warning(apart, throttle_duration_sec=30.0)
        if slow:
            level = max(level, diagnostics.WARN)
            self.get_logger().warning(slow, throttle_duration_sec=30.0)
        name = f'{self.get_fully_qualified_name().lstrip("/")}: commands'
        said = ' '.join(filter(None, (self._blocked or self._said, apart, slow)))
        line = diagnostics.status(level, name, said, self.parameters.values.robot, values)
        self._diagnostics_pub.publish(diagnostics.array(self.get_clock().now().to_msg(), [line]))


def due_ticks(before_ns: int, now_ns: int, rate: float) -> list[int]:
    """Times to tick for at `rate` [Hz] since the last tick: now, and what fast simulated time has left out before."""
    count = round((now_ns - before_ns) * rate / 1e9)
    if not 1 < count <= MOST_TICKS:
        return [now_ns]
    return [before_ns + (now_ns - before_ns) * k // count for k in range(1, count + 1)]


def main(arguments: list[str] | None = None) -> int:
    """The process `chunk_executor`."""
    return process.run(ChunkExecutor, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
