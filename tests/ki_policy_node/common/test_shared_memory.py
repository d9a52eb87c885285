"""What killed processes left in shared memory is freed, and nothing that somebody uses."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ki_policy_node.common import shared_memory
from ki_policy_node.common.shared_memory import LOCK, PORT_LOCK, PORT_MAP, free_abandoned, ghosts_avoided

DEAD, LIVE, YOUNG = 'fastrtps_0123456789abcdef', 'fastrtps_00000000000000aa', 'fastdds_00000000000000bb'
OTHERS = ('fastrtps_port7411', 'fastrtps_port7411_el', 'psm_01234567_el', 'fastrtps_0123_el', 'sem.mp-1')
REMOVED_PORT = re.compile(PORT_MAP.pattern.removesuffix(rb'\b') + rb' \(deleted\)')
OWNER = """
import rclpy, sys
rclpy.init()
node = rclpy.create_node('owner')
print('there', flush=True)
sys.stdin.read()
"""

# Says all the time who it is, and when asked, on which ports it is reached and whether it hears others.
SPEAKER = """
import os, sys, threading, time
from pathlib import Path
import rclpy
from std_msgs.msg import String
from ki_policy_node.common.process import start
from ki_policy_node.common.shared_memory import FOLDER, PORT_LOCK
_, node = start(lambda: rclpy.create_node('speaker'), [])
me, locks = str(os.getpid()), [line.split() for line in Path('/proc/locks').read_text().splitlines()]
owned = {lock[5].split(':')[2] for lock in locks if lock[4] == me}
files = {str(entry.inode()): PORT_LOCK.fullmatch(entry.name) for entry in os.scandir(FOLDER)}
ports = [files[inode][1] for inode in owned if files.get(inode)]
heard, publisher = set(), node.create_publisher(String, 'said', 10)
node.create_subscription(String, 'said', lambda message: heard.add(message.data), 10)
node.create_timer(0.05, lambda: publisher.publish(String(data=me)))
threading.Thread(target=rclpy.spin, args=(node,), daemon=True).start()
while wanted := sys.stdin.readline().split():
    heard.clear()
    end_s = time.monotonic() + 10.0
    while not heard.issuperset(wanted) and time.monotonic() < end_s:
        time.sleep(0.02)
    print(*ports, heard.issuperset(wanted), flush=True)
"""


class Speaker:
    """A process with a node, until it is killed or left."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-c', SPEAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hears(self, *others: Speaker) -> tuple[set[int], bool]:
        """Its ports, and whether it hears itself and all of these."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(self.process.pid, *(each.process.pid for each in others), file=self.process.stdin, flush=True)
        *ports, heard = self.process.stdout.readline().split()
        return {int(port) for port in ports}, heard == 'True'

    def dead_ends(self) -> set[int]:
        """Ports that it has open and writes to although they were removed: who made them anew hears nothing of it."""
        maps = Path(f'/proc/{self.process.pid}/maps').read_bytes()
        return {int(port) for port in REMOVED_PORT.findall(maps)}

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def segment(folder: Path, name: str, old: bool = True) -> Path:
    (folder / name).write_bytes(b'x' * 8192)
    lock = folder / f'{name}_el'
    lock.touch()
    if old:
        os.utime(lock, (1.0, 1.0))
    return lock


def test_only_what_is_old_and_nobody_holds_goes(tmp_path: Path) -> None:
    for name in OTHERS:
        (tmp_path / name).write_bytes(b'x')
        os.utime(tmp_path / name, (1.0, 1.0))
    segment(tmp_path, DEAD)
    segment(tmp_path, YOUNG, old=False)
    with segment(tmp_path, LIVE).open('rb') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert free_abandoned(tmp_path) == 8192
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {*OTHERS, LIVE, f'{LIVE}_el', YOUNG, f'{YOUNG}_el'}
    assert free_abandoned(tmp_path) == 8192, 'its owner has died'
    assert free_abandoned(tmp_path) == 0


def test_a_lock_without_a_segment_and_a_machine_without_the_folder_are_no_errors(tmp_path: Path) -> None:
    segment(tmp_path, DEAD)
    (tmp_path / DEAD).unlink()
    assert free_abandoned(tmp_path) == 0
    assert free_abandoned(tmp_path / 'missing') == 0


@pytest.mark.ros
def test_the_segment_of_a_node_is_its_own_until_it_is_killed(ros_domain: int) -> None:
    def locks() -> set[str]:
        return {name for name in os.listdir(shared_memory.FOLDER) if LOCK.fullmatch(name)}

    def mapped(pid: int) -> set[str]:
        lines = Path(f'/proc/{pid}/maps').read_text().splitlines()
        names = {line.rpartition('/')[2] for line in lines if '/dev/shm/' in line}
        return {f'{name}_el' for name in names} & locks()

    before = locks()
    owner = subprocess.Popen([sys.executable, '-c', OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == 'there\n'
    made = [shared_memory.FOLDER / name for name in mapped(owner.pid) - before]
    assert made
    assert [shared_memory._free(lock) for lock in made] == [0] * len(made), 'it lives'
    owner.kill()
    owner.communicate()
    assert all(lock.exists() for lock in made), 'Fast DDS leaves them'
    assert all(shared_memory._free(lock) > 0 for lock in made)
    assert not any(lock.exists() or lock.with_name(lock.name.removesuffix('_el')).exists() for lock in made)


@pytest.mark.ros
def test_who_takes_the_place_of_a_killed_node_is_reached_by_all(ros_domain: int) -> None:
    place, other = Speaker(), Speaker()
    try:
        for _ in range(4):
            ports, _ = place.hears()
            assert ports
            # Not `ports & set(ghosts)`: the other may have let go of one before this one came, and then it is free.
            assert not ports & other.dead_ends(), 'a port of one that was killed, to which the other still writes'
            # Both have the ports of the other open from now on.
            assert place.hears(other)[1]
            assert other.hears(place)[1]
            with ghosts_avoided() as ghosts:
                assert not ports & set(ghosts), 'it lives'
            place.kill()
            with ghosts_avoided() as ghosts:
                assert ports <= set(ghosts)
            place = Speaker()
    finally:
        place.kill()
        other.kill()
    with ghosts_avoided() as none:
        assert not set(ghosts) & set(none), 'nobody has them open any more'


def test_a_port_that_nobody_owns_is_known_by_its_lock(tmp_path: Path) -> None:
    for name in (*OTHERS, 'fastrtps_port7413', 'fastrtps_port7413_el', 'fastdds_port7415_el'):
        (tmp_path / name).write_bytes(b'x')
    with (tmp_path / 'fastrtps_port7413_el').open('rb') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert set(dict(shared_memory._abandoned_ports(tmp_path))) == {7411, 7415}
    assert set(dict(shared_memory._abandoned_ports(tmp_path))) == {7411, 7413, 7415}
    assert list(shared_memory._abandoned_ports(tmp_path / 'missing')) == []
    assert PORT_LOCK.fullmatch('fastrtps_port7411') is None
    assert PORT_MAP.findall(b'7f-80 rw-s 0 00:1b 5 /dev/shm/fastrtps_port7411 (deleted)\n') == [b'7411']
