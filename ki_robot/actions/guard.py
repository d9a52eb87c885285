"""What stands between a chunk and the motors: pure functions that accept, clamp or reject a chunk, with the reason.

Letters in names: H steps, N columns. Nothing here keeps state or reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ki_robot.actions.chunk import ActionChunk, Matrix, first_step_due
from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import Limits
from ki_robot.errors import RobotError

Vector = NDArray[np.float64]
NS = 1_000_000_000
_HUGE = 1e30
SLACK = 1e-6  # relative: what rounding may add to a value that lies on its limit


class Kind(IntEnum):
    """Why a command is changed or refused; the numbers of ki_msgs/SafetyEvent. Not all of them can come of a chunk."""

    POSITION_LIMIT = 0
    VELOCITY_LIMIT = 1
    ACCELERATION_LIMIT = 2
    WORKSPACE = 3
    NON_FINITE = 4
    START_JUMP = 5
    CHUNK_EXPIRED = 6
    CHUNK_TIMEOUT = 7
    STATE_STALE = 8
    ESTOP = 9
    FOREIGN_PUBLISHER = 10
    HOLD = 11
    STATE_IMPLAUSIBLE = 12
    TAKEOVER = 13
    OPERATOR_LOST = 14


@dataclass(frozen=True)
class GuardPolicy:
    """What to do about each kind of excess: `clamp` the chunk to the limit, or `reject` it whole.

    `jump_s` allows the first command as far from the measured position as the column's velocity limit covers in that
    time. Rejecting is the default there: a far first step means a wrong robot, a wrong order or a wrong unit, and none
    of them is fixed by going there slowly. `max_age_ns` bounds the age of the observation behind the chunk, and how
    far ahead a chunk may start; an observation may be dated ahead of now by `ahead_ns`, what two clocks may differ by.
    """

    position: str = 'clamp'
    velocity: str = 'clamp'
    acceleration: str = 'clamp'
    jump: str = 'reject'
    jump_s: float = 0.3
    max_age_ns: int = NS
    ahead_ns: int = 100_000_000

    def __post_init__(self) -> None:
        for name in ('position', 'velocity', 'acceleration', 'jump'):
            if getattr(self, name) not in ('clamp', 'reject'):
                raise RobotError(f'guard.{name} is {getattr(self, name)!r}; write clamp or reject.')
        if not self.jump_s > 0.0 or self.max_age_ns <= 0:
            raise RobotError(f'guard.jump_s is {self.jump_s} and max_age_ns {self.max_age_ns}; both are above 0.')


@dataclass(frozen=True)
class Clamp:
    """The worst excess of one column and kind that was brought within its limit."""

    kind: Kind
    column: str
    step: int
    value: float
    limit: float


@dataclass(frozen=True)
class Accept:
    """A chunk that may be executed, and what was clamped in it."""

    chunk: ActionChunk
    clamps: tuple[Clamp, ...] = ()


@dataclass(frozen=True)
class Reject:
    """A chunk that must not be executed: never in part. `column` is empty and `step` 0 where none is concerned."""

    reason: Kind
    column: str
    step: int
    value: float
    limit: float
    message: str


@dataclass(frozen=True, eq=False)
class _Bounds:
    """The limits as arrays (N,), unlimited as infinity; `speed` and `change` bound first and second derivative."""

    lower: Vector
    upper: Vector
    speed: Vector
    change: Vector
    is_position: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Excess:
    """Values of one kind (T, N), the limit each is held against, and by how much it is beyond (<= 0: within)."""

    kind: Kind
    rule: str
    value: Matrix
    limit: Matrix
    beyond: Matrix


def check(
    chunk: ActionChunk,
    limits: Sequence[Limits],
    now_ns: int,
    measured_N: Vector | None = None,
    policy: GuardPolicy | None = None,
) -> Accept | Reject:
    """Judges the part of `chunk` that is still to come.

    Args:
        chunk: What the policy wants.
        limits: Of every column, in the chunk's order (`ki_robot.contract.limits.action_limits`).
        now_ns: The time.
        measured_N: The measured value of every column, NaN where a column has none; None when nothing is known, which
            leaves the first step unchecked.
        policy: Clamp or reject, and how far a first step may lie.

    Returns:
        Accept with the chunk, steps already past removed from judgement but not from the chunk; or Reject.
    """
    policy = policy or GuardPolicy()
    if len(limits) != len(chunk.names):
        raise RobotError(f'{len(limits)} limits are given for {len(chunk.names)} columns of chunk {chunk.chunk_id}.')
    refused = check_finite(chunk) or check_times(chunk, now_ns, policy)
    if refused is not None:
        return refused
    refused = None if measured_N is None else check_start(chunk, limits, now_ns, measured_N, policy)
    if refused is not None:
        return refused
    return _within(chunk, first_step_due(chunk, now_ns), _bounds(chunk.names, limits), measured_N, policy)


def check_finite(chunk: ActionChunk) -> Reject | None:
    """Rejects NaN and infinity anywhere."""
    bad = ~np.isfinite(chunk.data_HN)
    if not bad.any():
        return None
    step, column = (int(index) for index in np.argwhere(bad)[0])
    return _reject(Kind.NON_FINITE, chunk, column, step, float(chunk.data_HN[step, column]), 0.0)


def check_times(chunk: ActionChunk, now_ns: int, policy: GuardPolicy) -> Reject | None:
    """Rejects a chunk that is past to its last step, starts far ahead, or rests on too old or a future observation."""
    name, max_s = f'Chunk {chunk.chunk_id}', policy.max_age_ns / NS
    if first_step_due(chunk, now_ns) >= chunk.horizon:
        late_s = (now_ns - chunk.end_ns) / NS
        return Reject(Kind.CHUNK_EXPIRED, '', 0, late_s, 0.0, f'{name} ended {late_s:.3f} s ago.')
    age_s = (now_ns - chunk.observation_ns) / NS
    if age_s > max_s:
        message = f'{name} rests on an observation {age_s:.3f} s old; at most {max_s} s.'
        return Reject(Kind.CHUNK_EXPIRED, '', 0, age_s, max_s, message)
    if -age_s > policy.ahead_ns / NS:
        message = f'{name} rests on an observation {-age_s:.3f} s in the future; synchronise the clocks.'
        return Reject(Kind.CHUNK_EXPIRED, '', 0, age_s, -policy.ahead_ns / NS, message)
    ahead_s = (chunk.start_ns - now_ns) / NS
    if ahead_s > max_s:
        return Reject(
            Kind.CHUNK_EXPIRED, '', 0, ahead_s, max_s, f'{name} starts in {ahead_s:.3f} s; at most in {max_s} s.'
        )
    return None


def check_jump(chunk: ActionChunk, step: int, speed_N: Vector, measured_N: Vector, jump_s: float) -> Reject | None:
    """Rejects a position command at `step` further from the measured one than `speed_N` covers in `jump_s`."""
    allowed = speed_N * jump_s
    jump = np.abs(chunk.data_HN[step] - measured_N)
    # NaN (nothing measured) compares false: a column without a measurement is not judged.
    over = np.array([interface_of(name) == 'position' for name in chunk.names]) & (jump > allowed * (1.0 + SLACK))
    if not over.any():
        return None
    with np.errstate(over='ignore'):  # a chunk may hold numbers beyond all measure
        column = int(np.argmax(np.where(over, jump / allowed, 0.0)))
    return _reject(Kind.START_JUMP, chunk, column, step, float(jump[column]), float(allowed[column]))


def check_start(
    chunk: ActionChunk, limits: Sequence[Limits], now_ns: int, measured_N: Vector, policy: GuardPolicy
) -> Reject | None:
    """Rejects a chunk whose step due now lies too far from where the robot is; None also where jumps are clamped."""
    step = first_step_due(chunk, now_ns)
    if policy.jump != 'reject' or step >= chunk.horizon:
        return None
    return check_jump(chunk, step, _bounds(chunk.names, limits).speed, measured_N, policy.jump_s)


def _within(
    chunk: ActionChunk, due: int, bounds: _Bounds, measured_N: Vector | None, policy: GuardPolicy
) -> Accept | Reject:
    """Position, velocity and acceleration of the steps from `due` on."""
    step_s = chunk.step_ns / NS
    rows = chunk.data_HN[due:]
    from_measured = measured_N is not None and policy.jump == 'clamp'
    if from_measured:
        assert measured_N is not None
        rows = np.concatenate([np.where(np.isnan(measured_N), rows[0], measured_N)[None], rows])
    clamps: list[Clamp] = []
    for excess in _excesses(rows, bounds, step_s):
        for column in np.flatnonzero((excess.beyond > 0.0).any(axis=0)):
            worst = int(np.argmax(excess.beyond[:, column]))
            # A derivative belongs to the step that it leads to.
            step = max(worst + due + (len(rows) - len(excess.value)) - int(from_measured), 0)
            value, limit = float(excess.value[worst, column]), float(excess.limit[worst, column])
            if getattr(policy, excess.rule) == 'reject':
                return _reject(excess.kind, chunk, int(column), step, value, limit)
            clamps.append(Clamp(excess.kind, chunk.names[column], step, value, limit))
    if not clamps:
        return Accept(chunk)
    data = chunk.data_HN.copy()
    data[due:] = _follow(rows, bounds, step_s, from_measured)[int(from_measured) :]
    return Accept(replace(chunk, data_HN=data), tuple(clamps))


def _excesses(rows: Matrix, bounds: _Bounds, step_s: float) -> list[_Excess]:
    """How far each kind of limit is exceeded."""
    room = SLACK * (1.0 + np.abs(rows).max(initial=0.0))  # rounding, as large as it may get after two differences
    outside = np.maximum(rows - bounds.upper, bounds.lower - rows) - room
    nearest = np.where(rows > bounds.upper, bounds.upper, bounds.lower)
    with np.errstate(over='ignore', invalid='ignore'):  # a chunk may hold numbers beyond all measure
        first = np.diff(rows, axis=0) / step_s
        second = np.diff(first, axis=0) / step_s
        fast = np.abs(first) - bounds.speed * (1.0 + SLACK) - room
        harsh = np.abs(second) - bounds.change * (1.0 + SLACK) - room / step_s
    speed, change = np.broadcast_to(bounds.speed, first.shape), np.broadcast_to(bounds.change, second.shape)
    position = bounds.is_position
    return [
        _Excess(Kind.POSITION_LIMIT, 'position', rows, nearest, outside),
        _Excess(Kind.VELOCITY_LIMIT, 'velocity', first, speed, np.where(position, fast, -1.0)),
        # What bounds the change of a velocity column is its acceleration.
        _Excess(Kind.ACCELERATION_LIMIT, 'acceleration', first, speed, np.where(position, -1.0, fast)),
        _Excess(Kind.ACCELERATION_LIMIT, 'acceleration', second, change, harsh),
    ]


def _follow(rows: Matrix, bounds: _Bounds, step_s: float, at_rest: bool) -> Matrix:
    """`rows` followed from the first one within all limits, (H, N): late where they are too fast, never past a bound.

    A column closes in no faster than it can still brake, sqrt(2 a e) at a distance e beyond the target's own speed.
    Position bounds win: at a bound the deceleration may be harder than allowed. `at_rest` says that the first
    row is where the robot stands, even outside its bounds; from there it comes back at a bounded speed.
    """
    target = np.clip(rows, bounds.lower, bounds.upper)
    position = rows[0] if at_rest else target[0]
    speed = np.zeros_like(position)
    if len(rows) > 1 and not at_rest:
        speed = np.clip((target[1] - target[0]) / step_s, -bounds.speed, bounds.speed)
    # A huge number for infinity: infinity times a gap of zero is not a number. Plain minimum and maximum, because
    # np.clip on a handful of columns costs ten times as much and this runs beside a control loop.
    most = np.minimum(bounds.change, _HUGE)
    change, lead = most * step_s, np.abs(np.diff(target, axis=0)) / step_s
    followed = [position]
    for index in range(1, len(rows)):
        gap = target[index] - position
        reach = np.minimum(bounds.speed, lead[index - 1] + np.sqrt(2.0 * most * np.abs(gap)))
        wanted = np.maximum(np.minimum(gap / step_s, reach), -reach)
        speed = np.maximum(np.minimum(wanted, speed + change), speed - change)
        low, high = np.minimum(bounds.lower, position), np.maximum(bounds.upper, position)
        moved = np.maximum(np.minimum(position + speed * step_s, high), low)
        speed = (moved - position) / step_s
        position = moved
        followed.append(position)
    return np.array(followed)


def _bounds(names: Sequence[str], limits: Sequence[Limits]) -> _Bounds:
    def column(name: str, missing: float) -> Vector:
        return np.array([missing if getattr(each, name) is None else getattr(each, name) for each in limits])

    is_position = np.array([interface_of(name) == 'position' for name in names])
    velocity, acceleration = column('velocity', np.inf), column('acceleration', np.inf)
    own = np.where(is_position, np.inf, velocity)  # the velocity limit of a velocity column bounds its value
    return _Bounds(
        lower=np.maximum(column('lower', -np.inf), -own),
        upper=np.minimum(column('upper', np.inf), own),
        speed=np.where(is_position, velocity, acceleration),
        change=np.where(is_position, acceleration, np.inf),
        is_position=is_position,
    )


def _reject(kind: Kind, chunk: ActionChunk, column: int, step: int, value: float, limit: float) -> Reject:
    name = chunk.names[column]
    what = kind.name.lower().replace('_', ' ')
    message = f'Chunk {chunk.chunk_id}, {name} at step {step}: {value:.6g} breaks the {what}'
    message += '.' if kind is Kind.NON_FINITE else f' of {limit:.6g}.'
    return Reject(kind, name, step, value, limit, message)
