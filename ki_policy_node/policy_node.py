"""The policy node: cameras, joint states and an instruction in, chunks of timed commands out.

The IO thread stores messages, answers services and tells how things are; the inference thread owns the engine. What is
computed is in `inference`, what is observed in `ki_robot.observation`: this file connects them.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import Trigger

from ki_msgs.action import RunPolicy
from ki_msgs.msg import ActionChunk as ActionChunkMessage
from ki_msgs.msg import Instruction, PolicyStatus
from ki_msgs.srv import LoadPolicy, SetInstruction
from ki_policy_node import process
from ki_policy_node.backends import (
    BACKENDS,
    COMMISSIONING,
    LOADS,
    MOTIONS,
    Commissioning,
    Wanted,
    check_fits,
    open_policy,
)
from ki_policy_node.errors import NodeError
from ki_policy_node.inference import (
    MODES,
    Cadence,
    InferenceThread,
    InvalidActionError,
    Planned,
    Planner,
    Timing,
    TooLateError,
)
from ki_policy_node.parameters import Parameters, Setting
from ki_policy_node.report import Report, hold_code
from ki_policy_node.run import Run, checked_instruction
from ki_policy_node.streams import INPUT_QOS, message_type, on_incompatible
from ki_robot.buffer import ObservationBuffer, Settings
from ki_robot.contract import Camera, Contract, load_contract
from ki_robot.errors import KiError
from ki_robot.messages import from_chunk, time_ns
from ki_robot.observation import Hold, NotReady

NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
FAILURE_LIMIT = 3  # inferences in a row that fail before the fault is latched
IDLE_S = 0.05
RETRY_S = 0.01
Status = PolicyStatus
Result = RunPolicy.Result

SETTINGS = (
    Setting('robot', '', 'Robot contract: a name of config/robots, or the path of a YAML file.'),
    Setting('bundle', '', 'Folder of the policy bundle; not read with backend commissioning.'),
    Setting('backend', 'auto', 'What computes.', choices=BACKENDS),
    Setting(
        'dry_run', True, 'Infer, and publish on ~/dry_run_chunk only; nothing that moves listens there.', live=True
    ),
    Setting('instruction', '', 'What to do until told otherwise.'),
    Setting('mode', 'rtc', 'How chunks follow each other.', choices=MODES),
    Setting('execute_steps', 25, 'Steps of a chunk after which the next is planned.', 1, 999),
    Setting('ensemble_coefficient', 0.01, 'Of mode temporal_ensemble: exp(-c i), from the oldest on.', 0.0, 10.0),
    Setting('frame_wait', 0.05, 'How long a due inference waits for a fresh frame of every camera [s].', 0.0, 1.0),
    Setting('inference_timeout', 5.0, 'An inference longer than this [s] is a fault.', 0.1, 600.0),
    Setting(
        'status_rate', 20.0, 'How often ~/status is sent [Hz]; the executor holds when it falls silent.', 1.0, 100.0
    ),
    Setting('strict_backend', False, 'Refuse to run when the backend asked for cannot be had.'),
    Setting('threads', 0, 'Of an engine on the CPU; 0: its own choice.', 0, 256),
    Setting('seed', 0, 'Of the noise that flow matching starts from.', 0, 2**31 - 1),
    Setting('autostart', True, 'Configure and activate without a lifecycle manager.'),
    Setting('run_on_activate', False, 'Start a run as soon as the node is active.'),
    Setting('motion', 'hold', 'Of backend commissioning.', choices=MOTIONS),
    Setting('amplitude', 0.05, 'Of backend commissioning: swing [rad or m].', 0.0, 3.0),
    Setting('period', 4.0, 'Of backend commissioning: one swing [s].', 0.1, 600.0),
    Setting('latency', 0.0, 'Of backend commissioning: time of an inference [s].', 0.0, 60.0),
    Setting('load', 'wait', 'Of backend commissioning: what it does in that time.', choices=LOADS),
)


class PolicyNode(LifecycleNode):
    """Wiring of the policy node."""

    def __init__(self) -> None:
        super().__init__('policy_node', automatically_declare_parameters_from_overrides=True)
        self._contract: Contract | None = None
        self._buffer: ObservationBuffer | None = None
        self._planner: Planner | None = None
        self._run: Run | None = None
        self._epoch = 0
        self._buffer_epoch = 0
        self._hurry = False
        self._failures = 0
        self._cadence: Cadence | None = None
        self._busy_since_ns: int | None = None
        self._finish: tuple[int, str] | None = None
        self._result: Any = None
        self._instruction = ('', '')
        self._active = False
        self._inputs: list[Any] = []
        self._jump: Any = None
        self._lock = threading.RLock()
        self.parameters = Parameters(self, SETTINGS, lambda: self._contract is not None)
        self._report = Report(self)
        self._chunk_pub = self.create_publisher(ActionChunkMessage, '~/action_chunk', NEWEST)
        self._dry_pub = self.create_publisher(ActionChunkMessage, '~/dry_run_chunk', NEWEST)
        self._status_pub = self.create_publisher(PolicyStatus, '~/status', LATCHED)
        self._diagnostics_pub = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_service(Trigger, '~/start', self._on_start)
        self.create_service(Trigger, '~/stop', self._on_stop)
        self.create_service(Trigger, '~/reset_fault', self._on_reset_fault)
        self.create_service(SetInstruction, '~/set_instruction', self._on_set_instruction)
        self.create_service(LoadPolicy, '~/load_policy', self._on_load_policy)
        self.create_subscription(
            Instruction,
            'instruction',
            self._on_instruction,
            LATCHED,
            event_callbacks=on_incompatible(self, 'instruction'),
        )
        self._server = ActionServer(
            self,
            RunPolicy,
            '~/run',
            execute_callback=self._on_goal_end,
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
        )
        self._worker = InferenceThread(self._cycle)
        self.create_timer(1.0 / self.parameters['status_rate'], self._watch, clock=process.STEADY)
        self.create_timer(1.0, self._diagnose, clock=process.STEADY)
        self._publish_status()

    def autostart(self) -> bool:
        """Whether to configure and activate without being asked."""
        return bool(self.parameters['autostart'])

    # Lifecycle.

    def on_configure(self, state: LifecycleState) -> Any:
        """Loads the policy, checks it against the robot, warms it up, subscribes."""
        done = process.told(self, self._configure, state, self._report.say)
        if done != process.TransitionCallbackReturn.SUCCESS:
            self._report.state = Status.STATE_UNCONFIGURED
            self._forget()
        self._publish_status()
        return done

    def _configure(self, state: LifecycleState) -> None:
        contract = load_contract(self.parameters['robot'])
        if self.parameters['instruction']:
            self._instruction = checked_instruction(self.parameters['instruction'], 'parameter')
        self._planner = self._load(contract, self.parameters['bundle'])
        needs_words = self.parameters['backend'] != COMMISSIONING
        self._buffer = ObservationBuffer(contract, Settings(require_instruction=needs_words))
        self._buffer.set_instruction(*self._instruction)
        self._buffer_epoch = self._buffer.epoch
        self._cadence = Cadence(contract, round(self.parameters['frame_wait'] * 1e9))
        for stream in (*contract.cameras, *contract.state_streams):
            self._inputs.append(
                self.create_subscription(
                    message_type(stream),
                    stream.topic,
                    self._store(stream.name, isinstance(stream, Camera)),
                    INPUT_QOS,
                    event_callbacks=on_incompatible(self, stream.topic),
                )
            )
        threshold = JumpThreshold(
            min_forward=Duration(seconds=1.0), min_backward=Duration(nanoseconds=-1), on_clock_change=True
        )
        self._jump = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)
        self._contract = contract
        self._report.ready(self._planner.policy)

    def _load(self, contract: Contract, bundle: str, validate_only: bool = False) -> Planner:
        """A checked, warm policy. The engine is made and run by the one thread that will use it."""
        self._report.state = Status.STATE_LOADING
        self._report.say(f'loading {bundle or self.parameters["backend"]}')
        self._publish_status()
        value = self.parameters
        motion = Commissioning(*(value[name] for name in ('motion', 'amplitude', 'period', 'latency', 'load')))
        wanted = Wanted(value['backend'], bundle, motion, value['strict_backend'], value['threads'], value['seed'])
        timing = Timing(*(value[name] for name in ('mode', 'execute_steps', 'ensemble_coefficient')))

        def load() -> Planner:
            policy = open_policy(wanted, contract, timing)
            try:
                check_fits(policy.policy_id, policy.contract, contract)
                planner = Planner(policy, timing)
                if not validate_only:
                    policy.warm_up()
            except BaseException:
                policy.close()
                raise
            return planner

        made: Planner = self._worker.call(load)
        return made

    def on_activate(self, state: LifecycleState) -> Any:
        """Ready to run; runs at once when asked to."""
        self._active = True
        if self.parameters['run_on_activate']:
            self._begin(Run(dry_run=False))
        self._publish_status()
        return process.TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> Any:
        """Ends the run."""
        self._active = False
        self._end(Result.TERMINATION_DEACTIVATED, 'the node was deactivated')
        return process.TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> Any:
        """Frees the engine and the inputs."""
        self._forget()
        self._report.state = Status.STATE_UNCONFIGURED
        self._report.say('cleaned up')
        self._publish_status()
        return process.TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> Any:
        """Ends the run."""
        self._active = False
        self._end(Result.TERMINATION_DEACTIVATED, 'the node was shut down')
        return process.TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """The end of the process: the executor reads that the run is over, and holds."""
        self._active = False
        self._end(Result.TERMINATION_DEACTIVATED, 'the node ends')
        self._report.state = Status.STATE_UNCONFIGURED
        self._report.say('the node ends')
        self._publish_status()
        process.flush([self._status_pub])
        if self._planner is not None and self._busy_since_ns is None:
            self._forget()
        self._worker.close()

    def _forget(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        planner, self._planner = self._planner, None
        self._inputs, self._contract, self._buffer, self._jump = [], None, None, None
        if planner is not None:
            self._worker.call(planner.policy.close)

    # What arrives.

    def _store(self, name: str, camera: bool) -> Any:
        def store(message: Any) -> None:
            buffer = self._buffer
            if buffer is None:
                return
            buffer.push(name, message, self._now_ns())
            if camera:
                if self._cadence is not None:
                    self._cadence.on_frame(name)
                self._worker.on_message()

        return store

    def _on_clock_jump(self, jump: Any) -> None:
        with self._lock:
            if self._buffer is not None:
                self._buffer.flush()
            self._report.say(f'ROS time jumped by {jump.delta.nanoseconds / 1e9:.3f} s')

    def _on_instruction(self, message: Any) -> None:
        try:
            self._take_instruction(message)
        except KiError as error:
            self.get_logger().error(str(error))

    def _on_set_instruction(self, request: Any, response: Any) -> Any:
        try:
            response.instruction_id = self._take_instruction(request.instruction)
            response.success = True
        except KiError as error:
            response.success, response.message, response.instruction_id = False, str(error), self._instruction[1]
        return response

    def _take_instruction(self, message: Any) -> str:
        """From now on this is what to do; a chunk for the old words that is still being made is dropped."""
        text, instruction_id = checked_instruction(message.text, message.id)
        with self._lock:
            if text != self._instruction[0]:
                self._epoch += 1
                self._hurry = True
            self._instruction = (text, instruction_id)
            if self._buffer is not None:
                self._buffer.set_instruction(text, instruction_id)
        self._worker.wake()
        self.get_logger().info(f'instruction {instruction_id}: {text}')
        return instruction_id

    def _on_load_policy(self, request: Any, response: Any) -> Any:
        begin_ns = time.monotonic_ns()
        try:
            if self._run is not None:
                raise NodeError('A run is on; stop it before loading another policy.')
            contract = self._contract or load_contract(self.parameters['robot'])
            made = self._load(contract, request.path or self.parameters['bundle'], request.validate_only)
            response.success, response.policy_id = True, made.policy.policy_id
            self._replace(made, request.validate_only or self._contract is None)
        except KiError as error:
            response.success, response.message = False, str(error)
            self.get_logger().error(str(error))
        response.load_time.sec, response.load_time.nanosec = divmod(time.monotonic_ns() - begin_ns, 1_000_000_000)
        if self._planner is not None:
            self._report.ready(self._planner.policy)
        else:
            self._report.state = Status.STATE_UNCONFIGURED
            self._report.say(response.message)
        self._publish_status()
        return response

    def _replace(self, made: Planner, only_tried: bool) -> None:
        old, self._planner = (made, self._planner) if only_tried else (self._planner, made)
        if old is not None:
            self._worker.call(old.policy.close)

    # Runs.

    def _on_start(self, request: Any, response: Any) -> Any:
        try:
            self._begin(Run(dry_run=False))
            response.success = True
            response.message = 'dry run: parameter dry_run is true' if self.parameters['dry_run'] else 'running'
        except KiError as error:
            response.success, response.message = False, str(error)
        return response

    def _on_stop(self, request: Any, response: Any) -> Any:
        response.success = self._run is not None
        response.message = '' if response.success else 'No run is on.'
        self._end(Result.TERMINATION_CANCELED, 'stopped')
        return response

    def _on_reset_fault(self, request: Any, response: Any) -> Any:
        busy_ns = self._busy_since_ns
        response.success = busy_ns is None
        if busy_ns is not None:
            response.message = 'The inference has not returned; restart the node.'
            return response
        with self._lock:
            self._failures = 0
            if self._report.state == Status.STATE_FAULT and self._planner is not None:
                self._report.ready(self._planner.policy)
        self._publish_status()
        return response

    def _on_goal(self, goal: Any) -> Any:
        try:
            self._may_begin()
            if goal.instruction.text or not self._instruction[0]:
                checked_instruction(goal.instruction.text, goal.instruction.id)
        except KiError as error:
            self.get_logger().error(f'Goal refused. {error}')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_accepted(self, handle: Any) -> None:
        """Starts the run; the goal's own callback is called when it is over, so that no thread waits for it."""
        goal = handle.request
        if goal.instruction.text:
            self._take_instruction(goal.instruction)
        self._begin(Run(dry_run=goal.dry_run, max_duration_ns=time_ns(goal.max_duration), goal=handle))

    def _on_cancel(self, handle: Any) -> Any:
        if self._run is None or self._run.goal is not handle:
            return CancelResponse.REJECT
        self._finish = (Result.TERMINATION_CANCELED, 'canceled')
        return CancelResponse.ACCEPT

    def _on_goal_end(self, handle: Any) -> Any:
        result = self._result
        if handle.is_cancel_requested:
            handle.canceled()
        elif result.success:
            handle.succeed()
        else:
            handle.abort()
        return result

    def _may_begin(self) -> None:
        if not self._active or self._planner is None:
            raise NodeError(f'The node is not active: {self._report.message or "configure and activate it first"}.')
        if self._run is not None:
            raise NodeError('A run is on already; stop it first.')
        if self._report.state == Status.STATE_FAULT:
            raise NodeError(f'The node is in fault: {self._report.message} Call ~/reset_fault first.')

    def _begin(self, run: Run) -> None:
        with self._lock:
            self._may_begin()
            assert self._planner is not None
            self._epoch += 1
            self._planner.restart()
            self._hurry, self._failures, self._finish = False, 0, None
            self._run = run
            self._report.begin(run, run.dry_run or self.parameters['dry_run'])
            self._worker.active = True
        self._worker.wake()
        self._publish_status()

    def _end(self, termination: int, message: str) -> None:
        with self._lock:
            run, self._run = self._run, None
            self._finish = None
            self._epoch += 1
            self._worker.active = False
            if run is None:
                return
            if self._report.state != Status.STATE_FAULT and self._planner is not None:
                self._report.ready(self._planner.policy)
                self._report.say(message)
        self._publish_status()
        if run.goal is not None:
            self._result = run.result(termination, message)
            run.goal.execute()

    # The inference thread.

    def _cycle(self) -> float:
        """One look: is a chunk due, is the view complete, may it be made? Returns how long to sleep [s]."""
        with self._lock:
            run, planner, buffer, epoch = self._run, self._planner, self._buffer, self._epoch
            cadence = self._cadence
            if run is None or planner is None or buffer is None or cadence is None:
                return IDLE_S
            if self._report.state == Status.STATE_FAULT:
                return IDLE_S
            if buffer.epoch != self._buffer_epoch:
                self._buffer_epoch = buffer.epoch
                self._epoch = epoch = epoch + 1
                planner.reset()
            due_ns = 0 if self._hurry else planner.due_ns()
        now_ns = self._now_ns()
        if now_ns < due_ns:
            self._worker.wants_messages = False
            cadence.reset()
            return min((due_ns - now_ns) / 1e9, IDLE_S)
        self._worker.wants_messages = True
        wait_ns = cadence.wait(time.monotonic_ns())
        if wait_ns:
            return wait_ns / 1e9
        begin_ns = time.perf_counter_ns()
        observation = buffer.sample(now_ns)
        if isinstance(observation, NotReady):
            if planner.current is not None and cadence.forgives(observation.hold, time.monotonic_ns()):
                return RETRY_S
            self._hold(hold_code(observation.hold), str(observation))
            return IDLE_S
        self._worker.wants_messages = False
        cadence.reset()
        with self._lock:
            if epoch == self._epoch:  # else new words have come meanwhile, and still want a chunk at once
                self._hurry = False
        self._busy_since_ns = time.monotonic_ns()
        try:
            planned = planner.plan(observation, epoch, self._now_ns)
        except TooLateError as error:
            run.dropped += 1
            self._hold(Status.HOLD_INFERENCE_LATE, str(error))
        except InvalidActionError as error:
            self._failed(Status.HOLD_INVALID_ACTION, str(error), run)
        except Exception as error:
            self.get_logger().error(f'The inference failed: {type(error).__name__}: {error}')
            self._failed(Status.HOLD_INVALID_ACTION, f'The inference failed: {type(error).__name__}: {error}', run)
        else:
            self._deliver(planned, run, begin_ns)
        finally:
            self._busy_since_ns = None
        return 0.0

    def _deliver(self, planned: Planned, run: Run, begin_ns: int) -> None:
        """Sends the chunk, unless the world has moved on while it was made."""
        with self._lock:
            if run is not self._run or planned.epoch != self._epoch or self._planner is None:
                run.dropped += 1
                return
            self._planner.commit(planned)
            dry = run.dry_run or self.parameters['dry_run']
            publisher = self._dry_pub if dry else self._chunk_pub
            publisher.publish(from_chunk(planned.chunk, ActionChunkMessage(), self._frame()))
            run.published += 1
            run.inference.add(planned.inferred.inference_ns)
            self._failures = 0
            age_ns = self._now_ns() - planned.chunk.observation_ns
            self._report.chunk(planned, run, dry, time.perf_counter_ns() - begin_ns, age_ns)
        self._publish_status()

    def _frame(self) -> str:
        assert self._contract is not None
        return next((output.frame_id for output in self._contract.outputs if output.frame_id), '')

    def _hold(self, code: int, message: str) -> None:
        """No chunk may be made now; what was being executed is void, the executor stands still."""
        with self._lock:
            if self._planner is not None:
                self._planner.reset()
            changed = self._report.hold(code, message)
            if changed and code not in (Status.HOLD_INFERENCE_LATE, Status.HOLD_INVALID_ACTION):
                self._epoch += 1  # a chunk that is being made saw the world before this
        if changed:
            self.get_logger().warning(f'holding: {message}')
            self._publish_status()

    def _failed(self, code: int, message: str, run: Run) -> None:
        run.dropped += 1
        self._failures += 1
        if self._failures < FAILURE_LIMIT:
            self._hold(code, message)
        else:
            self._fault(f'{message} ({self._failures} times in a row)', code)

    def _fault(self, message: str, code: int) -> None:
        with self._lock:
            self._report.fault(code, message)
            self._finish = (Result.TERMINATION_ERROR, message)
        self.get_logger().error(f'fault: {message}')
        self._publish_status()

    # What is watched and told, in the IO thread.

    def _watch(self) -> None:
        """Twenty times a second: what must stop a run even while the inference thread is busy."""
        run, buffer, planner = self._run, self._buffer, self._planner
        if run is not None and buffer is not None and planner is not None:
            now_ns = self._now_ns()
            # Whether inputs agree in time matters when an observation is taken, not at every moment between.
            problems = [each for each in buffer.problems(now_ns) if each.hold is not Hold.UNSYNCHRONIZED]
            if problems and self._report.state in (Status.STATE_RUNNING, Status.STATE_DRY_RUN):
                self._hold(hold_code(problems[0].hold), ' '.join(problem.message for problem in problems))
            current = planner.current
            if current is not None and now_ns >= current.end_ns:
                self._hold(Status.HOLD_INFERENCE_LATE, 'The last chunk has run out and the next is not ready.')
            busy_ns = self._busy_since_ns
            timeout_ns = round(self.parameters['inference_timeout'] * 1e9)
            hangs = busy_ns is not None and time.monotonic_ns() - busy_ns > timeout_ns
            if hangs and self._report.state != Status.STATE_FAULT:
                self._fault(f'An inference has not returned for {timeout_ns / 1e9:g} s.', Status.HOLD_INFERENCE_LATE)
            if self._finish is not None:
                self._end(*self._finish)
            elif run.out_of_time:
                self._end(Result.TERMINATION_TIMEOUT, 'the time of the run is over')
            elif run.goal is not None:
                feedback = RunPolicy.Feedback(status=self._report.message_now(self._buffer, planner, self._now_ns()))
                feedback.elapsed.sec, feedback.elapsed.nanosec = divmod(run.elapsed_ns, 1_000_000_000)
                run.goal.publish_feedback(feedback)
        self._publish_status()

    def _publish_status(self) -> None:
        with self._lock:
            self._status_pub.publish(self._report.message_now(self._buffer, self._planner, self._now_ns()))

    def _diagnose(self) -> None:
        with self._lock:
            lines = self._report.diagnostics(self._buffer, self._planner, self._now_ns())
        self._diagnostics_pub.publish(lines)

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def main(arguments: list[str] | None = None) -> int:
    """The process `policy_node`."""
    return process.run(PolicyNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
