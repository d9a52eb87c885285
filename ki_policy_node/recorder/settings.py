"""The parameters of recorder. No ROS here: launch files, `ki up` and the docs read them, too."""

from __future__ import annotations

from typing import ClassVar, Literal

from ki_common.errors import KiError
from ki_common.node_settings import NodeSettings, setting
from ki_policy_node.errors import NodeError

Compression = Literal['none', 'lz4', 'zstd']


class RecorderSettings(NodeSettings):
    """Parameters of recorder."""

    raises: ClassVar[type[KiError]] = NodeError

    folder: str = setting('bags')
    """Where episodes are written, one bag each; ~ is the home folder."""
    prefix: str = setting('episode')
    """What the bags are called: PREFIX_0000, PREFIX_0001 and so on."""
    topics: tuple[str, ...] = setting(())
    """Topics to record; empty records every one of the recorder's namespace that is not hidden, and /tf, /tf_static,
    /clock and /diagnostics."""
    compression: Compression = setting('none')
    """Compression of the chunks of a bag."""
    cache_mib: int = setting(256, unit='MiB', ge=1, le=1 << 20)
    """Memory for messages that wait for the disk; beyond it they are dropped, and counted."""
    task: str = setting('')
    """Record one episode of this task at once; empty waits for ~/start_recording or the action ~/record."""
