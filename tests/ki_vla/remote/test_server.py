"""`ki serve` speaks to openpi's clients, and to nobody who may not ask."""

import os
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.policy.inference import load_policy
from ki_vla.policy.untrained import write_untrained
from ki_vla.remote.observation_keys import ObservationKeys
from ki_vla.remote.server import PolicyServer, check_address
from ki_vla.remote.wire import pack, unpack

TOKEN = 'a token of twenty chars'


def as_openpi(seen, **changes):
    """What openpi's LIBERO client sends."""
    sent = {'observation/image': seen.images['scene'], 'observation/wrist_image': seen.images['wrist']}
    return pack(sent | {'observation/state': seen.state, 'prompt': seen.instruction} | changes)


def test_a_client_of_openpi_is_told_what_is_served_and_gets_the_same_chunk_as_here(start, policy, seen):
    server = start()
    with connect(f'ws://127.0.0.1:{server.port}', compression=None, max_size=None) as client:
        said = unpack(client.recv())
        assert said['policy_id'] == policy.policy_id
        assert said['cameras'] == ['scene', 'wrist']
        client.send(as_openpi(seen, stamp_ns=7))
        answer = unpack(client.recv())
        np.testing.assert_array_equal(answer['actions'], policy.infer(seen).data_HN)
        assert set(answer['server_timing']) == {'infer_ms', 'unpack_ms'}
        client.send(as_openpi(seen))
        assert 'prev_total_ms' in unpack(client.recv())['server_timing']
    assert urllib.request.urlopen(f'http://127.0.0.1:{server.port}/healthz', timeout=5).read() == b'OK\n'


def test_a_mistake_is_a_sentence_and_the_connection_stays(start, seen):
    server = start()
    carry = {'actions': np.zeros((4, 8)), 'delay': 1, 'end': 3, 'mode': 'guided'}
    with connect(f'ws://127.0.0.1:{server.port}') as client:
        client.recv()
        for sent, why in (
            (b'no message', 'not a message of the policy protocol'),
            ('text', 'a binary message'),
            (pack([1]), 'a map of names and values'),
            (
                pack({'state': seen.state, 'prompt': 'go'}),
                'has no scene, wrist; it has prompt, state: name them images/',
            ),
            (
                as_openpi(seen, **{'observation/state': np.zeros(3)}),
                'state has the shape (3,); arm_single has 8 columns',
            ),
            (as_openpi(seen, **{'observation/state': np.full(8, np.nan)}), 'is not finite'),
            (as_openpi(seen, prompt='  '), 'has no prompt'),
            (as_openpi(seen, **{'observation/image': np.zeros((4, 4))}), 'image scene has the shape (4, 4)'),
            (as_openpi(seen, **{'observation/image': np.full((4, 4, 3), 9.0)}), 'floats beyond 0..1'),
            (as_openpi(seen, carry={'delay': 1}), 'carry needs actions, delay, end and mode'),
            (as_openpi(seen, carry=carry | {'actions': [1]}), 'carry.actions is no array of steps and columns'),
            (as_openpi(seen, carry=carry | {'end': 99}), 'carry.delay is 1 and end 99; write steps of 0 to 4'),
            (as_openpi(seen, carry=carry | {'mode': 'magic'}), "carry.mode: 'magic' is unknown"),
            (as_openpi(seen, carry=carry | {'actions': np.zeros((4, 3))}), 'carried chunk'),
        ):
            client.send(sent)
            answer = client.recv()
            assert isinstance(answer, str), why
            assert why in answer
        client.send(as_openpi(seen))
        assert unpack(client.recv())['actions'].shape == (12, 8)


def test_others_need_a_token_and_a_wrong_one_is_refused(start, policy, seen):
    with pytest.raises(VlaError, match=r'--host 0\.0\.0\.0: others can reach that address; give --token-file'):
        PolicyServer(policy, ObservationKeys(policy.contract), '0.0.0.0', 0)
    with pytest.raises(VlaError, match='has 5 characters'):
        check_address('127.0.0.1', 'short')
    check_address('::1', '')
    check_address('0.0.0.0', TOKEN)
    server = start(token=TOKEN)
    for headers in (None, {'Authorization': 'Api-Key wrong'}):
        with pytest.raises(InvalidStatus, match='401'):
            connect(f'ws://127.0.0.1:{server.port}', additional_headers=headers)
    with connect(f'ws://127.0.0.1:{server.port}', additional_headers={'Authorization': f'Api-Key {TOKEN}'}) as client:
        assert unpack(client.recv())['horizon'] == 12


