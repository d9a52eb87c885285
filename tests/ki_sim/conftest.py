"""Shared by the simulator's tests: kinematics made once, and a world without cameras."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ki_sim.world.kinematics import Arms
from ki_sim.world.world import World


@pytest.fixture(scope='session')
def arms() -> Arms:
    return Arms()


@pytest.fixture
def blind_world() -> Callable[..., World]:
    """Makes a world whose physics runs without rendering."""

    def make(task: str = 'demo', seed: int = 0, **options: object) -> World:
        return World(task, seed, cameras=(), **options)

    return make


@pytest.fixture
def put() -> Callable[[World, int, tuple[float, float, float]], None]:
    """Moves an object of a world to a place, upright and at rest, and lets the physics settle."""

    def move(world: World, index: int, position: tuple[float, float, float], wait_ns: int = 400_000_000) -> None:
        joint = world.data.joint(f'object{index}')
        joint.qpos[:] = (*position, 1.0, 0.0, 0.0, 0.0)
        joint.qvel[:] = 0.0
        world.advance(wait_ns)

    return move


@pytest.fixture
def still_action() -> Callable[[World], np.ndarray]:
    """The row that keeps a world's robot where it is commanded to be."""
    from ki_sim.world.world import clipped

    def make(world: World) -> np.ndarray:
        row = clipped(world.observe(images=False).state)
        row[14:] = 0.0
        return row

    return make
