"""Finishes recordings whose writer was killed: what can be read of NAME.partial becomes NAME."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from ki_bags.errors import BagError
from ki_bags.reader import PARTIAL, open_bag
from ki_bags.writer import BagWriter
from ki_common.files import sync_folder

REPAIRED = '.repaired'
QUIET_S = 10.0  # a writer that lives writes more often, about every second


def finish(partial: Path) -> tuple[Path, int]:
    """Writes what can be read of an unfinished recording as a finished one beside it, and removes it.

    A disk that fails meanwhile leaves it as it was; the next call begins again.

    Returns:
        The folder, and how many messages it holds.

    Raises:
        BagError: it is not unfinished, its name is taken, nothing of it can be read, or the disk takes no more.
    """
    path = partial.with_name(partial.name.removesuffix(PARTIAL))
    if path == partial or not partial.is_dir():
        raise BagError(f'{partial} is no unfinished recording; give a folder whose name ends in {PARTIAL}.')
    if path.exists():
        raise BagError(f'{path} exists already; move it away, or {partial} to another name.')
    bag = open_bag(partial)
    offered = {name: found for file in bag.files for name, found in _offered(file).items()}
    between = path.with_name(path.name + REPAIRED)
    for leftover in (between, between.with_name(between.name + PARTIAL)):
        shutil.rmtree(leftover, ignore_errors=True)
    with BagWriter(between, custom=bag.custom | {'repaired': 'the recorder was killed'}) as writer:
        for topic in bag.topics.values():
            digest, qos = offered.get(topic.name, ('', ''))
            writer.add_topic(topic.name, topic.type, topic.definition or None, digest, qos)
        for message in bag.messages():
            writer.write(message.topic, message.log_ns, message.data)
        count = writer.count
    between.replace(path)
    shutil.rmtree(partial)
    sync_folder(path.parent)
    return path, count


def abandoned(folder: Path, prefix: str) -> list[Path]:
    """Unfinished recordings PREFIX_* of a folder that nobody writes any more, by name."""
    found = sorted(folder.glob(f'{prefix}_*{PARTIAL}')) if folder.is_dir() else []
    return [path for path in found if REPAIRED not in path.name and _age_s(path) > QUIET_S]


def _age_s(folder: Path) -> float:
    """Since something was last written below a folder [s]."""
    return time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _offered(file: Path) -> dict[str, tuple[str, str]]:
    """Type hash and QoS of every topic of a file, as far as it can be read."""
    from mcap.records import Channel
    from mcap.stream_reader import StreamReader

    found: dict[str, tuple[str, str]] = {}
    with file.open('rb') as stream, contextlib.suppress(Exception):  # whatever the reader meets at the cut
        record: Any
        for record in StreamReader(stream).records:
            if isinstance(record, Channel):
                extra = record.metadata
                found[record.topic] = extra.get('topic_type_hash', ''), extra.get('offered_qos_profiles', '')
    return found
