"""An executor without ROS between a mad world and the controllers that play what it sends; every limit is measured.

The world sends chunks good and bad, loses messages, jumps clocks, is late, presses e-stops, restarts controllers with
the robot moved meanwhile. joint_trajectory_controller and forward controllers are those of `ki_sim.world.controllers`.
Loaded by path: by the tests, and by benchmarks/executor.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ki_policy_node.executor.chunk_follower import Follower
from ki_policy_node.executor.playback import Setpoints, windowed_columns
from ki_policy_node.executor.safety import Driver, PolicyHealth, Rules, State
from ki_robot.actions.chunk import ActionChunk
from ki_robot.actions.motion import Bounds, bounds_of
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.parts import Limits
from ki_sim.world.controllers import JointTrajectoryController, Point, TrajectoryCommand
from ki_sim.world.robot import JointLimit

MS = 1_000_000
TICK_NS = 10 * MS
ANYWHERE = JointLimit(-1e9, 1e9, 1e9, 1e9)
KINDS = ('position', 'velocity', 'acceleration', 'jerk')
ROBOTS = ('arm_single', 'bimanual_mobile', 'bimanual_static', 'g1_upper_body')


@dataclass
class Worst:
    """The worst share of each limit that was reached, and by which column; 1 is the limit."""

    ratios: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    columns: dict[str, str] = field(default_factory=dict)

    def take(self, kind: str, names: tuple[str, ...], values_n: np.ndarray, limits_n: np.ndarray) -> None:
        """Keeps the worst of some values against their limits."""
        if not len(values_n):
            return
        share_n = np.where(np.isfinite(limits_n), np.abs(values_n) / limits_n, 0.0)
        assert np.isfinite(share_n).all(), f'{kind}: not a number was commanded'
        worst = int(np.argmax(share_n))
        if share_n[worst] > self.ratios[kind]:
            self.ratios[kind], self.columns[kind] = float(share_n[worst]), names[worst]

    def join(self, other: Worst) -> None:
        """The worse of both."""
        for kind, ratio in other.ratios.items():
            if ratio > self.ratios[kind]:
                self.ratios[kind], self.columns[kind] = ratio, other.columns[kind]


class Played:
    """What some columns are commanded, one value a cycle, held against their limits by its differences.

    The mean of a derivative over a cycle is within the limit of the derivative, so a greater difference is a breach,
    a jump at a splice among them.
    """

    def __init__(self, names: tuple[str, ...], bounds: Bounds, period_ns: int, worst: Worst) -> None:
        self.names, self.bounds, self.period_s, self.worst = names, bounds, period_ns / 1e9, worst
        self.rows: list[np.ndarray] = []
        self.outside_n = np.zeros(len(names))

    def begin(self, value_n: np.ndarray) -> None:
        """From here on, at rest: nothing was commanded before, or the controller begins anew."""
        self.judge()
        self.rows = [np.array(value_n)] * 4
        bounds = self.bounds
        self.outside_n = np.maximum(np.maximum(value_n - bounds.upper_N, bounds.lower_N - value_n), 0.0)

    def take(self, value_n: np.ndarray) -> None:
        """One cycle."""
        self.rows.append(np.array(value_n))

    def judge(self) -> None:
        """Holds what was played since `begin` against the limits."""
        if len(self.rows) < 5:
            return
        names, bounds, dt, worst = self.names, self.bounds, self.period_s, self.worst
        rows = np.array(self.rows)
        middle_n, half_n = 0.5 * (bounds.upper_N + bounds.lower_N), 0.5 * (bounds.upper_N - bounds.lower_N)
        worst.take('position', names, np.abs(rows - middle_n).max(axis=0), half_n + self.outside_n)
        values = [np.abs(np.diff(rows, order, axis=0)).max(axis=0) / dt**order for order in (1, 2, 3)]
        limits = bounds.speed_N, bounds.change_N, bounds.jerk_N
        for is_position, kinds in ((True, KINDS[1:]), (False, KINDS[2:])):
            mask_n = bounds.is_position_N == is_position
            chosen = tuple(name for name, take in zip(names, mask_n, strict=True) if take)
            for kind, value_n, limit_n in zip(kinds, values, limits, strict=False):
                worst.take(kind, chosen, value_n[mask_n], limit_n[mask_n])


def exact(names: tuple[str, ...], bounds: Bounds, times_ns: np.ndarray, q_Kn: np.ndarray, v_Kn: np.ndarray) -> Worst:
    """What the cubics of a window ask for anywhere between its own knots."""
    worst = Worst()
    if len(times_ns) < 2:
        return worst
    h_K1 = (np.diff(times_ns) / 1e9)[:, None]
    gap, left, right = 6.0 * np.diff(q_Kn, axis=0) / h_K1, v_Kn[:-1], v_Kn[1:]
    first, last = (gap - 4 * left - 2 * right) / h_K1, (2 * left + 4 * right - gap) / h_K1
    jerk = (last - first) / h_K1
    with np.errstate(divide='ignore', invalid='ignore'):
        turn = np.where(first * last < 0, first / (first - last), 0.0)  # where the acceleration is zero
    peak = left + 0.5 * first * turn * h_K1
    worst.take('velocity', names, np.maximum(np.abs(v_Kn).max(axis=0), np.abs(peak).max(axis=0)), bounds.speed_N)
    worst.take('acceleration', names, np.maximum(np.abs(first), np.abs(last)).max(axis=0), bounds.change_N)
    worst.take('jerk', names, np.abs(jerk).max(axis=0), bounds.jerk_N)
    return worst


@dataclass(frozen=True)
class Setting:
    """One world: a robot, how its controllers run, and how mad things are."""

    contract: Contract
    seed: int
    cycle_ns: int = 10 * MS
    from_desired: bool = True
    delay_ns: int = 5 * MS  # of a window on its way
    lag_ns: int = 20 * MS  # of the robot behind its command
    madness: float = 1.0


class Bench:
    """One executor in one world; `step` is one tick."""

    def __init__(self, setting: Setting, rules: Rules | None = None) -> None:
        self.setting, self.rng = setting, np.random.default_rng(setting.seed)
        contract = self.contract = setting.contract
        self.names = contract.action_names
        self.limits = tuple(column.limits for column in contract.actions)
        self.follower = Follower(contract, self.limits, rules or Rules(), TICK_NS)
        self.bounds = bounds_of(self.names, self.limits, TICK_NS / 1e9)
        self.worst, self.now, self.steady, self.ticks = Worst(), 10**15, 10**12, 0
        windowed = windowed_columns(contract)
        self.index_w = np.array([self.names.index(name) for name in windowed], int)
        self.index_s = np.array([i for i, name in enumerate(self.names) if name not in windowed], int)
        self.window_bounds = bounds_of(windowed, [self.limits[i] for i in self.index_w], setting.cycle_ns / 1e9)
        # A limit that is not given is another for the generator's period than for the controller's.
        change = [self.limits[i].acceleration for i in self.index_w]
        endless = np.array([value is None for value in change], bool)
        loose = np.where(endless, np.inf, self.window_bounds.change_N)
        self.window_bounds = replace(self.window_bounds, change_N=loose)
        low, high = self.bounds.lower_N, self.bounds.upper_N
        is_position = self.bounds.is_position_N
        self.pose = np.where(is_position, low + self.rng.uniform(0.2, 0.8, len(low)) * (high - low), 0.0)
        self.jtc = JointTrajectoryController(
            'arms', dict.fromkeys(windowed, ANYWHERE), 0, setting.cycle_ns, setting.from_desired
        )
        self.arms = Played(windowed, self.window_bounds, setting.cycle_ns, self.worst)
        sampled = tuple(self.names[i] for i in self.index_s)
        sampled_bounds = bounds_of(sampled, [self.limits[i] for i in self.index_s], TICK_NS / 1e9)
        self.hands = Played(sampled, sampled_bounds, TICK_NS, self.worst)
        self.commanded = self.pose.copy()
        self.jtc.activate(self.now, self.pose[self.index_w])
        self.arms.begin(self.pose[self.index_w])
        self.hands.begin(self.pose[self.index_s])
        self.cycle = self.now
        self.way: list[tuple[int, TrajectoryCommand]] = []
        self.state_seen, self.quiet_since = self.follower.state, self.steady
        self.moved_when_still = 0.0
        self.health, self.health_until = 'running', 0
        self.blocked_until = self.estop_until = self.chunk_at = 0
        self.chunk_id, self.beside, self.tick_s = 0, 0, []
        self.hand = self.pose.copy()  # of a human who teleoperates
        self.follower.enable(True, self.steady)

    def finish(self) -> Worst:
        """The worst of everything that was played."""
        self.arms.judge()
        self.hands.judge()
        return self.worst

    # The world.

    def step(self) -> None:
        """One tick of the executor, after what happens before it."""
        rng, mad = self.rng, self.setting.madness
        late = int(rng.uniform(20, 300) * MS) if rng.random() < 0.002 * mad else 0
        # The loop keeps to a grid of its own, each tick a little beside it.
        beside = int(rng.uniform(-1, 1) * MS)
        passed = TICK_NS + late + beside - self.beside
        self.beside = beside
        self.now, self.steady, self.ticks = self.now + passed, self.steady + passed, self.ticks + 1
        if rng.random() < 0.0005 * mad:
            self._jump(float(rng.choice([-3600.0, -0.5, 0.3, 5.0])))
        if self.blocked_until and self.steady >= self.blocked_until:
            self.blocked_until = 0
            self.jtc.activate(self.cycle, self.pose[self.index_w])
            self.arms.begin(self.pose[self.index_w])
            self.hands.begin(self.pose[self.index_s])
            self.follower.unblock()
        self._control()
        self._operate()
        self._teleoperate()
        self._measure()
        self._think()
        if self.steady < self.blocked_until:
            self.follower.stop('Nobody listens to the arms.', self.steady)
        begin = time.thread_time()
        command = self.follower.tick(self.now, self.steady)
        self.tick_s.append(time.thread_time() - begin)
        self._deliver(command, passed - TICK_NS)
        self._watch()

    def _control(self) -> None:
        """The controllers' cycles up to now, and the robot that follows them."""
        cycle_ns, blocked = self.setting.cycle_ns, self.steady < self.blocked_until
        while self.cycle + cycle_ns <= self.now:
            self.cycle += cycle_ns
            while self.way and self.way[0][0] <= self.cycle:
                trajectory = self.way.pop(0)[1]
                if not blocked:
                    self.jtc.accept(trajectory, self.cycle)
            if blocked or not len(self.index_w):
                continue
            command_n = self.jtc.update(self.cycle, self.pose[self.index_w], np.zeros(len(self.index_w)))
            self.arms.take(command_n)
            self.commanded[self.index_w] = command_n
        share = 1.0 - np.exp(-TICK_NS / max(self.setting.lag_ns, 1))
        self.pose += share * (self.commanded - self.pose)

    def _jump(self, seconds: float) -> None:
        by_ns = round(seconds * 1e9)
        self.now, self.cycle = self.now + by_ns, self.cycle + by_ns
        self.way = [(at + by_ns, replace(t, stamp_ns=t.stamp_ns + by_ns if t.stamp_ns else 0)) for at, t in self.way]
        self.jtc.shift(by_ns)
        self.follower.on_clock_jump(seconds, self.steady)

    def _operate(self) -> None:
        """Operators, e-stops, controllers that go away and come back with the robot moved."""
        rng, mad, follower = self.rng, self.setting.madness, self.follower
        if rng.random() < 0.001 * mad:
            follower.on_estop(True, self.steady)
            self.estop_until = self.steady + int(rng.uniform(0.1, 1.5) * 1e9)
        if self.estop_until and self.steady > self.estop_until:
            follower.on_estop(False, self.steady)
            self.estop_until = 0
        if follower.state is State.FAULT and rng.random() < 0.02:
            follower.reset_fault(self.steady)
        if rng.random() < 0.0005 * mad:
            follower.enable(False, self.steady)
        if follower.state is State.DISABLED and rng.random() < 0.02:
            follower.enable(True, self.steady)
        if rng.random() < 0.0005 * mad and not self.blocked_until:
            self.blocked_until = self.steady + int(rng.uniform(1.0, 2.0) * 1e9)
            self.way.clear()
        if self.blocked_until and self.blocked_until - self.steady < 0.3e9:
            self._move_by_hand()

    def _teleoperate(self) -> None:
        """A human who takes over and gives back, with a steady hand or a wild one, and falls silent now and then."""
        rng, follower = self.rng, self.follower
        if rng.random() < 0.004 * self.setting.madness:
            follower.take_over(follower.selected is Driver.POLICY, self.steady)
            self.hand = self.pose.copy()
        if rng.random() < 0.5 or self.steady % 7_000_000_000 < 500_000_000:
            return
        span = self.bounds.upper_N - self.bounds.lower_N
        span = np.where(np.isfinite(span), span, 1.0)
        self.hand = self.hand + rng.normal(0.0, 0.003, len(span)) * span
        if rng.random() < 0.005:
            self.hand = self.hand + rng.normal(0.0, 1.0, len(span)) * span
        values = dict(zip(self.names, self.hand.tolist(), strict=True))
        chunk = follower.on_human('teleop', values, self.now, self.steady)
        if chunk is not None:
            follower.on_chunk(chunk, self.now, self.steady, Driver.HUMAN)

    def _move_by_hand(self) -> None:
        is_position = self.bounds.is_position_N
        goal = self.bounds.lower_N + self.rng.uniform(0.1, 0.9, len(self.names)) * (
            self.bounds.upper_N - self.bounds.lower_N
        )
        self.pose = np.where(is_position, 0.9 * self.pose + 0.1 * goal, 0.0)
        self.commanded = self.pose.copy()
        self.arms.begin(self.pose[self.index_w])
        self.hands.begin(self.pose[self.index_s])

    def _measure(self) -> None:
        """Joint states, with drops, glitches while it runs, and nonsense."""
        rng, mad, follower = self.rng, self.setting.madness, self.follower
        if rng.random() < 0.001 * mad:
            follower.on_invalid_state('nan in a joint', True, self.steady)
            return
        if rng.random() < 0.02 * mad:
            return
        pose = self.pose
        if follower.state is State.RUN and rng.random() < 0.003 * mad:
            pose = pose * 0.0 if rng.random() < 0.5 else pose + 2 * np.pi
        values = dict(zip(self.names, pose.tolist(), strict=True))
        for stream in self.contract.state_streams:
            follower.on_state(stream.name, values, self.now - 2 * MS, self.steady)

    def _think(self) -> None:
        """The policy: its health, and chunks of every kind."""
        rng, mad, follower = self.rng, self.setting.madness, self.follower
        if self.steady > self.health_until:
            self.health = str(rng.choice(['running'] * 6 + ['holding', 'ended', 'silent']))
            span = (0.1, 1.0) if self.health != 'running' else (1.0, 4.0)
            self.health_until = self.steady + int(rng.uniform(*span) * 1e9)
        if self.health != 'silent':
            running, ended = self.health == 'running', self.health == 'ended'
            follower.on_policy_health(PolicyHealth(running, ended, self.health, self.steady))
        if self.steady < self.chunk_at or self.health == 'silent':
            return
        self.chunk_at = self.steady + int(rng.uniform(0.02, 0.6) * 1e9)
        if rng.random() < 0.01 * mad:
            follower.on_invalid_chunk('nan at step 3', self.steady)
            return
        follower.on_chunk(self._chunk(), self.now, self.steady)

    def _chunk(self) -> ActionChunk:
        rng = self.rng
        step_ns, horizon = self.contract.step_ns, min(self.contract.horizon, 50)
        begin = self.pose if self.follower.setpoint_N is None or rng.random() < 0.1 else self.follower.setpoint_N
        begin = np.where(self.bounds.is_position_N, begin, 0.0)
        at = np.arange(horizon)[:, None] * step_ns / 1e9
        speed = self.bounds.speed_N * np.where(self.bounds.is_position_N, 1.0, 0.1)
        size, pulse = rng.uniform(-1, 1, len(begin)) * speed, rng.uniform(0.5, 6.0)
        kind = int(rng.integers(0, 7))
        rows = begin + size / pulse * np.sin(pulse * at)
        if kind == 1:
            rows = begin + rng.uniform(0.2, 1.3) * size * at
        elif kind == 2:
            rows = rows + rng.normal(0.0, 0.02, rows.shape) * (self.bounds.upper_N - self.bounds.lower_N)
        elif kind == 3:
            rows[int(rng.integers(1, horizon)) :] += rng.uniform(-1, 1, len(begin)) * 2.0
        elif kind == 4:
            rows = rows + 10.0 * size * at
        if rng.random() < 0.01 * self.setting.madness:
            rows[int(rng.integers(0, horizon)), int(rng.integers(0, len(begin)))] = float(rng.choice([1e300, -1e308]))
        age = int(rng.uniform(0.0, 0.25) * 1e9)
        start = observation = self.now - age
        odd = int(rng.integers(0, 60))
        if odd == 0:
            observation = self.now + 3600 * 10**9
        elif odd == 1:
            start = observation = self.now - 60 * 10**9
        elif odd == 2:
            start = self.now + 60 * 10**9
        elif odd == 3:
            step_ns = 3600 * 10**9
        elif odd == 4:
            observation = self.now - 5 * 10**9
        self.chunk_id += 1
        policy = 'a' if odd != 5 else 'b'
        return ActionChunk(start, step_ns, self.names, rows, observation, self.chunk_id, policy_id=policy)

    # What is measured.

    def _deliver(self, command: Setpoints | None, late: int) -> None:
        if command is None:
            return
        window = command.window
        if window is not None:
            stamp = int(window.times_ns[0])
            thin = window.columns(np.arange(len(self.index_w)))
            self.worst.join(exact(self.jtc.joints, self.window_bounds, thin.times_ns, thin.values_KN, thin.rates_KN))
            points = [
                Point(int(at) - stamp, q.tolist(), v.tolist())
                for at, q, v in zip(thin.times_ns, thin.values_KN, thin.rates_KN, strict=True)
            ]
            if self.steady >= self.blocked_until:
                arrives = self.now + int(self.rng.uniform(0, 2) * self.setting.delay_ns)
                arrives = max(arrives, self.way[-1][0] if self.way else 0)
                self.way.append((arrives, TrajectoryCommand(self.jtc.joints, points, stamp)))
        value_s = command.setpoint_N[self.index_s]
        if self.steady < self.blocked_until:
            return
        if late >= 100 * MS:  # they stand still since
            self.hands.begin(self.hands.rows[-1])
        self.hands.take(value_s)
        self.commanded[self.index_s] = value_s

    def _watch(self) -> None:
        """Nothing moves in a state that holds, once it has had the time to brake."""
        state = self.follower.state
        if state is not self.state_seen:
            self.state_seen, self.quiet_since = state, self.steady
            self.still = None
        brake_s = float((self.bounds.speed_N / self.bounds.change_N).max()) + 1.0
        if state is not State.RUN and (self.steady - self.quiet_since) / 1e9 > brake_s and not self.blocked_until:
            if self.still is not None:
                self.moved_when_still = max(self.moved_when_still, float(np.abs(self.commanded - self.still).max()))
            self.still = self.commanded.copy()
        else:
            self.still = None

    still: np.ndarray | None = None


