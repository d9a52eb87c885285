"""The policy node: cameras, joint states and an instruction in, chunks of timed commands out.

The IO thread stores messages, answers services and tells how things are; the inference thread owns the engine. When
a chunk is made and when not is in `cycle`, how it joins the one before in `continuation`, what is observed in
`ki_robot.observation`, what a run is in `runner`: this file connects them to ROS.
"""

from __future__ import annotations

import time
from typing import Any

import cv2
from diagnostic_msgs.msg import DiagnosticArray
from ki_msgs.action import RunPolicy
from ki_msgs.msg import ActionChunk as ActionChunkMessage
from ki_msgs.msg import ExecutorStatus, Instruction, PolicyStatus
from ki_msgs.srv import LoadPolicy, SetInstruction
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_msgs.msg import String
from std_srvs.srv import Trigger

from ki_common.errors import KiError
from ki_common.memory import keep_freed_memory
from ki_policy_node.common import process
from ki_policy_node.common.parameters import Parameters
from ki_policy_node.common.streams import LATCHED, NEWEST, hear_everybody, subscribe
from ki_policy_node.cycle.continuation import Planner, Timing
from ki_policy_node.cycle.executed import Followed
from ki_policy_node.cycle.instruction import checked_instruction
from ki_policy_node.errors import NodeError
from ki_policy_node.policy.backends import (
    COMMISSIONING,
    Commissioning,
    Wanted,
    allowed_bundle,
    check_fits,
    open_policy,
)
from ki_policy_node.policy.run import PolicyRun
from ki_policy_node.policy.runner import PolicyRunner
from ki_policy_node.policy.settings import PolicyNodeSettings
from ki_policy_node.policy.status_report import StatusReport
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.parts import Camera
from ki_robot.messages.arrays import from_chunk, stamp_ns, time_ns
from ki_vla.remote.remote_settings import RemoteSettings

Status = PolicyStatus
Result = RunPolicy.Result


