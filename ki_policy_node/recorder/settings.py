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
    extra_topics: tuple[str, ...] = setting(())
    """Topics to record besides: of another namespace, or hidden."""
    compression: Compression = setting('none')
    """Compression of the chunks of a bag."""
    cache_mib: int = setting(256, unit='MiB', ge=1, le=1 << 20)
    """Memory for messages that wait for the disk; beyond it they are dropped, and counted."""
    rotate_s: float = setting(0.0, unit='s', ge=0.0)
    """An episode that is longer ends, and the next of its task begins; 0: never. Not under the action ~/record."""
    rotate_mib: int = setting(0, unit='MiB', ge=0)
    """The same by size."""
    min_free_mib: int = setting(1024, unit='MiB', ge=0)
    """Free space that is left on the disk: no episode begins with less, and one that is being recorded ends."""
    black_box: float = setting(30.0, unit='s', ge=0.0, le=600.0)
    """So much of all topics is kept in memory and written at a fault, an e-stop, a takeover, or a call of
    ~/save_black_box; 0: nothing is kept."""
    black_box_mib: int = setting(512, unit='MiB', ge=1, le=1 << 20)
    """The most memory for it; beyond it less time is kept."""
    black_box_folder: str = setting('black_box')
    """Where black boxes are written, one bag each; ~ is the home folder."""
    black_box_keep: int = setting(20, ge=1, le=10_000)
    """How many stay there; older ones are removed."""
    task: str = setting('')
    """Record one episode of this task at once; empty waits for ~/start_recording or the action ~/record."""
