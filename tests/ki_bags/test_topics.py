"""A name of a contract and the names of a recording: what is found, what is doubtful, what is of another type."""

from __future__ import annotations

from pathlib import Path

import pytest

from ki_bags.reader import Bag, open_bag
from ki_bags.topics import find_topic
from ki_bags.writer import BagWriter

STRING, BOOL = 'std_msgs/msg/String', 'std_msgs/msg/Bool'


@pytest.fixture
def bag(tmp_path: Path) -> Bag:
    with BagWriter(tmp_path / 'bag') as writer:
        for name in ('/left/words', '/right/words', '/left/camera', '/other', '/base/other'):
            writer.add_topic(name, STRING)
        writer.add_topic('/left/switch', BOOL)
    return open_bag(tmp_path / 'bag')


def name_of(bag: Bag, wanted: str, **remap: str) -> str | None:
    topic = find_topic(bag, wanted, (STRING,), remap).topic
    return topic.name if topic else None


def test_a_relative_name_is_found_in_any_namespace(bag: Bag) -> None:
    assert name_of(bag, 'camera') == '/left/camera'
    assert name_of(bag, '~/camera') == '/left/camera'


def test_the_same_name_goes_before_one_that_ends_like_it(bag: Bag) -> None:
    assert name_of(bag, 'other') == '/other'
    assert name_of(bag, '/other') == '/other'


def test_an_absolute_name_is_in_no_other_namespace(bag: Bag) -> None:
    assert name_of(bag, '/camera') is None


def test_part_of_a_name_is_no_match(bag: Bag) -> None:
    assert name_of(bag, 'era') is None


def test_of_several_none_is_taken_and_the_fix_is_said(bag: Bag) -> None:
    match = find_topic(bag, 'words', (STRING,), {})
    assert match.topic is None
    assert match.doubt == 'words could be any of /left/words, /right/words; say which with --remap words:=NAME'
    assert name_of(bag, 'words', words='right/words') == '/right/words'


def test_a_topic_of_another_type_is_told_apart(bag: Bag) -> None:
    match = find_topic(bag, 'switch', (STRING,), {})
    assert match.topic is None
    assert [each.name for each in match.others] == ['/left/switch']
    assert not match.doubt
