"""Policy and robot on two machines, and a network between them that is slow, loses 5 % and is cut; clocks 0.2 s apart.

Two network namespaces with config/dds/lan.xml and unicast peers. What happens to the clock is simulated time in the
policy's namespace alone. The quick siblings, on one machine: test_policy_paused.py and test_clocks_apart.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from ki_common.nodes import NODES

pytestmark = [pytest.mark.ros, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
DELAY_S, LOSS, CUT_S, AHEAD_S = 0.02, 0.05, 2.0, 0.2
ROBOT_IP, GPU_IP = '10.99.0.1', '10.99.0.2'  # as network.py has them
STATE_RUN, STATE_HOLD = 4, 5  # of ki_msgs/ExecutorStatus
CLOCK = f"""
import time, rclpy
from rosgraph_msgs.msg import Clock
rclpy.init()
node = rclpy.create_node('clock')
clocks = node.create_publisher(Clock, '/clock', 1)
while True:
    now_ns = time.time_ns() + {round(AHEAD_S * 1e9)}
    message = Clock()
    message.clock.sec, message.clock.nanosec = divmod(now_ns, 10**9)
    clocks.publish(message)
    time.sleep(0.005)
"""


class Machines:
    """Programs on two machines, and the wire between them."""

    def __init__(self, folder: Path, robot_file: Path) -> None:
        self.folder, self.robot_file = folder, robot_file
        self.names = {'robot': f'ki_robot_{os.getpid()}', 'gpu': f'ki_gpu_{os.getpid()}'}
        self._programs: list[subprocess.Popen[bytes]] = []

    def plug_in(self) -> None:
        """Makes the namespaces and the wire."""
        for name in self.names.values():
            subprocess.run(['ip', 'netns', 'add', name], check=True)
        command = [sys.executable, str(Path(__file__).with_name('network.py')), *self.names.values()]
        self._wire = subprocess.Popen(
            [*command, str(DELAY_S), str(LOSS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._wire.stdout is not None
        assert self._wire.stdout.readline() == 'up\n'

    def start(self, machine: str, log: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """A program on a machine; each machine has shared memory of its own."""
        peers = GPU_IP if machine == 'robot' else ROBOT_IP
        memory = self.folder / f'{machine}_shm'
        memory.mkdir(exist_ok=True)
        inside = [
            'ip',
            'netns',
            'exec',
            self.names[machine],
            'sh',
            '-c',
            f'mount --bind {memory} /dev/shm && exec "$@"',
        ]
        with (self.folder / f'{log}.log').open('ab') as stream:
            started = subprocess.Popen(
                [*inside, 'sh', sys.executable, *command],
                cwd=ROOT,
                env=os.environ | {'ROS_STATIC_PEERS': peers, 'PYTHONUNBUFFERED': '1'},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self._programs.append(started)
        return started

    def node(self, machine: str, name: str, **parameters: Any) -> subprocess.Popen[bytes]:
        """A node of ours on a machine."""
        given = [f'{key}:={yaml.safe_dump(value).splitlines()[0]}' for key, value in parameters.items()]
        arguments = [word for each in given for word in ('-p', each)]
        return self.start(machine, name, ['-m', NODES[name], '--ros-args', *arguments])

    def switch(self, word: str) -> int:
        """Takes the policy's machine off the network (`down`), or puts it back (`up`); when [ns]."""
        assert self._wire.stdin is not None
        assert self._wire.stdout is not None
        print(word, file=self._wire.stdin, flush=True)
        return int(self._wire.stdout.readline())

    def text(self, log: str) -> str:
        """What a program has said so far."""
        return (self.folder / f'{log}.log').read_text()

    def statuses(self, after_ns: int = 0) -> list[dict[str, Any]]:
        """What the executor has said since; each with its stamp as `at_ns`."""
        whole = self.text('status').rpartition('---\n')[0]
        found = [each for each in yaml.load_all(whole, yaml.CSafeLoader) if isinstance(each, dict)]
        for each in found:
            each['at_ns'] = in_ns(each['header']['stamp'])
        return [each for each in found if each['at_ns'] >= after_ns]

    def until(self, what: str, condition: Callable[[], Any], seconds: float) -> Any:
        """Waits until something is so; fails with every log."""
        end_s = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end_s:
                logs = '\n'.join(f'--- {path.name}\n{path.read_text()[-3000:]}' for path in self.folder.glob('*.log'))
                raise AssertionError(f'not within {seconds:g} s: {what}\n{logs}')
            time.sleep(0.1)
        return found

    def end(self) -> None:
        """Ends all, and takes the machines away."""
        for number in (signal.SIGINT, signal.SIGKILL):
            for program in self._programs:
                program.send_signal(number)
            for program in self._programs:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.wait(5.0)
        self._wire.communicate()
        for name in self.names.values():
            subprocess.run(['ip', 'netns', 'del', name], check=True)


