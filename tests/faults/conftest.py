"""The stack on a robot made of topics."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope='session')
def rigs() -> ModuleType:
    """The module tests/rig.py."""
    spec = importlib.util.spec_from_file_location('rig', Path(__file__).resolve().parent.parent / 'rig.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rig(ros_domain: int, rigs: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """A robot and an observer; the test starts the processes it needs."""
    with rigs.make(tmp_path) as made:
        yield made
