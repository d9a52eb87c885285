"""A policy on another machine: observations go there, chunks come back; a lost server is an error of its own."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from ki_common.errors import KiError, first_line
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import Observation
from ki_vla.errors import VlaError
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.serving import Serving
from ki_vla.remote.observation_keys import CARRY, SI, STAMP, UNITS
from ki_vla.remote.remote_settings import RemoteSettings
from ki_vla.remote.wire import MAX_BYTES, jpeg, pack, unpack

RETRY_S = 0.5  # between two attempts to connect


class LostServerError(VlaError):
    """The server cannot be reached, or does not answer in time: what may be different the next time."""


class RemotePolicy:
    """A policy that a `PolicyServer` serves. Connects at once, and again after the connection was lost.

    Args:
        settings: Where it is.

    Attributes:
        policy_id, backend, contract, serving, kinds: Of the policy that is served.
        picture_size: Of the square that it is shown, where it was trained on reduced JPEGs; else None.

    Raises:
        LostServerError: nobody answers there.
        VlaError: a server of another kind, or one that refuses the token.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        if not settings.url.startswith(('ws://', 'wss://')):
            raise VlaError(f'remote_url is {settings.url!r}; write ws://HOST:PORT of a machine where `ki serve` runs.')
        self._settings = settings
        self._token = _token(settings.token_file)
        self._connection: ClientConnection | None = None
        self._open = contextlib.ExitStack()  # ends the connection
        self._next_try_s = 0.0
        said = self._connect()
        try:
            self.contract = Contract.parse(said['contract'], settings.url)
            self.serving = Serving.parse(said['serving'], settings.url)
            size = said.get('picture_size')
            self.picture_size = None if size is None else int(size)
            self.policy_id, self.kinds = str(said['policy_id']), tuple(said['kinds'])
            self.backend = f'remote {said["backend"]}'
        except (KeyError, TypeError, KiError) as error:
            self.close()
            raise VlaError(
                f'{settings.url}: does not say which robot its policy is for ({first_line(error)}); a server of '
                '`ki serve` is needed.'
            ) from error

    def infer(self, observation: Observation, carry: dict[str, Any] | None = None) -> Inferred:
        """One chunk, and how long each part of it took.

        Args:
            observation: Of the contract's robot.
            carry: `actions` (absolute SI, of the chunk that is executed), `delay`, `end`, `mode`; see `engine.Carry`.

        Raises:
            LostServerError: the server cannot be reached or does not answer in time; the next call connects again.
            VlaError: the server refuses the observation.
        """
        begin_ns = time.perf_counter_ns()
        quality = self._settings.jpeg_quality
        images = {name: jpeg(each, quality) if quality else each for name, each in observation.images.items()}
        sent: dict[str, Any] = {'images': images, 'state': observation.state, 'prompt': observation.instruction}
        message = pack(sent | {UNITS: SI, STAMP: observation.state_stamp_ns, CARRY: carry})
        packed_ns = time.perf_counter_ns()
        answer = self._ask(message)
        back_ns = time.perf_counter_ns()
        data_HN = _actions(answer, self.contract)
        timing = answer.get('policy_timing', {})
        before_ns, model_ns, after_ns = (
            round(1e6 * float(timing.get(name, 0.0))) for name in ('preprocess_ms', 'infer_ms', 'postprocess_ms')
        )
        way_ns = max(0, back_ns - packed_ns - before_ns - model_ns - after_ns)
        subtask = str(answer.get('subtask', ''))
        return Inferred(data_HN, packed_ns - begin_ns + before_ns, model_ns, after_ns, subtask, way_ns)

    def close(self) -> None:
        """Ends the connection."""
        self._connection = None
        with contextlib.suppress(WebSocketException, OSError):
            self._open.close()

    def _ask(self, message: bytes) -> dict[str, Any]:
        """Sends, and waits for the answer. A connection with an answer under way is never used again."""
        if self._connection is None:
            said = self._connect()
            if said.get('policy_id') != self.policy_id:
                self.close()
                raise VlaError(
                    f'{self._settings.url}: serves {said.get("policy_id")} now, and {self.policy_id} was loaded; load '
                    'the policy again.'
                )
        connection = self._connection
        assert connection is not None
        try:
            connection.send(message)
            received = connection.recv(timeout=self._settings.timeout_s)
        except (WebSocketException, OSError, TimeoutError) as error:
            self.close()
            why = (
                f'did not answer within {self._settings.timeout_s:g} s'
                if isinstance(error, TimeoutError)
                else 'is gone'
            )
            raise LostServerError(f'The server {self._settings.url} {why}.') from error
        if isinstance(received, str):
            raise VlaError(f'The server {self._settings.url} refuses: {received.strip().splitlines()[-1][:300]}')
        answer = unpack(received)
        if not isinstance(answer, dict):
            self.close()
            raise VlaError(f'The server {self._settings.url} answers with something that is no chunk.')
        return answer

    def _connect(self) -> dict[str, Any]:
        """A new connection; what the server says of itself."""
        time.sleep(max(0.0, self._next_try_s - time.monotonic()))
        self._next_try_s = time.monotonic() + RETRY_S
        url, timeout_s = self._settings.url, self._settings.timeout_s
        headers = {'Authorization': f'Api-Key {self._token}'} if self._token else None
        try:
            connection = self._open.enter_context(
                connect(
                    url, compression=None, max_size=MAX_BYTES, open_timeout=timeout_s, close_timeout=timeout_s,
                    additional_headers=headers,
                )
            )  # fmt: skip
            said = unpack(connection.recv(timeout=timeout_s, decode=False))
        except InvalidStatus as error:
            status = error.response.status_code
            what = 'refuses the token; name its file in remote_token_file' if status == 401 else f'answers {status}'
            raise VlaError(f'The server {url} {what}.') from error
        except (WebSocketException, OSError, TimeoutError) as error:
            self.close()
            raise LostServerError(
                f'The server {url} cannot be reached ({first_line(error)}); is `ki serve` running there?'
            ) from error
        if not isinstance(said, dict):
            self.close()
            raise VlaError(f'{url}: is no policy server.')
        self._connection = connection
        return said


def _actions(answer: dict[str, Any], contract: Contract) -> NDArray[np.float64]:
    """The chunk in an answer; whether a robot may execute it is not decided here."""
    found = answer.get('actions')
    shape = (contract.horizon, len(contract.actions))
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype.kind != 'f':
        what = f'{found.dtype} {found.shape}' if isinstance(found, np.ndarray) else type(found).__name__
        raise VlaError(f'The server answers with actions that are {what}; {shape} numbers are needed.')
    return found.astype(np.float64)


def _token(path: str) -> str:
    """The token in a file."""
    if not path:
        return ''
    try:
        return Path(path).expanduser().read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError) as error:
        raise VlaError(f'remote_token_file {path}: cannot be read ({first_line(error)}).') from error
