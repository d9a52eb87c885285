"""Errors of a policy and of trivial predictors against commands that follow known curves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from ki_bags import message_builders
from ki_policy_node.cycle.continuation import Planned
from ki_policy_node.replay.comparison import HOLD, LAST, POLICY, TREND, compare, gain, guesses, least, truth, verdict
from ki_policy_node.replay.predictors import hold, velocity
from ki_policy_node.replay.recorded_commands import Recorded
from ki_policy_node.replay.replay import Replay, ReplayedChunk, ReplayOptions
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract
from ki_vla.policy.inferred import Inferred

BEGIN, STEP = 1_700_000_000_000_000_000, 50_000_000
Curve = Callable[[float], float]


@pytest.fixture
def contract(rigs) -> Contract:
    return Contract.parse(rigs.small_robot())


def replayed(contract: Contract, commanded: Curve, measured: Curve, said: Curve, chunks: int = 4) -> Replay:
    """All columns follow one curve: of seconds, what was commanded, measured, and said by the policy."""
    found = Replay('bag', contract, 'policy', 'torch', ReplayOptions(), recorded=Recorded(contract))
    assert found.recorded is not None
    found.begin_ns, found.end_ns = BEGIN, BEGIN + 200 * STEP
    for tick in range(200):
        for output in contract.outputs:
            message = message_builders.command(
                output, BEGIN + tick * STEP, [commanded(tick / 20)] * len(output.columns)
            )
            found.recorded.add(output, message, BEGIN + tick * STEP)
    for number in range(chunks):
        first = 10 + 25 * number
        start_ns = BEGIN + first * STEP
        state = np.full(len(contract.state), measured(first / 20))
        past = [(BEGIN + tick * STEP, np.array([measured(tick / 20)])) for tick in range(first + 1)]
        speed = velocity(past, start_ns)
        assert speed is not None
        data = np.array([[said((first + step) / 20)] * len(contract.actions) for step in range(50)])
        chunk = ActionChunk(start_ns, STEP, contract.action_names, data, start_ns, number + 1)
        planned = Planned(chunk, chunk, chunk, Inferred(data), 0, 0, 0, 0, None)
        trend = np.where(np.isnan(hold(contract, state)), 0.0, speed[0])
        found.chunks.append(ReplayedChunk(planned, start_ns, {}, 'go', hold(contract, state), trend))
    return found


def test_on_a_straight_line_extrapolation_errs_by_nothing_and_holding_by_the_way_gone(contract: Contract) -> None:
    found = replayed(contract, lambda t: 0.2 * t, lambda t: 0.2 * t, lambda t: 0.2 * t + 0.01)
    result = compare(found)
    column = 'joint1/position'
    assert result['error_by_column'][TREND][column] == pytest.approx(0.0, abs=1e-9)
    assert result['error_by_column'][HOLD][column] == pytest.approx(0.2 * np.mean(np.arange(50)) / 20, abs=1e-9)
    assert result['error_by_column'][POLICY][column] == pytest.approx(0.01, abs=1e-9)
    # One step old when the chunk begins, and 49 more when it ends.
    assert result['error_by_column'][LAST][column] == pytest.approx(0.2 * np.mean(np.arange(1, 51)) / 20, abs=1e-9)
    assert result['error_by_step'][POLICY] == pytest.approx([0.01] * 50, abs=1e-9)


def test_on_a_sine_every_error_is_what_the_formula_says(contract: Contract) -> None:
    found = replayed(contract, math.sin, math.sin, lambda t: 0.0)
    guessed, true = guesses(found), truth(found)
    joint = contract.action_names.index('joint2/position')
    for chunk in range(4):
        start = (10 + 25 * chunk) / 20
        times = start + np.arange(50) / 20
        speed = (math.sin(start) - math.sin(start - 0.2)) / 0.2
        np.testing.assert_allclose(true[chunk, :, joint], np.sin(times), atol=1e-9)
        np.testing.assert_allclose(guessed[HOLD][chunk, :, joint], math.sin(start), atol=1e-9)
        np.testing.assert_allclose(
            guessed[TREND][chunk, :, joint], math.sin(start) + speed * np.arange(50) / 20, atol=1e-6
        )
        np.testing.assert_allclose(guessed[LAST][chunk, :, joint], math.sin(start - 0.05), atol=1e-9)


def test_a_base_is_held_by_standing_still(contract: Contract) -> None:
    result = compare(replayed(contract, lambda t: 0.3, lambda t: 0.3, lambda t: 0.3))
    assert result['error_by_column'][HOLD]['base/linear/x/velocity'] == pytest.approx(0.3)
    assert result['error_by_column'][HOLD]['joint1/position'] == pytest.approx(0.0)


def test_errors_are_told_by_unit_and_by_stretch_of_the_chunk(contract: Contract) -> None:
    result = compare(replayed(contract, lambda t: 0.0, lambda t: 0.0, lambda t: t))
    assert set(result['error_by_unit']) == {'rad', 'm/s'}
    spans = result['error_by_horizon']
    assert [(span['from_s'], span['to_s']) for span in spans] == [
        pytest.approx(each) for each in ((0.0, 0.2), (0.25, 0.45), (0.5, 0.95), (1.0, 1.95), (2.0, 2.45))
    ]
    whole = np.average([span['error'][POLICY] for span in spans], weights=[5, 5, 10, 20, 10])
    assert whole == pytest.approx(result['error'][POLICY])
    for span, steps in zip(spans, ((0, 5), (5, 10), (10, 20), (20, 40), (40, 50)), strict=True):
        assert span['error'][POLICY] == pytest.approx(np.mean(result['error_by_step'][POLICY][slice(*steps)]))
        assert span['columns'][POLICY]['joint1/position'] == pytest.approx(span['error'][POLICY])


def test_the_verdict_names_where_the_policy_wins_and_where_it_does_not(contract: Contract) -> None:
    # Off by 0.3 always: worse than holding near the observation, better where the line has gone further than that.
    found = replayed(contract, lambda t: 0.2 * t, lambda t: 0.2 * t, lambda t: 0.2 * t + 0.3)
    for made in found.chunks:
        made.trend_N[:] = -1.0
    result = compare(found)
    assert gain(result['error']) == pytest.approx(1.0 - result['error'][POLICY] / result['error'][HOLD])
    first, horizons, columns, last = verdict(result)
    assert f'policy {result["error"][POLICY]:.4f}' in first
    assert re.search(r'0\.00 to 0\.20 s \d+% more', horizons)
    assert re.search(r'2\.00 to 2\.45 s \d+% less', horizons)
    assert 'of 4 columns' in columns
    assert last.startswith('Repeating the last command')


def test_nothing_recorded_is_said_and_not_counted_as_zero(contract: Contract) -> None:
    found = replayed(contract, lambda t: 0.0, lambda t: 0.0, lambda t: 0.0)
    found.recorded = Recorded(contract)
    result = compare(found)
    assert result['error'] == {}
    assert result['error_by_column'][POLICY]['joint1/position'] is None
    assert 'Nothing was recorded' in verdict(result)[0]


def test_the_least_error_and_the_gain_need_something_to_compare() -> None:
    assert least({POLICY: 0.3, HOLD: 0.2, TREND: None}) == HOLD
    assert least({POLICY: None}) == ''
    assert gain({POLICY: 0.1, HOLD: 0.2, TREND: 0.4}) == pytest.approx(0.5)
    assert gain({POLICY: 0.1, HOLD: 0.0, TREND: 0.4}) is None
    assert gain({POLICY: None, HOLD: 0.1, TREND: 0.4}) is None
