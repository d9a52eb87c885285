"""A recording that is read in pieces gives the index that one reading gives, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_bags.reader import open_bag
from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract
from training.index.episodes import IndexOptions
from training.index.index import Index, index_bags
from training.index.pieces import pieces_of

START_NS = 1_700_000_000_000_000_000
LEAST = 20_000  # bytes of a piece, in these small recordings


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ki_bags.writer.CHUNK_BYTES', 4096)
    monkeypatch.setattr('training.index.index.PIECE_BYTES', LEAST)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are read in this process, which is quicker; another test has processes."""

    def run_all(work: Callable[[Any], Any], jobs: Any, *_: Any, **__: Any) -> Any:
        return enumerate(map(work, jobs))

    monkeypatch.setattr('training.index.index.run_all', run_all)


def odd_recording(path: Path, scribe: Any, jpeg: Callable[[int], Any], max_file_bytes: int | None = None) -> Path:
    """Four seconds: a camera freezes while the robot moves, states that cannot be, refused messages, two episodes."""
    with BagWriter(path, max_file_bytes=max_file_bytes) as bag:
        writer = scribe(bag)
        writer.marker(START_NS, 0, 0)
        for tick in range(400):
            time_ns = START_NS + tick * 10_000_000
            seconds = tick / 100
            joints = np.array([np.sin(seconds), np.cos(seconds / 2), 0.04])
            if tick in (150, 151):
                joints[0] = 2.9  # nobody gets there and back in a hundredth of a second
            writer.joints(time_ns if tick != 90 else 0, joints)
            writer.odom(time_ns, 0.1)
            if tick % 3 == 0:
                frozen = 120 <= tick < 290
                writer.image('scene', time_ns, jpeg(7 if frozen else tick))
                writer.image('wrist', time_ns, jpeg(tick) if tick % 60 else np.zeros(9, np.uint8))
            if tick % 5 == 0:
                writer.arm(time_ns, [(0.0, joints[0], joints[1])])
                writer.gripper(time_ns, 0.04)
                writer.base(time_ns, 0.1)
            if tick in (200, 330):
                writer.say('/instruction', time_ns, f'task {tick}')
            if tick == 210:
                writer.marker(time_ns, 1, 0)
                writer.marker(time_ns + 1, 0, 1, 'the second task')
        writer.marker(time_ns, 1, 1)
    return path


def contents(index: Index) -> dict[str, bytes]:
    [entry] = index.entries
    return {each.name: each.read_bytes() for each in sorted(entry.folder.iterdir())}


def damage(path: Path) -> None:
    [file] = path.glob('*.mcap')
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


def cut_off(path: Path) -> None:
    [file] = path.glob('*.mcap')
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def promise_more(path: Path) -> None:
    text = (path / 'metadata.yaml').read_text()
    (path / 'metadata.yaml').write_text(text.replace('message_count: 400', 'message_count: 401', 1))


def as_sqlite(path: Path) -> None:
    from rosbags.rosbag2 import Reader, StoragePlugin, Writer

    copy = path.with_name('copy')
    with Reader(path) as reader, Writer(copy, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        made = {
            each.id: writer.add_connection(each.topic, each.msgtype, msgdef=each.msgdef.data, rihs01=each.digest)
            for each in reader.connections
        }
        for connection, log_ns, data in reader.messages():
            writer.write(made[connection.id], log_ns, data)
    shutil.rmtree(path)
    copy.rename(path)


@pytest.mark.usefixtures('here')
@pytest.mark.parametrize(
    ('change', 'options', 'in_pieces'),
    [
        (None, {}, True),
        (None, {'store': 'model'}, True),
        (None, {'trust_log_time': ('joint_states',)}, True),
        (as_sqlite, {}, True),
        (promise_more, {}, True),
        (damage, {}, True),  # a piece fails, so it is read as a whole
        (cut_off, {}, False),
    ],
    ids=['odd', 'model size', 'dated by arrival', 'sqlite', 'wrong count', 'damaged', 'cut off'],
)
def test_pieces_give_what_one_reading_gives(
    toy: Contract,
    tmp_path: Path,
    scribe: Any,
    pictures: Callable[[int], Any],
    change: Callable[[Path], None] | None,
    options: dict[str, Any],
    in_pieces: bool,
) -> None:
    path = odd_recording(tmp_path / 'bag', scribe, pictures)
    if change is not None:
        change(path)
    wanted = IndexOptions(**options)
    job = {'path': str(path), 'contract': toy.to_dict(), 'options': wanted.to_dict(), 'out': ''}
    assert (len(pieces_of(job, 6, tmp_path)) > 3) == in_pieces
    one = index_bags(path, toy, tmp_path / 'one', wanted)
    many = index_bags(path, toy, tmp_path / 'many', wanted, workers=2)
    assert one.episodes or change is cut_off
    assert contents(many) == contents(one)
    assert not list((tmp_path / 'many' / 'bags').glob('.*')), 'pieces are left'
    if change is None and not options:
        kinds = one.problems.kinds()
        assert {'implausible', 'frozen', 'zero_stamp', 'unknown_encoding'} <= kinds, kinds


@pytest.mark.usefixtures('here')
def test_files_of_a_split_recording_are_pieces_too(
    toy: Contract, tmp_path: Path, scribe: Any, pictures: Callable[[int], Any]
) -> None:
    path = odd_recording(tmp_path / 'bag', scribe, pictures, max_file_bytes=30_000)
    bag = open_bag(path)
    assert len({piece.file for piece in bag.cut(8)}) == len(bag.files) > 2
    one = index_bags(path, toy, tmp_path / 'one')
    assert contents(index_bags(path, toy, tmp_path / 'many', workers=2)) == contents(one)


def test_processes_share_a_recording(
    toy: Contract, tmp_path: Path, scribe: Any, pictures: Callable[[int], Any]
) -> None:
    path = odd_recording(tmp_path / 'bag', scribe, pictures)
    one = index_bags(path, toy, tmp_path / 'one')
    assert contents(index_bags(path, toy, tmp_path / 'many', workers=2)) == contents(one)


@pytest.mark.slow
def test_a_cluster_shares_a_recording(
    toy: Contract, tmp_path: Path, scribe: Any, pictures: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip('ray')
    monkeypatch.setattr('training.index.index.CLUSTER_PIECE_BYTES', LEAST)
    path = odd_recording(tmp_path / 'bag', scribe, pictures)
    one = index_bags(path, toy, tmp_path / 'one')
    ray.init(address='local', num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        many = index_bags(path, toy, tmp_path / 'many', ray='local')
    finally:
        ray.shutdown()
    assert contents(many) == contents(one)
