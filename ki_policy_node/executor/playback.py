"""From a chunk to what each kind of controller plays: setpoints tick by tick, or windows of a motion planned ahead.

Both come from one generator (`ki_robot.actions.motion`), so every limit holds whatever the chunk, the ticks and the
clock do. H steps, N columns of the contract, n of one player, T times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ki_robot.actions.chunk import ActionChunk, Matrix
from ki_robot.actions.interpolation import interpolate, slopes
from ki_robot.actions.motion import Mask, Motion, Profile, Vector, hermite
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of
from ki_robot.contract.parts import MAX_WINDOW_S, Limits

IntVector = NDArray[np.int64]
PLAN_NS = 10_000_000  # grid of a planned motion
SETTLE_NS = 200_000_000  # a trajectory controller's way from where it stands to where a motion begins
LOST_NS = 100_000_000  # the most time that is followed later; what is lost beyond it is skipped
LEAD_NS = 40_000_000  # a new window leaves the old one this far ahead: it arrives before a controller gets there
PAST_NS = 20_000_000  # how much of what was played a window repeats, for a controller that samples a little earlier
CREDIT_PERIODS = 3  # ticks that come early or late by less than a period or two move on by a whole one
CATCH_UP_NS = 1_000_000_000  # a fresh motion is not told to be late before this
CATCH_UP = 0.05  # of a period: how much of the time lost to late ticks is made up for in each


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of one player: their places in the contract, what they are limited to, and how they end.

    `linear_n`: followed straight from step to step, the others by a cubic. `zeroed_n`: a brake takes the value to 0
    (velocities, efforts); the others come to rest where they are.
    """

    names: tuple[str, ...]
    index_n: IntVector
    limits: tuple[Limits, ...]
    linear_n: Mask
    zeroed_n: Mask


class Path:
    """A chunk as the moving target of some columns.

    Args:
        chunk: Whose columns are those of the contract.
        columns: Which of them.
        motion: That will follow; what its jerk limits delay is asked for that much earlier.
    """

    def __init__(self, chunk: ActionChunk, columns: Columns, motion: Motion) -> None:
        early_ns_n = motion.delay_ns_N
        # Steps that are past are nobody's business any more, and may hold anything.
        data_Hn = np.clip(chunk.data_HN[:, columns.index_n], motion.bounds.lower_N, motion.bounds.upper_N)
        self._chunk = replace(chunk, names=columns.names, data_HN=data_Hn)
        self._slope_Hn = slopes(data_Hn, chunk.step_ns / 1e9)
        self._linear_n, self._early_ns_n = columns.linear_n, early_ns_n
        self._leads = [int(lead) for lead in np.unique(early_ns_n)]
        self.end_ns = chunk.end_ns

    def at(self, times_ns: IntVector) -> tuple[Matrix, Matrix]:
        """Values and first derivatives at some times, (T, n) each."""
        values_Tn, rates_Tn = self._sampled(times_ns + self._leads[0])
        for lead in self._leads[1:]:
            later_Tn, paces_Tn = self._sampled(times_ns + lead)
            values_Tn = np.where(self._early_ns_n == lead, later_Tn, values_Tn)
            rates_Tn = np.where(self._early_ns_n == lead, paces_Tn, rates_Tn)
        return values_Tn, rates_Tn

    def _sampled(self, times_ns: IntVector) -> tuple[Matrix, Matrix]:
        values_Tn, rates_Tn = interpolate(self._chunk, times_ns, 'cubic', self._slope_Hn)
        if self._linear_n.any():
            straight_Tn, paces_Tn = interpolate(self._chunk, times_ns, 'linear')
            values_Tn = np.where(self._linear_n, straight_Tn, values_Tn)
            rates_Tn = np.where(self._linear_n, paces_Tn, rates_Tn)
        return values_Tn, rates_Tn


