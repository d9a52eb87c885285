"""Runs of a policy: when the next chunk is due, when none may be made, and when a run is over.

The inference thread calls `Runner.cycle`; the IO thread stores messages, begins and ends runs, and watches. Both meet
under `Runner.lock`. Nothing here is published: the host does that.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from ki_msgs.action import RunPolicy
from ki_msgs.msg import PolicyStatus

from ki_policy_node.errors import NodeError
from ki_policy_node.policy.inference import Cadence, InferenceThread, InvalidActionError, Planned, Planner, TooLateError
from ki_policy_node.policy.run import Run, checked_instruction
from ki_policy_node.policy.status_report import Report, hold_code
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract
from ki_robot.observation.buffer import ObservationBuffer, Settings
from ki_robot.observation.observation import Hold, NotReady

FAILURE_LIMIT = 3  # inferences in a row that fail before the fault is latched
IDLE_S = 0.05
RETRY_S = 0.01
Status = PolicyStatus
Result = RunPolicy.Result


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

    def publish_status(self) -> None:
        """Tells how things are."""
        ...

    def on_run_end(self, run: Run, termination: int, message: str) -> None:
        """A run is over."""
        ...

    def get_logger(self) -> Any:
        """The logger of the node."""
        ...


class Runner:
    """The state between what arrives and what goes out.

    Args:
        host: The node.
        report: What is told of this state; used under `lock`.
    """

    def __init__(self, host: Host, report: Report) -> None:
        self._host, self._report = host, report
        self.lock = threading.RLock()
        self.contract: Contract | None = None
        self.buffer: ObservationBuffer | None = None
        self.planner: Planner | None = None
        self.run: Run | None = None
        self.active = False
        self.instruction = ('', '')
        self.busy_since_ns: int | None = None
        self.finish: tuple[int, str] | None = None  # an end that the IO thread must bring about
        self._epoch = self._buffer_epoch = 0
        self._hurry = False
        self._failures = 0
        self._cadence: Cadence | None = None
        self.worker = InferenceThread(self.cycle)

    def configure(self, contract: Contract, planner: Planner, needs_words: bool, frame_wait_ns: int) -> None:
        """Takes a warm policy and the robot that it is for."""
        self.planner = planner
        self.buffer = ObservationBuffer(contract, Settings(require_instruction=needs_words))
        self.buffer.set_instruction(*self.instruction)
        self._buffer_epoch = self.buffer.epoch
        self._cadence = Cadence(contract, frame_wait_ns)
        self.contract = contract

    def forget(self) -> None:
        """Frees the engine."""
        planner, self.planner = self.planner, None
        self.contract, self.buffer = None, None
        if planner is not None:
            self.worker.call(planner.policy.close)

    def replace(self, made: Planner, only_tried: bool) -> None:
        """Takes another policy and frees the one before; frees the new one where it was only tried."""
        old, self.planner = (made, self.planner) if only_tried else (self.planner, made)
        if old is not None:
            self.worker.call(old.policy.close)

    # What arrives.

    def store(self, name: str, camera: bool, message: Any) -> None:
        """Keeps a message of one stream."""
        buffer = self.buffer
        if buffer is None:
            return
        buffer.push(name, message, self._host.now_ns())
        if camera:
            if self._cadence is not None:
                self._cadence.on_frame(name)
            self.worker.on_message()

    def on_clock_jump(self, seconds: float) -> None:
        """Nothing that was stored has a meaning any more."""
        with self.lock:
            if self.buffer is not None:
                self.buffer.flush()
            self._report.say(f'ROS time jumped by {seconds:.3f} s')

    def take_instruction(self, text: str, instruction_id: str) -> str:
        """From now on this is what to do; a chunk for the old words that is still being made is dropped."""
        text, instruction_id = checked_instruction(text, instruction_id)
        with self.lock:
            if text != self.instruction[0]:
                self._epoch += 1
                self._hurry = True
            self.instruction = (text, instruction_id)
            if self.buffer is not None:
                self.buffer.set_instruction(text, instruction_id)
        self.worker.wake()
        self._host.get_logger().info(f'instruction {instruction_id}: {text}')
        return instruction_id

    # Runs.

    def may_begin(self) -> None:
        """Raises NodeError with the reason why no run may begin."""
        if not self.active or self.planner is None:
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

    def begin(self, run: Run) -> None:
        """Starts a run, or raises NodeError."""
        with self.lock:
            self.may_begin()
            assert self.planner is not None
            self._epoch += 1
            self.planner.restart()
            self._hurry, self._failures, self.finish = False, 0, None
            self.run = run
            self._report.begin(run, run.dry_run or self._host.dry_run())
            self.worker.active = True
        self.worker.wake()
        self._host.publish_status()

    def end(self, termination: int, message: str) -> None:
        """Ends the run, if one is on; a chunk that is being made is dropped."""
        with self.lock:
            run, self.run = self.run, None
            self.finish = None
            self._epoch += 1
            self.worker.active = False
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
            self._failures = 0
            if self._report.state == Status.STATE_FAULT and self.planner is not None:
                self._report.ready(self.planner.policy)
        self._host.publish_status()
        return ''

    # The inference thread.

    def cycle(self) -> float:
        """One look: is a chunk due, is the view complete, may it be made? Returns how long to sleep [s]."""
        with self.lock:
            run, planner, buffer, epoch = self.run, self.planner, self.buffer, self._epoch
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
        now_ns = self._host.now_ns()
        if now_ns < due_ns:
            self.worker.wants_messages = False
            cadence.reset()
            return min((due_ns - now_ns) / 1e9, IDLE_S)
        self.worker.wants_messages = True
        wait_ns = cadence.wait(time.monotonic_ns())
        if wait_ns:
            buffer.decode(cadence.seen)  # so that only the last camera's frame is still to be decoded when it comes
            return wait_ns / 1e9
        begin_ns = time.perf_counter_ns()
        observation = buffer.sample(now_ns)
        if isinstance(observation, NotReady):
            if planner.current is not None and cadence.forgives(observation.hold, time.monotonic_ns()):
                return RETRY_S
            self._hold(hold_code(observation.hold), str(observation))
            return IDLE_S
        self.worker.wants_messages = False
        cadence.reset()
        with self.lock:
            if epoch == self._epoch:  # else new words have come meanwhile, and still want a chunk at once
                self._hurry = False
        self.busy_since_ns = time.monotonic_ns()
        try:
            planned = planner.plan(observation, epoch, self._host.now_ns)
        except TooLateError as error:
            run.dropped += 1
            self._hold(Status.HOLD_INFERENCE_LATE, str(error))
        except InvalidActionError as error:
            self._failed(Status.HOLD_INVALID_ACTION, str(error), run)
        except Exception as error:
            self._host.get_logger().error(f'The inference failed: {type(error).__name__}: {error}')
            self._failed(Status.HOLD_INVALID_ACTION, f'The inference failed: {type(error).__name__}: {error}', run)
        else:
            self._deliver(planned, run, begin_ns)
        finally:
            self.busy_since_ns = None
        return 0.0

    def _deliver(self, planned: Planned, run: Run, begin_ns: int) -> None:
        """Sends the chunk, unless the world has moved on while it was made."""
        with self.lock:
            if run is not self.run or planned.epoch != self._epoch or self.planner is None:
                run.dropped += 1
                return
            self.planner.commit(planned)
            dry = run.dry_run or self._host.dry_run()
            self._host.publish_chunk(planned.chunk, dry)
            run.published += 1
            run.inference.add(planned.inferred.inference_ns)
            self._failures = 0
            age_ns = self._host.now_ns() - planned.chunk.observation_ns
            self._report.chunk(planned, run, dry, time.perf_counter_ns() - begin_ns, age_ns)
        self._host.publish_status()

    def _hold(self, code: int, message: str) -> None:
        """No chunk may be made now; what was being executed is void, the executor stands still."""
        with self.lock:
            if self.planner is not None:
                self.planner.reset()
            changed = self._report.hold(code, message)
            if changed and code not in (Status.HOLD_INFERENCE_LATE, Status.HOLD_INVALID_ACTION):
                self._epoch += 1  # a chunk that is being made saw the world before this
        if changed:
            self._host.get_logger().warning(f'holding: {message}')
            self._host.publish_status()

    def _failed(self, code: int, message: str, run: Run) -> None:
        run.dropped += 1
        self._failures += 1
        if self._failures < FAILURE_LIMIT:
            self._hold(code, message)
        else:
            self._fault(f'{message} ({self._failures} times in a row)', code)

    def _fault(self, message: str, code: int) -> None:
        with self.lock:
            self._report.fault(code, message)
            self.finish = (Result.TERMINATION_ERROR, message)
        self._host.get_logger().error(f'fault: {message}')
        self._host.publish_status()

    # The IO thread.

    def watch(self, timeout_ns: int) -> bool:
        """Stops what must stop even while the inference thread is busy; whether the run goes on.

        Args:
            timeout_ns: An inference longer than this is a fault.
        """
        run, buffer, planner = self.run, self.buffer, self.planner
        if run is None or buffer is None or planner is None:
            return False
        now_ns = self._host.now_ns()
        if self._report.shows(run.dry_run or self._host.dry_run()):
            # Switched in mid-run: what was sent under the other rule is void, and the executor must read so at once.
            with self.lock:
                self._epoch += 1
                planner.reset()
            self._host.publish_status()
        # Whether inputs agree in time matters when an observation is taken, not at every moment between.
        problems = [each for each in buffer.problems(now_ns) if each.hold is not Hold.UNSYNCHRONIZED]
        if problems and self._report.state in (Status.STATE_RUNNING, Status.STATE_DRY_RUN):
            self._hold(hold_code(problems[0].hold), ' '.join(problem.message for problem in problems))
        current = planner.current
        if current is not None and now_ns >= current.end_ns:
            self._hold(Status.HOLD_INFERENCE_LATE, 'The last chunk has run out and the next is not ready.')
        if self.stuck(timeout_ns) and self._report.state != Status.STATE_FAULT:
            self._fault(f'An inference has not returned for {timeout_ns / 1e9:g} s.', Status.HOLD_INFERENCE_LATE)
        if self.finish is not None:
            self.end(*self.finish)
        elif run.out_of_time:
            self.end(Result.TERMINATION_TIMEOUT, 'the time of the run is over')
        else:
            return True
        return False
