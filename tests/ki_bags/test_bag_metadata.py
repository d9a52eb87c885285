"""Metadata of a finished recording can be added to, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ki_bags.bag_metadata import add_metadata
from ki_bags.errors import BagError
from ki_bags.reader import open_bag
from ki_bags.writer import BagWriter


def test_entries_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'a', 'seed': '1'}) as bag:
        bag.add_topic('/x', 'std_msgs/msg/Bool')
        bag.write('/x', 5, b'\x00\x01\x00\x00\x01')
    add_metadata(tmp_path / 'bag', {'seed': '2', 'success': 'true'})
    found = open_bag(tmp_path / 'bag')
    assert found.custom == {'task': 'a', 'seed': '2', 'success': 'true'}
    assert [message.log_ns for message in found.messages()] == [5]
    assert not list(found.problems)
    assert [path.name for path in (tmp_path / 'bag').iterdir() if 'partial' in path.name] == []


@pytest.mark.parametrize(
    'text', [None, '', 'rosbag2_bagfile_information: 3', 'a: [', 'rosbag2_bagfile_information: []']
)
def test_metadata_that_is_none_is_refused_by_name(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / 'metadata.yaml').write_text(text)
    with pytest.raises(BagError, match=r'metadata\.yaml cannot be amended'):
        add_metadata(tmp_path, {'a': 'b'})
    assert text is None or (tmp_path / 'metadata.yaml').read_text() == text
