"""Files and folders that appear under their name whole and on disk, or not at all; the sha256 and the JSON of files.

A writer works beside the name, in `.NAME.partial-PID`. What bears the name stays as it is until the new one is complete
and on disk. What a killed writer leaves beside it goes when the next one writes the same name.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ki_common.errors import KiError

_READ_BYTES = 1 << 20
_LFS = b'version https://git-lfs.github.com/spec/'
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_JSON_BYTES = 256 << 20


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` when the block ends; after an exception nothing has changed.

    The folder is made. What the disk refuses is an OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    partial = _partial_of(path)
    try:
        with partial.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file of UTF-8 text as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(text.encode('utf-8'))


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill that takes the place of `folder` when the block ends; after an exception nothing has.

    An old folder changes places with the new one in one step where the system can do that. What the disk refuses is an
    OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent, folder.name)
    partial = _partial_of(folder)
    try:
        partial.mkdir()
        yield partial
        _sync_tree(partial)
        _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes from a folder what writers of `name` (None: of any name) left there that are no longer alive.

    This process counts as no longer alive: call it before writing.
    """
    pattern = '*' if name is None else glob.escape(name)
    for path in folder.glob(f'.{pattern}.partial-*'):
        process = path.name.rpartition('-')[2]
        if not process.isdecimal() or _is_another_alive(int(process)):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes what was created or renamed in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def is_lfs_pointer(path: Path) -> bool:
    """Whether git-lfs has left its note in the place of a file's content."""
    with path.open('rb') as file:
        return file.read(len(_LFS)) == _LFS


def read_json(path: Path, error: type[KiError], advice: str = '') -> dict[str, Any]:
    """The table of names and values that a JSON file holds.

    Args:
        path: The file.
        error: What is raised: the exception of the room that asks.
        advice: What to do about a file that is no such table; it ends the sentence.

    Raises:
        KiError: of the type `error`; the file is not there, is no JSON, or holds something else.
    """
    end = f'; {advice}.' if advice else '.'
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError(f'it has {path.stat().st_size} bytes, more than {_JSON_BYTES}')
        data = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f'{path} cannot be read as JSON ({reason}){end}') from reason
    if not isinstance(data, dict):
        raise error(f'{path} holds a {type(data).__name__} and no table of names and values{end}')
    return data


def _partial_of(path: Path) -> Path:
    return path.parent / f'.{path.name}.partial-{os.getpid()}'


def _is_another_alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it lives, and is somebody else's
        return True
    return True


def _put_in_place(partial: Path, folder: Path) -> None:
    # Not asked first whether it is there: another process may write the same folder, and be done in between.
    try:
        partial.replace(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if not _exchange(partial, folder):
            _replace_in_two_steps(partial, folder)
    sync_folder(folder.parent)


def _replace_in_two_steps(partial: Path, folder: Path) -> None:
    old = folder.parent / f'.{folder.name}.old-{os.getpid()}'
    folder.replace(old)
    try:
        partial.replace(folder)
    except OSError:
        old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two paths atomically (Linux, renameat2 with RENAME_EXCHANGE); False where that is not to be had."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _sync_tree(folder: Path) -> None:
    """Flushes every file and folder below."""
    for path in [*folder.rglob('*'), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open('rb') as file:
                os.fsync(file.fileno())
