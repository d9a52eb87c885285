"""The limiter: follows what it may, brakes in time, tells what it changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_policy_node.executor.limiter import Limiter
from ki_robot.contract.parts import Limits

DT = 0.01
NAMES = ('joint/position', 'base/linear/x/velocity')
LIMITS = (
    Limits(lower=-1.0, upper=1.0, velocity=2.0, acceleration=10.0),
    Limits(lower=-0.5, upper=0.5, velocity=0.5, acceleration=5.0),
)


def follow(targets, speeds=None, start=(0.0, 0.0)):
    """Values after every step, and the clamps."""
    limiter = Limiter(NAMES, LIMITS)
    limiter.reset(np.array(start))
    values, clamps = [], []
    for index, target in enumerate(targets):
        speed = np.zeros(2) if speeds is None else np.asarray(speeds[index])
        clamps.append(limiter.step(np.asarray(target, float), speed, DT))
        values.append(limiter.value_N.copy())
    return np.array(values), clamps


def test_a_target_within_limits_is_followed_exactly():
    times = np.arange(200) * DT
    target = np.stack([0.2 - 0.2 * np.cos(2.0 * times), 0.1 - 0.1 * np.cos(2.0 * times)], axis=1)
    speed = np.stack([0.4 * np.sin(2.0 * times), 0.2 * np.sin(2.0 * times)], axis=1)
    values, clamps = follow(target, speed)
    assert np.abs(values[:-1] - target[1:]).max() < 2e-3
    assert not any(clamps)


def test_a_jump_becomes_a_ramp_that_does_not_overshoot():
    values, clamps = follow([[0.8, 0.4]] * 200)
    joint, base = values.T
    assert np.abs(np.diff(joint, prepend=0.0)).max() <= 2.0 * DT + 1e-9
    assert np.abs(np.diff(joint, 2, prepend=[0.0, 0.0])).max() <= 10.0 * DT**2 * (1 + 1e-6) or joint.max() <= 0.8
    assert joint.max() <= 0.8 + 1e-3
    assert joint[-1] == pytest.approx(0.8, abs=1e-3)
    assert np.abs(np.diff(base, prepend=0.0)).max() <= 5.0 * DT + 1e-9
    assert base[-1] == pytest.approx(0.4)
    assert clamps[0].what == 'velocity'
    assert clamps[0].limit == 2.0


def test_a_target_beyond_a_limit_is_held_at_the_limit_and_told():
    values, clamps = follow([[3.0, 0.0]] * 300)
    assert values[:, 0].max() <= 1.0
    assert values[-1, 0] == pytest.approx(1.0, abs=1e-3)
    assert (clamps[-1].what, clamps[-1].column, clamps[-1].limit) == ('position', 0, 1.0)


def test_a_start_outside_the_limits_comes_back_at_a_bounded_speed():
    values, _ = follow([[0.9, 0.0]] * 100, start=(1.2, 0.0))
    assert np.abs(np.diff(values[:, 0], prepend=1.2)).max() <= 2.0 * DT + 1e-9
    assert values[-1, 0] == pytest.approx(0.9, abs=1e-3)


def test_a_copy_runs_ahead_alone():
    limiter = Limiter(NAMES, LIMITS)
    limiter.reset(np.zeros(2))
    ahead = limiter.copy()
    ahead.step(np.ones(2), np.zeros(2), DT)
    assert limiter.value_N.tolist() == [0.0, 0.0]
    assert ahead.value_N[0] > 0.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=60))
def test_whatever_is_asked_the_limits_hold(targets):
    values, _ = follow(targets)
    assert np.isfinite(values).all()
    assert np.abs(values[:, 0]).max() <= 1.0 + 1e-9
    assert np.abs(values[:, 1]).max() <= 0.5 + 1e-9
    assert np.abs(np.diff(values, axis=0, prepend=0.0)[:, 0]).max() <= 2.0 * DT + 1e-9
    assert np.abs(np.diff(values, axis=0, prepend=0.0)[:, 1]).max() <= 5.0 * DT + 1e-9
