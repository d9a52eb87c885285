"""A recording as a whole: a rosbag2 folder with all its files, or one bare .mcap, .db3 or .bag file."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ki_bags.bag_metadata import read_metadata
from ki_bags.decompression import inflate_file, inflated
from ki_bags.errors import BagError
from ki_bags.problems import Problems
from ki_bags.storage import (
    MAX_MESSAGE_BYTES,
    ROS1,
    Channel,
    FileReport,
    Message,
    channels_of,
    copy_with_wal,
    cuts_of,
    has_wal,
    messages_between,
    messages_of,
)
from ki_bags.types import Decoder, full_name
from ki_common.files import is_lfs_pointer

SUFFIXES = ('.mcap', '.db3', ROS1)
ZSTD = ('.zstd', '.zst')  # after one of these: compressed as a whole
# What a recorder or a person makes of a recording, and is not read; with what to do.
UNREAD = {
    '.active': 'was not closed; run `rosbag reindex` and rename it to .bag',
    '.gz': 'is compressed by gzip; unpack it',
    '.xz': 'is compressed by xz; unpack it',
    '.bz2': 'is compressed by bzip2; unpack it',
    '.lz4': 'is compressed by lz4; unpack it',
}
PARTIAL = '.partial'


@dataclass(frozen=True)
class BagTopic:
    """One topic of a recording; `count` is what the metadata promises, None when nobody says."""

    name: str
    type: str
    count: int | None
    definition: str = ''


@dataclass(frozen=True)
class BagPiece:
    """Messages of one file that were written in a stretch of time; None: from its start, to its end."""

    file: int
    start_ns: int | None
    stop_ns: int | None


@dataclass
class Bag:
    """An opened recording; nothing of its messages is in memory.

    Attributes:
        path: The folder or file.
        files: The storage files in order.
        topics: By name.
        declared: How many messages the metadata promises; None when nobody says.
        custom: The custom data of the metadata.
        problems: What is wrong with it, as far as known: complete after `messages` has run to its end.
    """

    path: Path
    files: tuple[Path, ...]
    topics: dict[str, BagTopic]
    declared: int | None
    custom: dict[str, str]
    compression: str
    declared_per_file: dict[str, int]
    problems: Problems = field(default_factory=Problems)
    decoder: Decoder = field(default_factory=Decoder)

    def messages(self, topics: Collection[str] | None = None) -> Iterator[Message]:
        """The messages of `topics` (default: all), file by file, in log-time order where the file's index is sound.

        Damage ends a file, never the iteration: it is added to `problems`, as are counts that differ from the metadata.
        """
        # What lies in each file is counted for all topics only when all are read.
        wanted = frozenset(self.topics if topics is None else topics).__contains__
        counts: dict[str, int] = {}
        for file in self.files:
            report = FileReport()
            with _plain_file(file, self.compression, self.problems) as plain:
                if plain is None:
                    continue
                declared = self.declared_per_file.get(file.name)
                for message in messages_of(plain, wanted, declared, report):
                    if self.compression != 'message':
                        yield message
                    elif (inflated := _inflate(message, report)) is not None:
                        yield inflated
            for topic, count in report.counts.items():
                counts[topic] = counts.get(topic, 0) + count
            self._note(file, report)
        self.compare({name: counts.get(name, 0) for name in self.topics if wanted(name)})

    def cut(self, count: int) -> list[BagPiece]:
        """Pieces that can be read each for itself and hold all messages in order; none where it has to be one."""
        if self.compression == 'file' or any(file.suffix in ZSTD or has_wal(file) for file in self.files):
            return []
        total = sum(file.stat().st_size for file in self.files)
        pieces: list[BagPiece] = []
        for number, file in enumerate(self.files):
            share = max(1, round(count * file.stat().st_size / max(total, 1)))
            times = cuts_of(file, share, self.declared_per_file.get(file.name))
            if times is None:
                return []
            pieces += [BagPiece(number, *bounds) for bounds in itertools.pairwise((None, *times, None))]
        return pieces if len(pieces) > 1 else []

    def messages_of_piece(self, piece: BagPiece, topics: Collection[str]) -> Iterator[Message]:
        """The messages of a piece.

        Raises:
            Exception: Anything odd, which `messages` would have noted.
        """
        wanted, report = frozenset(topics).__contains__, FileReport()
        for message in messages_between(self.files[piece.file], wanted, piece.start_ns, piece.stop_ns):
            plain = message if self.compression != 'message' else _inflate(message, report)
            if plain is None or len(plain.data) > MAX_MESSAGE_BYTES:
                raise BagError(f'{self.path}: a message of {message.topic} is damaged or too large.')
            yield plain

    def decode(self, message: Message) -> Any:
        """The ROS message; damaged CDR raises whatever the decoder meets, so catch Exception around it."""
        return self.decoder.decode(message.type, message.data)

    def _note(self, file: Path, report: FileReport) -> None:
        if report.damage:
            kind = 'damaged' if report.salvaged else 'unreadable'
            text = f'{file.name} is damaged: {report.count} messages were read before {report.damage}'
            self.problems.add(self.path, file.name, kind, text)
        if report.oversized:
            self.problems.add(self.path, file.name, 'oversized', 'a message is too large to be one', report.oversized)

    def compare(self, counts: dict[str, int]) -> None:
        """Adds a problem for each topic of which not as many messages were read as the metadata promises."""
        for topic in self.topics.values():
            if topic.count is None or topic.name not in counts:
                continue
            read = counts[topic.name]
            if read != topic.count:
                text = f'the metadata promises {topic.count} messages of {topic.name}, {read} could be read'
                self.problems.add(self.path, topic.name, 'count', text, abs(topic.count - read))


def open_bag(path: str | Path) -> Bag:
    """Opens a rosbag2 folder (whatever its storage, split or compressed), or a bare .mcap, .db3 or .bag (ROS 1).

    Raises:
        BagError: Nothing there, no storage file, or no topic in CDR.
    """
    path = Path(path)
    if not path.exists():
        raise BagError(f'{path} does not exist; name a rosbag2 folder, a .mcap, .db3 or .bag file.')
    problems = Problems()
    meta = _metadata(path, problems) if path.is_dir() else {}
    files = _files(path, meta, problems)
    declared, per_topic = _declared(meta)
    foreign = _promised_foreign(meta)
    decoder = Decoder()
    topics: dict[str, BagTopic] = {}
    file_compression = str(meta.get('compression_mode') or '').lower()
    compression = '' if file_compression in ('', 'none', 'storage') else file_compression
    for file in files:
        counts: dict[str, int | None] = {}  # of this file: a recorder may open a channel for every publisher of a topic
        for channel in _channels(file, path, compression, problems):
            if channel.serialization not in ('', 'cdr'):
                foreign[channel.topic] = channel.serialization
                continue
            if channel.definition:
                decoder.learn(channel.type, channel.definition)
            before = counts.get(channel.topic, 0)
            whole = None if before is None or channel.count is None else before + channel.count
            counts[channel.topic] = whole
            count = per_topic.get(channel.topic) if per_topic else whole
            topics[channel.topic] = BagTopic(channel.topic, channel.type, count, channel.definition)
    for name, type_name in _promised_topics(meta).items():
        topics.setdefault(name, BagTopic(name, type_name, per_topic.get(name)))
    topics = _without_foreign(path, topics, foreign, problems)
    if len(files) > 1 and not per_topic:
        topics = {name: BagTopic(name, each.type, None, each.definition) for name, each in topics.items()}
    custom = meta.get('custom_data')
    return Bag(
        path,
        tuple(files),
        topics,
        declared,
        {str(key): str(value) for key, value in custom.items()} if isinstance(custom, dict) else {},
        compression,
        _per_file(meta, files, declared),
        problems,
        decoder,
    )


def find_bags(folder: str | Path) -> list[Path]:
    """Every recording at or below a folder, sorted: rosbag2 folders, and storage files that belong to none.

    Raises:
        BagError: The folder does not exist.
    """
    folder = Path(folder)
    if not folder.exists():
        raise BagError(f'{folder} does not exist; name a recording or a folder of recordings.')
    if folder.is_file() or _is_bag(folder):
        return [folder]
    found = {path.parent for path in folder.rglob('metadata.yaml') if _is_bag(path.parent)}
    for path in folder.rglob('*'):
        if _is_storage(path, named=True) and path.is_file() and path.parent not in found:
            # A recorder that was killed leaves a folder without metadata: one recording, not one a file.
            found.add(path.parent if path.parent.name.endswith(PARTIAL) else path)
    return sorted(found)


def _is_bag(folder: Path) -> bool:
    if (folder / 'metadata.yaml').is_file():
        return True
    return folder.name.endswith(PARTIAL) and any(_is_storage(each) for each in folder.iterdir())


def _is_storage(path: Path, named: bool = False) -> bool:
    """Whether a file is a recording, by its name; where `named`, also one that can only be named and not read."""
    if path.suffix in SUFFIXES:
        return True
    return (path.suffix in ZSTD or (named and path.suffix in UNREAD)) and Path(path.stem).suffix in SUFFIXES


def _metadata(folder: Path, problems: Problems) -> dict[str, Any]:
    """The content of metadata.yaml; anything wrong with it is a problem, and the files are then read without it."""
    path = folder / 'metadata.yaml'
    if not path.is_file():
        problems.add(folder, 'metadata.yaml', 'no_metadata', 'metadata.yaml is missing: the recording was not finished')
        return {}
    try:
        return read_metadata(path)
    except BagError as error:
        problems.add(folder, 'metadata.yaml', 'bad_metadata', str(error))
        return {}


def _files(path: Path, meta: dict[str, Any], problems: Problems) -> list[Path]:
    if path.is_file():
        if not _is_storage(path):
            why = UNREAD.get(path.suffix) if _is_storage(path, named=True) else None
            raise BagError(f'{path} {why or "is no recording; name a rosbag2 folder, a .mcap, .db3 or .bag file"}.')
        if is_lfs_pointer(path):
            raise BagError(f'{path} is a pointer of git-lfs and no data; run `git lfs pull` beside it.')
        return [path]
    named, there = meta.get('relative_file_paths'), sorted(each for each in path.iterdir() if _is_storage(each))
    # Old writers put the folder in front, and a path must not lead out of the recording.
    files = [path / Path(str(each)).name for each in named] if isinstance(named, list) else []
    if there and not any(each.is_file() for each in files):
        if files:
            text = f'no file that metadata.yaml names is there; {", ".join(each.name for each in there)} is read'
            problems.add(path, 'metadata.yaml', 'file_missing', text)
        files = there
    for missing in [each for each in files if not each.is_file()]:
        problems.add(path, missing.name, 'file_missing', f'{missing.name} is named by metadata.yaml and is not there')
    files = [each for each in files if each.is_file()]
    if files and all(is_lfs_pointer(each) for each in files):
        raise BagError(f'{path} holds pointers of git-lfs and no data; run `git lfs pull` in it.')
    if not files:
        raise BagError(f'{path} holds no storage file (.mcap, .db3 or .bag); copy the whole folder of the recording.')
    return files


def _declared(meta: dict[str, Any]) -> tuple[int | None, dict[str, int]]:
    per_topic: dict[str, int] = {}
    for each in meta.get('topics_with_message_count') or ():
        try:
            name = str(each['topic_metadata']['name'])
            per_topic[name] = per_topic.get(name, 0) + int(each['message_count'])
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    count = meta.get('message_count')
    return count if isinstance(count, int) else None, per_topic


def _promised_topics(meta: dict[str, Any]) -> dict[str, str]:
    return {str(about['name']): full_name(str(about.get('type', ''))) for about in _promised(meta)}


def _promised_foreign(meta: dict[str, Any]) -> dict[str, str]:
    """Topics that the metadata says are not CDR, with what they are."""
    found = {str(about['name']): str(about.get('serialization_format') or 'cdr') for about in _promised(meta)}
    return {name: encoding for name, encoding in found.items() if encoding != 'cdr'}


def _promised(meta: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for each in meta.get('topics_with_message_count') or ():
        about = each.get('topic_metadata') if isinstance(each, dict) else None
        if isinstance(about, dict) and 'name' in about:
            yield about


def _per_file(meta: dict[str, Any], files: list[Path], declared: int | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in meta.get('files') or ():
        if isinstance(each, dict) and isinstance(each.get('message_count'), int):
            found[Path(str(each.get('path'))).name] = each['message_count']
    if not found and len(files) == 1 and declared is not None:
        found[files[0].name] = declared
    return found


def _without_foreign(
    path: Path, topics: dict[str, BagTopic], foreign: dict[str, str], problems: Problems
) -> dict[str, BagTopic]:
    """The topics that are CDR; each of the others is a problem, and a recording of nothing else is refused."""
    for topic, encoding in sorted(foreign.items()):
        text = f'topic {topic} is stored as {encoding!r}; only CDR can be read'
        if topics.keys() <= foreign.keys():
            raise BagError(
                f'{path}: {text}. Record it with an rmw that speaks CDR, or convert it with `ros2 bag convert`.'
            )
        problems.add(path, topic, 'foreign_encoding', f'{text}, so it is left out')
    return {name: topic for name, topic in topics.items() if name not in foreign}


def _channels(file: Path, path: Path, compression: str, problems: Problems) -> list[Channel]:
    found: list[Channel] = []
    with _plain_file(file, compression, problems) as plain:
        if plain is None:
            return []
        try:
            found = channels_of(plain)
        except Exception as error:
            text = ' '.join(str(error).split())[:200]
            problems.add(path, file.name, 'unreadable', f'{file.name} cannot be opened: {type(error).__name__}: {text}')
    return found


@contextmanager
def _plain_file(file: Path, compression: str, problems: Problems) -> Iterator[Path | None]:
    """The file itself, or a temporary copy: with its write-ahead log, or uncompressed; None if that fails."""
    if file.suffix not in ZSTD and compression != 'file':
        if not has_wal(file):
            yield file
            return
        with tempfile.TemporaryDirectory() as folder:
            yield _with_wal(file, Path(folder), problems)
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / (file.stem if file.suffix in ZSTD else file.name)
        try:
            why = inflate_file(file, plain)
        except OSError as error:
            why = str(error)
        if why:
            problems.add(file.parent, file.name, 'damaged', f'{file.name} cannot be decompressed to its end: {why}')
        yield plain if plain.is_file() and plain.stat().st_size else None


def _with_wal(file: Path, folder: Path, problems: Problems) -> Path:
    """A copy of a database with what its write-ahead log holds; the file itself, and a problem, where that fails."""
    wal = f'{file.name}-wal, which holds the newest messages of {file.name},'
    try:
        copy, lost = copy_with_wal(file, folder)
    except (BagError, OSError, sqlite3.Error) as error:
        problems.add(file.parent, file.name, 'wal_unread', f'{wal} cannot be read: {error}')
        return file
    if lost:
        problems.add(file.parent, file.name, 'wal_cut', f'{wal} ends in {lost} pages that are damaged or unfinished')
    return copy


def _inflate(message: Message, report: FileReport) -> Message | None:
    """The message without the compression of every single one; None, noted in the report, if that fails."""
    try:
        return Message(message.topic, message.type, message.log_ns, inflated(message.data, MAX_MESSAGE_BYTES))
    except BagError as error:
        report.damage, report.salvaged = f'{message.topic}: {error}', True
        return None
