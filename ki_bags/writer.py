"""Writes a rosbag2 folder: MCAP with a CRC in every chunk, and the metadata.yaml that rosbag2 expects.

Messages arrive as CDR bytes, so a recorder need not decode what it stores. Everything is written below
`NAME.partial` and renamed to `NAME` at the end: a folder without that suffix is complete.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import yaml

from ki_bags.errors import BagError
from ki_bags.reader import PARTIAL
from ki_bags.types import definition as known_definition
from ki_bags.types import full_name
from ki_common.files import sync_folder, write_text

# The newest layout in which QoS is still text: Humble, Jazzy and Kilted all read it.
METADATA_VERSION = 8
CHUNK_BYTES = 1 << 20
# Chunks are never compressed by default: camera images already are, and a raw one costs more time than it saves.
COMPRESSIONS = ('none', 'lz4', 'zstd')


@dataclass
class _Topic:
    name: str
    type: str
    definition: str
    hash: str
    qos: str
    count: int = 0


@dataclass
class _File:
    name: str
    stream: BinaryIO
    writer: Any
    channels: dict[str, int]
    schemas: dict[str, int]
    count: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def see(self, log_ns: int) -> None:
        self.first_ns = min(self.first_ns, log_ns) if self.count else log_ns
        self.last_ns = max(self.last_ns, log_ns)
        self.count += 1


class BagWriter:
    """Writes one recording; use it in a `with` block, or call `close`.

    Args:
        path: The folder to make; it must not exist.
        compression: Of chunks: 'none', 'lz4' or 'zstd'.
        max_file_bytes: Begins a new file when one has grown beyond this; None: one file.
        custom: Text to keep in the metadata.

    Raises:
        BagError: The folder exists, or cannot be made.
    """

    def __init__(
        self,
        path: str | Path,
        compression: str = 'none',
        max_file_bytes: int | None = None,
        custom: dict[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        if compression not in COMPRESSIONS:
            raise BagError(f'compression is {compression!r}; choose one of {", ".join(COMPRESSIONS)}.')
        for folder in (self.path, self.partial):
            if folder.exists():
                raise BagError(f'{folder} exists already; choose another name, or remove it.')
        try:
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise BagError(f'{self.partial} cannot be made: {error.strerror}.') from error
        self.custom = dict(custom or {})
        self._compression = compression
        self._max_file_bytes = max_file_bytes
        self._topics: dict[str, _Topic] = {}
        self._done: list[_File] = []
        self._file: _File | None = None

    def add_topic(
        self, name: str, type_name: str, definition: str | None = None, type_hash: str = '', qos: str = ''
    ) -> None:
        """Declares a topic; the same again is no error.

        Args:
            name: As it shall stand in the recording.
            type_name: `sensor_msgs/msg/JointState`.
            definition: The ros2msg text of the type with all that it needs; looked up when it is a known type.
            type_hash: RIHS01 hash that belongs to `definition`.
            qos: The offered QoS profiles as rosbag2 writes them (YAML text).

        Raises:
            BagError: Another type for a name that is taken, or an unknown type without a definition.
        """
        type_name = full_name(type_name)
        known = self._topics.get(name)
        if known is not None:
            if known.type != type_name:
                raise BagError(f'{self.path}: topic {name} is {known.type} already; {type_name} needs another name.')
            return
        if definition is None:
            definition, type_hash = known_definition(type_name)
        self._topics[name] = _Topic(name, type_name, definition, type_hash, qos)

    def write(self, topic: str, log_ns: int, data: bytes, publish_ns: int | None = None) -> None:
        """Appends one message in CDR.

        Raises:
            BagError: A topic that was not declared, or a disk that takes no more.
        """
        about = self._topics.get(topic)
        if about is None:
            raise BagError(f'{self.path}: topic {topic} was not declared; call add_topic first.')
        try:
            file = self._ready_file()
            channel = file.channels.get(topic)
            if channel is None:
                channel = self._register(file, about)
            file.writer.add_message(channel, log_ns, data, log_ns if publish_ns is None else publish_ns)
            file.see(log_ns)
            about.count += 1
            if self._max_file_bytes is not None and file.stream.tell() >= self._max_file_bytes:
                self._end_file()
        except (OSError, struct.error) as error:
            raise BagError(f'{self.partial} cannot be written: {error}; free space there and record anew.') from error

    def flush(self) -> None:
        """Lets the system have all that was written so far, so that a killed process does not lose it.

        Raises:
            BagError: A disk that takes no more.
        """
        if self._file is None:
            return
        try:
            self._file.writer.flush()
            self._file.stream.flush()
        except (OSError, struct.error) as error:
            raise BagError(f'{self.partial} cannot be written: {error}; free space there and record anew.') from error

    @property
    def count(self) -> int:
        """Messages written so far."""
        return sum(topic.count for topic in self._topics.values())

    def close(self) -> Path:
        """Ends the files, writes the metadata, renames; returns the folder.

        Raises:
            BagError: The disk takes no more; what was written stays below NAME.partial and can be read.
        """
        try:
            self._ready_file()  # a recording without a message is still a recording
            self._end_file()
            info = self._metadata([(each.name, each.first_ns, each.last_ns, each.count) for each in self._done])
            text = yaml.safe_dump({'rosbag2_bagfile_information': info}, sort_keys=False, allow_unicode=True)
            write_text(self.partial / 'metadata.yaml', text)
            self.partial.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise BagError(f'{self.partial} cannot be finished: {error}; its messages can still be read.') from error
        return self.path

    def abort(self) -> None:
        """Stops without finishing: the folder keeps its suffix `.partial`, and can be read as far as it was written."""
        if self._file is not None:
            self._file.stream.close()
            self._file = None

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _ready_file(self) -> _File:
        if self._file is None:
            from mcap.writer import CompressionType, Writer

            name = f'{self.path.name}_{len(self._done)}.mcap'
            stream = (self.partial / name).open('wb')
            writer = Writer(
                stream,
                chunk_size=CHUNK_BYTES,
                compression=CompressionType[self._compression.upper()],
                enable_crcs=True,
                enable_data_crcs=True,
            )
            writer.start(profile='ros2', library='ki_bags')
            self._file = _File(name, stream, writer, {}, {})
        return self._file

    def _register(self, file: _File, about: _Topic) -> int:
        schema = file.schemas.get(about.type)
        if schema is None:
            encoding = 'ros2msg' if about.definition else ''
            schema = file.writer.register_schema(about.type, encoding, about.definition.encode())
            file.schemas[about.type] = schema
        extra = {'offered_qos_profiles': about.qos, 'topic_type_hash': about.hash}
        file.channels[about.name] = file.writer.register_channel(about.name, 'cdr', schema, extra)
        return file.channels[about.name]

    def _end_file(self) -> None:
        file = self._file
        assert file is not None
        info = self._metadata([(file.name, file.first_ns, file.last_ns, file.count)])
        # rosbag2 looks here when it has to make a lost metadata.yaml again.
        file.writer.add_metadata('rosbag2', {'serialized_metadata': yaml.safe_dump(info, sort_keys=False)})
        file.writer.finish()
        file.stream.flush()
        os.fsync(file.stream.fileno())
        file.stream.close()
        self._done.append(file)
        self._file = None

    def _metadata(self, files: list[tuple[str, int, int, int]]) -> dict[str, Any]:
        filled = [each for each in files if each[3]]
        start = min((each[1] for each in filled), default=0)
        end = max((each[2] for each in filled), default=0)
        topics = [
            {
                'topic_metadata': {
                    'name': topic.name,
                    'type': topic.type,
                    'serialization_format': 'cdr',
                    'offered_qos_profiles': topic.qos,
                    'type_description_hash': topic.hash,
                },
                'message_count': topic.count,
            }
            for topic in self._topics.values()
        ]
        return {
            'version': METADATA_VERSION,
            'storage_identifier': 'mcap',
            'duration': {'nanoseconds': end - start},
            'starting_time': {'nanoseconds_since_epoch': start},
            'message_count': sum(each[3] for each in files),
            'topics_with_message_count': topics,
            'compression_format': '',
            'compression_mode': '',
            'relative_file_paths': [each[0] for each in files],
            'files': [
                {
                    'path': name,
                    'starting_time': {'nanoseconds_since_epoch': first},
                    'duration': {'nanoseconds': last - first},
                    'message_count': count,
                }
                for name, first, last, count in files
            ],
            'custom_data': self.custom or None,
            'ros_distro': os.environ.get('ROS_DISTRO', 'jazzy'),
        }
