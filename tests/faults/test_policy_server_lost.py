"""The machine that runs the policy goes away mid-run: the robot holds, and goes on when the server answers again."""

from __future__ import annotations

import contextlib
import threading

import pytest
from ki_msgs.msg import PolicyStatus

pytest.importorskip('websockets', reason='needs the extra serve')

from ki_vla.policy.inference import load_policy
from ki_vla.policy.untrained import write_untrained
from ki_vla.remote.observation_keys import ObservationKeys
from ki_vla.remote.server import PolicyServer

pytestmark = pytest.mark.ros


def test_a_lost_server_is_a_hold_that_ends_when_it_is_back(rig):
    bundle = write_untrained(rig.folder / 'bundle', rig.contract).folder
    with load_policy(bundle, 'torch', allow_untrained=True, threads=1) as policy:
        with served(policy) as port:
            url = f'ws://127.0.0.1:{port}'
            rig.start_policy(backend='remote', remote_url=url, instruction='wave', dry_run=True, execute_steps=5)
            rig.until('a chunk', lambda: rig.dry_chunks, 30.0)
            rig.until('the time on the way', lambda: 'network ' in rig.status.message)
            assert rig.status.backend == 'remote torch'
        rig.until('a hold', lambda: rig.status.state == PolicyStatus.STATE_HOLDING and url in rig.status.message)
        known = len(rig.dry_chunks)
        with served(policy, port):
            rig.until('another chunk', lambda: len(rig.dry_chunks) > known + 1)
            assert rig.status.state == PolicyStatus.STATE_DRY_RUN


@contextlib.contextmanager
def served(policy, port=0):
    """A server for the length of a `with` block; its port."""
    server = PolicyServer(policy, ObservationKeys(policy.contract), port=port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.close()
        thread.join()