class PolicyNode(LifecycleNode):
    """Wiring of the policy node."""

    def __init__(self) -> None:
        super().__init__('policy_node', automatically_declare_parameters_from_overrides=True)
        self._inputs: list[Any] = []
        self._jump: Any = None
        self._result: Any = None
        self._report = StatusReport(self)
        self._runner = PolicyRunner(self, self._report)
        self.parameters = Parameters(self, PolicyNodeSettings, lambda: self._runner.contract is not None)
        self._chunk_pub = self.create_publisher(ActionChunkMessage, '~/action_chunk', NEWEST)
        self._dry_pub = self.create_publisher(ActionChunkMessage, '~/dry_run_chunk', NEWEST)
        self._subtask_pub = self.create_publisher(String, '~/subtask', LATCHED)
        self._status_pub = self.create_publisher(PolicyStatus, '~/status', LATCHED)
        self._diagnostics_pub = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_service(Trigger, '~/start', self._on_start)
        self.create_service(Trigger, '~/stop', self._on_stop)
        self.create_service(Trigger, '~/reset_fault', self._on_reset_fault)
        self.create_service(SetInstruction, '~/set_instruction', self._on_set_instruction)
        self.create_service(LoadPolicy, '~/load_policy', self._on_load_policy)
        hear_everybody(self, Instruction, 'instruction', self._on_instruction)
        self.create_subscription(ExecutorStatus, 'chunk_executor/status', self._on_executor, NEWEST)
        self._server = ActionServer(
            self,
            RunPolicy,
            '~/run',
            execute_callback=self._on_goal_end,
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
        )
        self.create_timer(1.0 / self.parameters.values.status_rate, self._watch, clock=process.STEADY)
        self.create_timer(1.0, self._diagnose, clock=process.STEADY)
        self.publish_status()

    def autostart(self) -> bool:
        """Whether to configure and activate without being asked."""
        return self.parameters.values.autostart

    # Lifecycle.

    def on_configure(self, state: LifecycleState) -> Any:
        """Loads the policy, checks it against the robot, warms it up, subscribes."""
        done = process.told(self, self._configure, state, self._report.say)
        if done != TransitionCallbackReturn.SUCCESS:
            self._report.state = Status.STATE_UNCONFIGURED
            self._forget()
        self.publish_status()
        return done

    def _configure(self, state: LifecycleState) -> None:
        settings = self.parameters.values
        contract = load_contract(settings.robot)
        if settings.instruction:
            self._runner.instruction = checked_instruction(settings.instruction, 'parameter')
        planner = self._load(contract, settings.bundle)
        needs_words = settings.backend != COMMISSIONING
        self._runner.configure(contract, planner, needs_words, round(settings.frame_wait * 1e9))
        for stream in contract.streams:
            store, still = self._store(stream.name, isinstance(stream, Camera)), self._store_static(stream.name)
            self._inputs += subscribe(self, stream, store, still)
        self._jump = process.on_clock_jump(self, self._runner.on_clock_jump)
        self._report.ready(planner.policy)

    def _load(self, contract: Contract, bundle: str, validate_only: bool = False) -> Planner:
        """A checked, warm policy. The engine is made and run by the one thread that will use it."""
        settings = self.parameters.values
        self._report.state = Status.STATE_LOADING
        self._report.say(f'loading {bundle or settings.backend}')
        self.publish_status()
        wanted, timing = wanted_by(settings, bundle), timing_of(settings)

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

        return self._runner.worker.call(load)

    def on_activate(self, state: LifecycleState) -> Any:
        """Ready to run; runs at once when asked to."""
        self._runner.active = True
        if self.parameters.values.run_on_activate:
            try:
                self._runner.begin(PolicyRun(dry_run=False))
            except KiError as error:  # in fault: the node is active, and waits for the reset
                self.get_logger().error(str(error))
        self.publish_status()
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> Any:
        """Ends the run."""
        self._runner.active = False
        self._runner.end(Result.TERMINATION_DEACTIVATED, 'the node was deactivated')
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> Any:
        """Frees the engine and the inputs; not while an inference hangs, which still uses them."""
        if stuck := self._runner.stuck(self._timeout_ns()):
            self.get_logger().error(stuck)
            return TransitionCallbackReturn.FAILURE
        self._forget()
        self._report.state = Status.STATE_UNCONFIGURED
        self._report.say('cleaned up')
        self.publish_status()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> Any:
        """Ends the run."""
        self._runner.active = False
        self._runner.end(Result.TERMINATION_DEACTIVATED, 'the node was shut down')
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """The end of the process: the executor reads that the run is over, and holds."""
        self._runner.active = False
        self._runner.end(Result.TERMINATION_DEACTIVATED, 'the node ends')
        self._report.state = Status.STATE_UNCONFIGURED
        self._report.say('the node ends')
        self.publish_status()
        process.flush([self._status_pub])
        if self._runner.planner is not None and self._runner.busy_since_ns is None:
            self._forget()
        self._runner.close()

    def _timeout_ns(self) -> int:
        return round(self.parameters.values.inference_timeout * 1e9)

    def _forget(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        if self._jump is not None:
            self._jump.unregister()
        self._inputs, self._jump = [], None
        self._runner.forget()

    # What arrives.

    def _store(self, name: str, camera: bool) -> Any:
        def store(message: Any) -> None:
            self._runner.store(name, camera, message)

        return store

    def _store_static(self, name: str) -> Any:
        return lambda message: self._runner.store_static(name, message)

    def _on_instruction(self, message: Any) -> None:
        text, instruction_id = self._runner.instruction
        if text and message.text.strip() == text and message.id in ('', instruction_id):
            return  # heard already
        try:
            self._runner.take_instruction(message.text, message.id)
        except KiError as error:
            self.get_logger().error(str(error))

    def _on_executor(self, message: Any) -> None:
        """What the executor follows: the next chunk goes on from that, and from nothing else."""
        told = Followed(stamp_ns(message.header))
        self._report.executor_lag.add(told.at_ns, self.now_ns(), time.monotonic_ns())
        if message.source == ExecutorStatus.SOURCE_POLICY:
            told = Followed(told.at_ns, message.driver, message.chunk_id, time_ns(message.chunk_stamp))
        self._runner.on_followed(told)

    def _on_set_instruction(self, request: Any, response: Any) -> Any:
        try:
            words = request.instruction
            response.instruction_id = self._runner.take_instruction(words.text, words.id)
            response.success = True
        except KiError as error:
            response.success, response.message, response.instruction_id = False, str(error), self._runner.instruction[1]
        return response

    def _on_load_policy(self, request: Any, response: Any) -> Any:
        begin_ns = time.monotonic_ns()
        try:
            if self._runner.run is not None:
                raise NodeError('A run is on; stop it before loading another policy.')
            if reason := self._runner.stuck(self._timeout_ns()) or self._runner.fault():
                response.success, response.message = False, reason
                return response
            contract = self._runner.contract or load_contract(self.parameters.values.robot)
            settings = self.parameters.values
            bundle = allowed_bundle(request.path, settings.bundle, settings.bundle_root)
            made = self._load(contract, bundle, request.validate_only)
            response.success, response.policy_id = True, made.policy.policy_id
            self._runner.replace(made, request.validate_only or self._runner.contract is None)
        except (KiError, OSError) as error:  # also a folder that cannot be read, a path that the system refuses
            response.success, response.message = False, str(error)
            self.get_logger().error(str(error))
        response.load_time.sec, response.load_time.nanosec = divmod(time.monotonic_ns() - begin_ns, 1_000_000_000)
        if self._runner.planner is not None:
            self._report.ready(self._runner.planner.policy)
        else:
            self._report.state = Status.STATE_UNCONFIGURED
            self._report.say(response.message)
        self.publish_status()
        return response

    # Runs.

    def _on_start(self, request: Any, response: Any) -> Any:
        try:
            self._runner.begin(PolicyRun(dry_run=False))
            response.success = True
            response.message = 'dry run: parameter dry_run is true' if self.parameters.values.dry_run else 'running'
        except KiError as error:
            response.success, response.message = False, str(error)
        return response

    def _on_stop(self, request: Any, response: Any) -> Any:
        response.success = self._runner.run is not None
        response.message = '' if response.success else 'No run is on.'
        self._runner.end(Result.TERMINATION_CANCELED, 'stopped')
        return response

    def _on_reset_fault(self, request: Any, response: Any) -> Any:
        response.message = self._runner.reset_fault()
        response.success = not response.message
        return response

    def _on_goal(self, goal: Any) -> Any:
        try:
            self._runner.may_begin()
            if goal.instruction.text or not self._runner.instruction[0]:
                checked_instruction(goal.instruction.text, goal.instruction.id)
        except KiError as error:
            self.get_logger().error(f'Goal refused. {error}')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_accepted(self, handle: Any) -> None:
        """Starts the run; the goal's own callback is called when it is over, so that no thread waits for it."""
        goal = handle.request
        if goal.instruction.text:
            self._runner.take_instruction(goal.instruction.text, goal.instruction.id)
        self._runner.begin(PolicyRun(dry_run=goal.dry_run, max_duration_ns=time_ns(goal.max_duration), goal=handle))

    def _on_cancel(self, handle: Any) -> Any:
        run = self._runner.run
        if run is None or run.goal is not handle:
            return CancelResponse.REJECT
        self._runner.finish = (Result.TERMINATION_CANCELED, 'canceled')
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

    def on_run_end(self, run: PolicyRun, termination: int, message: str) -> None:
        """Ends the goal that asked for a run."""
        if run.goal is not None:
            self._result = run.result(termination, message)
            run.goal.execute()

    # What goes out.

    def publish_chunk(self, chunk: ActionChunk, dry: bool) -> None:
        """Sends a chunk to the executor; in a dry run, to where nothing that moves listens."""
        contract = self._runner.contract
        assert contract is not None
        frame = next((output.frame_id for output in contract.outputs if output.frame_id), '')
        publisher = self._dry_pub if dry else self._chunk_pub
        publisher.publish(from_chunk(chunk, ActionChunkMessage(), frame))

    def publish_subtask(self, text: str) -> None:
        """Tells what the policy says it does next."""
        self._subtask_pub.publish(String(data=text))

    def publish_status(self) -> None:
        """Tells how things are."""
        with self._runner.lock:
            self._status_pub.publish(self._status())

    def _status(self) -> PolicyStatus:
        return self._report.message_now(self._runner.buffer, self._runner.planner, self.now_ns())

    def _watch(self) -> None:
        """Twenty times a second."""
        if self._runner.watch(self._timeout_ns()):
            run = self._runner.run
            if run is not None and run.goal is not None:
                feedback = RunPolicy.Feedback(status=self._status())
                feedback.elapsed.sec, feedback.elapsed.nanosec = divmod(run.elapsed_ns, 1_000_000_000)
                run.goal.publish_feedback(feedback)
        self.publish_status()

    def _diagnose(self) -> None:
        with self._runner.lock:
            lines = self._report.diagnostics(self._runner.buffer, self._runner.planner, self.now_ns())
        self._diagnostics_pub.publish(lines)

    def dry_run(self) -> bool:
        """Whether chunks must not reach the robot, whatever a run asks for."""
        return self.parameters.values.dry_run

    def now_ns(self) -> int:
        """ROS time."""
        return int(self.get_clock().now().nanoseconds)


def wanted_by(settings: PolicyNodeSettings, bundle: str) -> Wanted:
    """The policy that the parameters ask for, from `bundle`."""
    return Wanted(
        settings.backend,
        bundle,
        Commissioning(settings.motion, settings.amplitude, settings.period, settings.latency, settings.latency_kind),
        strict=settings.strict_backend,
        threads=settings.threads,
        seed=settings.seed,
        denoise_steps=settings.denoise_steps,
        allow_untrained=settings.allow_untrained,
        remote=RemoteSettings(
            settings.remote_url, settings.remote_timeout, settings.remote_token_file, settings.remote_jpeg_quality
        ),
    )


def timing_of(settings: PolicyNodeSettings) -> Timing:
    """How chunks follow each other, as the parameters say."""
    return Timing(settings.mode, settings.execute_steps, settings.ensemble_coefficient)


def main(arguments: list[str] | None = None) -> int:
    """The process `policy_node`."""
    # The node has threads of its own that decode: a pool inside OpenCV costs each picture more than it brings, and so
    # does fresh memory.
    cv2.setNumThreads(1)
    keep_freed_memory()
    return process.run(PolicyNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
