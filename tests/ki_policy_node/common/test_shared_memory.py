"""What killed processes left in shared memory is freed, and nothing that somebody uses."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ki_policy_node.common import shared_memory
from ki_policy_node.common.shared_memory import LOCK, free_abandoned

DEAD, LIVE, YOUNG = 'fastrtps_0123456789abcdef', 'fastrtps_00000000000000aa', 'fastdds_00000000000000bb'
OTHERS = ('fastrtps_port7411', 'fastrtps_port7411_el', 'psm_01234567_el', 'fastrtps_0123_el', 'sem.mp-1')
OWNER = """
import rclpy, sys
rclpy.init()
node = rclpy.create_node('owner')
print('there', flush=True)
sys.stdin.read()
"""


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
