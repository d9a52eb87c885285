"""The command `ki`, in this process and as one of its own, and a robot that talks beside it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from ki import main

Ki = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ki(tmp_path: Path) -> Ki:
    """`ki(*arguments)` runs the command in an empty folder, in this process: a fresh one takes seconds to import all.

    What is about processes (the entry point, signals, an environment that libraries read once) uses `ki_process`.
    """

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words, status = ['ki', *map(str, arguments)], 0
        with contextlib.ExitStack() as stack:
            # Files, as a process has: some libraries ask for their numbers.
            out, err = (stack.enter_context(tempfile.TemporaryFile('w+')) for _ in range(2))
            for context in (
                mock.patch.object(sys, 'argv', words),
                mock.patch.object(warnings, 'showwarning', warnings.showwarning),
                mock.patch.dict(os.environ),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                stack.enter_context(context)
            stack.callback(os.chdir, os.getcwd())
            os.chdir(tmp_path)
            try:
                main.main()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            texts = [(stream.seek(0), stream.read())[1] for stream in (out, err)]
        return subprocess.CompletedProcess(words, status, *texts)

    return run


@pytest.fixture
def ki_process(tmp_path: Path) -> Ki:
    """`ki_process(*arguments)` runs the command in an empty folder, as a process of its own.

    Nothing that it has started outlives a command that does not end in time.
    """

    def run(*arguments: object, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, '-m', 'ki.main', *map(str, arguments)]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path, start_new_session=True
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                os.killpg(process.pid, signal.SIGINT)  # it ends its nodes, which are in sessions of their own
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=30.0)
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


@pytest.fixture
def talker(ros_domain: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that publishes `joint_states` (best effort) and `words` at 50 Hz, and has begun to."""
    log = tmp_path / 'talker.log'
    with log.open('wb') as stream:
        command = [sys.executable, Path(__file__).with_name('talker.py')]
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 30.0
        while b'says hello' not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, 'the talker does not begin'
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        status = process.wait(10)
    assert status == 0
