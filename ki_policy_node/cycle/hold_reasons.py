"""Why no chunk is made: every reason there is, by one name in logs, reports and tests.

A hold ends by itself with the next chunk; `status_report` says which number of ki_msgs/PolicyStatus each reason has.
"""

from __future__ import annotations

from enum import Enum


class HoldReason(str, Enum):
    """The first seven are the faults of an input, by the names of `ki_robot.observation.observation.InputFault`."""

    NEVER_RECEIVED = 'never_received'  # nothing came on a stream
    STALE = 'stale'  # the newest message is older than its max_age_s
    INVALID = 'invalid'  # every message is refused
    FROZEN = 'frozen'  # a camera shows the same picture while the robot moves
    UNSYNCHRONIZED = 'unsynchronized'  # inputs lie further apart than sync_tolerance_s
    CLOCK_JUMP = 'clock_jump'  # nothing came since the clock jumped
    NO_INSTRUCTION = 'no_instruction'  # the policy needs words and has none
    INFERENCE_LATE = 'inference_late'  # the chunk ran out, or was past before it was there
    UNREACHABLE = 'unreachable'  # the server that runs the policy does not answer
    INVALID_ACTION = 'invalid_action'  # the inference failed, or returned what no robot may execute

    def __str__(self) -> str:
        return self.value
