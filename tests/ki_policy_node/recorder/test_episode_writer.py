"""The queue between the node and the disk: bounded, counted, honest about failure."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip('rclpy')

from ki_bags.errors import BagError
from ki_bags.reader import open_bag
from ki_policy_node.errors import NodeError
from ki_policy_node.recorder.episode_writer import FLUSH_S, EpisodeWriter, RecordedTopic, definition_of, parts_of

STRING = RecordedTopic('/words', 'std_msgs/msg/String', '', *definition_of('std_msgs/msg/String'))
HELLO = b'\x00\x01\x00\x00\x06\x00\x00\x00hello\x00'


def test_what_does_not_fit_the_cache_is_dropped_and_counted(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / 'bag', 'none', cache_bytes=len(HELLO))
    assert writer.write(STRING, 1, HELLO)
    assert not writer.write(STRING, 2, HELLO * 2)
    assert (writer.messages, writer.dropped) == (1, 1)
    assert writer.close(keep=True) == tmp_path / 'bag'
    assert [message.data for message in open_bag(tmp_path / 'bag').messages()] == [HELLO]


def test_a_failing_disk_is_told_at_the_end_and_stops_the_writing(tmp_path: Path) -> None:
    unknown = RecordedTopic('/words', 'std_msgs/msg/Int8', '', *definition_of('std_msgs/msg/Int8'))
    writer = EpisodeWriter(tmp_path / 'bag', 'none', cache_bytes=1000)
    writer.write(STRING, 1, HELLO)
    writer.write(unknown, 2, HELLO)  # another type on the same topic: the file refuses it
    with pytest.raises(BagError, match='another name'):
        writer.close(keep=True)
    assert writer.error
    assert not (tmp_path / 'bag').exists()


def test_a_discarded_episode_leaves_no_folder(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / 'bag', 'none', cache_bytes=1000)
    writer.write(STRING, 1, HELLO)
    assert writer.close(keep=False) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ros
def test_a_type_outside_the_common_ones_is_described_from_its_installed_file() -> None:
    text, digest = definition_of('test_msgs/msg/Nested')
    assert 'MSG: test_msgs/BasicTypes' in text
    assert digest == ''
    with pytest.raises(NodeError, match='nowhere_msgs/msg/Thing'):
        definition_of('nowhere_msgs/msg/Thing')


def test_fields_of_other_types_are_found_and_constants_and_primitives_are_not() -> None:
    text = 'uint8 A = 1\nstd_msgs/Header header\nPoint[] points\nfloat64[<=3] x 1.0\nstring<=5 name\n# Pose pose\n'
    assert parts_of('geometry_msgs/msg/Thing', text) == ['std_msgs/msg/Header', 'geometry_msgs/msg/Point']


def test_what_is_older_than_a_second_is_on_disk_even_where_little_is_said(tmp_path: Path) -> None:
    """A process that is killed loses no more: a chunk of 1 MiB would hold twenty seconds of joint states."""
    writer, begin_s = EpisodeWriter(tmp_path / 'bag', 'none', 1 << 20), time.time()
    for stamp_ns in (1, 2, 3):
        writer.write(STRING, stamp_ns, HELLO)
    assert FLUSH_S <= 1.0
    end, found = time.monotonic() + 10.0, list[int]()
    while found != [1, 2, 3]:
        assert time.monotonic() < end, found
        time.sleep(0.1)
        found = [message.log_ns for message in open_bag(tmp_path / 'bag.partial').messages()]
    [file] = (tmp_path / 'bag.partial').glob('*.mcap')
    assert file.stat().st_mtime - begin_s < FLUSH_S + 0.4, 'by the time of the file, however long this test waited'
    writer.close(keep=True)
