from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ki_bags.types import message, serialise
from ki_bags.writer import BagWriter

STRING = 'std_msgs/msg/String'


def text(value: str) -> bytes:
    return serialise(message(STRING, data=value), STRING)


@pytest.fixture
def make_bag(tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` strings on two topics, 10 ms apart, with 1 kB each."""

    def make(name: str = 'bag', count: int = 200, **options: object) -> Path:
        with BagWriter(tmp_path / name, **options) as writer:
            writer.add_topic('/a', STRING)
            writer.add_topic('/b', STRING)
            for index in range(count):
                topic = '/a' if index % 2 else '/b'
                writer.write(topic, 1_000_000_000 + index * 10_000_000, text(f'{index:04d}' * 256))
        return tmp_path / name

    return make


@pytest.fixture
def cdr_text() -> Callable[[str], bytes]:
    return text
