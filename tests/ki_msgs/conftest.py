"""The interfaces of ki_msgs, by name, and messages filled the same way every time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / 'ki_msgs'
# What an interface file is made of, in its order: one message each.
PARTS = {'msg': ('',), 'srv': ('_Request', '_Response'), 'action': ('_Goal', '_Result', '_Feedback')}


def interface_texts() -> dict[str, str]:
    """Every message of ki_msgs as 'ki_msgs/KIND/NAME' with its definition, from the source files."""
    texts = {}
    for kind, suffixes in PARTS.items():
        for path in sorted((SOURCE / kind).glob(f'*.{kind}')):
            parts = re.split(r'^---\s*$', path.read_text(encoding='utf-8'), flags=re.MULTILINE)
            texts |= {f'ki_msgs/{kind}/{path.stem}{suffix}': part for suffix, part in zip(suffixes, parts, strict=True)}
    return texts


def filled(message: Any, numbers: Any = None) -> Any:
    """The message with every field set: 1, 2, 3 ... in the order of the fields, two elements per sequence."""
    numbers = numbers or itertools.count(1)
    for name, kind in message.get_fields_and_field_types().items():
        setattr(message, name, value_of(kind, getattr(message, name), numbers))
    return message


def value_of(kind: str, empty: Any, numbers: Any) -> Any:
    """A value for a field of this type."""
    from ki_policy_node.common.ros import message_class

    if kind.startswith('sequence<'):
        inner = kind.removeprefix('sequence<').removesuffix('>')
        return [value_of(inner, None, numbers) for _ in range(2)]
    if '/' in kind:
        package, name = kind.split('/')
        return filled(message_class(f'{package}/msg/{name}')(), numbers)
    number = next(numbers)
    if kind == 'string':
        return f'text {number} äß'
    if kind == 'boolean':
        return True
    return number + 0.5 if kind in {'float', 'double'} else number


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `interface` runs once per message."""
    if 'interface' in metafunc.fixturenames:
        metafunc.parametrize('interface', sorted(interface_texts()))


@pytest.fixture(scope='session')
def definitions() -> dict[str, str]:
    """All messages and their definitions."""
    return interface_texts()


@pytest.fixture(scope='session')
def fill() -> Callable[[Any], Any]:
    """`fill(message)` sets every field."""
    return filled


@pytest.fixture(scope='session')
def store(definitions: dict[str, str]) -> Any:
    """A reader and writer of messages that knows ki_msgs from its files and needs no ROS."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    types = [get_types_from_msg(text, name) for name, text in definitions.items()]
    store.register({name: kind for name, found in zip(definitions, types, strict=True) for kind in found.values()})
    return store


@pytest.fixture(scope='session')
def golden() -> Path:
    """Folder of the serialized messages as they were when last agreed upon."""
    return Path(__file__).parent / 'golden'
