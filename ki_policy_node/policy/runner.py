"""Runs of a policy in the node: the policy cycle on ROS time, between two threads.

The inference thread looks, plans and commits (`PolicyRunner.turn`); the IO thread stores messages, begins and ends
runs, and watches. Both meet under `PolicyRunner.lock`. Nothing here is published: the host does that.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from ki_msgs.action import RunPolicy
from ki_msgs.msg import PolicyStatus

from ki_policy_node.common.clock_offset import ShortestLag
from ki_policy_node.cycle.continuation import Planned, Planner
from ki_policy_node.cycle.executed import Followed
from ki_policy_node.cycle.hold_reasons import HoldReason
from ki_policy_node.cycle.instruction import checked_instruction
from ki_policy_node.cycle.policy_cycle import FOREVER_NS, Dropped, Held, PolicyCycle, Ready, Wait, WakeOn
from ki_policy_node.errors import NodeError
from ki_policy_node.policy.inference_thread import IDLE_S, InferenceThread
from ki_policy_node.policy.run import PolicyRun
from ki_policy_node.policy.status_report import StatusReport
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract
from ki_robot.observation.buffer import BufferSettings, ObservationBuffer
from ki_robot.observation.decode_threads import DecodeThreads
from ki_robot.observation.observation import Observation

Status = PolicyStatus
Result = RunPolicy.Result
AT_ANY_MESSAGE = Wait(FOREVER_NS, WakeOn.MESSAGE)


class Host(Protocol):
    """What a runner needs of the node that it works for."""

    def now_ns(self) -> int:
        """ROS time."""
        ...

    def dry_run(self) -> bool:
        """Whether chunks must not reach the robot, whatever a run asks for."""
        ...

    def publish_chunk(self, chunk: ActionChunk, dry: bool) -> None:
        """Sends a chunk, or shows it."""
        ...

    def publish_subtask(self, text: str) -> None:
        """Tells what the policy says it does next."""
        ...

    def publish_status(self) -> None:
        """Tells how things are."""
        ...

    def on_run_end(self, run: PolicyRun, termination: int, message: str) -> None:
        """A run is over."""
        ...

    def get_logger(self) -> Any:
        """The logger of the node."""
        ...


class PolicyRunner:
    """The state between what arrives and what goes out.

    Args:
        host: The node.
        report: What is told of this state; used under `lock`.
    """

    def __init__(self, host: Host, report: StatusReport) -> None:
        self._host, self._report = host, report
        self.lock = threading.RLock()
        self.contract: Contract | None = None
        self.buffer: ObservationBuffer | None = None
        self.cycle: PolicyCycle | None = None
        self.run: PolicyRun | None = None
        self.active = False
        self.instruction = ('', '')
        self.busy_since_ns: int | None = None
        self.finish: tuple[int, str] | None = None  # an end that the IO thread must bring about
        self._frame_wait_ns = 0
        self._subtask = ''
        self._wait = AT_ANY_MESSAGE
        self._decoders = DecodeThreads()
        self.worker = InferenceThread(self.turn)

    @property
    def planner(self) -> Planner | None:
        """The planner of the policy that is loaded."""
        return self.cycle.planner if self.cycle is not None else None

    def configure(self, contract: Contract, planner: Planner, needs_words: bool, frame_wait_ns: int) -> None:
        """Takes a warm policy and the robot that it is for."""
        self.buffer = ObservationBuffer(contract, BufferSettings(require_instruction=needs_words), self._decoders)
        self.contract, self._frame_wait_ns = contract, frame_wait_ns
        self._use(planner)

    def close(self) -> None:
        """Ends the threads of its own."""
        self.worker.close()
        self._decoders.close()

    def forget(self) -> None:
        """Frees the engine."""
        planner, self.cycle = self.planner, None
        self.contract, self.buffer = None, None
        if planner is not None:
            self.worker.call(planner.policy.close)

    def replace(self, made: Planner, only_tried: bool) -> None:
        """Takes another policy and frees the one before; frees the new one where it was only tried."""
        old = made if only_tried else self.planner
        if not only_tried:
            self._use(made)
        if old is not None:
            self.worker.call(old.policy.close)

    def _use(self, planner: Planner) -> None:
        assert self.contract is not None
        assert self.buffer is not None
        with self.lock:
            self.buffer.picture_size = planner.policy.picture_size
            self.cycle = PolicyCycle(self.contract, self.buffer, planner, self._frame_wait_ns)
            self.cycle.take_instruction(*self.instruction, self._host.now_ns())

    # What arrives.

    def store(self, name: str, camera: bool, message: Any) -> None:
        """Keeps a message of one stream."""
        buffer, cycle = self.buffer, self.cycle
        if buffer is None or cycle is None:
            return
        now_ns = self._host.now_ns()
        buffer.push(name, message, now_ns)
        if camera:
            cycle.on_frame(name, now_ns)
            if self._wait.wake_on is WakeOn.FRAME:  # a chunk is due, and its observation will hold this frame
                buffer.decode((name,))
        if self._wait.ends_with(camera, now_ns):
            self.worker.wake()

    def store_static(self, name: str, message: Any) -> None:
        """Keeps a message of tf_static for one stream."""
        if self.buffer is not None:
            self.buffer.push_static(name, message)

    def on_followed(self, said: Followed) -> None:
        """The executor says what it follows."""
        if (cycle := self.cycle) is not None:
            cycle.on_followed(said)

    def on_clock_jump(self, seconds: float) -> None:
        """Nothing that was stored has a meaning any more."""
        with self.lock:
            if self.cycle is not None:
                self.cycle.on_clock_jump(self._host.now_ns())
            self._report.executor_lag = ShortestLag()
            self._report.say(f'ROS time jumped by {seconds:.3f} s')

    def take_instruction(self, text: str, instruction_id: str) -> str:
        """From now on this is what to do; a chunk for the old words that is still being made is dropped."""
        text, instruction_id = checked_instruction(text, instruction_id)
        with self.lock:
            self.instruction = (text, instruction_id)
            if self.cycle is not None:
                self.cycle.take_instruction(text, instruction_id, self._host.now_ns())
        self.worker.wake()
        self._host.get_logger().info(f'instruction {instruction_id}: {text}')
        return instruction_id

    # Runs.

    def may_begin(self) -> None:
        """Raises NodeError with the reason why no run may begin."""
        if not self.active or self.cycle is None:
            raise NodeError(f'The node is not active: {self._report.message or "configure and activate it first"}.')
        if self.run is not None:
            raise NodeError('A run is on already; stop it first.')
        if fault := self.fault():
            raise NodeError(fault)

    def fault(self) -> str:
        """What is to be done about a latched fault; empty when there is none."""
        if self._report.state != Status.STATE_FAULT:
            return ''
        return f'The node is in fault: {self._report.message} Call ~/reset_fault first.'

    def stuck(self, timeout_ns: int = 0) -> str:
        """What is to be done about an inference that has been going on for `timeout_ns`; empty without one."""
        busy_ns = self.busy_since_ns
        stuck = busy_ns is not None and time.monotonic_ns() - busy_ns > timeout_ns
        return 'The inference has not returned; restart the node.' if stuck else ''

    def begin(self, run: PolicyRun) -> None:
        """Starts a run, or raises NodeError."""
        with self.lock:
            self.may_begin()
            assert self.cycle is not None
            self.cycle.begin(self._host.now_ns())
            self.finish, self.run = None, run
            self._report.begin(run, run.dry_run or self._host.dry_run())
            self.worker.active = True
        self.worker.wake()
        self._host.publish_status()

    def end(self, termination: int, message: str) -> None:
        """Ends the run, if one is on; a chunk that is being made is dropped."""
        with self.lock:
            run, self.run = self.run, None
            self.finish = None
            self.worker.active = False
            if self.cycle is not None:
                self.cycle.end()
            if run is None:
                return
            if self._report.state != Status.STATE_FAULT and self.planner is not None:
                self._report.ready(self.planner.policy)
                self._report.say(message)
        self._host.publish_status()
        self._host.on_run_end(run, termination, message)

    def reset_fault(self) -> str:
        """Leaves a fault; returns why not, or an empty text."""
        if stuck := self.stuck():
            return stuck
        with self.lock:
            if self.cycle is not None:
                self.cycle.reset_fault(self._host.now_ns())
                if self._report.state == Status.STATE_FAULT:
                    self._report.ready(self.cycle.planner.policy)
        self._host.publish_status()
        return ''

    # The inference thread.

    def turn(self) -> float:
        """One look, and the inference it asks for. Returns how long to sleep until the next [s]."""
        run, cycle = self.run, self.cycle
        if run is None or cycle is None:
            return IDLE_S
        self._wait = AT_ANY_MESSAGE  # what comes during this look may be what it waits for
        begin_ns, now_ns = time.perf_counter_ns(), self._host.now_ns()
        found = cycle.look(now_ns)
        if isinstance(found, Ready):
            self._infer(cycle, found, run, begin_ns)
            return 0.0
        if isinstance(found, Held):
            self._tell(found)
            return IDLE_S
        self._wait = found
        return min(max(0.0, (found.until_ns - now_ns) / 1e9), IDLE_S)

    def _infer(self, cycle: PolicyCycle, ready: Ready, run: PolicyRun, begin_ns: int) -> None:
        self.busy_since_ns = time.monotonic_ns()
        made = cycle.plan(ready, self._host.now_ns)
        self.busy_since_ns = None
        with self.lock:
            end = cycle.commit(made, self._host.now_ns()) if run is self.run else Dropped()
            if not isinstance(end, Planned):
                run.dropped += 1
            else:
                self._deliver(end, ready.observation, run, begin_ns)
        if isinstance(end, Held):
            self._tell(end)
        self._host.publish_status()

    def _deliver(self, planned: Planned, seen: Observation, run: PolicyRun, begin_ns: int) -> None:
        dry = run.dry_run or self._host.dry_run()
        self._host.publish_chunk(planned.chunk, dry)
        if planned.inferred.subtask != self._subtask:
            self._subtask = planned.inferred.subtask
            self._host.publish_subtask(self._subtask)
        run.published += 1
        run.inference.add(planned.inferred.inference_ns)
        now_ns = self._host.now_ns()
        picture_ns = max(seen.image_stamps_ns.values(), default=now_ns)
        ages_ns = (now_ns - planned.chunk.observation_ns, now_ns - picture_ns)
        self._report.chunk(planned, run, dry, time.perf_counter_ns() - begin_ns, *ages_ns)

    def _tell(self, held: Held) -> None:
        """The status says why there is no chunk, and the executor holds."""
        with self.lock:
            if self.run is None:
                return
            if held.fault:
                self._report.fault(held.reason, held.message)
                self.finish = (Result.TERMINATION_ERROR, held.message)
                news = True
            else:
                news = self._report.hold(held.reason, held.message)
        if held.fault:
            self._host.get_logger().error(f'fault: {held.message}')
        elif news:
            self._host.get_logger().warning(f'holding: {held.message}')
        if news:
            self._host.publish_status()

    # The IO thread.

    def watch(self, timeout_ns: int) -> bool:
        """Stops what must stop even while the inference thread is busy; whether the run goes on.

        Args:
            timeout_ns: An inference longer than this is a fault.
        """
        run, cycle = self.run, self.cycle
        if run is None or cycle is None:
            return False
        now_ns = self._host.now_ns()
        if self._report.shows(run.dry_run or self._host.dry_run()):
            # Switched in mid-run: what was sent under the other rule is void, and the executor must read so at once.
            with self.lock:
                cycle.start_over(now_ns)
            self._host.publish_status()
        held = cycle.watch(now_ns)
        if held is not None:
            self._tell(held)
        if self.stuck(timeout_ns) and not cycle.fault:
            message = f'An inference has not returned for {timeout_ns / 1e9:g} s.'
            self._tell(cycle.fail(HoldReason.INFERENCE_LATE, message))
        if self.finish is not None:
            self.end(*self.finish)
        elif run.out_of_time:
            self.end(Result.TERMINATION_TIMEOUT, 'the time of the run is over')
        else:
            return True
        return False
