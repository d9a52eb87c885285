"""What once made the executor command violent motion, on the robots that are shipped."""

from __future__ import annotations

import numpy as np
import pytest

from ki_policy_node.executor.safety import PolicyHealth, State
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import load_contract

MS = 1_000_000
ROBOTS = ('arm_single', 'bimanual_mobile', 'bimanual_static', 'g1_upper_body')


class Scripted:
    """A quiet world in which every position runs up its range at a share of full speed, until the policy holds."""

    def __init__(self, rig, robot: str, share: float, lag_ns: int = 40 * MS, roughness: float = 0.0) -> None:
        contract = load_contract(robot)
        self.bench = rig.Bench(rig.Setting(contract, 3, cycle_ns=5 * MS, lag_ns=lag_ns, madness=0.0))
        self.bench._think = self.think
        self.share, self.words, self.count = share, '', 0
        self.rng, self.roughness = np.random.default_rng(1), roughness
        bounds = self.bounds = self.bench.bounds
        self.room = bounds.upper_N - bounds.lower_N
        low = np.where(bounds.is_position_N, bounds.lower_N + 0.1 * self.room, 0.0)
        self.end_s = 1.5
        speed = np.minimum(share * bounds.speed_N, 0.8 * self.room / self.end_s)
        self.low, self.speed = low, np.where(bounds.is_position_N, speed, 0.0)
        self.bench.pose[:] = self.bench.commanded[:] = low
        self.bench.jtc.activate(self.bench.now, low[self.bench.index_w])
        self.bench.arms.begin(low[self.bench.index_w])
        self.bench.hands.begin(low[self.bench.index_s])
        self.begin = self.bench.now + 300 * MS
        self.played: list[np.ndarray] = []

    def path(self, seconds: np.ndarray) -> np.ndarray:
        """Where the policy wants it: a gentle start, then straight on."""
        ramp = 0.2
        at = np.clip(seconds, 0.0, self.end_s)[:, None]
        way = np.where(at < ramp, at * at / (2 * ramp), at - ramp / 2)
        return self.low + self.speed * way

    def think(self) -> None:
        bench = self.bench
        bench.follower.on_policy_health(PolicyHealth(not self.words, False, self.words, bench.steady))
        self.count += 1
        if self.count % 20 or self.words:
            return
        step_ns = bench.contract.step_ns
        at = (bench.now - 20 * MS - self.begin) / 1e9 + np.arange(40) * step_ns / 1e9
        rows = self.path(at)
        rows = rows + self.rng.normal(0.0, self.roughness, rows.shape) * self.room * self.bounds.is_position_N
        chunk = ActionChunk(bench.now - 20 * MS, step_ns, bench.names, rows, bench.now - 20 * MS, self.count // 20)
        bench.follower.on_chunk(chunk, bench.now, bench.steady)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.bench.step()
            self.played.append(self.bench.commanded.copy())

    def run(self) -> None:
        """Until it runs on at its speed."""
        while self.bench.now < self.begin + self.end_s * 0.7e9:
            self.step()
        assert self.bench.follower.state is State.RUN, self.bench.follower.reason


def assert_kept(script: Scripted) -> None:
    worst = {kind: ratio for kind, ratio in script.bench.finish().ratios.items() if ratio > 1.0 + 1e-6}
    assert not worst, f'{worst} by {script.bench.worst.columns}'


@pytest.mark.parametrize('robot', ROBOTS)
@pytest.mark.parametrize('share', [0.4, 0.95])
def test_a_camera_that_drops_a_frame_stops_a_moving_robot_within_its_limits(executor_rig, robot, share):
    """Once: 144 rad/s^2 on arm_single, 18 times its limit, and 2.2 rad/s backwards."""
    script = Scripted(executor_rig, robot, share)
    script.run()
    moving = script.bench.commanded.copy()
    script.words = 'head: the newest message is 0.26 s old'
    script.step(150)
    assert script.bench.follower.state is State.HOLD
    assert_kept(script)
    away = np.array(script.played[-150:]) - moving
    positions = script.bounds.is_position_N
    assert (np.diff(away[:, positions], axis=0) >= -1e-9).all(), 'never backwards'
    reach = script.speed**2 / (2 * script.bounds.change_N) + script.speed * 0.1
    assert (away[-1] <= reach + 1e-9)[positions].all(), 'no further than a brake takes'


@pytest.mark.parametrize('robot', ROBOTS)
def test_a_rough_chunk_keeps_the_limits_between_the_knots_of_every_window(executor_rig, robot):
    """Once: 31 % of the windows of a demo exceeded the acceleration limit between their own knots, up to 9.9 times."""
    script = Scripted(executor_rig, robot, 0.5, roughness=0.004)
    script.run()
    assert_kept(script)


@pytest.mark.parametrize('robot', ['g1_upper_body', 'bimanual_mobile'])
def test_hands_that_grip_keep_their_grip_in_a_hold(executor_rig, robot):
    """Once: the hold sent G1's fingers to where they were measured, and they opened."""
    script = Scripted(executor_rig, robot, 0.5)
    bench = script.bench
    grips = {name for output in bench.contract.outputs if output.role == 'gripper' for name in output.columns}
    held = np.array([name in grips for name in bench.names])
    blocked = script.low + 0.05 * script.room
    control = bench._control

    def squeeze() -> None:
        control()
        bench.pose[held] = np.minimum(bench.pose, blocked)[held]

    bench._control = squeeze
    script.run()
    before = bench.commanded[held].copy()
    assert (before > blocked[held] + 0.01 * script.room[held]).all(), 'they press'
    script.words = 'head: the newest message is 0.26 s old'
    script.step(150)
    assert bench.follower.state is State.HOLD
    assert (bench.commanded[held] >= before).all()


@pytest.mark.parametrize('wrong', ['zeros', 'wrapped'])
def test_a_hold_does_not_go_where_a_glitch_says_the_robot_is(executor_rig, wrong):
    """Once: 12 to 14 rad/s towards the zeros of a second publisher, or of encoders that read 0 for an instant."""
    script = Scripted(executor_rig, 'arm_single', 0.5)
    bench = script.bench
    script.run()
    moving = bench.commanded.copy()
    glitch = bench.pose * 0.0 if wrong == 'zeros' else bench.pose + 2 * np.pi

    def measure() -> None:
        for stream in bench.contract.state_streams:
            values = dict(zip(bench.names, glitch.tolist(), strict=True))
            bench.follower.on_state(stream.name, values, bench.now - 2 * MS, bench.steady)

    bench._measure = measure
    script.step(3)
    script.words = 'head: the newest message is 0.26 s old'
    script.step(150)
    assert_kept(script)
    reach = script.speed**2 / (2 * script.bounds.change_N) + script.speed * 0.15
    assert (np.abs(bench.commanded - moving) <= reach + 1e-9).all()
