"""A recording whose writer was killed is finished: its messages, types and QoS are those that were written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ki_bags.errors import BagError
from ki_bags.reader import open_bag
from ki_bags.repair import abandoned, finish
from ki_bags.types import message, serialise
from ki_bags.writer import BagWriter

QOS = '- durability: 1\n'


def killed(path: Path, count: int = 50) -> Path:
    """What a writer leaves that was killed after a flush, in the middle of the next write."""
    writer = BagWriter(path, custom={'robot': 'toy'})
    writer.add_topic('/words', 'std_msgs/msg/String', qos=QOS)
    for index in range(count):
        writer.write('/words', 10**9 + index, text(index))
    writer.flush()
    for index in range(5):
        writer.write('/words', 2 * 10**9 + index, text(index))
    writer.abort()
    with (writer.partial / f'{path.name}_0.mcap').open('ab') as stream:
        stream.write(b'\x06\xff\xff')
    return writer.partial


def text(index: int) -> bytes:
    return serialise(message('std_msgs/msg/String', data=f'{index:04d}'), 'std_msgs/msg/String')


def test_what_was_written_is_a_recording_and_the_unfinished_one_is_gone(tmp_path: Path) -> None:
    partial = killed(tmp_path / 'episode_0003')
    path, count = finish(partial)
    assert (path, count) == (tmp_path / 'episode_0003', 50)
    assert [each.name for each in tmp_path.iterdir()] == ['episode_0003']
    bag = open_bag(path)
    assert [each.log_ns for each in bag.messages()] == [10**9 + index for index in range(50)]
    assert len(bag.problems) == 0
    assert 'repaired' in bag.custom
    assert 'durability: 1' in (path / 'metadata.yaml').read_text()


def test_a_repair_that_was_killed_too_begins_again(tmp_path: Path) -> None:
    partial = killed(tmp_path / 'bag')
    for name in ('bag.repaired', 'bag.repaired.partial'):
        (tmp_path / name).mkdir()
    assert finish(partial)[1] == 50


def test_what_is_finished_or_taken_is_refused_and_stays(tmp_path: Path) -> None:
    partial = killed(tmp_path / 'bag')
    (tmp_path / 'bag').mkdir()
    with pytest.raises(BagError, match='exists already; move it away'):
        finish(partial)
    assert partial.is_dir()
    with pytest.raises(BagError, match=r'name ends in \.partial'):
        finish(tmp_path / 'bag')


def test_only_what_nobody_writes_any_more_is_abandoned(tmp_path: Path) -> None:
    old, new, other = (killed(tmp_path / name) for name in ('episode_0000', 'episode_0001', 'other_0000'))
    for path in (*old.iterdir(), old, *other.iterdir(), other):
        os.utime(path, (1.0, 1.0))
    assert abandoned(tmp_path, 'episode') == [old]
    assert abandoned(tmp_path / 'nowhere', 'episode') == []
    assert new.is_dir()
