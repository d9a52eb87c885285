"""Recordings of every kind are read, and damaged ones as far as they are sound."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ki_bags.errors import BagError
from ki_bags.reader import find_bags, open_bag
from ki_bags.storage import MAX_RECORD_BYTES
from ki_bags.types import message, serialise

MakeBag = Callable[..., Path]
UPSTREAM = 'rosbag2_upstream_testbags'


def only_file(bag: Path) -> Path:
    [file] = bag.glob('*.mcap')
    return file


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_upstream_talker_is_read_where_the_usual_reader_finds_nothing(ki_data: Path, storage: str) -> None:
    bag = open_bag(ki_data / UPSTREAM / 'rosbag2_py/test/resources' / storage / 'talker')
    found = [bag.decode(each).data for each in bag.messages(['/topic'])]
    assert bag.declared == 20
    assert found == [f'Hello, world! {index}' for index in range(10)]
    assert len(bag.problems) == 0


def test_split_recording_is_one(ki_data: Path) -> None:
    bag = open_bag(ki_data / UPSTREAM / 'rosbag2_py/test/resources/mcap/wbag')
    counts = Counter(each.topic for each in bag.messages())
    assert len(bag.files) == 5
    assert sum(counts.values()) == bag.declared == 6074
    assert counts == {name: topic.count for name, topic in bag.topics.items()}


def test_another_serialisation_is_refused_by_name(ki_data: Path) -> None:
    folder = ki_data / UPSTREAM / 'rosbag2_tests/resources/mcap/wrong_rmw_test'
    with pytest.raises(BagError, match=r"/array_topic is stored as 'wrong_format'"):
        open_bag(folder)
    with pytest.raises(BagError, match='wrong_format'):
        open_bag(folder / 'wrong_rmw_test_0.mcap')


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_upstream_cdr_test_has_its_seven_messages(ki_data: Path, storage: str) -> None:
    bag = open_bag(ki_data / UPSTREAM / 'rosbag2_tests/resources' / storage / 'cdr_test')
    assert Counter(each.topic for each in bag.messages()) == {'/array_topic': 4, '/test_topic': 3}


def test_types_only_the_recording_knows_are_decoded(ki_data: Path) -> None:
    bag = open_bag(ki_data / 'mcap_own_types' / 'bagfile')
    joints = list(bag.messages(['/robot/joint_state']))
    assert len(joints) == 4217
    for each in joints[::500]:
        decoded = bag.decode(each)
        assert decoded.name[0] == 'C1_A'
        assert len(decoded.position) == 21
    nothing = open_bag(ki_data / 'mcap_own_types' / 'bagfile')
    assert list(nothing.messages([])) == []
    assert len(nothing.problems) == 0
    everything = open_bag(ki_data / 'mcap_own_types' / 'bagfile')
    assert sum(1 for _ in everything.messages()) == 25387
    assert len(everything.problems) == 0


def test_bare_mcap_without_metadata_is_read(ki_data: Path) -> None:
    bag = open_bag(ki_data / 'mcap_own_types' / 'controlled_data_0.mcap')
    assert bag.declared is None
    assert sum(1 for _ in bag.messages()) == 1356


def test_find_bags_names_folders_bare_files_and_unfinished_ones(make_bag: MakeBag, tmp_path: Path) -> None:
    make_bag('one', 3)
    bare = tmp_path / 'deep' / 'bare.mcap'
    bare.parent.mkdir()
    shutil.copy(only_file(make_bag('two', 3)), bare)
    killed = tmp_path / 'killed.partial'
    shutil.copytree(tmp_path / 'two', killed)
    (killed / 'metadata.yaml').unlink()
    assert [path.name for path in find_bags(tmp_path)] == ['bare.mcap', 'killed.partial', 'one', 'two']
    assert sum(1 for _ in open_bag(killed).messages()) == 3
    assert find_bags(tmp_path / 'one') == [tmp_path / 'one']


@pytest.mark.parametrize('mode', ['FILE', 'MESSAGE'])
@pytest.mark.parametrize('plugin', ['MCAP', 'SQLITE3'])
def test_compressed_recordings_are_read(tmp_path: Path, plugin: str, mode: str) -> None:
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    writer = Writer(tmp_path / 'bag', version=8, storage_plugin=StoragePlugin[plugin])
    writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection('/a', 'std_msgs/msg/String', typestore=store)
        for index in range(5):
            writer.write(
                connection, index + 1, serialise(message('std_msgs/msg/String', data=str(index)), connection.msgtype)
            )
    bag = open_bag(tmp_path / 'bag')
    assert [bag.decode(each).data for each in bag.messages()] == ['0', '1', '2', '3', '4']
    assert len(bag.problems) == 0


@pytest.mark.parametrize('statistics', [True, False])
def test_a_file_whose_chunks_do_not_say_where_messages_are_is_read_whole(
    tmp_path: Path, cdr_text: Callable[[str], bytes], statistics: bool
) -> None:
    from mcap.writer import IndexType, Writer

    with (tmp_path / 'x.mcap').open('wb') as stream:
        writer = Writer(stream, index_types=IndexType.CHUNK, use_statistics=statistics, chunk_size=200)
        writer.start('ros2', 'test')
        schema = writer.register_schema('std_msgs/msg/String', 'ros2msg', b'string data')
        channel = writer.register_channel('/a', 'cdr', schema)
        for index in range(20):
            writer.add_message(channel, index + 1, cdr_text(f'{index:04d}' * 9), index + 1)
        writer.finish()
    bag = open_bag(tmp_path / 'x.mcap')
    assert [bag.decode(each).data[:4] for each in bag.messages(['/a'])] == [f'{index:04d}' for index in range(20)]
    assert len(bag.problems) == 0
    assert bag.topics['/a'].count == (20 if statistics else None)


def test_truncated_file_is_read_up_to_the_cut(make_bag: MakeBag) -> None:
    whole = make_bag(count=3000)
    file = only_file(whole)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    bag = open_bag(whole)
    found = [bag.decode(each).data[:4] for each in bag.messages()]
    assert 900 < len(found) < 1600
    assert found == [f'{index:04d}' for index in range(len(found))]
    assert bag.problems.kinds() == {'damaged', 'count'}


def test_truncated_database_is_read_up_to_the_cut(tmp_path: Path, cdr_text: Callable[[str], bytes]) -> None:
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    with Writer(tmp_path / 'bag', version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection('/a', 'std_msgs/msg/String', typestore=get_typestore(Stores.ROS2_JAZZY))
        for index in range(300):
            writer.write(connection, index + 1, cdr_text(f'{index:04d}' * 256))
    [file] = (tmp_path / 'bag').glob('*.db3')
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    bag = open_bag(tmp_path / 'bag')
    found = [bag.decode(each).data[:4] for each in bag.messages()]
    assert len(found) > 100
    assert found == [f'{index:04d}' for index in range(len(found))]
    assert {'damaged', 'count'} <= bag.problems.kinds()


def test_flipped_bits_are_never_silently_wrong(make_bag: MakeBag) -> None:
    """Whatever one flip does: messages that are yielded are the true ones, and fewer of them are reported."""
    folder = make_bag(count=40)
    file = only_file(folder)
    sound = file.read_bytes()
    true = {(each.topic, each.log_ns, each.data) for each in open_bag(folder).messages()}
    assert len(true) == 40
    rng = random.Random(0)
    reported = 0
    for _ in range(300):
        data = bytearray(sound)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(data))
        try:
            bag = open_bag(folder)
            found = [(each.topic, each.log_ns, each.data) for each in bag.messages()]
        except BagError:  # the flip made the encoding of a topic another word than cdr
            reported += 1
            continue
        assert {each[1:] for each in found} <= {each[1:] for each in true}
        if set(found) != true:
            assert len(bag.problems) > 0
            reported += 1
    assert reported > 200


def test_a_chunk_that_claims_the_memory_of_the_machine_is_damage(make_bag: MakeBag) -> None:
    folder = make_bag(count=20)
    file = only_file(folder)
    data = bytearray(file.read_bytes())
    chunk = 8
    while data[chunk] != 6:  # opcode of a chunk
        chunk += 9 + int.from_bytes(data[chunk + 1 : chunk + 9], 'little')
    data[chunk + 1 : chunk + 9] = (MAX_RECORD_BYTES * 8).to_bytes(8, 'little')
    file.write_bytes(bytes(data[:-50]))  # without its index the file is read record by record
    bag = open_bag(folder)
    assert list(bag.messages()) == []
    assert any('RecordLengthLimitExceeded' in each.text for each in bag.problems)


def test_lost_or_broken_metadata_is_told_and_done_without(make_bag: MakeBag) -> None:
    folder = make_bag(count=10)
    (folder / 'metadata.yaml').write_text('rosbag2_bagfile_information: [1, 2')
    bag = open_bag(folder)
    assert bag.problems.kinds() == {'bad_metadata'}
    assert sum(1 for _ in bag.messages()) == 10


def test_missing_part_is_named_and_the_rest_is_read(make_bag: MakeBag) -> None:
    folder = make_bag(count=3000, max_file_bytes=1 << 20)
    files = sorted(folder.glob('*.mcap'))
    assert len(files) > 2
    files[1].unlink()
    bag = open_bag(folder)
    count = sum(1 for _ in bag.messages())
    assert 0 < count < 3000
    assert {'file_missing', 'count'} <= bag.problems.kinds()


@pytest.mark.parametrize('content', [b'', b'\x89MCAP0\r\n', b'hello' * 100])
def test_files_that_are_no_recording_are_problems_not_crashes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'x.mcap').write_bytes(content)
    bag = open_bag(tmp_path / 'x.mcap')
    assert list(bag.messages()) == []
    assert 'unreadable' in bag.problems.kinds()


def test_missing_paths_and_empty_folders_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BagError, match='does not exist'):
        open_bag(tmp_path / 'none')
    with pytest.raises(BagError, match='holds no storage file'):
        open_bag(tmp_path)
    (tmp_path / 'x.txt').write_text('')
    with pytest.raises(BagError, match=r'is no recording'):
        open_bag(tmp_path / 'x.txt')


@pytest.fixture
def killed(tmp_path: Path, cdr_text: Callable[[str], bytes]) -> Path:
    """A database whose recorder was killed: 100 rows in the file, 200 more in the write-ahead log beside it."""
    live = tmp_path / 'live.db3'
    database = sqlite3.connect(live)
    database.executescript(
        'PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;'
        'CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT,'
        ' offered_qos_profiles TEXT);'
        'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB);'
        "INSERT INTO topics VALUES (1, '/a', 'std_msgs/msg/String', 'cdr', '');"
    )
    for index in range(300):
        row = (1, index + 1, cdr_text(f'{index:04d}'))
        database.execute('INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)', row)
        database.commit()
        if index == 99:
            database.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    (tmp_path / 'bag').mkdir()
    for end in ('', '-wal'):
        shutil.copy(f'{live}{end}', tmp_path / 'bag' / f'bag_0.db3{end}')
    database.close()
    return tmp_path / 'bag' / 'bag_0.db3'


def texts(bag: Path) -> tuple[list[str], set[str]]:
    opened = open_bag(bag)
    found = [opened.decode(each).data for each in opened.messages()]
    return found, opened.problems.kinds()


def test_rows_in_the_write_ahead_log_of_a_killed_recorder_are_read(killed: Path) -> None:
    before = {path.name: path.read_bytes() for path in killed.parent.iterdir()}
    assert texts(killed) == ([f'{index:04d}' for index in range(300)], set())
    assert {path.name: path.read_bytes() for path in killed.parent.iterdir()} == before


@pytest.mark.parametrize(
    ('place', 'count', 'kind'), [(0.5, range(150, 250), 'wal_cut'), (0.0, range(100, 101), 'wal_unread')]
)
def test_a_damaged_write_ahead_log_is_named(killed: Path, place: float, count: range, kind: str) -> None:
    wal = killed.with_name('bag_0.db3-wal')
    data = bytearray(wal.read_bytes())
    data[20 + int(place * len(data))] ^= 1
    wal.write_bytes(data)
    found, kinds = texts(killed)
    assert len(found) in count
    assert kinds == {kind}


def test_a_foreign_database_is_named(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / 'firefox.db3')
    database.execute('CREATE TABLE places(url TEXT)')
    database.commit()
    database.close()
    found, kinds = texts(tmp_path / 'firefox.db3')
    assert (found, kinds) == ([], {'unreadable'})
    [problem] = open_bag(tmp_path / 'firefox.db3').problems
    assert 'no such table: topics' in problem.text


@pytest.fixture
def mcap_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes an MCAP whose messages are (topic, encoding, schema name, schema encoding, data); a channel for each."""
    from mcap.writer import Writer

    def make(*rows: tuple[str, str, str, str, bytes]) -> Path:
        with (tmp_path / 'x.mcap').open('wb') as stream:
            writer = Writer(stream)
            writer.start('ros2', 'test')
            for index, (topic, encoding, name, kind, data) in enumerate(rows):
                schema = writer.register_schema(name, kind, b'string data' if kind == 'ros2msg' else b'{}')
                writer.add_message(writer.register_channel(topic, encoding, schema), index + 1, data, index + 1)
            writer.finish()
        return tmp_path / 'x.mcap'

    return make


