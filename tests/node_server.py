"""Starts nodes by forking a process that has imported most of what they import: half a second of CPU less for each.

A node is a process of its own all the same, with the environment, arguments and output that it is given. What is about
the start itself uses the command (`python -m MODULE`).

The server reads one JSON line for each node and writes its process id, and its exit status when it has ended.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# All but rclpy, whose libraries start threads, which a fork would not have.
IMPORTED = (
    'cv2',
    'diagnostic_msgs.msg',
    'geometry_msgs.msg',
    'ki_bags.repair',
    'ki_bags.writer',
    'ki_common.node_settings',
    'ki_msgs.action',
    'ki_msgs.msg',
    'ki_msgs.srv',
    'ki_policy_node.cycle.policy_cycle',
    'ki_policy_node.executor.chunk_follower',
    'ki_policy_node.executor.settings',
    'ki_policy_node.recorder.settings',
    'ki_robot.contract.contract',
    'ki_robot.messages.images',
    'ki_robot.observation.buffer',
    'lifecycle_msgs.srv',
    'nav_msgs.msg',
    'rcl_interfaces.srv',
    'sensor_msgs.msg',
    'std_srvs.srv',
    'trajectory_msgs.msg',
)


class NodeServer:
    """The client's side: starts nodes, and hears of their ends."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._server = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, cwd=ROOT)
        self._statuses: dict[int, int] = {}

    def start(self, module: str, arguments: list[str], log: Path) -> ServedProcess:
        """A node as `python -m module *arguments` in this environment; its output goes to a file."""
        log.write_bytes(b'')
        request = {'module': module, 'arguments': arguments, 'log': str(log), 'environment': dict(os.environ)}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request).encode() + b'\n')
        self._server.stdin.flush()
        while 'started' not in (said := self._read()):
            self._statuses[said['ended']] = said['status']
        return ServedProcess(self, said['started'])

    def status(self, pid: int, seconds: float) -> int | None:
        """The exit status of a node; None if it has not ended within some seconds."""
        end = time.monotonic() + seconds
        while pid not in self._statuses:
            if not select.select([self._server.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            said = self._read()
            self._statuses[said['ended']] = said['status']
        return self._statuses[pid]

    def _read(self) -> dict[str, Any]:
        # Unbuffered, so that `select` knows of every line.
        line = b''
        while not line.endswith(b'\n'):
            assert self._server.stdout is not None
            part = os.read(self._server.stdout.fileno(), 1)
            assert part, 'the server of nodes has ended'
            line += part
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Ends the server; nodes that run go on."""
        self._server.communicate()


class ServedProcess:
    """A node that was started; what `subprocess.Popen` has, as far as tests use it."""

    def __init__(self, server: NodeServer, pid: int) -> None:
        self._server, self.pid = server, pid

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        return self._server.status(self.pid, 0.0)

    def wait(self, timeout: float = 60.0) -> int:
        """The exit status, when it has ended."""
        status = self._server.status(self.pid, timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it by force."""
        self.send_signal(signal.SIGKILL)


def serve() -> None:
    """Imports, and forks a process for each line of the standard input."""
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    threads = len(list(Path('/proc/self/task').iterdir()))
    assert threads == 1, f'{threads} threads, of which a fork would have one'
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    requests = b''
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _tell_ends()
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, requests = (requests + data).split(b'\n')
            for line in lines:
                if (pid := os.fork()) == 0:
                    _run(**json.loads(line))
                _say(started=pid)


def _run(module: str, arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """The life of a node."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(number, target)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name='__main__', alter_sys=True)
    sys.exit()


def _tell_ends() -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _say(ended=ended[0], status=os.waitstatus_to_exitcode(ended[1]))


def _say(**what: int) -> None:
    os.write(1, json.dumps(what).encode() + b'\n')


if __name__ == '__main__':
    sys.path[0] = str(ROOT)
    serve()
