"""Where a policy is served, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteSettings:
    """Where a policy is served, and how it is asked.

    Attributes:
        url: ws://HOST:PORT, or wss://.
        timeout_s: how long an answer, or connecting, may take.
        token_file: a file that holds the server's token; empty: none is sent.
        jpeg_quality: of the pictures that are sent; 0 sends them as they are.
    """

    url: str = ''
    timeout_s: float = 1.0
    token_file: str = ''
    jpeg_quality: int = 95
