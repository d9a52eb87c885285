"""Recordings in other forms: ROS 1, compressed as a whole, without metadata, with metadata that names nothing."""

from __future__ import annotations

import bz2
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from ki_bags import message_builders
from ki_bags.decompression import check_ros1_chunk
from ki_bags.errors import BagError
from ki_bags.reader import find_bags, open_bag
from ki_bags.writer import BagWriter
from ki_robot.messages.arrays import stamp_ns

NOW = 1_700_000_000_000_000_000
SPEED = (
    'float64 speed\nstd_msgs/Header header\n'
    + '=' * 80
    + '\nMSG: std_msgs/Header\nuint32 seq\ntime stamp\nstring frame_id\n'
)
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 990\n'


def ros1_bag(path: Path, count: int = 5, compression: str = '') -> Path:
    """Joint states as ROS 1 writes them, and messages of a type of the bag's own."""
    from rosbags.rosbag1 import Writer
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS1_NOETIC)
    store.register(get_types_from_msg(SPEED, 'my_robot/msg/Speed'))
    kinds: dict[str, Any] = store.types
    writer = Writer(path)
    if compression:
        writer.set_compression(getattr(Writer.CompressionFormat, compression))
    with writer as bag:
        joints = bag.add_connection('/joint_states', 'sensor_msgs/msg/JointState', typestore=store)
        speeds = bag.add_connection('/speed', 'my_robot/msg/Speed', typestore=store)
        for number in range(count):
            now_ns = NOW + number * 10**7
            stamp = kinds['builtin_interfaces/msg/Time'](sec=now_ns // 10**9, nanosec=now_ns % 10**9)
            header = kinds['std_msgs/msg/Header'](seq=number, stamp=stamp, frame_id='base')
            nothing = np.zeros(0)
            positions = np.array([0.1 * number, -1.0])
            state = kinds['sensor_msgs/msg/JointState'](header, ['joint1', 'joint2'], positions, nothing, nothing)
            bag.write(joints, now_ns, store.serialize_ros1(state, 'sensor_msgs/msg/JointState'))
            speed = kinds['my_robot/msg/Speed'](speed=float(number), header=header)
            bag.write(speeds, now_ns, store.serialize_ros1(speed, 'my_robot/msg/Speed'))
    return path


@pytest.mark.parametrize('compression', ['', 'LZ4', 'BZ2'])
def test_a_bag_of_ros_1_gives_the_messages_of_ros_2(tmp_path: Path, compression: str) -> None:
    bag = open_bag(ros1_bag(tmp_path / 'run.bag', compression=compression))
    assert {name: (each.type, each.count) for name, each in bag.topics.items()} == {
        '/joint_states': ('sensor_msgs/msg/JointState', 5),
        '/speed': ('my_robot/msg/Speed', 5),
    }
    found = [(message.topic, bag.decode(message)) for message in bag.messages()]
    states = [each for topic, each in found if topic == '/joint_states']
    assert [stamp_ns(each.header) for each in states] == [NOW + number * 10**7 for number in range(5)]
    assert [list(each.position) for each in states] == [[0.1 * number, -1.0] for number in range(5)]
    assert [each.speed for topic, each in found if topic == '/speed'] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found[1][1].header.frame_id == 'base'
    assert not bag.problems


def test_a_bag_of_ros_1_that_was_cut_is_named(tmp_path: Path) -> None:
    path = ros1_bag(tmp_path / 'run.bag')
    path.write_bytes(path.read_bytes()[:-100])
    bag = open_bag(path)
    assert not list(bag.messages())
    assert {each.kind for each in bag.problems} == {'unreadable'}


def test_a_bomb_in_a_chunk_of_ros_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ki_bags.decompression.MAX_CHUNK_BYTES', 1 << 20)
    check_ros1_chunk(bz2.compress(b'fine'))
    with pytest.raises(BagError, match='larger than'):
        check_ros1_chunk(bz2.compress(bytes((1 << 20) + 1)))


def recording(folder: Path) -> Path:
    with BagWriter(folder) as bag:
        for number in range(3):
            value = message_builders.instruction(NOW + number, f'word {number}')
            message_builders.put(bag, '/words', NOW + number, value)
    return folder


@pytest.mark.parametrize('ending', ['.zstd', '.zst'])
@pytest.mark.parametrize('in_folder', [False, True])
def test_a_compressed_file_without_metadata_is_read(tmp_path: Path, ending: str, in_folder: bool) -> None:
    [file] = recording(tmp_path / 'made').glob('*.mcap')
    folder = tmp_path / 'there'
    folder.mkdir()
    (folder / f'run.mcap{ending}').write_bytes(zstandard.compress(file.read_bytes()))
    if in_folder:
        (folder / 'metadata.yaml').write_text('rosbag2_bagfile_information: {relative_file_paths: []}')
    [path] = find_bags(folder)
    assert path == (folder if in_folder else folder / f'run.mcap{ending}')
    bag = open_bag(path)
    assert [bag.decode(message).text for message in bag.messages()] == ['word 0', 'word 1', 'word 2']
    assert not bag.problems


def test_files_under_other_names_than_the_metadata_says_are_read_and_told(tmp_path: Path) -> None:
    folder = recording(tmp_path / 'bag')
    [file] = folder.glob('*.mcap')
    file.rename(folder / 'renamed.mcap')
    bag = open_bag(folder)
    assert len(list(bag.messages())) == 3
    assert [each.kind for each in bag.problems] == ['file_missing']
    assert 'renamed.mcap is read' in next(iter(bag.problems)).text


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('run.bag.active', 'run `rosbag reindex` and rename it to .bag'),
        ('run.bag.gz', 'is compressed by gzip; unpack it'),
        ('run.db3.xz', 'is compressed by xz; unpack it'),
        ('run.mcap.lz4', 'is compressed by lz4; unpack it'),
    ],
)
def test_a_recording_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b'whatever')
    assert find_bags(tmp_path) == [tmp_path / name]
    with pytest.raises(BagError) as caught:
        open_bag(tmp_path / name)
    assert said in str(caught.value)


def test_pointers_of_git_lfs_are_told_in_one_sentence(tmp_path: Path) -> None:
    folder = recording(tmp_path / 'bag')
    [file] = folder.glob('*.mcap')
    file.write_bytes(POINTER)
    shutil.copy(file, tmp_path / 'single.db3')
    for path in (folder, tmp_path / 'single.db3'):
        with pytest.raises(BagError, match='run `git lfs pull`'):
            open_bag(path)
