"""Compressed data, inflated only as far as it may grow: a few kilobytes can claim, or become, gigabytes.

Source of the layout: https://mcap.dev/spec
"""

from __future__ import annotations

import bz2
import contextlib
import importlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ki_bags.errors import BagError

MAX_CHUNK_BYTES = 1 << 28  # of one MCAP chunk, inflated; writers make them of about a megabyte
MAX_RECORDS = 500_000  # in one chunk
MAX_GROWTH = 200  # of a compressed storage file
MIN_FILE_BYTES = 1 << 28  # that a compressed storage file may always become
KEEP_FREE_BYTES = 1 << 30  # on the disk of the temporary copy
_PIECE = 1 << 20
_RECORD_HEAD = 9  # an opcode and a length
_DENSE = MAX_RECORDS * _RECORD_HEAD  # a chunk below this cannot hold more
_MAGIC_BYTES, _CHUNK, _CHUNK_FIELDS = 8, 6, 32  # of MCAP; the fields up to the name of the compression
_ZSTD_HEAD = 18  # bytes of the longest frame header
_LZ4_MAGIC = b'\x04\x22\x4d\x18'
_LZ4_GROWTH = 255  # bytes that one byte can become


def inflated(data: bytes, limit: int) -> bytes:
    """What zstd data holds.

    Raises:
        BagError: More than `limit` bytes, or damaged.
    """
    import zstandard

    try:
        claimed = zstandard.frame_content_size(data)
        if claimed > limit:
            raise BagError(f'compressed data claims {claimed} bytes; at most {limit} are read')
        # A frame may hide its size; only what was asked for is inflated.
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as stream:
            found = stream.read(limit + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise BagError(f'compressed data is damaged ({error})') from error
    if len(found) > limit:
        raise BagError(f'compressed data is larger than {limit} bytes; it is not read')
    return bytes(found)


def inflate_file(file: Path, target: Path) -> str:
    """Inflates a storage file that zstd compressed as a whole; returns why it ends early, or nothing.

    Raises:
        OSError: What the disk refuses.
    """
    import zstandard

    limit = max(MAX_GROWTH * file.stat().st_size, MIN_FILE_BYTES)
    limit = min(limit, max(shutil.disk_usage(target.parent).free - KEEP_FREE_BYTES, 0))
    written = 0
    try:
        with contextlib.ExitStack() as files:
            source, out = files.enter_context(file.open('rb')), files.enter_context(target.open('wb'))
            stream = files.enter_context(zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True))
            while piece := stream.read(_PIECE):
                if written + len(piece) > limit:
                    return f'it is larger than {limit} bytes, inflated'
                out.write(piece)
                written += len(piece)
    except zstandard.ZstdError as error:
        return str(error)
    return ''


def check_chunks(path: Path) -> None:
    """Goes from record to record of an MCAP file, damaged or not, and looks at every chunk before a reader does.

    Raises:
        BagError: Of a chunk that must not be inflated.
    """
    end = path.stat().st_size
    with path.open('rb') as stream:
        at = _MAGIC_BYTES
        while at + _RECORD_HEAD <= end:
            stream.seek(at)
            head = stream.read(_RECORD_HEAD + _CHUNK_FIELDS)
            length = int.from_bytes(head[1:_RECORD_HEAD], 'little')
            at += _RECORD_HEAD + length
            if at > end:
                return  # cut off, or no record at all: the readers say so
            if head[0] == _CHUNK and len(head) == _RECORD_HEAD + _CHUNK_FIELDS:
                fields = head[_RECORD_HEAD:]
                claimed, name_bytes = (int.from_bytes(fields[i:j], 'little') for i, j in ((16, 24), (28, 32)))
                compression = stream.read(min(name_bytes, 16)).decode('ascii', 'replace')
                begin = stream.tell() + 8
                size = int.from_bytes(stream.read(8), 'little')

                def read(count: int, begin: int = begin) -> bytes:
                    stream.seek(begin)
                    return stream.read(count)

                check_chunk(compression, min(size, end), claimed, read)


def check_ros1_chunk(data: bytes) -> None:
    """Refuses a chunk of a .bag that would inflate to more than it may.

    Raises:
        BagError: Says why.
    """
    if data[:3] == b'BZh':
        try:
            grown = len(bz2.BZ2Decompressor().decompress(data, max_length=MAX_CHUNK_BYTES + 1))
        except OSError as error:
            raise BagError(f'a chunk is damaged ({error})') from error
        if grown > MAX_CHUNK_BYTES:
            raise BagError(f'a chunk is larger than {MAX_CHUNK_BYTES} bytes, inflated')
    elif data[:4] == _LZ4_MAGIC and _LZ4_GROWTH * len(data) > MAX_CHUNK_BYTES:
        _lz4(data)


def check_chunk(compression: str, size: int, claimed: int, read: Callable[[int], bytes]) -> None:
    """Refuses an MCAP chunk that would inflate to more than it may, or is a flood of empty records.

    Args:
        compression: As the chunk says.
        size: Of its data as it lies in the file.
        claimed: Its size when it is inflated, as the chunk says.
        read: Gives so many bytes from the start of its data.

    Raises:
        BagError: Says why.
    """
    if claimed > MAX_CHUNK_BYTES:
        raise BagError(f'a chunk claims {claimed} bytes; at most {MAX_CHUNK_BYTES} are read')
    # One that grows that much may hold next to nothing, very often.
    is_dense = claimed > _DENSE and claimed > MAX_GROWTH * size
    if compression == 'zstd':
        if is_dense or _zstd_size(read(min(size, _ZSTD_HEAD))) != claimed:
            _count_records(inflated(read(size), MAX_CHUNK_BYTES))
    elif compression == 'lz4':
        if is_dense or _LZ4_GROWTH * size > MAX_CHUNK_BYTES:
            _count_records(_lz4(read(size)))
    elif max(claimed, size) > _DENSE:  # a chunk may lie about what it holds
        _count_records(read(size))


def _zstd_size(head: bytes) -> int:
    """What the first frame says that it inflates to; -1 where it does not say."""
    import zstandard

    try:
        return int(zstandard.frame_content_size(head))
    except zstandard.ZstdError as error:
        raise BagError(f'a chunk is damaged ({error})') from error


def _lz4(data: bytes) -> bytes:
    decompressor: Any = importlib.import_module('lz4.frame').LZ4FrameDecompressor()
    try:
        found = bytes(decompressor.decompress(data, max_length=MAX_CHUNK_BYTES + 1))
    except RuntimeError as error:
        raise BagError(f'a chunk is damaged ({error})') from error
    if len(found) > MAX_CHUNK_BYTES:
        raise BagError(f'a chunk is larger than {MAX_CHUNK_BYTES} bytes, inflated')
    return found


def _count_records(plain: bytes) -> None:
    at, count = 0, 0
    while at + _RECORD_HEAD <= len(plain):
        count += 1
        if count > MAX_RECORDS:
            raise BagError(f'a chunk of {len(plain)} bytes holds more than {MAX_RECORDS} records')
        at += _RECORD_HEAD + int.from_bytes(plain[at + 1 : at + _RECORD_HEAD], 'little')
