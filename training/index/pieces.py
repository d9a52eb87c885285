"""One long recording over several processes: pieces of its time are read apart and joined to what one reading gives.

What depends on the messages before (untrue states, frozen cameras, clocks, episodes) is decided after they are joined,
so the result is the same bit for bit. Recordings in which messages themselves need those before them (video, tf), and
damaged ones, are read in one piece.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ki_bags.errors import BagError
from ki_bags.problems import Problems
from ki_bags.reader import Bag, BagPiece, open_bag
from ki_bags.storage import Message
from ki_robot.contract.contract import Contract
from ki_robot.messages.video import PACKET, VIDEO
from training.index.episodes import IndexOptions
from training.index.streams import Collected, Track, gather

PIECE_BYTES = 64 << 20  # of a recording, at the least: a process takes a second to begin
CLUSTER_PIECE_BYTES = 256 << 20  # where nobody knows how many will read


@dataclass(frozen=True)
class PieceJob:
    """A piece to read: which, of the recording of an index job, into which folder."""

    job: dict[str, Any]
    piece: BagPiece
    folder: Path


@dataclass
class ReadPiece:
    """What a piece holds.

    Attributes:
        found: Its rows; offsets into its own files.
        about: What is wrong with the topics of the whole recording.
        problems: What is wrong with its messages.
        counts: Messages by topic.
        edges: By camera; hashes of the first and of the last picture.
        folder: Its files.
    """

    found: Collected
    about: Problems
    problems: Problems
    counts: dict[str, int]
    edges: dict[str, tuple[str, str]]
    folder: Path


def pieces_of(job: dict[str, Any], count: int, folder: Path) -> list[PieceJob]:
    """The pieces of a recording, about `count` of them; none where it is to be read as a whole."""
    try:
        bag = open_bag(job['path'])
    except BagError:
        return []
    contract = Contract.parse(job['contract'])
    needs_past = {topic.type for topic in bag.topics.values()} & {VIDEO, PACKET}
    if needs_past or any(stream.type == 'tf' for stream in contract.state_streams):
        return []
    return [PieceJob(job, piece, folder / str(number)) for number, piece in enumerate(bag.cut(count))]


def read_piece(job: PieceJob) -> ReadPiece:
    """Reads a piece into its folder.

    Raises:
        Exception: Whatever it meets; the recording is then to be read as a whole.
    """
    bag, options = open_bag(job.job['path']), IndexOptions(**job.job['options'])
    about, problems, counts = Problems(), Problems(), dict[str, int]()
    job.folder.mkdir(parents=True, exist_ok=True)

    def messages_of(topics: list[str]) -> Iterator[Message]:
        counts.update(dict.fromkeys(topics, 0))
        for message in bag.messages_of_piece(job.piece, topics):
            counts[message.topic] += 1
            yield message

    found = gather(
        bag,
        Contract.parse(job.job['contract']),
        job.folder,
        problems,
        about,
        dict(options.remap),
        options.store,
        options.trust_log_time,
        messages_of,
    )
    edges = {
        name: (hashlib.sha256(watch.first.data).hexdigest(), hashlib.sha256(watch.last.data).hexdigest())
        for name, watch in found.watches.items()
        if watch.first is not None and watch.last is not None
    }
    found.watches.clear()
    return ReadPiece(found, about, problems, counts, edges, job.folder)


def joined(bag: Bag, pieces: Sequence[ReadPiece], folder: Path, problems: Problems) -> Collected:
    """All pieces as `training.index.streams.gather` would have read them in one; their files go into `folder`."""
    first = pieces[0].found
    whole = Collected(state_columns=first.state_columns, missing_outputs=first.missing_outputs)
    problems.extend(pieces[0].about)
    counts: dict[str, int] = {}
    last: dict[str, str] = {}
    with_cameras = {name: (folder / f'{name}.images').open('wb') for name in first.cameras}
    try:
        for piece in pieces:
            for name, file in with_cameras.items():
                _add_pictures(whole, piece, name, file, last)
            _add_rows(whole, piece.found)
            problems.extend(piece.problems)
            for topic, count in piece.counts.items():
                counts[topic] = counts.get(topic, 0) + count
            shutil.rmtree(piece.folder)
    finally:
        for file in with_cameras.values():
            file.close()
    bag.compare(counts)
    problems.extend(bag.problems)
    return whole


def _add_pictures(whole: Collected, piece: ReadPiece, name: str, file: Any, last: dict[str, str]) -> None:
    base, track = file.tell(), piece.found.cameras[name]
    with (piece.folder / f'{name}.images').open('rb') as source:
        shutil.copyfileobj(source, file, 1 << 20)
    if not len(track):
        return
    begins, ends = piece.edges[name]
    track.rows = [(offset + base, length, repeats) for offset, length, repeats in track.rows]
    if last.get(name) == begins:
        track.rows[0] = (*track.rows[0][:2], 1)
    last[name] = ends
    whole.cameras.setdefault(name, Track()).extend(track, whole.messages)


def _add_rows(whole: Collected, found: Collected) -> None:
    for name in found.cameras:
        whole.cameras.setdefault(name, Track())
    for tracks, others in ((whole.states, found.states), (whole.commands, found.commands)):
        for name, track in others.items():
            tracks.setdefault(name, Track()).extend(track, whole.messages)
    for name in ('markers', 'instructions', 'subtasks', 'drivers'):
        getattr(whole, name).extend(getattr(found, name), whole.messages)
    for name, others_said in found.other_joints.items():
        whole.other_joints.setdefault(name, []).extend(others_said)
    whole.messages += found.messages
