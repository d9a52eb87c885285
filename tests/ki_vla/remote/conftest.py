"""A small policy, served on this machine."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ki_robot.contract.contract import load_contract
from ki_robot.observation.observation import Observation
from ki_vla.policy.inference import LoadedPolicy, load_policy
from ki_vla.policy.untrained import write_untrained
from ki_vla.remote.observation_keys import ObservationKeys
from ki_vla.remote.server import PolicyServer

pytest.importorskip('websockets', reason='needs the extra serve')


@pytest.fixture(scope='session')
def served_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    contract = load_contract('arm_single').replace(horizon=12)
    return write_untrained(tmp_path_factory.mktemp('served') / 'arm', contract).folder


@pytest.fixture
def policy(served_bundle: Path) -> Iterator[LoadedPolicy]:
    with load_policy(served_bundle, 'torch', allow_untrained=True) as loaded:
        yield loaded


@pytest.fixture
def start(policy: LoadedPolicy) -> Iterator[Callable[..., PolicyServer]]:
    """Starts servers, and ends them."""
    running: list[tuple[PolicyServer, threading.Thread]] = []

    def make(port: int = 0, token: str = '', **keys: str) -> PolicyServer:
        server = PolicyServer(policy, ObservationKeys(policy.contract, keys), '127.0.0.1', port, token)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return server

    yield make
    for server, thread in running:
        server.close()
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture
def seen(policy: LoadedPolicy) -> Observation:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for name in policy.contract.camera_names}
    state = np.linspace(-0.2, 0.2, len(policy.contract.state))
    return Observation(7, images, dict.fromkeys(images, 7), state, 7, 'pick up the block')
