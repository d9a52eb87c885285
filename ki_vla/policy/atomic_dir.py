"""A folder appears under its name whole and on disk, or not at all; an old one stays until the new one is complete."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from ki_vla.importers.stream import sync_folder

AT_FDCWD, RENAME_EXCHANGE = -100, 2


def partial_of(folder: Path) -> Path:
    """Where this process writes a folder before it is put in place."""
    return folder.parent / f'.{folder.name}.partial-{os.getpid()}'


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename into place. An old folder changes places with the new one in one step where the system can do that."""
    if not folder.exists():
        partial.replace(folder)
    elif not _exchange(partial, folder):
        old = folder.parent / f'.{folder.name}.old-{os.getpid()}'
        folder.replace(old)
        try:
            partial.replace(folder)
        except OSError:
            old.replace(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically (Linux, renameat2 with RENAME_EXCHANGE); False where that is not to be had."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers of this folder left behind that are no longer alive."""
    for path in folder.parent.glob(f'.{folder.name}.partial-*'):
        process = path.name.rpartition('-')[2]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (ValueError, OSError):
            continue


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below."""
    for path in [*folder.rglob('*'), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open('rb') as file:
                os.fsync(file.fileno())
