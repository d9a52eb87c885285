"""The policy without a model: it starts where the robot is, stays within limits, and holds when asked to."""

from __future__ import annotations

import numpy as np
import pytest

from ki_policy_node.errors import NodeError
from ki_policy_node.policy.backends import Commissioning, CommissioningPolicy, allowed_bundle
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import Observation

STEP = 50_000_000
START = 10**15


@pytest.fixture
def contract(rigs) -> Contract:
    return Contract.parse(rigs.small_robot())


def seen(step: int, pose=(0.1, -0.2, 0.3)) -> Observation:
    stamp = START + step * STEP
    return Observation(stamp, {}, {}, np.array(pose), stamp)


def test_hold_is_the_measured_pose_and_a_base_that_stands_still(contract):
    data = CommissioningPolicy(contract, Commissioning()).infer(seen(0), None, 0, 0).data_HN
    assert data.shape == (50, 4)
    assert np.array_equal(data, np.tile([0.1, -0.2, 0.3, 0.0], (50, 1)))


def test_a_swing_starts_at_rest_at_the_measured_pose_and_goes_on_in_the_next_chunk(contract):
    policy = CommissioningPolicy(contract, Commissioning('sine', amplitude=0.2, period_s=4.0))
    first = policy.infer(seen(0), None, 0, 1).data_HN
    assert first[0] == pytest.approx([0.1, -0.2, 0.3, 0.0])
    assert np.abs(np.diff(first[:2], axis=0)).max() < 1e-3
    assert first[40, 0] == pytest.approx(0.3)
    second = policy.infer(seen(20, pose=(9.0, 9.0, 9.0)), first[20:], 0, 1).data_HN
    assert second[:30] == pytest.approx(first[20:])


def test_a_new_epoch_starts_from_where_the_robot_is_now(contract):
    policy = CommissioningPolicy(contract, Commissioning('sine', amplitude=0.2))
    first = policy.infer(seen(0), None, 0, 1).data_HN
    moved = policy.infer(seen(20, pose=(0.5, 0.5, 0.5)), first[20:], 0, 2).data_HN
    assert moved[0, :3] == pytest.approx([0.5, 0.5, 0.5])


def test_a_swing_keeps_position_and_half_of_the_velocity_limits(contract):
    policy = CommissioningPolicy(contract, Commissioning('sine', amplitude=3.0, period_s=2.0))
    data = policy.infer(seen(0, pose=(1.9, -1.9, 0.0)), None, 0, 0).data_HN
    assert np.abs(data[:, :3]).max() <= 2.0
    assert np.abs(np.diff(data[:, :3], axis=0)).max() <= 0.5 * 2.0 * 0.05 + 1e-6


@pytest.mark.parametrize('kind', ['wait', 'compute'])
def test_an_inference_takes_its_time(contract, kind):
    policy = CommissioningPolicy(contract, Commissioning(latency_s=0.03, latency_kind=kind))
    assert policy.infer(seen(0), None, 0, 0).inference_ns >= 30_000_000


def test_a_joint_that_is_not_measured_cannot_be_moved(rigs):
    plain = rigs.small_robot()
    del plain['state'][1]
    with pytest.raises(NodeError, match='commands joint2/position but does not measure it'):
        CommissioningPolicy(Contract.parse(plain), Commissioning())


def test_a_call_loads_what_lies_beside_the_configured_bundle_or_below_the_root(tmp_path):
    configured, other, outside = (str(tmp_path / name) for name in ('bundles/a', 'bundles/b', 'elsewhere/c'))
    assert allowed_bundle('', configured, '') == configured
    assert allowed_bundle(other, configured, '') == other
    assert allowed_bundle(outside, configured, str(tmp_path / 'elsewhere')) == outside
    for path in (outside, f'{tmp_path}/bundles/../elsewhere/c', str(tmp_path / 'bundles'), '/etc', 'relative'):
        with pytest.raises(NodeError, match=r'is not below .*; set parameter bundle_root'):
            allowed_bundle(path, configured, '')


def test_no_link_leads_out_of_the_root(tmp_path):
    (tmp_path / 'bundles').mkdir()
    (tmp_path / 'bundles/link').symlink_to('/etc')
    with pytest.raises(NodeError, match='is not below'):
        allowed_bundle(str(tmp_path / 'bundles/link'), '', str(tmp_path / 'bundles'))


@pytest.mark.parametrize('path', ['a\0b', '/' + 'x' * 10**6, '/x' * 10**5])
def test_what_is_no_path_is_refused_in_one_short_sentence(path, tmp_path):
    with pytest.raises(NodeError) as caught:
        allowed_bundle(path, str(tmp_path / 'a'), '')
    assert len(str(caught.value)) < 500


def test_without_a_bundle_and_a_root_nothing_is_loaded_by_path(tmp_path):
    with pytest.raises(NodeError, match='set parameter bundle_root'):
        allowed_bundle(str(tmp_path), '', '')
