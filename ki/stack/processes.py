"""A set of programs that start together, share one log, and end together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from ki_common.errors import KiError

# How long a process may take to end after each signal before the next, stronger one.
PATIENCE_S = ((signal.SIGINT, 5.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 2.0))


@dataclass(frozen=True)
class Program:
    """One process: a Python module or any command, with what ROS 2 is to tell its node."""

    name: str
    command: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    parameters_file: str = ''
    remap: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ''
    environment: Mapping[str, str] = field(default_factory=dict)

    def command_line(self, folder: Path) -> list[str]:
        """The command with its --ros-args; parameters go through a file below `folder`."""
        ros = ['-r', f'__node:={self.name}'] if self.command[0] == sys.executable else []
        if self.namespace:
            ros += ['-r', f'__ns:=/{self.namespace.strip("/")}']
        for source, target in self.remap.items():
            ros += ['-r', f'{source}:={target}']
        if self.parameters_file:
            ros += ['--params-file', self.parameters_file]
        if self.parameters:
            path = folder / f'{self.name}.yaml'
            path.write_text(yaml.safe_dump({'/**': {'ros__parameters': dict(self.parameters)}}), encoding='utf-8')
            ros += ['--params-file', str(path)]
        return [*self.command, *(['--ros-args', *ros] if ros else [])]


@dataclass(frozen=True)
class LaunchPlan:
    """What `ki up` starts."""

    programs: tuple[Program, ...]
    dds: str = ''  # a profile of config/dds; empty: what KI_DDS says, else loopback
    domain: int | None = None  # ROS_DOMAIN_ID; None: that of the environment


class Processes:
    """Started programs. None is restarted: when one ends, all end."""

    def __init__(
        self,
        programs: Sequence[Program],
        environment: Mapping[str, str],
        log: IO[str] | None = None,
        quiet: bool = False,
    ) -> None:
        """Starts the programs in order; their output, line by line and named, goes to `log`, and unless quiet to us."""
        self._log, self._lock, self._quiet = log, threading.Lock(), quiet
        self._width = max(len(program.name) for program in programs)
        self._folder = tempfile.TemporaryDirectory(prefix='ki_up_')
        self._readers: list[threading.Thread] = []
        self.running: dict[str, subprocess.Popen[str]] = {}
        try:
            for program in programs:
                self._start(program, environment)
        except OSError as error:
            self.end()
            raise KiError(f'Cannot start {error.filename}: {error.strerror}.') from error

    def _start(self, program: Program, environment: Mapping[str, str]) -> None:
        process = subprocess.Popen(
            program.command_line(Path(self._folder.name)),
            env={**environment, 'PYTHONUNBUFFERED': '1', **program.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors='replace',
            start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on in order
        )
        self.running[program.name] = process
        reader = threading.Thread(target=self._copy, args=(program.name, process), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _copy(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.say(name, line.rstrip('\n'))

    def say(self, name: str, line: str) -> None:
        """One line of the common log."""
        with self._lock:
            if not self._quiet:
                print(f'{name:>{self._width}} | {line}', flush=True)
            if self._log:
                self._log.write(f'{time.time():.3f} {name:>{self._width}} | {line}\n')
                self._log.flush()

    def ended(self) -> tuple[str, int] | None:
        """Name and exit status of a program that has ended, or None while all run."""
        for name, process in self.running.items():
            status = process.poll()
            if status is not None:
                return name, status
        return None

    def end(self) -> dict[str, int]:
        """Ends what still runs, SIGINT first; exit status by name (negative: the signal that was needed)."""
        for number, patience in PATIENCE_S:
            alive = [process for process in self.running.values() if process.poll() is None]
            for process in alive:
                signal_group(process, number)
            end = time.monotonic() + patience
            while any(process.poll() is None for process in alive) and time.monotonic() < end:
                time.sleep(0.02)
        for reader in self._readers:
            reader.join(timeout=1.0)
        self._folder.cleanup()
        return {name: process.wait() for name, process in self.running.items()}


def signal_group(process: subprocess.Popen[str], number: int) -> None:
    """Sends a signal to a process and its children; one that has ended is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