def ros(topic: str, data: bytes, name: str = 'std_msgs/msg/String') -> tuple[str, str, str, str, bytes]:
    return topic, 'cdr', name, 'ros2msg', data


def test_a_channel_in_another_encoding_condemns_only_itself(
    mcap_of: Callable[..., Path], cdr_text: Callable[[str], bytes]
) -> None:
    path = mcap_of(
        ros('/a', cdr_text('one')),
        ('/events', 'json', 'log', 'jsonschema', b'{"a": 1}'),
        ('/proto', 'protobuf', 'pb.Log', 'protobuf', b'\x08\x01'),
        ros('/b', cdr_text('two')),
    )
    assert texts(path) == (['one', 'two'], {'foreign_encoding'})
    bag = open_bag(path)
    assert set(bag.topics) == {'/a', '/b'}
    assert [(each.field, each.text) for each in bag.problems] == [
        ('/events', "topic /events is stored as 'json'; only CDR can be read, so it is left out"),
        ('/proto', "topic /proto is stored as 'protobuf'; only CDR can be read, so it is left out"),
    ]


def test_the_channels_of_one_topic_are_counted_together(
    mcap_of: Callable[..., Path], cdr_text: Callable[[str], bytes]
) -> None:
    path = mcap_of(*(ros('/a', cdr_text(str(index))) for index in range(5)))
    assert open_bag(path).topics['/a'].count == 5
    assert texts(path) == (['0', '1', '2', '3', '4'], set())


def test_short_names_of_types_are_their_full_ones(
    mcap_of: Callable[..., Path], cdr_text: Callable[[str], bytes]
) -> None:
    path = mcap_of(ros('/a', cdr_text('one'), 'std_msgs/String'))
    assert open_bag(path).topics['/a'].type == 'std_msgs/msg/String'
    assert texts(path) == (['one'], set())