class Sampled:
    """Setpoints for controllers that take one value a tick.

    Each tick moves the motion on by at most one period. A late tick loses time: the chunk is followed that much later,
    which is made up for little by little.
    """

    def __init__(self, columns: Columns, period_ns: int) -> None:
        self.columns = columns
        self.motion = Motion(columns.names, columns.limits, period_ns)
        self._period_ns = period_ns
        self.behind_n = np.zeros(len(columns.names))  # of its target
        self.lost_ns = 0  # behind the chunk's clock
        self.begin(np.zeros(len(columns.names)))

    def begin(self, value_n: Vector) -> None:
        """Starts at rest."""
        self._from = self._to = self.motion.rest(value_n)
        self._phase_ns = self._period_ns  # between `_from` and `_to`
        self._credit_ns, self._tick_ns = self._period_ns, -1  # a period to spare, for a tick that comes early
        self.lost_ns = 0

    def advance(self, now_ns: int, path: Path | None, speed_n: Vector | None = None) -> None:
        """One tick: along `path`, or braking where there is none."""
        self._pass(now_ns)
        step_ns = min(self._credit_ns, self._period_ns)
        self._credit_ns -= step_ns
        self._phase_ns += step_ns
        if self._phase_ns <= self._period_ns:
            return
        self._phase_ns -= self._period_ns
        self._from = self._to
        if path is None:
            self._to = self.motion.brake(self._from, self.columns.zeroed_n)
            return
        made_up_ns = min(self.lost_ns, round(CATCH_UP * self._period_ns))
        self.lost_ns -= made_up_ns
        end_ns = now_ns + 2 * self._period_ns - self._phase_ns - self.lost_ns
        values_1n, rates_1n = path.at(np.array([end_ns]))
        self._to = self.motion.follow(self._from, values_1n[0], rates_1n[0], speed_n)
        self.behind_n = np.abs(values_1n[0] - self._to.reach_N)

    @property
    def value_n(self) -> Vector:
        """The setpoint in force until the next tick."""
        if self._phase_ns == self._period_ns:
            return self._to.value_N
        part = self._phase_ns / self._period_ns
        a, b = self._from, self._to
        return hermite(a.value_N, a.rate_N, b.value_N, b.rate_N, self._period_ns / 1e9, part)[0]

    def resting(self, now_ns: int) -> bool:
        """Whether a brake has ended."""
        zeroed_n = self.columns.zeroed_n
        return self.motion.resting(self._to, zeroed_n) and self.motion.resting(self._from, zeroed_n)

    def shift(self, by_ns: int) -> None:
        """Goes on with a clock that has jumped."""
        self._tick_ns += by_ns if self._tick_ns >= 0 else 0

    def _pass(self, now_ns: int) -> None:
        """Takes up the time since the last tick; more than a few periods of it are lost."""
        elapsed_ns = max(0, now_ns - self._tick_ns) if self._tick_ns >= 0 else self._period_ns
        self._tick_ns = now_ns
        credit_ns = self._credit_ns + elapsed_ns
        self._credit_ns = min(credit_ns, CREDIT_PERIODS * self._period_ns)
        self.lost_ns = min(self.lost_ns + credit_ns - self._credit_ns, LOST_NS)


