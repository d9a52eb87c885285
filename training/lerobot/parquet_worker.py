"""The process that reads parquet files for `training.lerobot.parquet`: a damaged page costs it, and nobody else.

It reads one request a line from stdin (JSON: path, columns, rows) and answers on stdout: a byte (1: a table, 0: why
not), eight bytes of length, and an Arrow IPC stream or UTF-8 text.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

MEMORY_BYTES = 8 << 30  # a page can claim any size


def answer(request: dict[str, Any]) -> bytes:
    """The table of a request, as an Arrow IPC stream."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, rows = request['path'], request['rows']
    filters = None if rows is None else [(rows[0], '=', rows[1])]
    columns = request['columns']
    if columns is not None:
        there = pq.read_schema(path).names
        columns = [name for name in there if any(_matches(name, wanted) for wanted in columns)]
    # One file is one file: with partitioning, a folder called `a=b` on the way would add a column.
    table = pq.read_table(path, columns=columns, filters=filters, partitioning=None, page_checksum_verification=True)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def _matches(name: str, wanted: str) -> bool:
    """`!stats/` wants every column that does not begin like that."""
    return not name.startswith(wanted[1:]) if wanted.startswith('!') else name == wanted


def main() -> None:
    """Answers until stdin ends."""
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    most = min(MEMORY_BYTES, total, *([] if allowed == resource.RLIM_INFINITY else [allowed]))
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    out = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    for line in sys.stdin:
        try:
            good, data = 1, answer(json.loads(line))
        except Exception as error:  # pyarrow raises a dozen types for a damaged file
            good, data = 0, f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'.encode()
        out.write(bytes([good]) + len(data).to_bytes(8, 'big') + data)
        out.flush()


if __name__ == '__main__':
    main()
