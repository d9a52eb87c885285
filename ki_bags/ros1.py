"""ROS 1 bags (.bag): their messages as ROS 2 has them, in CDR, so that everything behind the reader is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ki_bags.decompression import check_ros1_chunk
from ki_bags.types import full_name, typestore

HEADER, TIME, DURATION = 'std_msgs/msg/Header', 'builtin_interfaces/msg/Time', 'builtin_interfaces/msg/Duration'
MAGIC = b'#ROSBAG V2.0'


class Ros1File:
    """One .bag file.

    Raises:
        Exception: Whatever the reader meets in a damaged or unindexed file.
    """

    def __init__(self, path: Path) -> None:
        from rosbags.rosbag1 import Reader

        self._path = path
        self._reader = Reader(path)
        self._stores: dict[int, Any] = {}

    def __enter__(self) -> Ros1File:
        self._reader.open()
        try:
            with self._path.open('rb') as stream:
                for chunk in self._reader.chunks.values():
                    stream.seek(chunk.datapos)
                    check_ros1_chunk(stream.read(chunk.datasize))
        except BaseException:
            self._reader.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def count(self) -> int:
        """How many messages it holds."""
        return int(self._reader.message_count)

    def channels(self) -> Iterator[tuple[str, str, str, int]]:
        """Topic, type, definition as ROS 2 writes it, and number of messages, of every connection."""
        for each in self._reader.connections:
            name = full_name(each.msgtype)
            text, _ = self._store(each).generate_msgdef(name, ros_version=2)
            yield each.topic, name, text, each.msgcount

    def messages(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str, int, bytes]]:
        """Topic, type, time and CDR of every message of the wanted topics, in the order of time."""
        chosen = [each for each in self._reader.connections if wanted(each.topic)]
        if not chosen:
            return
        for each, time_ns, data in self._reader.messages(chosen):
            name = full_name(each.msgtype)
            yield each.topic, name, time_ns, bytes(self._store(each).ros1_to_cdr(data, name))

    def _store(self, connection: Any) -> Any:
        """The types of one connection as its bag describes them, with the header and the times of ROS 2."""
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore

        known = self._stores.get(connection.id)
        if known is None:
            types = get_types_from_msg(connection.msgdef.data, full_name(connection.msgtype))
            base = typestore().fielddefs
            for name in (HEADER, TIME, DURATION):
                types[name] = base[name]
            known = self._stores[connection.id] = get_typestore(Stores.EMPTY)
            known.register(types)
        return known
