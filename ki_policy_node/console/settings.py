"""The parameters of console. No ROS here: `ki console`, launch files and the docs read them, too."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import ClassVar

from pydantic import model_validator
from typing_extensions import Self

from ki_common.errors import KiError
from ki_common.node_settings import NodeSettings, setting
from ki_policy_node.errors import NodeError

LOOPBACK_NAMES = ('localhost', '127.0.0.1', '::1')


class ConsoleSettings(NodeSettings):
    """Parameters of console."""

    raises: ClassVar[type[KiError]] = NodeError

    robot: str = setting('')
    """Robot contract: a name of config/robots, or the path of a YAML file."""
    host: str = setting('127.0.0.1')
    """Address to serve on; one that other machines reach needs a token_file."""
    port: int = setting(8765, ge=0, le=65535)
    """Port to serve on; 0 takes a free one, which the log names."""
    token_file: str = setting('')
    """File with the token that a browser must bring; made, with a new one, where there is none."""
    certificate: str = setting('')
    """TLS certificate, a PEM file; without one a page on a network is served unencrypted."""
    private_key: str = setting('')
    """Private key of the certificate, a PEM file; empty where the certificate's file holds it."""
    picture_rate: float = setting(10.0, unit='Hz', ge=0.2, le=60.0)
    """The most pictures a second that a browser gets of each camera."""
    picture_width: int = setting(480, unit='pixels', ge=64, le=1920)
    """Width that larger pictures are reduced to."""

    @model_validator(mode='after')
    def _strangers_need_a_token(self) -> Self:
        if not self.is_loopback and not self.token_file:
            raise ValueError(
                f'host is {self.host!r}, which other machines reach, and there is no token_file; name a file for the '
                'token, or serve on 127.0.0.1.'
            )
        if self.private_key and not self.certificate:
            raise ValueError('private_key is given without a certificate; name the certificate, too.')
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the page."""
        if self.host in LOOPBACK_NAMES:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def files(self) -> tuple[Path, ...]:
        """The certificate and its key, as far as they are given."""
        return tuple(Path(name).expanduser() for name in (self.certificate, self.private_key) if name)