def in_ns(time_message: dict[str, int]) -> int:
    return int(time_message['sec']) * 10**9 + int(time_message['nanosec'])


@pytest.fixture
def machines(ros_domain: int, rigs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    if os.geteuid() != 0 or not Path('/dev/net/tun').exists() or shutil.which('ip') is None:
        pytest.skip('needs root, iproute2 and /dev/net/tun: NOTHING was checked over a network of two machines')
    profile = str(ROOT / 'config' / 'dds' / 'lan.xml')
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', profile)
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', profile)
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    robot_file = tmp_path / 'small.yaml'
    robot_file.write_text(yaml.safe_dump(rigs.small_robot()))
    made = Machines(tmp_path, robot_file)
    try:
        made.plug_in()
        yield made
    finally:
        made.end()


def test_a_network_that_loses_and_is_cut_is_a_hold_and_clocks_that_are_apart_are_named(machines: Machines) -> None:
    machines.node('robot', 'synthetic_robot', robot=str(machines.robot_file), width=64, height=48)
    machines.node('robot', 'chunk_executor', robot=str(machines.robot_file), enabled=True, state_timeout=1.0)
    machines.start('robot', 'status', ['-m', 'ki.main', 'topic', 'echo', 'chunk_executor/status', '--wait', '30'])
    moves = {'backend': 'commissioning', 'motion': 'sine', 'dry_run': False, 'run_on_activate': True}
    moves |= {'robot': str(machines.robot_file), 'amplitude': 0.4, 'execute_steps': 10}
    policy = machines.node('gpu', 'policy_node', **moves)

    def followed(after_ns: int) -> set[int]:
        return {each['chunk_id'] for each in machines.statuses(after_ns) if each['state'] == STATE_RUN}

    machines.until('chunks are followed over the network', lambda: len(followed(0)) > 5, 40.0)
    began_ns = time.time_ns()
    time.sleep(5.0)
    said = machines.statuses(began_ns)
    runs = sum(each['state'] == STATE_RUN for each in said)
    assert runs > 0.8 * len(said), f'{len(said) - runs} of {len(said)} statuses say that it holds: {said[-1]["reason"]}'

    cut_ns = machines.switch('down')
    time.sleep(CUT_S)
    held = [each for each in machines.statuses(cut_ns) if each['state'] == STATE_HOLD]
    assert held, machines.statuses(cut_ns)[-1]
    # It speaks ten times a second; where it is silent for longer, its machine gave it no time to react either.
    told_s = [each['at_ns'] / 1e9 for each in machines.statuses(cut_ns - 500_000_000)]
    stall_s = max(0.0, max(np.diff(told_s)) - 0.1)
    assert (held[0]['at_ns'] - cut_ns) / 1e9 < 0.3 + stall_s
    assert machines.statuses()[-1]['state'] == STATE_HOLD
    joined_ns = machines.switch('up')
    machines.until('it goes on', lambda: len(followed(joined_ns)) > 2, 15.0)

    policy.send_signal(signal.SIGINT)
    policy.wait(10.0)
    machines.start('gpu', 'clock', ['-c', CLOCK])
    machines.node('gpu', 'policy_node', **moves, use_sim_time=True)
    named = f"The policy's clock is {AHEAD_S:.1f}"
    machines.until('the offset is named', lambda: named[:-1] in machines.text('chunk_executor'), 30.0)
    ahead_s = [in_ns(each['policy_clock_ahead']) / 1e9 for each in machines.statuses()[-20:]]
    assert max(ahead_s) == pytest.approx(AHEAD_S, abs=0.05)
