"""What an operator's buttons do to the robot: topics and service calls, each answered with one sentence."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from ki_msgs.msg import EpisodeMarker
from ki_msgs.srv import SetInstruction, StartRecording, StopRecording
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

from ki_policy_node.common.service_calls import ServiceCalls
from ki_policy_node.common.streams import NEWEST
from ki_policy_node.console.robot_view import RobotView
from ki_policy_node.cycle.instruction import checked_instruction
from ki_policy_node.errors import NodeError

CALL_S = 5.0
INSIST_S = 1.0
MAX_NOTE = 500
OUTCOMES = {
    'unlabeled': EpisodeMarker.OUTCOME_UNLABELED,
    'success': EpisodeMarker.OUTCOME_SUCCESS,
    'failure': EpisodeMarker.OUTCOME_FAILURE,
    'discard': EpisodeMarker.OUTCOME_DISCARD,
}
Given = dict[str, Any]


class RobotActions:
    """One method a button. All but the e-stop and `beat` take up to `CALL_S`: not for an event loop.

    Args:
        node: Makes the publishers and clients; another thread spins it.
        view: What the robot does now.
    """

    def __init__(self, node: Any, view: RobotView) -> None:
        self._view = view
        self._calls = ServiceCalls(node, lambda: time.sleep(0.005))
        reliable = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._estop = node.create_publisher(Bool, 'estop', reliable)
        self._heartbeat = node.create_publisher(String, 'operator_heartbeat', NEWEST)
        self._notes = node.create_publisher(String, 'episode_note', NEWEST)
        # These make the robot move, or hand it over: for who is in control. The others stop something: for everybody.
        self.for_the_operator: dict[str, Callable[[Given], str]] = {
            'run': lambda _: self._trigger('policy_node/start'),
            'enable': lambda _: _insisting(lambda: self._switch('chunk_executor/enable', True)),
            'leave_dry_run': lambda _: self._set_dry_run(False),
            'reset': lambda _: self._reset(),
            'instruct': lambda given: self._instruct(_text(given, 'text')),
            'take_over': lambda _: self._switch('chunk_executor/take_over', True),
            'give_back': lambda _: self._switch('chunk_executor/take_over', False),
            'release_estop': lambda _: self.release_estop(),
            'record': lambda given: self._record(_text(given, 'task')),
            'end_recording': lambda given: self._end_recording(_text(given, 'outcome'), _text(given, 'note')),
        }
        self.for_everybody: dict[str, Callable[[Given], str]] = {
            'stop': lambda _: self._trigger('policy_node/stop'),
            'disable': lambda _: self._switch('chunk_executor/enable', False),
            'dry_run': lambda _: self._set_dry_run(True),
        }

    def press_estop(self) -> str:
        """Presses the e-stop topic."""
        self._estop.publish(Bool(data=True))
        return 'E-stop pressed.'

    def release_estop(self) -> str:
        """Releases what this console pressed; the fault stays until it is reset."""
        self._estop.publish(Bool(data=False))
        return 'E-stop released here; reset the fault to go on.'

    def beat(self, name: str) -> None:
        """A live operator, by name; without one, the operator leaves."""
        self._heartbeat.publish(String(data=name))

    def _trigger(self, service: str) -> str:
        answer = self._calls.call(Trigger, service, Trigger.Request(), CALL_S)
        return _said(answer, 'Done.')

    def _switch(self, service: str, on: bool) -> str:
        answer = self._calls.call(SetBool, service, SetBool.Request(data=on), CALL_S)
        return _said(answer, 'Done.')

    def _set_dry_run(self, on: bool) -> str:
        request = SetParametersAtomically.Request(parameters=[Parameter('dry_run', value=on).to_parameter_msg()])
        answer = self._calls.call(SetParametersAtomically, 'policy_node/set_parameters_atomically', request, CALL_S)
        if not answer.result.successful:
            raise NodeError(answer.result.reason)
        return (
            'Dry run: chunks are shown, and nothing follows them.' if on else 'No dry run: chunks go to the executor.'
        )

    def _reset(self) -> str:
        """Both nodes; the executor last, since it goes by what the policy says."""
        self._trigger('policy_node/reset_fault')
        return _insisting(lambda: self._trigger('chunk_executor/reset_fault'))

    def _instruct(self, text: str) -> str:
        words, name = checked_instruction(text, '')
        request = SetInstruction.Request()
        request.instruction.text, request.instruction.id = words, name
        answer = _checked(self._calls.call(SetInstruction, 'policy_node/set_instruction', request, CALL_S))
        self._view.on_instruction(words)
        return f'Told: {words} ({answer.instruction_id})'

    def _record(self, task: str) -> str:
        words, _ = checked_instruction(task, '')
        request = StartRecording.Request(task=words, policy_id=self._view.policy_id(), request_id=uuid.uuid4().hex)
        answer = _checked(self._calls.call(StartRecording, 'recorder/start_recording', request, CALL_S))
        return f'Recording episode {answer.episode_index}.'

    def _end_recording(self, outcome: str, note: str) -> str:
        if outcome not in OUTCOMES:
            raise NodeError(f'An episode ends as one of {", ".join(OUTCOMES)}; {outcome!r} is none.')
        if note:
            self._notes.publish(String(data=note[:MAX_NOTE]))
            time.sleep(0.1)  # so that the recorder has it before the end
        request = StopRecording.Request(outcome=OUTCOMES[outcome], request_id=uuid.uuid4().hex)
        answer = _checked(self._calls.call(StopRecording, 'recorder/stop_recording', request, CALL_S))
        return f'Recorded: {answer.uri}' if answer.uri else 'Discarded.'


def _insisting(ask: Callable[[], str]) -> str:
    """Asks again for a moment: the executor may not have heard yet that the e-stop is released, or an operator back."""
    end = time.monotonic() + INSIST_S
    while True:
        try:
            return ask()
        except NodeError:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


def _text(given: Given, name: str) -> str:
    value = given.get(name, '')
    if not isinstance(value, str):
        raise NodeError(f'{name} is {value!r}; write a text.')
    return value


def _checked(answer: Any) -> Any:
    if not answer.success:
        raise NodeError(answer.message or 'It was refused, without a reason.')
    return answer


def _said(answer: Any, otherwise: str) -> str:
    return str(_checked(answer).message or otherwise)
