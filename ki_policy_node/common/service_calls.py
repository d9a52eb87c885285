"""Service calls that are repeated until they are answered: in DDS an answer can be lost, and nobody asks again for you.

A server may hear a request before it has discovered who sent it. It works, its answer reaches nobody
("client will not receive response"), and the caller would wait for ever. Every call of this project goes through here.

A repeated request may be served twice. So a call is over only when the newest request is answered, too: requests of
one client are served in order, and none is left behind to act later. Services whose second call would not do what the
first did (a recording that begins) carry a `request_id`; the server answers a repeat with its first answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ki_policy_node.errors import NodeError

REPEAT_S = 2.0  # an answer that takes longer is taken for lost; the work of a slow server is done once more


class ServiceCalls:
    """Clients of one node, made once each: a client that was made just now is the one whose answers get lost.

    Args:
        node: Makes the clients.
        receive: Lets messages come in for a moment; may raise to give up, for instance when a process has ended.
        hint: A sentence for every error: where to look.
    """

    def __init__(self, node: Any, receive: Callable[[], None], hint: str = '') -> None:
        self._node, self._receive, self._hint = node, receive, f' {hint}' if hint else ''
        self._clients: dict[str, Any] = {}

    def call(
        self,
        kind: Any,
        name: str,
        request: Any,
        timeout_s: float,
        *,
        done: Callable[[], bool] = lambda: False,
        repeat_s: float = REPEAT_S,
    ) -> Any:
        """The answer of a service; None where it was lost, and `done` says that the work is done.

        Args:
            kind: Service type.
            name: Of the service; absolute, or in the node's namespace.
            request: Sent as it is, again and again.
            timeout_s: For the whole call [s].
            done: Asked before a repeat: can the effect be seen? For a service that would refuse a second request.
            repeat_s: Without an answer for so long, the request is sent again [s].

        Raises:
            NodeError: nobody offers the service, or it does not answer in time.
        """
        end = time.monotonic() + timeout_s
        client = self.client(kind, name, timeout_s)
        asked = [client.call_async(request)]
        sent = time.monotonic()
        while not any(future.done() for future in asked):
            now = time.monotonic()
            if now > end:
                self._forget(client, asked)
                raise NodeError(f'{name} gave no answer within {timeout_s:g} s, asked {len(asked)} times.{self._hint}')
            if now > sent + repeat_s:
                if done():
                    self._forget(client, asked)
                    return None
                asked.append(client.call_async(request))
                sent = now
            self._receive()
        # By now the server knows this client: what it still has to serve, it will also answer.
        while not asked[-1].done() and time.monotonic() < end:
            self._receive()
        self._forget(client, asked)
        return next(future for future in asked if future.done()).result()

    def client(self, kind: Any, name: str, timeout_s: float) -> Any:
        """The one client of a service, once somebody offers it.

        Raises:
            NodeError: nobody does within `timeout_s` [s].
        """
        if name not in self._clients:
            self._clients[name] = self._node.create_client(kind, name)
        client, end = self._clients[name], time.monotonic() + timeout_s
        while not client.service_is_ready():
            if time.monotonic() > end:
                raise NodeError(f'Nobody offers the service {name} within {timeout_s:g} s.{self._hint}')
            self._receive()
        return client

    @staticmethod
    def _forget(client: Any, asked: list[Any]) -> None:
        for future in asked:
            if not future.done():
                client.remove_pending_request(future)
