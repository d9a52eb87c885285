"""What the tests of the executor share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope='session')
def executor_rig() -> ModuleType:
    """The mad world around an executor, loaded by path as the benchmark does."""
    path = Path(__file__).parents[2] / 'executor_rig.py'
    spec = importlib.util.spec_from_file_location('executor_rig', path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules['executor_rig'] = made
    spec.loader.exec_module(made)
    return made
