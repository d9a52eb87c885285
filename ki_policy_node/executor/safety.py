"""The words of safety: states of the executor, interventions, and the rules they follow from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from ki_policy_node.executor.settings import ChunkExecutorSettings
from ki_robot.actions.guard import GuardPolicy, Kind

__all__ = ['Driver', 'Event', 'Kind', 'PolicyHealth', 'Rules', 'Severity', 'State', 'lines_of', 'rules_of']


class State(str, Enum):
    """What the executor does."""

    DISABLED = 'disabled'
    IDLE = 'idle'
    RUN = 'run'
    HOLD = 'hold'
    FAULT = 'fault'


class Driver(Enum):
    """Who drives; the values of ki_msgs/ControlSource."""

    HOLD = 0  # nobody
    POLICY = 1
    HUMAN = 2


class Severity(Enum):
    """How hard; the values of ki_msgs/SafetyEvent."""

    INFO = 0
    CLAMPED = 1
    REJECTED = 2
    FAULT = 3


@dataclass(frozen=True)
class Event:
    """One intervention."""

    kind: Kind
    severity: Severity
    message: str
    chunk_id: int = 0
    step: int = 0
    column: str = ''
    value: float = 0.0
    limit: float = 0.0


def lines_of(events: Sequence[Event]) -> list[tuple[Severity, str]]:
    """The events of one tick as lines of a log: what was clamped in one, since each line takes about a millisecond."""
    clamped = [event for event in events if event.severity is Severity.CLAMPED]
    lines: list[tuple[Severity, str]] = []
    if clamped:
        first, more = clamped[0], len(clamped) - 1
        rest = f' {more} more of chunk {first.chunk_id} on ~/safety_event.' if more else ''
        lines.append((Severity.CLAMPED, f'{first.message}{rest}'))
    return lines + [(event.severity, event.message) for event in events if event.severity is not Severity.CLAMPED]


@dataclass(frozen=True)
class PolicyHealth:
    """What the policy node last said of itself."""

    running: bool  # its chunks are to be followed
    ended: bool  # its run is over, or was never to move anything: stopping for that is no intervention
    message: str  # why it is not running
    steady_ns: int  # when it was heard

    def silent_ns(self, steady_ns: int) -> int:
        """How long nothing has been heard [ns]."""
        return steady_ns - self.steady_ns


@dataclass(frozen=True)
class Rules:
    """When the executor stops following. Times in ns, 0 switches a watchdog off.

    state_timeout_ns: age of the measured state. status_timeout_ns: silence of the policy node, which speaks many
    times a second. chunk_timeout_ns: time since the last chunk, beside the end of the chunk itself.
    max_tracking_error: distance [rad or m] of what is commanded from what is measured, when it lasts longer than
    `tracking_time_ns`; a contract's tolerance goes before it. late_ns: a tick later than this is told. teleop_ns:
    silence of a human's commands at which the robot holds. operator_ns: silence of the operator that is required;
    0 requires none. guard: what a chunk must keep.
    """

    state_timeout_ns: int = 200_000_000
    status_timeout_ns: int = 250_000_000
    chunk_timeout_ns: int = 0
    max_tracking_error: float = 0.5
    tracking_time_ns: int = 500_000_000
    late_ns: int = 50_000_000
    teleop_ns: int = 250_000_000
    operator_ns: int = 0
    guard: GuardPolicy = field(default_factory=GuardPolicy)


def rules_of(settings: ChunkExecutorSettings) -> Rules:
    """The rules as the parameters of the executor say: seconds there, nanoseconds here."""
    excess, age_ns = settings.on_limit, round(settings.max_observation_age * 1e9)
    return Rules(
        state_timeout_ns=round(settings.state_timeout * 1e9),
        status_timeout_ns=round(settings.status_timeout * 1e9),
        chunk_timeout_ns=round(settings.chunk_timeout * 1e9),
        max_tracking_error=settings.max_tracking_error,
        late_ns=round(settings.late_limit * 1e9),
        teleop_ns=round(settings.teleop_timeout * 1e9),
        operator_ns=round(settings.operator_timeout * 1e9) if settings.require_operator else 0,
        guard=GuardPolicy(excess, excess, excess, jump_s=settings.start_jump, max_age_ns=age_ns),
    )
