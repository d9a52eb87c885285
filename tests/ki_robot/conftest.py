"""Real messages of both libraries: rclpy's classes (marked `ros`) and rosbags' dataclasses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ki_bags import message_builders
from ki_bags.types import deserialise, serialise


class RosbagsMaker:
    """Messages as `rosbags` deserialises them, made empty."""

    kind = 'rosbags'

    def __call__(self, name: str) -> Any:
        return message_builders.empty(name)

    def through_the_wire(self, msg: Any) -> Any:
        """`msg` as a bag would give it back."""
        return deserialise(serialise(msg, msg.__msgtype__), msg.__msgtype__)


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
def rosbags_maker() -> RosbagsMaker:
    return RosbagsMaker()


@pytest.fixture(params=['rosbags', pytest.param('rclpy', marks=pytest.mark.ros)])
def make(request: pytest.FixtureRequest, rosbags_maker: RosbagsMaker) -> Any:
    """Makes an empty message: `make('sensor_msgs/Image')`."""
    return RclpyMaker() if request.param == 'rclpy' else rosbags_maker


@pytest.fixture
def scene() -> np.ndarray:
    """A 48 x 64 RGB image in which every channel differs and no row equals another."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([4 * x, 5 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
