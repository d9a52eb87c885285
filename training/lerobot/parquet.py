"""Parquet files read in a process of their own, with a time limit: one flipped bit can make a page that never ends."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ki_common.files import is_lfs_pointer
from training.errors import TrainingError

LIMIT_S = 60.0
BYTES_PER_S = 5_000_000  # a slow share is given the time for as much


class ParquetReader:
    """Reads tables; its process begins with the first and ends with this object.

    Args:
        limit_s: Seconds for a file, beside what its size needs.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None

    def table(self, path: Path, columns: Sequence[str] | None = None, rows: tuple[str, int] | None = None) -> Any:
        """A file as an Arrow table.

        Args:
            path: The file.
            columns: Which, if they are there; `!stats/` wants all that do not begin like that. None: all.
            rows: Only those in which a column has a value.

        Raises:
            TrainingError: It does not read, is not read in time, or takes the process down.
        """
        import pyarrow as pa

        if path.is_file() and is_lfs_pointer(path):
            raise TrainingError(f'{path} is a pointer of git-lfs and no data; run `git lfs pull` in its dataset.')
        request = {'path': str(path), 'columns': None if columns is None else list(columns), 'rows': rows}
        size = path.stat().st_size if path.is_file() else 0
        limit_s = self._limit_s + size / BYTES_PER_S
        try:
            good, data = self._ask(request, time.monotonic() + limit_s)
        except TimeoutError as error:
            self.close()
            raise TrainingError(f'{path} was not read within {limit_s:.0f} s: it is damaged.') from error
        except (OSError, EOFError) as error:
            self.close()
            raise TrainingError(f'{path} took the process down that read it: it is damaged.') from error
        if not good:
            raise TrainingError(f'{path} cannot be read ({data.decode()}).')
        return pa.ipc.open_stream(data).read_all()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reader_here, (self._limit_s,)

    def close(self) -> None:
        """Ends the process; the next table begins another."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _ask(self, request: dict[str, Any], deadline: float) -> tuple[bool, bytes]:
        if self._process is None:
            self._process = _begin()
            weakref.finalize(self, _end, self._process)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b'\n')
        self._process.stdin.flush()
        head = self._take(9, deadline)
        return bool(head[0]), self._take(int.from_bytes(head[1:], 'big'), deadline)

    def _take(self, count: int, deadline: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        pieces: list[bytes] = []
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while count:
                if not ready.select(max(deadline - time.monotonic(), 0.0)):
                    raise TimeoutError
                piece = os.read(self._process.stdout.fileno(), min(count, 1 << 20))
                if not piece:
                    raise EOFError
                pieces.append(piece)
                count -= len(piece)
        return b''.join(pieces)


@lru_cache(maxsize=1)
def _reader_here(limit_s: float) -> ParquetReader:
    """The reader of a process that works for another: one for all episodes that it is given."""
    return ParquetReader(limit_s)


def _begin() -> subprocess.Popen[bytes]:
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(each or os.getcwd() for each in sys.path)}
    return subprocess.Popen(
        [sys.executable, '-m', 'training.lerobot.parquet_worker'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=environment,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
