"""One run of a policy: what was asked, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ki_msgs.action import RunPolicy

from ki_policy_node.common.diagnostics import Durations
from ki_robot.messages.arrays import set_time

Result = RunPolicy.Result


@dataclass
class PolicyRun:
    """A run in progress. `goal` is the action goal that asked for it, None when a service or a parameter did."""

    dry_run: bool
    max_duration_ns: int = 0
    goal: Any = None
    begin_ns: int = field(default_factory=time.monotonic_ns)
    published: int = 0
    dropped: int = 0
    inference: Durations = field(default_factory=Durations)

    @property
    def elapsed_ns(self) -> int:
        """How long it has been going on."""
        return time.monotonic_ns() - self.begin_ns

    @property
    def out_of_time(self) -> bool:
        """Whether it was limited, and the limit is reached."""
        return bool(self.max_duration_ns) and self.elapsed_ns >= self.max_duration_ns

    def result(self, termination: int, message: str) -> Any:
        """The result of the action."""
        made = Result(termination=termination, message=message)
        made.success = termination in (Result.TERMINATION_COMPLETED, Result.TERMINATION_TIMEOUT)
        made.chunks_published, made.chunks_dropped = self.published, self.dropped
        set_time(made.run_time, self.elapsed_ns)
        set_time(made.inference_time_p50, self.inference.percentile_ns(50))
        set_time(made.inference_time_p99, self.inference.percentile_ns(99))
        return made