def with_jerk(contract: Contract, rng: np.random.Generator) -> Contract:
    """The contract with jerk limits on some of its columns, and without an acceleration limit on others."""
    actions = []
    for column in contract.actions:
        limits = column.limits
        if limits.acceleration is not None and rng.random() < 0.5:
            limits = Limits.parse({**limits.to_dict(), 'jerk': limits.acceleration * float(rng.uniform(5.0, 40.0))})
        elif rng.random() < 0.2:
            limits = limits.replace(acceleration=None)
        actions.append(column.replace(limits=limits))
    return contract.replace(actions=tuple(actions))


def shuffled(contract: Contract, rng: np.random.Generator) -> Contract:
    """The contract with other controllers: each arm by trajectories or tick by tick; other limits; another rate."""
    outputs = []
    for output in contract.outputs:
        position = all(name.endswith('/position') for name in output.columns)
        if position and output.kind in ('joint_trajectory', 'forward_command') and rng.random() < 0.5:
            kind = 'joint_trajectory' if output.kind == 'forward_command' else 'forward_command'
            output = type(output).parse({**output.to_dict(), 'kind': kind, 'options': {}})
        outputs.append(output)
    return with_jerk(contract.replace(outputs=tuple(outputs), rate_hz=float(rng.choice([10.0, 15.0, 20.0, 50.0]))), rng)


def settings(seed: int = 0) -> Iterator[Setting]:
    """Worlds without end: the shipped robots and robots made of them."""
    rng = np.random.default_rng(seed)
    shipped = [load_contract(name) for name in ROBOTS]
    while True:
        for contract in shipped:
            made = contract if rng.random() < 0.4 else shuffled(contract, rng)
            yield Setting(
                made,
                int(rng.integers(0, 2**31)),
                int(rng.choice([5, 10])) * MS,
                bool(rng.random() < 0.5),
                int(rng.choice([0, 2, 8])) * MS,
                int(rng.choice([5, 20, 60])) * MS,
            )
