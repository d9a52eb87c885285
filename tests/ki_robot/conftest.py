"""Real messages of both libraries: rclpy's classes (marked `ros`) and rosbags' dataclasses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

DTYPES = {'octet': np.uint8, 'byte': np.uint8}


class RosbagsMaker:
    """Messages as `rosbags` deserialises them, made empty."""

    kind = 'rosbags'

    def __init__(self, root: Any) -> None:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore

        self.store = get_typestore(Stores.ROS2_JAZZY)
        for file in sorted((root / 'ki_msgs' / 'msg').glob('*.msg')):
            self.store.register(get_types_from_msg(file.read_text(), f'ki_msgs/msg/{file.stem}'))

    def __call__(self, name: str) -> Any:
        package, kind = name.split('/')
        full = f'{package}/msg/{kind}'
        return self.store.types[full](
            **{field: self._empty(node) for field, node in self.store.get_msgdef(full).fields}
        )

    def _empty(self, node: Any) -> Any:
        from rosbags.interfaces import Nodetype

        kind, detail = node
        if kind == Nodetype.BASE:
            return {'string': '', 'bool': False}.get(detail[0], 0.0 if 'float' in detail[0] else 0)
        if kind == Nodetype.NAME:
            return self(detail.replace('/msg/', '/'))
        (inner, name), size = detail
        if inner == Nodetype.BASE and name[0] != 'string':
            return np.zeros(size if kind == Nodetype.ARRAY else 0, dtype=DTYPES.get(name[0], name[0]))
        return []

    def through_the_wire(self, msg: Any) -> Any:
        """`msg` as a bag would give it back."""
        return self.store.deserialize_cdr(self.store.serialize_cdr(msg, msg.__msgtype__), msg.__msgtype__)


class RclpyMaker:
    """Messages of the generated Python classes."""

    kind = 'rclpy'

    def __call__(self, name: str) -> Any:
        package, kind = name.split('/')
        return getattr(importlib.import_module(f'{package}.msg'), kind)()

    def through_the_wire(self, msg: Any) -> Any:
        """`msg` as a subscription would give it."""
        serialization = importlib.import_module('rclpy.serialization')
        return serialization.deserialize_message(serialization.serialize_message(msg), type(msg))


Maker = Callable[[str], Any]


@pytest.fixture(scope='session')
def rosbags_maker(root: Any) -> RosbagsMaker:
    return RosbagsMaker(root)


@pytest.fixture(params=['rosbags', pytest.param('rclpy', marks=pytest.mark.ros)])
def make(request: pytest.FixtureRequest, rosbags_maker: RosbagsMaker) -> Any:
    """Makes an empty message: `make('sensor_msgs/Image')`."""
    return RclpyMaker() if request.param == 'rclpy' else rosbags_maker


@pytest.fixture
def scene() -> np.ndarray:
    """A 48 x 64 RGB image in which every channel differs and no row equals another."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([4 * x, 5 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