def test_clients_share_the_engine(start, policy, seen):
    server = start()
    with connect(f'ws://127.0.0.1:{server.port}') as one, connect(f'ws://127.0.0.1:{server.port}') as other:
        for client in (one, other):
            client.recv()
            client.send(as_openpi(seen, stamp_ns=7))
        first, second = (unpack(client.recv())['actions'] for client in (one, other))
    np.testing.assert_array_equal(first, second)


def test_names_of_other_clients_are_given_or_found(seen):
    contract = load_contract('arm_single')
    keys = ObservationKeys(contract, {'cam_high': 'scene', 'qpos': 'state'}, words='tidy up')
    colours_first = seen.images['scene'].transpose(2, 0, 1)
    found = keys.observation(
        {'cam_high': colours_first, 'images': {'wrist': seen.images['wrist'] / 255.0}, 'qpos': seen.state}
    )
    np.testing.assert_array_equal(found.images['scene'], seen.images['scene'])
    assert np.abs(found.images['wrist'].astype(int) - seen.images['wrist']).max() <= 1
    assert found.instruction == 'tidy up'
    droid = ObservationKeys(contract).observation({
        'observation/exterior_image_1_left': seen.images['scene'], 'observation/wrist_image_left': seen.images['wrist'],
        'observation/joint_position': seen.state[:7], 'observation/gripper_position': seen.state[7:], 'prompt': 'go',
    })  # fmt: skip
    np.testing.assert_array_equal(droid.state, seen.state)
    with pytest.raises(VlaError, match='--key x=head: write one of scene, wrist, state, prompt'):
        ObservationKeys(contract, {'x': 'head'})


def test_clients_of_openpi_speak_in_the_policys_numbers_and_ours_in_si(tmp_path, seen):
    """LIBERO's gripper is -1 to 1 to the policy, and an opening in metres to the robot."""
    contract = load_contract('libero')
    with load_policy(write_untrained(tmp_path / 'b', contract).folder, 'torch', allow_untrained=True) as policy:
        server = PolicyServer(policy, ObservationKeys(contract), port=0)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        raw = np.array([0.1, 0.2, 0.3, 0.0, 0.1, 0.2, 0.02, -0.02])
        si = np.array([*raw[:7], 0.02])
        with connect(f'ws://127.0.0.1:{server.port}') as client:
            client.recv()
            answers = []
            for state, units in ((raw, 'policy'), (si, 'si')):
                client.send(as_openpi(seen, **{'observation/state': state, 'units': units}))
                answers.append(unpack(client.recv())['actions'])
        server.close()
        thread.join()
    np.testing.assert_allclose(answers[0][:, 6], 1.0 - 50.0 * answers[1][:, 6])
    np.testing.assert_allclose(answers[0][:, 3], 0.1 * answers[1][:, 3])


DRIVE = """
import sys
import numpy as np
from openpi_client import websocket_client_policy

client = websocket_client_policy.WebsocketClientPolicy('127.0.0.1', int(sys.argv[1]), api_key=sys.argv[2])
seen = dict(np.load(sys.argv[3]))
sent = {'observation/image': seen['scene'], 'observation/wrist_image': seen['wrist']}
sent['observation/state'] = seen['state']
answer = client.infer(sent | {'prompt': 'pick up the block', 'stamp_ns': 7})
np.save(sys.argv[4], answer['actions'])
print(client.get_server_metadata()['policy_id'])
try:
    client.infer({'prompt': 'nothing else'})
except RuntimeError as error:
    print(str(error).splitlines()[-1])
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_openpi_client_drives_it(start, policy, seen, tmp_path):
    """openpi-client from PyPI, in an environment of its own (it needs numpy 1)."""
    python = tmp_path / 'venv' / 'bin' / 'python'
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
    packages = ['openpi-client==0.1.2', 'typing_extensions']  # the second it imports and does not declare
    made = subprocess.run([python, '-m', 'pip', 'install', '-q', *packages], capture_output=True)
    if made.returncode:
        pytest.skip('openpi-client cannot be installed here: the server was not driven by it')
    server = start(token=TOKEN)
    np.savez(tmp_path / 'seen.npz', **seen.images, state=seen.state)
    done = subprocess.run(
        [python, '-c', DRIVE, str(server.port), TOKEN, tmp_path / 'seen.npz', tmp_path / 'actions.npy'],
        capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': ''}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == policy.policy_id
    assert 'the observation has no scene, wrist, state' in done.stdout.splitlines()[1]
    np.testing.assert_array_equal(np.load(tmp_path / 'actions.npy'), policy.infer(seen).data_HN)
