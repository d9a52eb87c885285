"""What the page shows of the robot, as plain data: collected from the messages of the nodes, whenever they come."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from ki_msgs.msg import ControlSource, EpisodeMarker, ExecutorStatus, PolicyStatus, SafetyEvent, StreamHealth

from ki_policy_node.common.clock_offset import in_words
from ki_policy_node.common.diagnostics import RECORDING
from ki_robot.contract.contract import Contract
from ki_robot.messages.arrays import stamp_ns, time_ns

SILENT_NS = 1_500_000_000  # a node that says nothing for so long is shown as silent
EVENTS = 30
INSTRUCTIONS = 20
HOLD_WORDS = {
    PolicyStatus.HOLD_STALE_OBSERVATION: 'an input is missing, old or wrong',
    PolicyStatus.HOLD_UNSYNCHRONIZED: 'inputs are too far apart in time',
    PolicyStatus.HOLD_INFERENCE_LATE: 'the policy is too slow',
    PolicyStatus.HOLD_INVALID_ACTION: 'what the policy made cannot be executed',
    PolicyStatus.HOLD_LIMIT: 'outside the limits of the robot',
    PolicyStatus.HOLD_NO_INSTRUCTION: 'it has not been told what to do',
    PolicyStatus.HOLD_ESTOP: 'the e-stop is pressed',
    PolicyStatus.HOLD_CLOCK_JUMP: 'the clock jumped',
}
SEVERITY_WORDS = {
    SafetyEvent.SEVERITY_INFO: 'info',
    SafetyEvent.SEVERITY_CLAMPED: 'clamped',
    SafetyEvent.SEVERITY_REJECTED: 'rejected',
    SafetyEvent.SEVERITY_FAULT: 'fault',
}
Plain = dict[str, Any]


POLICY_WORDS = {
    PolicyStatus.STATE_UNCONFIGURED: 'unconfigured',
    PolicyStatus.STATE_LOADING: 'loading',
    PolicyStatus.STATE_READY: 'ready',
    PolicyStatus.STATE_RUNNING: 'running',
    PolicyStatus.STATE_DRY_RUN: 'dry run',
    PolicyStatus.STATE_HOLDING: 'holding',
    PolicyStatus.STATE_FAULT: 'fault',
}
EXECUTOR_WORDS = {
    ExecutorStatus.STATE_UNCONFIGURED: 'unconfigured',
    ExecutorStatus.STATE_INACTIVE: 'inactive',
    ExecutorStatus.STATE_DISABLED: 'disabled',
    ExecutorStatus.STATE_IDLE: 'idle',
    ExecutorStatus.STATE_RUN: 'run',
    ExecutorStatus.STATE_HOLD: 'hold',
    ExecutorStatus.STATE_FAULT: 'fault',
}
STREAM_WORDS = {
    StreamHealth.STATE_NEVER_RECEIVED: 'never received',
    StreamHealth.STATE_OK: 'ok',
    StreamHealth.STATE_STALE: 'stale',
    StreamHealth.STATE_INVALID: 'invalid',
    StreamHealth.STATE_CLOCK_SKEW: 'clock skew',
}
DRIVER_WORDS = {
    ControlSource.SOURCE_HOLD: 'nobody',
    ControlSource.SOURCE_POLICY: 'policy',
    ControlSource.SOURCE_HUMAN: 'human',
}


class RobotView:
    """The newest of everything. Messages come from one thread, the page's data are made in another.

    Args:
        contract: The robot.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        # The robot's own, and after them what a policy says of hands.
        own = contract.robot.actions
        named = {column.name for column in own}
        self._columns = (*own, *(column for column in contract.actions if column.name not in named))
        self._lock = threading.Lock()
        self._policy: tuple[Any, int] | None = None
        self._executor: tuple[Any, int] | None = None
        self._measured: dict[str, float] = {}
        self._subtask = ''
        self._events: deque[Plain] = deque(maxlen=EVENTS)
        self._said: deque[str] = deque(maxlen=INSTRUCTIONS)
        self._episode: Any = None
        self._ended = ''  # why the recorder ended the last episode by itself
        self._chunk: tuple[int, Any, bool] | None = None  # number, message, dry

    # What comes in.

    def on_policy(self, message: Any, steady_ns: int) -> None:
        """The status of the policy node."""
        with self._lock:
            self._policy = message, steady_ns

    def on_executor(self, message: Any, steady_ns: int) -> None:
        """The status of the executor."""
        with self._lock:
            self._executor = message, steady_ns

    def on_measured(self, values: dict[str, float]) -> None:
        """State columns by name."""
        with self._lock:
            self._measured.update(values)

    def on_subtask(self, text: str) -> None:
        """What the policy says it does next."""
        with self._lock:
            self._subtask = text

    def on_event(self, message: Any) -> None:
        """An intervention of the executor."""
        severity = SEVERITY_WORDS.get(message.severity, 'info')
        with self._lock:
            self._events.append({'at': stamp_ns(message.header) / 1e9, 'severity': severity, 'text': message.message})

    def on_instruction(self, text: str) -> None:
        """What the robot is told to do; what was said before is kept, the newest last."""
        with self._lock:
            if text and (not self._said or self._said[-1] != text):
                self._said.append(text)

    def on_episode(self, message: Any) -> None:
        """A recording begins or ends."""
        with self._lock:
            self._episode = message

    def on_diagnostics(self, message: Any, recorder: str) -> None:
        """What the recorder of that name says of itself: an episode that it ended, for lack of space for instance."""
        for status in message.status:
            if status.name == f'{recorder}: {RECORDING}':
                with self._lock:
                    self._ended = status.message if status.level == DiagnosticStatus.ERROR else ''

    def on_chunk(self, message: Any, dry: bool) -> None:
        """A chunk of the policy."""
        with self._lock:
            number = self._chunk[0] if self._chunk is not None else 0
            self._chunk = number + 1, message, dry

    # What goes out.

    def about(self) -> Plain:
        """What does not change: names, limits, cameras."""
        columns = [
            {
                'name': column.name,
                'unit': column.unit,
                'lower': column.limits.lower,
                'upper': column.limits.upper,
            }
            for column in self._columns
        ]
        cameras = [camera.name for camera in self._contract.cameras]
        return {'type': 'about', 'robot': self._contract.name, 'columns': columns, 'cameras': cameras}

    def state(self, steady_ns: int) -> Plain:
        """What changes all the time."""
        with self._lock:
            return {
                'type': 'state',
                'policy': self._of_policy(steady_ns),
                'executor': self._of_executor(steady_ns),
                'measured': {name: round(value, 5) for name, value in self._measured.items()},
                'subtask': self._subtask,
                'events': list(self._events),
                'instructions': list(self._said),
                'episode': self._of_episode(),
            }

    def chunk(self, after: int) -> tuple[int, Plain] | None:
        """The newest chunk, if it is later than number `after`."""
        with self._lock:
            if self._chunk is None or self._chunk[0] <= after:
                return None
            number, message, dry = self._chunk
        width = len(message.interface_names)
        rows = [
            [round(value, 5) for value in message.data[at * width : (at + 1) * width]] for at in range(message.horizon)
        ]
        return number, {
            'type': 'chunk',
            'dry': dry,
            'id': message.chunk_id,
            'stamp': stamp_ns(message.header) / 1e9,
            'step': time_ns(message.step_dt) / 1e9,
            'names': list(message.interface_names),
            'rows': rows,
        }

    def policy_id(self) -> str:
        """The policy that is loaded; empty for none."""
        with self._lock:
            return str(self._policy[0].policy_id) if self._policy is not None else ''

    def _of_policy(self, steady_ns: int) -> Plain:
        if self._policy is None or steady_ns - self._policy[1] > SILENT_NS:
            return {'heard': False, 'state': 'silent', 'message': 'Nothing is heard of policy_node.', 'streams': []}
        message = self._policy[0]
        return {
            'heard': True,
            'state': POLICY_WORDS.get(message.state, 'unknown'),
            'hold': HOLD_WORDS.get(message.hold_reason, ''),
            'message': message.message,
            'id': message.policy_id,
            'backend': message.backend,
            'published': message.chunks_published,
            'dropped': message.chunks_dropped,
            'latency': {
                'preprocess': time_ns(message.preprocess_time) / 1e6,
                'inference': time_ns(message.inference_time) / 1e6,
                'postprocess': time_ns(message.postprocess_time) / 1e6,
                'observation to action': time_ns(message.observation_to_action) / 1e6,
            },
            'streams': [
                {
                    'name': each.key,
                    'topic': each.topic,
                    'state': STREAM_WORDS.get(each.state, 'unknown'),
                    'age': round(time_ns(each.age) / 1e6),
                    'max_age': round(time_ns(each.max_age) / 1e6),
                    'rate': round(each.rate, 1),
                    'received': each.received,
                    'rejected': each.rejected,
                }
                for each in message.streams
            ],
        }

    def _of_executor(self, steady_ns: int) -> Plain:
        if self._executor is None or steady_ns - self._executor[1] > SILENT_NS:
            return {'heard': False, 'state': 'silent', 'reason': 'Nothing is heard of chunk_executor.'}
        message = self._executor[0]
        return {
            'heard': True,
            'state': EXECUTOR_WORDS.get(message.state, 'unknown'),
            'reason': message.reason,
            'source': DRIVER_WORDS.get(message.source, 'unknown'),
            'selected': DRIVER_WORDS.get(message.selected, 'unknown'),
            'driver': message.driver,
            'chunk': message.chunk_id,
            'step': message.step,
            'estop': message.estop,
            'teleop': message.teleop_alive,
            'operator_required': message.operator_required,
            'operator': message.operator_name,
            'clock_ahead': time_ns(message.policy_clock_ahead) / 1e6,
            'clocks': in_words(time_ns(message.policy_clock_ahead)),
        }

    def _of_episode(self) -> Plain:
        if self._episode is None:
            return {'recording': False, 'ended': self._ended}
        on = self._episode.phase == EpisodeMarker.PHASE_START
        about = {'recording': on, 'index': self._episode.episode_index, 'task': self._episode.task}
        return about | {'ended': '' if on else self._ended}
