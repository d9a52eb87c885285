from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ki_common import files
from ki_common.errors import KiError
from ki_common.files import atomic_file, atomic_folder, read_json, remove_leftovers, sha256_of, write_text

DEAD = 2**22 + 1  # beyond the highest process id of Linux


class RoomError(KiError):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / 'made' / 'file'
    with atomic_file(path) as file:
        file.write(b'new')
        assert not path.exists()
    assert path.read_bytes() == b'new'
    assert names(path.parent) == ['file']


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    write_text(path, 'old')

    def fail_halfway() -> None:
        with atomic_file(path) as file:
            file.write(b'half')
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == 'old'
    assert names(tmp_path) == ['file']


def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    replace, fsync = Path.replace, os.fsync
    monkeypatch.setattr(os, 'fsync', lambda handle: (done.append('sync'), fsync(handle)))
    monkeypatch.setattr(Path, 'replace', lambda one, other: (done.append('rename'), replace(one, other)))
    write_text(tmp_path / 'file', 'ä')
    assert done == ['sync', 'rename', 'sync']
    assert (tmp_path / 'file').read_bytes() == 'ä'.encode()


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / 'deep' / 'folder') as partial:
        (partial / 'inner').mkdir()
        (partial / 'inner' / 'file').touch()
        assert not (tmp_path / 'deep' / 'folder').exists()
    assert (tmp_path / 'deep' / 'folder' / 'inner' / 'file').is_file()
    assert names(tmp_path / 'deep') == ['folder']


@pytest.mark.parametrize('exchange', [True, False])
def test_a_new_folder_replaces_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    swap = files._exchange
    monkeypatch.setattr(files, '_exchange', lambda one, other: exchange and swap(one, other))
    for name in ('old', 'new'):
        with atomic_folder(tmp_path / 'folder') as partial:
            (partial / name).touch()
    assert names(tmp_path / 'folder') == ['new']
    assert names(tmp_path) == ['folder']


SAME = """
import pathlib, sys, time
from ki_common.files import atomic_folder
at_s = float(sys.argv[2])
for number in range(200):
    at_s += 0.005
    with atomic_folder(pathlib.Path(sys.argv[1]) / str(number)) as new:
        (new / 'whole').write_text('all')
        time.sleep(max(at_s - time.time(), 0.0))
"""


def test_processes_that_write_the_same_folder_at_once_all_succeed(tmp_path: Path) -> None:
    begin = str(time.time() + 1.0)
    writers = [subprocess.Popen([sys.executable, '-c', SAME, str(tmp_path), begin]) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    written = {path.name: [(each.name, each.read_text()) for each in path.iterdir()] for path in tmp_path.iterdir()}
    assert written == {str(number): [('whole', 'all')] for number in range(200)}


@pytest.mark.parametrize('step', ['_sync_tree', '_put_in_place', 'body'])
def test_an_interrupted_write_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with atomic_folder(tmp_path / 'folder') as partial:
        (partial / 'old').touch()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def write() -> None:
        with atomic_folder(tmp_path / 'folder') as partial:
            (partial / 'new').touch()
            if step == 'body':
                stop()

    if step != 'body':
        monkeypatch.setattr(files, step, stop)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(tmp_path / 'folder') == ['old']
    assert names(tmp_path) == ['folder']


KILLED = """
import os, pathlib, signal, sys
from ki_common.files import atomic_file, atomic_folder
with {writer}(pathlib.Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize('writer', ['atomic_file', 'atomic_folder'])
def test_the_next_writer_of_a_name_removes_what_a_killed_one_left(tmp_path: Path, writer: str) -> None:
    path = tmp_path / 'na[m]e'
    code = KILLED.format(writer=writer)
    killed = subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -9, killed.stderr
    assert len(names(tmp_path)) == 1
    assert not path.exists()
    write_text(path, 'whole')
    assert names(tmp_path) == ['na[m]e']


def test_leftovers_of_the_living_and_of_other_names_stay(tmp_path: Path) -> None:
    for name in (f'.one.partial-{os.getppid()}', f'.two.partial-{DEAD}', '.one.partial-notes', f'one.partial-{DEAD}'):
        (tmp_path / name).touch()
    (tmp_path / f'.one.partial-{DEAD}').mkdir()
    (tmp_path / f'.one.partial-{os.getpid()}').touch()
    remove_leftovers(tmp_path, 'one')
    kept = sorted(['.one.partial-notes', f'.one.partial-{os.getppid()}', f'.two.partial-{DEAD}', f'one.partial-{DEAD}'])
    assert names(tmp_path) == kept
    remove_leftovers(tmp_path)
    assert f'.two.partial-{DEAD}' not in names(tmp_path)


def test_a_hash_is_that_of_the_content(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 7)
    (tmp_path / 'file').write_bytes(content)
    assert sha256_of(tmp_path / 'file') == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (None, r'cannot be read as JSON \(.*No such file.*\); export again\.'),
        (b'{"a": ', r'table\.json cannot be read as JSON \(Expecting value.*\); export again\.'),
        (b'\xff', r'cannot be read as JSON \(.*utf-8'),
        (b'[' * 100_000, r'cannot be read as JSON \('),
        (b'[1]', r'table\.json holds a list and no table of names and values; export again\.'),
    ],
)
def test_a_file_that_is_no_table_is_an_error_of_the_room_that_asks(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / 'table.json'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RoomError, match=said):
        read_json(path, RoomError, 'export again')


def test_a_table_is_read(tmp_path: Path) -> None:
    (tmp_path / 'table.json').write_text('{"a": [1, null]}', encoding='utf-8')
    assert read_json(tmp_path / 'table.json', RoomError, 'write it again') == {'a': [1, None]}
