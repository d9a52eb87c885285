"""Files that would become gigabytes, or take minutes, are read as far as they may grow, and named."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from ki_bags import message_builders
from ki_bags.bag_metadata import MAX_NODES, add_metadata, read_metadata
from ki_bags.decompression import MAX_CHUNK_BYTES, check_chunk, inflate_file, inflated
from ki_bags.errors import BagError
from ki_bags.reader import open_bag
from ki_bags.writer import BagWriter

NOW = 1_700_000_000_000_000_000


def hidden(data: bytes) -> bytes:
    """Compressed without saying the size, as streaming writers do."""
    made = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return made.compress(data) + made.flush()


def test_zstd_is_inflated_only_as_far_as_it_may_grow() -> None:
    assert inflated(zstandard.compress(b'x' * 1000), 1000) == b'x' * 1000
    with pytest.raises(BagError, match='claims 1001 bytes; at most 1000'):
        inflated(zstandard.compress(b'x' * 1001), 1000)
    with pytest.raises(BagError, match='larger than 1000 bytes'):
        inflated(hidden(bytes(50_000_000)), 1000)
    with pytest.raises(BagError, match='damaged'):
        inflated(zstandard.compress(b'x' * 1000)[:-3] + b'abc', 1000)


def test_a_storage_file_stops_growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ki_bags.decompression.MIN_FILE_BYTES', 4 << 20)
    bomb, plain = tmp_path / 'bag_0.db3.zstd', tmp_path / 'plain.db3'
    bomb.write_bytes(hidden(bytes(64 << 20)))
    assert 'larger than' in inflate_file(bomb, plain)
    assert plain.stat().st_size <= 4 << 20
    bomb.write_bytes(zstandard.compress(b'fine'))
    assert inflate_file(bomb, plain) == ''
    assert plain.read_bytes() == b'fine'


RECORDS = struct.pack('<BQ', 0, 0) * 600_000  # 5 MB of records that hold nothing, some hundred bytes compressed


@pytest.mark.parametrize(
    ('compression', 'data', 'claimed', 'said'),
    [
        ('zstd', zstandard.compress(b'x' * 100), 100, ''),
        ('zstd', hidden(b'x' * 100), 100, ''),
        ('lz4', lz4.frame.compress(b'x' * 100), 100, ''),
        ('', b'x' * 100, 100, ''),
        ('zstd', b'', MAX_CHUNK_BYTES + 1, 'a chunk claims'),
        ('zstd', zstandard.compress(RECORDS), len(RECORDS), 'holds more than 500000 records'),
        ('zstd', hidden(bytes(MAX_CHUNK_BYTES + 1)), 100, 'larger than'),
        ('lz4', lz4.frame.compress(RECORDS), len(RECORDS), 'holds more than 500000 records'),
        ('lz4', lz4.frame.compress(bytes(MAX_CHUNK_BYTES + 1)), 100, 'larger than'),
        ('zstd', b'nothing of the kind', 100, 'damaged'),
        ('', RECORDS, 100, 'holds more than 500000 records'),  # what it claims to hold is a lie
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_chunk_is_refused_before_it_takes_memory_or_minutes(
    compression: str, data: bytes, claimed: int, said: str
) -> None:
    begin = time.monotonic()
    if said:
        with pytest.raises(BagError, match=said):
            check_chunk(compression, len(data), claimed, lambda count: data[:count])
    else:
        check_chunk(compression, len(data), claimed, lambda count: data[:count])
    assert time.monotonic() - begin < 10


def test_a_flood_of_records_ends_a_file_and_is_told(tmp_path: Path) -> None:
    """The chunk of a sound recording, grown by records that no reader wants."""
    with BagWriter(tmp_path / 'bag') as bag:
        message_builders.put(bag, '/words', NOW, message_builders.instruction(NOW, 'lift the cup'))
    [file] = (tmp_path / 'bag').glob('*.mcap')
    sound = file.read_bytes()
    data = zstandard.compress(RECORDS)
    chunk = struct.pack('<QQQII', NOW, NOW, len(RECORDS), 0, 4) + b'zstd' + struct.pack('<Q', len(data)) + data
    header = 8 + 9 + int.from_bytes(sound[9:17], 'little')
    file.write_bytes(sound[:header] + struct.pack('<BQ', 6, len(chunk)) + chunk + sound[header:])
    (tmp_path / 'bag' / 'metadata.yaml').unlink()
    begin = time.monotonic()
    try:
        opened = open_bag(tmp_path / 'bag')
        list(opened.messages())
        told = ' '.join(each.text for each in opened.problems)
    except BagError as error:
        told = str(error)
    assert 'records' in told
    assert time.monotonic() - begin < 20


BOMB = '\n'.join(
    ['a0: &a0 [x, x, x, x, x, x, x, x, x]']
    + [f'a{level}: &a{level} [{", ".join([f"*a{level - 1}"] * 9)}]' for level in range(1, 12)]
)
MERGES = '\n'.join(
    ['m0: &m0 {k0: 1}'] + [f'm{level}: &m{level} {{<<: [*m{level - 1}, *m{level - 1}]}}' for level in range(1, 30)]
)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (BOMB, f'more than {MAX_NODES} values'),
        (MERGES, 'merge key'),
        ('a: &a {b: 1}\nc: {<<: *a}', 'merge key'),
        ('[' * 5000, 'nested more than 64 deep'),
        ('rosbag2_bagfile_information: 3', 'has no mapping'),
        ('- 1', 'cannot be used'),
        ('a: !!python/object/apply:os.system [true]', 'could not determine a constructor'),
    ],
)
def test_metadata_that_would_explode_is_refused_at_once(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / 'metadata.yaml'
    path.write_text(text)
    begin = time.monotonic()
    with pytest.raises(BagError, match=said):
        read_metadata(path)
    assert time.monotonic() - begin < 5
    with pytest.raises(BagError):
        add_metadata(tmp_path, {'task': 'x'})
    assert path.read_text() == text


def test_aliases_that_a_writer_made_are_read(tmp_path: Path) -> None:
    path = tmp_path / 'metadata.yaml'
    path.write_text('rosbag2_bagfile_information:\n  files: &f [a, b]\n  relative_file_paths: *f\n')
    assert read_metadata(path)['relative_file_paths'] == ['a', 'b']
