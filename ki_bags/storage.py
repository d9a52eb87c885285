"""One storage file (.mcap, .db3, ROS 1's .bag): its channels and messages, by the quick reader or by the patient one.

The quick reader (`rosbags`) uses the index of the file and yields in log-time order; it fails on some sound files
and on every damaged one. The patient reader takes MCAP records one by one in file order, checks every CRC, and
yields what lies before the damage; it is the only one that gets anything out of a truncated file.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ki_bags.decompression import check_chunk, check_chunks
from ki_bags.errors import BagError
from ki_bags.ros1 import Ros1File
from ki_bags.types import full_name

MAX_RECORD_BYTES = 1 << 30  # a chunk or message above this is damage, and must not be allocated
MAX_MESSAGE_BYTES = 1 << 28
ROS1 = '.bag'


@dataclass(frozen=True)
class Channel:
    """One topic of one file, its type in full; `definition` is empty where the file carries none that is ros2msg."""

    topic: str
    type: str
    serialization: str
    definition: str = ''
    count: int | None = None


@dataclass(frozen=True)
class Message:
    """One recorded message, still CDR."""

    topic: str
    type: str
    log_ns: int
    data: bytes


@dataclass
class FileReport:
    """What reading a file to its end showed."""

    count: int = 0
    damage: str = ''
    salvaged: bool = False
    oversized: int = 0
    counts: dict[str, int] = field(default_factory=dict)


def channels_of(path: Path) -> list[Channel]:
    """The channels of a file, by its index, or by reading it where that is broken.

    Raises:
        Exception: Whatever the readers meet when not even the channels can be had.
    """
    if path.suffix == ROS1:
        with Ros1File(path) as bag:
            return [Channel(topic, name, 'cdr', text, count) for topic, name, text, count in bag.channels()]
    try:
        with _Quick(path) as quick:
            return quick.channels
    except Exception:
        found: dict[tuple[str, str], Channel] = {}
        for channel in (_mcap_channels if path.suffix == '.mcap' else _sqlite_channels)(path):
            found.setdefault((channel.topic, channel.type), channel)
        return list(found.values())


def messages_of(
    path: Path, wanted: Callable[[str], bool], declared: int | None, report: FileReport
) -> Iterator[Message]:
    """The messages of the wanted topics; never raises for damage, but notes it in `report`.

    Args:
        path: A .mcap, .db3 or .bag file.
        wanted: Which topics to yield.
        declared: The number of messages that the metadata promises for this file, when it says.
        report: Filled while reading; complete once the iterator is exhausted.
    """
    if path.suffix == ROS1:
        yield from _ros1_messages(path, wanted, report)
        return
    try:
        with _Quick(path) as quick:
            trusted = quick.indexed and (declared is None or quick.count == declared)
            if trusted:
                for message in quick.messages(wanted):
                    yield from _counted(message, report)
                return
    except Exception as error:
        if report.count:
            # Log-time order: what lies before the damage has been yielded, what follows would leave a gap.
            report.damage = _say(error)
            report.salvaged = True
            return
    patient = _mcap_messages if path.suffix == '.mcap' else _sqlite_messages
    try:
        for message in patient(path, wanted):
            yield from _counted(message, report)
    except Exception as error:
        report.damage = _say(error)
        report.salvaged = report.count > 0


def cuts_of(path: Path, pieces: int, declared: int | None) -> list[int] | None:
    """Times at which a file falls into pieces of about the same size; None where it is to be read as a whole."""
    if path.suffix not in ('.mcap', '.db3'):
        return None
    try:
        with _Quick(path) as quick:
            if not quick.indexed or (declared is not None and quick.count != declared):
                return None
            times = quick.times
    except Exception:  # whatever a damaged file does: the patient reader says what is wrong with it
        return None
    return sorted({times[place * len(times) // pieces] for place in range(1, pieces)}) if times else []


def messages_between(
    path: Path, wanted: Callable[[str], bool], start_ns: int | None, stop_ns: int | None
) -> Iterator[Message]:
    """The messages of the wanted topics from one time to before another, as `messages_of` gives them of a sound file.

    Raises:
        Exception: Whatever the reader meets.
    """
    with _Quick(path) as quick:
        yield from quick.messages(wanted, start_ns, stop_ns)


def _ros1_messages(path: Path, wanted: Callable[[str], bool], report: FileReport) -> Iterator[Message]:
    try:
        with Ros1File(path) as bag:
            for found in bag.messages(wanted):
                yield from _counted(Message(*found), report)
    except Exception as error:
        report.damage, report.salvaged = _say(error), report.count > 0


def _counted(message: Message, report: FileReport) -> Iterator[Message]:
    if len(message.data) > MAX_MESSAGE_BYTES:
        report.oversized += 1
        return
    report.count += 1
    report.counts[message.topic] = report.counts.get(message.topic, 0) + 1
    yield message


def _say(error: BaseException) -> str:
    text = ' '.join(str(error).split()) or 'no reason given'
    return f'{type(error).__name__}: {text[:200]}'


class _Quick:
    """`rosbags` on one file."""

    def __init__(self, path: Path) -> None:
        from rosbags.rosbag2 import Reader

        self._path = path
        self._reader = Reader(path)

    def __enter__(self) -> _Quick:
        if self._path.suffix == '.mcap':
            check_chunks(self._path)
        self._reader.open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader.is_open:
            self._reader.close()

    @property
    def count(self) -> int:
        return int(self._reader.message_count)

    @property
    def indexed(self) -> bool:
        """Whether every chunk says where its messages are; it need not, and the messages of others are not given."""
        return all(chunk.message_index_offsets for chunk in getattr(self._reader.storage, 'chunks', ()))

    @property
    def channels(self) -> list[Channel]:
        from rosbags.interfaces import MessageDefinitionFormat

        return [
            Channel(
                each.topic,
                full_name(each.msgtype),
                getattr(each.ext, 'serialization_format', 'cdr'),
                each.msgdef.data if each.msgdef.format == MessageDefinitionFormat.MSG else '',
                each.msgcount if self.indexed else each.msgcount or None,
            )
            for each in self._reader.connections
        ]

    @property
    def times(self) -> list[int]:
        """Log times that lie about as densely as the bytes: where the chunks of an MCAP file begin."""
        chunks = getattr(self._reader.storage, 'chunks', None)
        if chunks is not None:
            return sorted(chunk.message_start_time for chunk in chunks)
        first, last = self._reader.start_time, self._reader.end_time
        return [first + (last - first) * place // 1000 for place in range(1000)]

    def messages(
        self, wanted: Callable[[str], bool], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[Message]:
        chosen = [each for each in self._reader.connections if wanted(each.topic)]
        if chosen:
            for connection, log_ns, data in self._reader.messages(chosen, start_ns, stop_ns):
                yield Message(connection.topic, full_name(connection.msgtype), log_ns, data)


def _mcap_records(path: Path) -> Iterator[Any]:
    """Records of an MCAP file in file order, every CRC checked; raises at the first damage."""
    from mcap.records import Chunk
    from mcap.stream_reader import StreamReader, breakup_chunk

    with path.open('rb') as stream:
        reader = StreamReader(stream, emit_chunks=True, validate_crcs=True, record_size_limit=MAX_RECORD_BYTES)
        for record in reader.records:
            if isinstance(record, Chunk):
                data = record.data

                def read(count: int, data: bytes = data) -> bytes:
                    return data[:count]

                check_chunk(record.compression, len(data), record.uncompressed_size, read)
                yield from breakup_chunk(record, validate_crc=True)
            else:
                yield record


def _mcap_channels(path: Path) -> Iterator[Channel]:
    from mcap.records import Channel as Record
    from mcap.records import Schema

    schemas: dict[int, Any] = {}
    seen = 0
    try:
        for record in _mcap_records(path):
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Record):
                seen += 1
                yield _mcap_channel(record, schemas)
    except Exception:
        if not seen:
            raise


def _mcap_channel(record: Any, schemas: dict[int, Any]) -> Channel:
    schema = schemas.get(record.schema_id)
    text = schema.data.decode('utf-8', 'replace') if schema is not None and schema.encoding == 'ros2msg' else ''
    return Channel(record.topic, full_name(schema.name) if schema else '', record.message_encoding, text)


def _mcap_messages(path: Path, wanted: Callable[[str], bool]) -> Iterator[Message]:
    from mcap.records import Channel as Record
    from mcap.records import Message as Entry
    from mcap.records import Schema

    schemas: dict[int, Any] = {}
    channels: dict[int, Channel] = {}
    for record in _mcap_records(path):
        if isinstance(record, Entry):
            channel = channels[record.channel_id]
            if wanted(channel.topic):
                yield Message(channel.topic, channel.type, record.log_time, record.data)
        elif isinstance(record, Schema):
            schemas[record.id] = record
        elif isinstance(record, Record):
            channels[record.id] = _mcap_channel(record, schemas)


def has_wal(path: Path) -> bool:
    """Whether a database has a write-ahead log beside it: rows that its recorder did not live to put into the file."""
    wal = wal_of(path)
    return path.suffix == '.db3' and wal.is_file() and wal.stat().st_size > 0


def copy_with_wal(path: Path, folder: Path) -> tuple[Path, int]:
    """A copy of a database in `folder` into which its write-ahead log is merged; the recording stays untouched.

    Returns:
        The copy, and how many pages of the log were left out: never committed, or damaged.

    Raises:
        BagError: Nothing of the log can be used.
        OSError, sqlite3.Error: The copy cannot be made.
    """
    copy = folder / path.name
    shutil.copyfile(path, copy)
    shutil.copyfile(wal_of(path), wal_of(copy))
    written = _pages_of_wal(wal_of(copy))
    connection = sqlite3.connect(copy)
    try:
        _, merged, _ = connection.execute('PRAGMA wal_checkpoint(PASSIVE)').fetchone()
    finally:
        connection.close()
    if merged <= 0 < written:
        raise BagError(f'none of its {written} pages fits the database')
    return copy, max(written - merged, 0)


def _pages_of_wal(wal: Path) -> int:
    """How many pages a write-ahead log says it holds; pages of an earlier round, under other salts, do not count.

    Source: https://www.sqlite.org/fileformat2.html#walformat
    """
    with wal.open('rb') as stream:
        header = stream.read(32)
        if len(header) < 32:
            return 0
        page_bytes, salts, count = int.from_bytes(header[8:12], 'big'), header[16:24], 0
        while len(frame := stream.read(24)) == 24 and frame[8:16] == salts:
            count += 1
            stream.seek(page_bytes, 1)
        return max(count, 1)


def wal_of(path: Path) -> Path:
    """Where the write-ahead log of a database lies, if it has one."""
    return path.with_name(f'{path.name}-wal')


def _sqlite(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f'{path.resolve().as_uri()}?mode=ro&immutable=1', uri=True)
    # Lets SQLite open a file that is shorter than its header says; nothing can be written here anyway.
    connection.execute('PRAGMA writable_schema=ON')
    return connection


def _sqlite_channels(path: Path) -> Iterator[Channel]:
    connection = _sqlite(path)
    try:
        for topic, name, encoding in connection.execute('SELECT name, type, serialization_format FROM topics'):
            yield Channel(topic, full_name(name), encoding)
    finally:
        connection.close()


def _sqlite_messages(path: Path, wanted: Callable[[str], bool]) -> Iterator[Message]:
    connection = _sqlite(path)
    try:
        topics = {
            number: (topic, full_name(name))
            for number, topic, name in connection.execute('SELECT id, name, type FROM topics')
        }
        # In row order, without the index on time: a damaged page then costs only what follows it.
        rows = connection.execute('SELECT topic_id, timestamp, data FROM messages NOT INDEXED ORDER BY rowid')
        for number, log_ns, data in rows:
            if number not in topics or data is None:
                raise BagError('a row without a topic or without data')
            topic, name = topics[number]
            if wanted(topic):
                yield Message(topic, name, int(log_ns), bytes(data))
    finally:
        connection.close()
