"""How each kind of column is played and comes to its end."""

from __future__ import annotations

import numpy as np
import pytest

from ki_policy_node.executor.playback import MotionPlayback
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract

MS = 1_000_000
NOW = 10**15


def hand_by_effort(rigs, **output) -> Contract:
    plain = rigs.small_robot()
    plain['state'] = plain['state'][:2]
    plain['actions'][2] = {
        'name': 'gripper/effort',
        'unit': 'N',
        'representation': 'absolute',
        'limits': {'lower': -40.0, 'upper': 40.0, 'acceleration': 200.0},
    }
    options = {'allow_without_timeout': True}
    plain['outputs'][1] = plain['outputs'][1] | {'columns': ['gripper/effort'], 'options': options} | output
    return Contract.parse(plain)


def played(contract: Contract, brake_at: int, ticks: int) -> np.ndarray:
    """Setpoints of a run towards 30 N and 0.3 m/s, and of the brake after it, (T, 4)."""
    playback = MotionPlayback(contract, [column.limits for column in contract.actions], 10 * MS)
    playback.begin(np.zeros(4), NOW, None)
    rows = np.tile([0.0, 0.0, 30.0, 0.3], (50, 1))
    playback.aim(ActionChunk(NOW, contract.step_ns, contract.action_names, rows, NOW))
    return np.array(
        [playback.advance(NOW + tick * 10 * MS, follows=tick < brake_at).setpoint_N for tick in range(ticks)]
    )


@pytest.mark.parametrize(('output', 'end'), [({}, 0.0), ({'on_hold': 'keep_force'}, 30.0)])
def test_an_effort_brakes_to_zero_unless_the_contract_keeps_it(rigs, output, end):
    values = played(hand_by_effort(rigs, **output), brake_at=50, ticks=120)
    assert values[49] == pytest.approx([0.0, 0.0, 30.0, 0.3], abs=1e-6)
    assert values[-1] == pytest.approx([0.0, 0.0, end, 0.0], abs=1e-9)
    assert np.abs(np.diff(values[:, 2])).max() <= 200.0 * 0.01 * (1 + 1e-6)


def test_a_base_brakes_to_zero_within_its_acceleration(rigs):
    values = played(Contract.parse(rigs.small_robot()), brake_at=50, ticks=80)
    assert values[-1, 3] == 0.0
    assert np.abs(np.diff(values[:, 3])).max() <= 5.0 * 0.01 * (1 + 1e-6)
