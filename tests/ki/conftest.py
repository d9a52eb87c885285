"""The command `ki` as a process, and a robot that talks beside it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def ki(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`ki(*arguments)` runs the command in an empty folder."""

    def run(*arguments: object, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, '-m', 'ki.main', *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=tmp_path)

    return run


@pytest.fixture
def talker(ros_domain: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that publishes `joint_states` (best effort) and `words` at 50 Hz."""
    process = subprocess.Popen([sys.executable, Path(__file__).with_name('talker.py')])
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