class Windowed:
    """Windows for a joint_trajectory_controller: each a piece of the motion planned ahead, and its brake to rest.

    What was sent is played, so the plan is the only truth: a new window begins in the past of the old one, repeats it
    up to `LEAD_NS` from now, and only then goes its own way. A controller has no splice to bridge, whenever it takes
    the new window over before that. A window that still holds is left alone.

    Args:
        columns: All that go to trajectory controllers.
        ahead_ns: How far ahead of a new window the path is followed before the brake begins.
    """

    def __init__(self, columns: Columns, ahead_ns: int) -> None:
        self.columns, self._ahead_ns = columns, ahead_ns
        self.motion = Motion(columns.names, columns.limits, PLAN_NS)
        self.behind_n = np.zeros(len(columns.names))  # of its target
        self.begin(np.zeros(len(columns.names)), 0)

    def begin(self, value_n: Vector, at_ns: int) -> None:
        """Starts at rest at a time; until then a controller leads there from where it stands."""
        self._times = [at_ns]
        self._states = [self.motion.rest(value_n)]
        self._path: Path | None = None
        self._leads = False  # whether a window was sent since
        self._followed_ns = at_ns
        self._profile = self._made()

    def update(self, now_ns: int, path: Path | None, speed_n: Vector | None = None) -> Profile | None:
        """One tick: the window to send, None where the one that plays still holds."""
        if self._leads and now_ns < self._times[0] - LEAD_NS:
            return None  # a controller that leads to a start is not begun again: it gets there at rest
        spent = path is not None and self._followed_ns - now_ns <= self._ahead_ns * 2 // 3 and now_ns < path.end_ns
        if path is self._path and not spent:
            return None
        self._path, self._leads = path, True
        self._plan(now_ns, path, speed_n)
        self._profile = self._made()
        return self._profile

    def at(self, now_ns: int) -> Vector:
        """What is commanded at a time."""
        return self._profile.at(now_ns)[0]

    def resting(self, now_ns: int) -> bool:
        """Whether what was sent has been played to its end."""
        return now_ns >= self._times[-1] and self._path is None

    def shift(self, by_ns: int) -> None:
        """Goes on with a clock that has jumped."""
        self._times = [time + by_ns for time in self._times]
        self._followed_ns += by_ns
        self._profile = replace(self._profile, times_ns=self._profile.times_ns + by_ns)

    def _plan(self, now_ns: int, path: Path | None, speed_n: Vector | None) -> None:
        self._cut(now_ns)
        times, states, motion = self._times, self._states, self.motion
        if path is not None:
            until_ns = min(max(now_ns, times[0]) + self._ahead_ns, path.end_ns)
            count = max(0, -(-(until_ns - times[-1]) // PLAN_NS))
            ahead_T = times[-1] + PLAN_NS * np.arange(1, count + 1, dtype=np.int64)
            values_Tn, rates_Tn = path.at(ahead_T)
            for time, value_n, rate_n in zip(ahead_T.tolist(), values_Tn, rates_Tn, strict=True):
                times.append(time)
                states.append(motion.follow(states[-1], value_n, rate_n, speed_n))
            if count:
                self.behind_n = np.abs(values_Tn[0] - states[-count].reach_N)
        self._followed_ns = times[-1]
        while not motion.resting(states[-1]):
            times.append(times[-1] + PLAN_NS)
            states.append(motion.brake(states[-1]))

    def _cut(self, now_ns: int) -> None:
        """Drops what is over, and what lies beyond the point up to which the plan is as good as played."""
        times, states = self._times, self._states
        if times[-1] <= now_ns:  # at rest since then
            times[:], states[:] = [now_ns], states[-1:]
        first = max(int(np.searchsorted(times, now_ns - PAST_NS, side='right')) - 1, 0)
        last = int(np.searchsorted(times, now_ns + LEAD_NS))
        del times[last + 1 :], states[last + 1 :]
        del times[:first], states[:first]
        if times[-1] < now_ns + LEAD_NS:
            times.append(now_ns + LEAD_NS)
            states.append(states[-1])

    def _made(self) -> Profile:
        values_Kn = np.array([state.value_N for state in self._states])
        rates_Kn = np.array([state.rate_N for state in self._states])
        return Profile(np.array(self._times, np.int64), values_Kn, rates_Kn)


@dataclass(frozen=True, eq=False)
class Setpoints:
    """What to send at one tick.

    setpoint_N: in force until the next tick, for every column. window: what trajectory controllers shall play from
    now on, at absolute times, for the columns of `windowed_columns`; None where they shall go on. still: at rest.
    """

    setpoint_N: Vector
    window: Profile | None = None
    still: bool = False


class MotionPlayback:
    """All columns of a robot, each by its kind of player, as one motion.

    Args:
        contract: Columns and outputs.
        limits: Of every action column, in order.
        period_ns: Between two ticks.
    """

    def __init__(self, contract: Contract, limits: Sequence[Limits], period_ns: int) -> None:
        self._period_ns = period_ns
        self.setpoint_N: Vector | None = None  # what was commanded last
        self._count = len(limits)
        windowed = set(windowed_columns(contract))
        names = contract.action_names
        of_window_N = np.array([name in windowed for name in names], bool)
        reach_s = min((o.options.window_s or MAX_WINDOW_S for o in contract.outputs), default=MAX_WINDOW_S)
        self._windowed = self._sampled = None
        if of_window_N.any():
            self._windowed = Windowed(_columns(contract, limits, of_window_N), round(reach_s * 1e9) // 2)
        if not of_window_N.all():
            self._sampled = Sampled(_columns(contract, limits, ~of_window_N), period_ns)
        self._players = tuple(player for player in (self._windowed, self._sampled) if player is not None)
        self._paths: dict[Sampled | Windowed, Path] = {}
        self._from_ns = 0  # when trajectory controllers leave the pose that a motion begins at

    def begin(self, start_N: Vector, now_ns: int, before_N: Vector | None) -> None:
        """A fresh motion, at rest; `before_N` is what the controllers hold, where that is known."""
        self._from_ns = now_ns
        if self._windowed is not None:
            index_n = self._windowed.columns.index_n
            before_n = None if before_N is None else before_N[index_n]
            self._from_ns += _settling_ns(start_N[index_n], before_n, self._windowed.motion)
            self._windowed.begin(start_N[index_n], self._from_ns)
        if self._sampled is not None:
            self._sampled.begin(start_N[self._sampled.columns.index_n])
        self.setpoint_N = start_N

    def aim(self, chunk: ActionChunk) -> None:
        """What to follow from now on."""
        self._paths = {player: Path(chunk, player.columns, player.motion) for player in self._players}

    def advance(self, now_ns: int, follows: bool, share: float = 1.0) -> Setpoints:
        """One tick: along the chunk, at up to a share of the speed limits, or braking to rest."""
        assert self.setpoint_N is not None
        setpoint_N, window = self.setpoint_N.copy(), None
        if self._sampled is not None:
            path = self._paths[self._sampled] if follows else None
            self._sampled.advance(now_ns, path, share * self._sampled.motion.bounds.speed_N)
            setpoint_N[self._sampled.columns.index_n] = self._sampled.value_n
        if self._windowed is not None:
            path = self._paths[self._windowed] if follows else None
            window = self._windowed.update(now_ns, path, share * self._windowed.motion.bounds.speed_N)
            setpoint_N[self._windowed.columns.index_n] = self._windowed.at(now_ns + self._period_ns)
        self.setpoint_N = setpoint_N
        still = not follows and all(player.resting(now_ns) for player in self._players)
        return Setpoints(setpoint_N, window, still)

    def commanded(self, now_ns: int) -> Vector:
        """Where every column is commanded to be now, (N,)."""
        assert self.setpoint_N is not None
        if self._windowed is None:
            return self.setpoint_N
        commanded_N: Vector = self.setpoint_N.copy()
        commanded_N[self._windowed.columns.index_n] = self._windowed.at(now_ns)
        return commanded_N

    def behind(self) -> tuple[Vector, Vector]:
        """How far every column is behind the chunk, and how long full speed would take to catch up, (N,) each."""
        behind_N, time_N = np.zeros(self._count), np.zeros(self._count)
        for player in self._players:
            behind_N[player.columns.index_n] = player.behind_n
            time_N[player.columns.index_n] = player.behind_n / player.motion.bounds.speed_N
        return behind_N, time_N

    def settled(self, now_ns: int) -> bool:
        """Whether a fresh motion has had the time to catch up with its chunk."""
        return now_ns - self._from_ns > CATCH_UP_NS

    def gap(self) -> None:
        """Nothing was sent for so long that whoever is sent one value a tick stands still at the last."""
        if self._sampled is not None:
            self._sampled.begin(self._sampled.value_n)

    def shift(self, by_ns: int) -> None:
        """ROS time has jumped."""
        self._from_ns += by_ns
        for player in self._players:
            player.shift(by_ns)


def windowed_columns(contract: Contract) -> tuple[str, ...]:
    """The columns that go to trajectory controllers, in the contract's order."""
    sent = {name for output in contract.outputs if output.kind == 'joint_trajectory' for name in output.columns}
    return tuple(name for name in contract.action_names if name in sent)


def _columns(contract: Contract, limits: Sequence[Limits], chosen_N: Mask) -> Columns:
    linear = {c for o in contract.outputs if o.options.interpolation == 'linear' for c in o.columns}
    kept = {c for o in contract.outputs if o.on_hold == 'keep_force' for c in o.columns}
    index_n = np.flatnonzero(chosen_N)
    names = tuple(contract.action_names[i] for i in index_n)
    zeroed_n = np.array([interface_of(name) != 'position' and name not in kept for name in names], bool)
    linear_n = np.array([name in linear for name in names], bool)
    return Columns(names, index_n, tuple(limits[int(i)] for i in index_n), linear_n, zeroed_n)


def _settling_ns(start_n: Vector, before_n: Vector | None, motion: Motion) -> int:
    """How long a controller takes from its last command to a start, by a cubic from rest to rest within limits.

    Such a cubic peaks at 1.5 d / T and 6 d / T^2 for a way d in a time T. No time where it stands there already.
    """
    way_n = np.zeros(len(start_n)) if before_n is None else np.abs(start_n - before_n)
    if before_n is not None and not way_n.any():
        return 0
    slow_s = float((1.6 * way_n / motion.bounds.speed_N).max())
    soft_s = float(np.sqrt(6.6 * way_n / motion.bounds.change_N).max())
    return max(SETTLE_NS, round(max(slow_s, soft_s) * 1e9))
