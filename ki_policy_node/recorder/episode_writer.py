"""One episode on its way to disk: a bounded queue, and a thread that owns the file."""

from __future__ import annotations

import contextlib
import queue
import re
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ki_bags.errors import BagError
from ki_bags.types import definition as known_definition
from ki_bags.writer import BagWriter
from ki_common.share import ShareError, share_file
from ki_policy_node.errors import NodeError

SEPARATOR = '=' * 80
FLUSH_S = 0.5  # a killed process loses no more than this and a bit
PRIMITIVES = {'bool', 'byte', 'char', 'string', 'wstring', 'float32', 'float64'} | {
    f'{sign}int{bits}' for sign in ('', 'u') for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class RecordedTopic:
    """What a recording must know about a topic: name, type, QoS offers as rosbag2 writes them, definition, hash."""

    name: str
    type: str
    qos: str
    definition: str
    hash: str


@dataclass(frozen=True)
class _QueuedMessage:
    channel: RecordedTopic
    log_ns: int
    data: bytes
    publish_ns: int


class EpisodeWriter:
    """Takes serialized messages at once and writes them in its own thread.

    Args:
        path: Folder of the bag to make.
        compression: Of chunks: none, lz4 or zstd.
        cache_bytes: What may wait for the disk; beyond it messages are dropped and counted.

    Raises:
        BagError: The folder cannot be made.
    """

    def __init__(self, path: Path, compression: str, cache_bytes: int) -> None:
        self.path = path
        self.messages = 0
        self.bytes = 0
        self.dropped = 0
        self.error = ''
        self._bag = BagWriter(path, compression)
        self._cache_bytes = cache_bytes
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_QueuedMessage | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._drain, name='episode_writer', daemon=True)
        self._thread.start()

    def write(self, channel: RecordedTopic, log_ns: int, data: bytes, publish_ns: int = 0) -> bool:
        """Queues one message; False when the cache is full or the disk has failed."""
        with self._lock:
            if self.error or self._waiting_bytes + len(data) > self._cache_bytes:
                self.dropped += 1
                return False
            self._waiting_bytes += len(data)
            self.messages += 1
            self.bytes += len(data)
        self._queue.put(_QueuedMessage(channel, log_ns, data, publish_ns or log_ns))
        return True

    def _drain(self) -> None:
        flushed_s = time.monotonic()
        while True:
            entry: _QueuedMessage | None = None
            with contextlib.suppress(queue.Empty):
                entry = self._queue.get(timeout=FLUSH_S)
                if entry is None:
                    return
            flush = time.monotonic() - flushed_s > FLUSH_S
            self._store(entry, flush)
            flushed_s = time.monotonic() if flush else flushed_s
            if entry is not None:
                with self._lock:
                    self._waiting_bytes -= len(entry.data)

    def _store(self, entry: _QueuedMessage | None, flush: bool) -> None:
        if self.error:
            return
        try:
            if entry is not None:
                about = entry.channel
                self._bag.add_topic(about.name, about.type, about.definition, about.hash, about.qos)
                self._bag.write(about.name, entry.log_ns, entry.data, entry.publish_ns)
            if flush:
                self._bag.flush()
        except BagError as error:
            self.error = str(error)

    def close(self, keep: bool) -> Path | None:
        """Writes what waits, ends the bag and returns its folder; without `keep` removes it and returns None.

        Raises:
            BagError: The disk has failed; what was written lies below NAME.partial.
        """
        self._queue.put(None)
        self._thread.join()
        if not keep:
            self._bag.abort()
            shutil.rmtree(self._bag.partial, ignore_errors=True)
            return None
        if self.error:
            self._bag.abort()
            raise BagError(self.error)
        return self._bag.close()


def definition_of(type_name: str) -> tuple[str, str]:
    """The ros2msg text of a type with all it needs, and its hash ('' when nobody says).

    Raises:
        NodeError: the interface file of the type, or of one that it contains, is not installed.
    """
    with contextlib.suppress(BagError):
        return known_definition(type_name)
    texts: dict[str, str] = {}
    wanted = [type_name]
    while wanted:
        name = wanted.pop()
        if name not in texts:
            texts[name] = interface_text(name)
            wanted += parts_of(name, texts[name])
    first = texts.pop(type_name)
    rest = (f'{SEPARATOR}\nMSG: {name.replace("/msg/", "/")}\n{text}' for name, text in texts.items())
    return '\n'.join([first, *rest]), ''


def interface_text(type_name: str) -> str:
    """The .msg file of a type, from the share folder of its package."""
    package, _, name = type_name.partition('/')
    try:
        return share_file(package, f'{name}.msg').read_text(encoding='utf-8')
    except ShareError as error:
        raise NodeError(f'{type_name} cannot be recorded, because its definition is not installed: {error}') from error


def parts_of(type_name: str, text: str) -> list[str]:
    """Types of the fields of a definition that are no primitives, as package/msg/Name."""
    found = []
    for kind in re.findall(r'^\s*([A-Za-z][\w/]*)(?:<=\d+)?(?:\[[^\]]*\])?\s+\w+', text, re.MULTILINE):
        if kind not in PRIMITIVES:
            package, _, name = kind.rpartition('/')
            package = package.removesuffix('/msg') or type_name.split('/')[0]
            found.append(f'{package}/msg/{name}')
    return found


def qos_text(profiles: Iterable[Any]) -> str:
    """Offered QoS profiles as rosbag2 stores them."""

    def duration(value: Any) -> dict[str, int]:
        seconds, nanoseconds = divmod(value.nanoseconds, 10**9)
        return {'sec': seconds, 'nsec': nanoseconds}

    entries = [
        {
            'history': int(profile.history),
            'depth': int(profile.depth),
            'reliability': int(profile.reliability),
            'durability': int(profile.durability),
            'deadline': duration(profile.deadline),
            'lifespan': duration(profile.lifespan),
            'liveliness': int(profile.liveliness),
            'liveliness_lease_duration': duration(profile.liveliness_lease_duration),
            'avoid_ros_namespace_conventions': bool(profile.avoid_ros_namespace_conventions),
        }
        for profile in profiles
    ]
    return yaml.safe_dump(entries, sort_keys=False)
