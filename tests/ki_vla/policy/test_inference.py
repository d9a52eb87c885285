"""A bundle without ROS: an observation in, a chunk out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.policy.inference import LoadedPolicy, load_policy
from ki_vla.policy.untrained import write_untrained


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp('b') / 'arm', load_contract('arm_single')).folder


def opened(folder: Path, seed: int = 0) -> LoadedPolicy:
    return load_policy(folder, 'torch', seed=seed, allow_untrained=True)


def shown(policy: LoadedPolicy) -> tuple[dict[str, np.ndarray], np.ndarray]:
    images = {name: np.full((48, 64, 3), 90, np.uint8) for name in policy.contract.camera_names}
    return images, np.zeros(len(policy.contract.state_names))


def test_a_chunk_is_absolute_and_the_same_for_the_same_stamp_and_seed(folder: Path) -> None:
    with (
        opened(folder) as policy,
        load_policy(folder, 'torch', allow_untrained=True, seed=1) as other,
    ):
        images, state = shown(policy)
        chunk_HN = policy.act(images, state, 'wave')
        assert chunk_HN.shape == (policy.contract.horizon, len(policy.contract.action_names))
        assert chunk_HN.dtype == np.float64
        assert np.array_equal(chunk_HN, policy.act(images, state.tolist(), 'wave'))
        assert not np.array_equal(chunk_HN, policy.act(images, state, 'wave', stamp_ns=1))
        assert not np.array_equal(chunk_HN, other.act(images, state, 'wave'))


def test_what_is_missing_is_named(folder: Path) -> None:
    with opened(folder) as policy:
        images, state = shown(policy)
        with pytest.raises(VlaError, match=f'camera {next(iter(images))}: there is no image'):
            policy.act({}, state, 'wave')
        with pytest.raises(VlaError, match='state: shape'):
            policy.act(images, state[:-1], 'wave')


def test_another_robot_is_refused(folder: Path) -> None:
    with pytest.raises(VlaError, match='does not fit the robot bimanual_mobile'):
        load_policy(folder, 'torch', robot=load_contract('bimanual_mobile'))


def test_an_untrained_bundle_is_refused_unless_it_is_allowed(folder: Path) -> None:
    with pytest.raises(VlaError, match='reached its action head'):
        load_policy(folder, 'torch')
