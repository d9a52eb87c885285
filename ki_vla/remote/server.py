"""`ki serve`: a bundle behind openpi's websocket policy protocol.

A client connects, is told what is served, and then sends observations and gets chunks, one after the other. All
connections share one engine, which one thread uses. What a client does wrong is a text, as in openpi; the connection
stays. `/healthz` answers OK.
"""

from __future__ import annotations

import hmac
import http
import ipaddress
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from ki_common.errors import KiError, first_line, shown
from ki_robot.policy_values import mapped_values
from ki_vla.engine.interface import Carry
from ki_vla.errors import VlaError
from ki_vla.policy.inference import LoadedPolicy
from ki_vla.remote.observation_keys import CARRY, SI, UNITS, ObservationKeys
from ki_vla.remote.wire import MAX_BYTES, pack, unpack

log = logging.getLogger(__name__)
PROTOCOL = 1
SHORTEST_TOKEN = 16


class PolicyServer:
    """Serves a policy until it is closed; use it as a context manager.

    Args:
        policy: What is served; used by one thread of the server, and not closed.
        keys: What clients call their inputs.
        host: The address to listen on.
        port: 0 chooses a free one.
        token: What clients must send as `Authorization: Api-Key TOKEN`; needed where others than this machine can
            reach `host`.

    Raises:
        VlaError: an address that others can reach without a token, or a token that is too short.
        OSError: the address is taken.
    """

    def __init__(
        self, policy: LoadedPolicy, keys: ObservationKeys, host: str = '127.0.0.1', port: int = 8000, token: str = ''
    ) -> None:
        check_address(host, token)
        self._policy, self._keys, self._token = policy, keys, token
        self._connections: set[ServerConnection] = set()
        self._engine = ThreadPoolExecutor(max_workers=1, thread_name_prefix='engine')
        self._server: Server = serve(
            self._handle, host, port, compression=None, max_size=MAX_BYTES, process_request=self._admit
        )

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.socket.getsockname()[1])

    def warm_up(self) -> None:
        """Runs the engine in the thread that will use it, until the next chunk is as fast as any."""
        trained = self._policy.bundle.serving.max_delay and 'trained' in self._policy.engine.kinds
        self._engine.submit(self._policy.warm_up, ('plain', 'trained') if trained else ('plain',)).result()

    def serve_forever(self) -> None:
        """Answers until `close`, or an interrupt."""
        self._server.serve_forever()

    def close(self) -> None:
        """Ends all connections."""
        self._server.shutdown()
        for connection in list(self._connections):
            connection.close(CloseCode.GOING_AWAY)
        self._engine.shutdown(wait=True, cancel_futures=True)

    def metadata(self) -> dict[str, Any]:
        """What a client is told first."""
        contract = self._policy.contract
        return {
            'protocol': PROTOCOL,
            'policy_id': self._policy.policy_id,
            'backend': self._policy.backend,
            'contract': contract.to_dict(),
            'serving': self._policy.bundle.serving.to_dict(),
            'picture_size': self._policy.bundle.processor.picture_size,
            'kinds': list(self._policy.engine.kinds),
            'cameras': list(contract.camera_names),
            'state': list(contract.state_names),
            'actions': list(contract.action_names),
            'horizon': contract.horizon,
            'rate_hz': contract.rate_hz,
        }

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuses a client without the token."""
        if request.path == '/healthz':
            return connection.respond(http.HTTPStatus.OK, 'OK\n')
        if self._token and not _has_token(request.headers, self._token):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, 'Send Authorization: Api-Key TOKEN.\n')
        return None

    def _handle(self, connection: ServerConnection) -> None:
        """One client, until it goes."""
        log.info('client %s', connection.remote_address)
        last_total_s: float | None = None
        self._connections.add(connection)
        try:
            connection.send(pack(self.metadata()))
            for message in connection:
                begin_s = time.perf_counter()
                try:
                    answer = self._answer(message, last_total_s)
                except KiError as error:
                    log.warning('refused: %s', error)
                    connection.send(str(error))
                    continue
                except Exception as error:  # whatever a message sets off must not end the service of the others
                    log.exception('failed')
                    connection.send(f'the server failed: {type(error).__name__}: {first_line(error)}')
                    continue
                connection.send(answer)
                last_total_s = time.perf_counter() - begin_s
        except ConnectionClosed:
            pass
        finally:
            self._connections.discard(connection)
        log.info('client %s gone', connection.remote_address)

    def _answer(self, message: str | bytes, last_total_s: float | None) -> bytes:
        """A chunk for one message."""
        if isinstance(message, str):
            raise VlaError('an observation is a binary message, in msgpack.')
        begin_s = time.perf_counter()
        sent = unpack(message)
        observation = self._keys.observation(sent)
        carry = self._carry(sent, observation.state)
        unpacked_s = time.perf_counter()
        inferred = self._engine.submit(self._policy.infer, observation, carry).result()
        actions = inferred.data_HN
        if sent.get(UNITS) != SI:
            actions = mapped_values(self._policy.contract.actions, actions)
        timing = {'infer_ms': 1e3 * (time.perf_counter() - unpacked_s), 'unpack_ms': 1e3 * (unpacked_s - begin_s)}
        if last_total_s is not None:
            timing['prev_total_ms'] = 1e3 * last_total_s
        return pack(
            {
                'actions': actions,
                'policy_timing': {
                    'infer_ms': inferred.inference_ns / 1e6,
                    'preprocess_ms': inferred.preprocess_ns / 1e6,
                    'postprocess_ms': inferred.postprocess_ns / 1e6,
                },
                'server_timing': timing,
                'policy_id': self._policy.policy_id,
                'subtask': inferred.subtask,
            }
        )

    def _carry(self, sent: Mapping[str, Any], state: np.ndarray) -> Carry | None:
        """The chunk that the robot executes, where the client asks for it to be continued."""
        said = sent.get(CARRY)
        if said is None:
            return None
        if not isinstance(said, Mapping) or not {'actions', 'delay', 'end', 'mode'} <= set(said):
            raise VlaError(f'{CARRY} needs actions, delay, end and mode.')
        rows, delay, end = said['actions'], said['delay'], said['end']
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != 'f':
            raise VlaError(f'{CARRY}.actions is no array of steps and columns.')
        if not all(isinstance(each, int) and 0 <= each <= len(rows) for each in (delay, end)):
            raise VlaError(f'{CARRY}.delay is {shown(delay)} and end {shown(end)}; write steps of 0 to {len(rows)}.')
        previous_PA = self._policy.bundle.processor.carried(rows, state)
        return Carry(previous_PA, delay=delay, end=end, mode=str(said['mode']))


def check_address(host: str, token: str) -> None:
    """Refuse to be open to others without a token.

    Raises:
        VlaError: says what to write.
    """
    if token and len(token) < SHORTEST_TOKEN:
        raise VlaError(f'the token has {len(token)} characters; write at least {SHORTEST_TOKEN}.')
    if not token and not _is_loopback(host):
        raise VlaError(
            f'--host {host}: others can reach that address; give --token-file FILE with a token that clients send, or '
            'leave --host out to serve this machine alone.'
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_token(headers: Headers, token: str) -> bool:
    said = headers.get_all('Authorization')
    return len(said) == 1 and hmac.compare_digest(said[0].encode(), f'Api-Key {token}'.encode())
