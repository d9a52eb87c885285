"""What reaches the motors stays within limits, whatever the world does: a mad one, played by the controllers' models.

Ten thousand ticks at each run of the tests, a hundred thousand with `-m slow`, a million in `benchmarks/executor.py`.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ki_policy_node.executor.safety import Driver
from ki_robot.contract.contract import load_contract

EPISODE = 500
ROOM = 1e-6


def play(executor_rig, seed: int, ticks: int) -> None:
    ran = human = 0
    for setting in itertools.islice(executor_rig.settings(seed), ticks // EPISODE):
        world = executor_rig.Bench(setting)
        for _ in range(EPISODE):
            world.step()
            ran += world.follower.state.value == 'run'
            human += world.follower.source is Driver.HUMAN
        worst = {kind: ratio for kind, ratio in world.finish().ratios.items() if ratio > 1.0 + ROOM}
        assert not worst, f'{setting}: {worst} by {world.worst.columns}'
        assert world.moved_when_still == 0.0, f'{setting}: something moved in a state that holds'
    assert ran > 0.2 * ticks, 'most of it is spent moving'
    assert human > 0.01 * ticks, 'some of it by a human'


@pytest.mark.parametrize('seed', range(2))
def test_every_limit_holds_at_every_tick_of_a_mad_world(executor_rig, seed):
    play(executor_rig, seed, 2_500)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(100, 104))
def test_every_limit_holds_at_a_hundred_thousand_ticks(executor_rig, seed):
    play(executor_rig, seed, 25_000)


def test_the_world_can_tell_a_breach(executor_rig):
    """The measurement itself: the window of a violent stop, and a setpoint that jumps."""
    world = executor_rig.Bench(executor_rig.Setting(load_contract('arm_single'), 0))
    names, bounds = world.jtc.joints, world.window_bounds
    middle = 0.5 * (bounds.upper_N + bounds.lower_N)
    stop = np.array([middle, middle - 0.05]), np.array([bounds.speed_N, np.zeros(len(names))])
    worst = executor_rig.exact(names, bounds, np.array([0, 100_000_000]), *stop)
    assert worst.ratios['acceleration'] > 5.0
    world.arms.begin(middle)
    world.arms.take(middle + bounds.speed_N * 0.02)
    world.finish()
    assert world.worst.ratios['velocity'] > 1.9
