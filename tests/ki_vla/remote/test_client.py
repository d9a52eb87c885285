"""A policy on another machine gives the chunks it gives here; a server that goes away is a hold, and comes back."""

import socket
import sys
import threading
import time

import numpy as np
import pytest
from websockets.sync.server import serve

from ki_policy_node.cycle.continuation import Timing
from ki_policy_node.cycle.policy_types import UnreachableError
from ki_policy_node.errors import NodeError
from ki_policy_node.policy.backends import Wanted, open_policy
from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.remote.client import LostServerError, RemotePolicy
from ki_vla.remote.remote_settings import RemoteSettings
from ki_vla.remote.wire import pack

TOKEN = 'a token of twenty chars'


def settings(server, **changes):
    return RemoteSettings(**{'url': f'ws://127.0.0.1:{server.port}', 'jpeg_quality': 0, 'timeout_s': 5.0} | changes)


def test_a_remote_chunk_is_the_chunk_of_this_machine_with_the_time_of_each_part(start, policy, seen):
    remote = RemotePolicy(settings(start()))
    here, there = policy.infer(seen), remote.infer(seen)
    np.testing.assert_array_equal(there.data_HN, here.data_HN)
    assert min(there.preprocess_ns, there.inference_ns, there.network_ns) > 0
    assert remote.contract == policy.contract
    pictures = RemotePolicy(settings(start(), jpeg_quality=95)).infer(seen)
    assert pictures.data_HN.shape == here.data_HN.shape
    remote.close()


def test_a_chunk_that_is_continued_is_continued_there_as_here(start, policy, seen):
    from ki_vla.engine.interface import Carry

    remote = RemotePolicy(settings(start()))
    old = policy.infer(seen).data_HN[3:]
    carry = {'actions': old, 'delay': 2, 'end': 8, 'mode': 'guided'}
    previous = policy.bundle.processor.carried(old, seen.state)
    here = policy.infer(seen, Carry(previous, delay=2, end=8, mode='guided'))
    np.testing.assert_array_equal(remote.infer(seen, carry).data_HN, here.data_HN)
    remote.close()


def test_a_lost_server_is_unreachable_until_it_is_back(start, policy, seen):
    server = start()
    port = server.port
    robot = load_contract('arm_single').replace(horizon=12)
    made = open_policy(Wanted('remote', remote=settings(server, timeout_s=1.0)), robot, Timing())
    assert made.infer(seen, None, 0, 0).data_HN.shape == (12, 8)
    server.close()
    for _ in range(2):
        with pytest.raises(UnreachableError, match=rf'The server ws://127\.0\.0\.1:{port} (is gone|cannot be reached)'):
            made.infer(seen, None, 0, 0)
    start(port)
    assert made.infer(seen, None, 0, 0).data_HN.shape == (12, 8)
    made.close()


def test_an_answer_that_comes_too_late_is_never_taken_for_the_next_one(seen, policy):
    """The connection with the late answer is given up; the next question goes over a new one."""
    asked = []

    def slow(connection):
        connection.send(pack({
            'policy_id': 'slow@1', 'backend': 'torch', 'contract': policy.contract.to_dict(), 'kinds': ['plain'],
            'serving': policy.bundle.serving.to_dict(),
        }))  # fmt: skip
        for _ in connection:
            asked.append(connection)
            time.sleep(0.6 if len(asked) == 1 else 0.0)
            connection.send(pack({'actions': np.full((12, 8), float(len(asked)))}))

    with serve(slow, '127.0.0.1', 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f'ws://127.0.0.1:{server.socket.getsockname()[1]}'
        remote = RemotePolicy(RemoteSettings(url, timeout_s=0.3))
        with pytest.raises(LostServerError, match=r'did not answer within 0\.3 s'):
            remote.infer(seen)
        assert remote.infer(seen).data_HN[0, 0] == 2.0
        assert asked[0] is not asked[1]
        remote.close()
        server.shutdown()
        thread.join()


def test_what_is_wrong_with_a_server_is_one_sentence(start, tmp_path, seen):
    server = start(token=TOKEN)
    (tmp_path / 'token').write_text(f'{TOKEN}\n')
    with pytest.raises(VlaError, match='refuses the token; name its file in remote_token_file'):
        RemotePolicy(settings(server))
    assert RemotePolicy(settings(server, token_file=str(tmp_path / 'token'))).policy_id
    with pytest.raises(VlaError, match=r'remote_token_file .*none: cannot be read'):
        RemotePolicy(settings(server, token_file=str(tmp_path / 'none')))
    with pytest.raises(VlaError, match=r"remote_url is 'gpu-box'; write ws://HOST:PORT"):
        RemotePolicy(RemoteSettings('gpu-box'))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        with pytest.raises(LostServerError, match=r'cannot be reached .* is `ki serve` running there'):
            RemotePolicy(RemoteSettings(f'ws://127.0.0.1:{free.getsockname()[1]}'))


def test_a_policy_for_another_robot_is_refused_by_field(start):
    with pytest.raises(NodeError, match=r'does not fit robot bimanual_static: rate_hz: .*cameras'):
        open_policy(Wanted('remote', remote=settings(start())), load_contract('bimanual_static'), Timing())


def test_without_its_packages_the_backend_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, 'websockets.exceptions', None)
    for name in ('ki_policy_node.policy.remote_policy', 'ki_vla.remote.client'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(NodeError, match=r'needs the Python module websockets\.exceptions; run pip install'):
        open_policy(Wanted('remote'), load_contract('arm_single'), Timing())


def test_a_refusal_of_the_server_is_its_sentence(start, seen):
    from dataclasses import replace

    remote = RemotePolicy(settings(start()))
    with pytest.raises(VlaError, match=r'refuses: state has the shape \(3,\)'):
        remote.infer(replace(seen, state=np.zeros(3)))
    assert remote.infer(seen).data_HN.shape == (12, 8)
    remote.close()
