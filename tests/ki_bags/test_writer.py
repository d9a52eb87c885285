"""What is written is what any rosbag2 reader expects, and nothing unfinished looks finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from ki_bags import message_builders
from ki_bags.errors import BagError
from ki_bags.reader import open_bag
from ki_bags.types import definition, deserialise, serialise
from ki_bags.writer import BagWriter

MakeBag = Callable[..., Path]


@pytest.mark.parametrize('compression', ['none', 'lz4', 'zstd'])
def test_messages_come_back_as_they_went(make_bag: MakeBag, compression: str) -> None:
    bag = open_bag(make_bag(count=300, compression=compression))
    found = list(bag.messages())
    assert [each.log_ns for each in found] == [1_000_000_000 + index * 10_000_000 for index in range(300)]
    assert [bag.decode(each).data[:4] for each in found] == [f'{index:04d}' for index in range(300)]
    assert len(bag.problems) == 0


def test_another_reader_agrees_on_every_message(make_bag: MakeBag) -> None:
    from rosbags.highlevel import AnyReader

    with AnyReader([make_bag(count=50)]) as reader:
        assert reader.message_count == 50
        found = [reader.deserialize(data, connection.msgtype).data[:4] for connection, _, data in reader.messages()]
    assert found == [f'{index:04d}' for index in range(50)]


def test_every_byte_of_the_file_is_under_a_checksum(make_bag: MakeBag) -> None:
    from mcap.records import Chunk, DataEnd
    from mcap.stream_reader import StreamReader

    [file] = make_bag(count=50).glob('*.mcap')
    with file.open('rb') as stream:
        records = list(StreamReader(stream, emit_chunks=True, validate_crcs=True).records)
    chunks = [each for each in records if isinstance(each, Chunk)]
    assert chunks
    assert all(each.uncompressed_crc for each in chunks)
    assert all(each.data_section_crc for each in records if isinstance(each, DataEnd))


def test_own_messages_survive_with_their_definition(tmp_path: Path) -> None:
    name = 'ki_msgs/msg/EpisodeMarker'
    marker = message_builders.marker(7 * 10**9 + 9, 1, 3, 'lift', 1)
    with BagWriter(tmp_path / 'bag', custom={'task': 'lift'}) as writer:
        writer.add_topic('/episode', name)
        writer.write('/episode', 5, serialise(marker, name))
    bag = open_bag(tmp_path / 'bag')
    [found] = bag.messages()
    assert bag.decode(found) == marker == deserialise(found.data, name)
    assert bag.custom == {'task': 'lift'}
    assert 'PHASE_END' in definition(name)[0]
    assert bag.topics['/episode'].definition == definition(name)[0]


def test_joint_states_keep_every_bit(tmp_path: Path) -> None:
    name = 'sensor_msgs/msg/JointState'
    values = np.random.default_rng(0).normal(size=14)
    state = message_builders.joint_state(10**9 + 2, [f'j{index}' for index in range(14)], values)
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('joint_states', name)
        writer.write('joint_states', 5, serialise(state, name))
    bag = open_bag(tmp_path / 'bag')
    [found] = bag.messages()
    np.testing.assert_array_equal(bag.decode(found).position, values)


def test_long_recordings_are_split_and_counted_per_file(make_bag: MakeBag) -> None:
    folder = make_bag(count=3000, max_file_bytes=1 << 20)
    info = yaml.safe_load((folder / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    assert len(info['relative_file_paths']) == len(info['files']) > 2
    assert sum(each['message_count'] for each in info['files']) == info['message_count'] == 3000
    bag = open_bag(folder)
    assert sum(1 for _ in bag.messages()) == 3000
    assert len(bag.problems) == 0


def test_an_interrupted_recording_never_looks_complete(tmp_path: Path, cdr_text: Callable[[str], bytes]) -> None:
    def record() -> None:
        with BagWriter(tmp_path / 'bag') as writer:
            writer.add_topic('/a', 'std_msgs/msg/String')
            for index in range(3000):
                writer.write('/a', index, cdr_text('x' * 1000))
            raise RuntimeError('plug pulled')

    with pytest.raises(RuntimeError, match='pulled'):
        record()
    assert not (tmp_path / 'bag').exists()
    bag = open_bag(tmp_path / 'bag.partial')
    assert sum(1 for _ in bag.messages()) > 1000
    assert 'no_metadata' in bag.problems.kinds()


def test_a_recording_without_messages_is_a_recording(tmp_path: Path) -> None:
    with BagWriter(tmp_path / 'bag') as writer:
        writer.add_topic('/a', 'std_msgs/msg/String')
    bag = open_bag(tmp_path / 'bag')
    assert list(bag.messages()) == []
    assert len(bag.problems) == 0


def test_refusals_name_topic_and_fix(tmp_path: Path) -> None:
    with BagWriter(tmp_path / 'bag') as writer:
        with pytest.raises(BagError, match='/a was not declared'):
            writer.write('/a', 0, b'')
        with pytest.raises(BagError, match="'my_msgs/msg/Own' is not known"):
            writer.add_topic('/own', 'my_msgs/msg/Own')
        writer.add_topic('/own', 'my_msgs/msg/Own', 'int32 x')
        with pytest.raises(BagError, match='is my_msgs/msg/Own already'):
            writer.add_topic('/own', 'std_msgs/msg/String')
    with pytest.raises(BagError, match='exists already'):
        BagWriter(tmp_path / 'bag')
    with pytest.raises(BagError, match='compression'):
        BagWriter(tmp_path / 'other', compression='gzip')


def test_a_full_disk_is_one_sentence(tmp_path: Path, cdr_text: Callable[[str], bytes]) -> None:
    """/dev/full takes no byte: the file of the recording is a link to it."""
    writer = BagWriter(tmp_path / 'bag')
    writer.add_topic('/a', 'std_msgs/msg/String')
    (tmp_path / 'bag.partial' / 'bag_0.mcap').symlink_to('/dev/full')

    def fill() -> None:
        for index in range(5000):
            writer.write('/a', index, cdr_text('x' * 1000))

    with pytest.raises(BagError, match='No space left'):
        fill()
