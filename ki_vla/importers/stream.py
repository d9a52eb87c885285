"""Safetensors files read and written piece by piece, so that a 14 GB checkpoint needs megabytes of memory.

The format: eight bytes with the length of a JSON header, the header (name -> dtype, shape, offsets), then the raw data.
Files are read with plain reads, not mapped into memory, so that the resident size stays that of one piece.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from ki_common.files import atomic_file
from ki_vla.errors import VlaError

PIECE_BYTES = 32 * 2**20
MAX_HEADER_BYTES = 100 * 2**20  # as in the safetensors library
INDEX_FILE = 'model.safetensors.index.json'
WEIGHTS_FILE = 'model.safetensors'
DTYPES = {'F32': torch.float32, 'BF16': torch.bfloat16, 'F16': torch.float16, 'F64': torch.float64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# One part of a tensor's data: `rows` of its first dimension, in order.
Pieces = Iterator[torch.Tensor]


class HasShape(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its dimensions."""
        ...


class TensorSource(Protocol):
    """Tensors of a checkpoint by name, read piece by piece: safetensors files, or an orbax folder (`orbax`)."""

    @property
    def path(self) -> Path:
        """What errors call it."""
        ...

    @property
    def tensors(self) -> Mapping[str, HasShape]:
        """Every tensor by name."""
        ...

    def pieces(self, name: str, rows: int | None = None) -> Pieces:
        """A tensor in pieces of some rows each (a scalar is one piece), reading no further than row `rows`."""
        ...

    def files(self) -> set[Path]:
        """Every file that is read."""
        ...

    def order(self, name: str) -> tuple[object, ...]:
        """A sort key: tensors that lie together are read one after the other."""
        ...


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: file, dtype, shape, first byte."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class CheckpointTensors:
    """Every tensor of a checkpoint of one or several files, by name."""

    path: Path
    tensors: dict[str, TensorInfo]

    def pieces(self, name: str, rows: int | None = None) -> Pieces:
        """The tensor in pieces of some rows each (a scalar is one piece), reading no further than row `rows`."""
        info = self.tensors[name]
        total = (info.shape[0] if info.shape else 1) if rows is None else rows
        row_shape = info.shape[1:]
        row_bytes = math.prod(row_shape) * info.dtype.itemsize
        step = max(1, PIECE_BYTES // max(1, row_bytes))
        with info.path.open('rb') as file:
            file.seek(info.offset)
            for start in range(0, total, step):
                count = min(step, total - start)
                data = bytearray(count * row_bytes)
                if file.readinto(data) != len(data):
                    raise VlaError(f'{info.path}: ended while reading {name}.')
                piece = torch.frombuffer(data, dtype=info.dtype) if data else torch.empty(0, dtype=info.dtype)
                yield piece.reshape(count, *row_shape) if info.shape else piece.reshape(())

    def files(self) -> set[Path]:
        """Every file that is read."""
        return {info.path for info in self.tensors.values()}

    def order(self, name: str) -> tuple[object, ...]:
        """All tensors are read equally well in any order."""
        return ()


def open_checkpoint(path: str | Path) -> CheckpointTensors:
    """A safetensors file, or a folder with model.safetensors or with shards and their index.

    Raises:
        VlaError: nothing there, a shard or a tensor missing, a truncated file, or a dtype that is no floating point.
    """
    path = Path(path)
    if path.is_file():
        return CheckpointTensors(path, read_header(path))
    if (path / INDEX_FILE).is_file():
        return CheckpointTensors(path, _read_shards(path))
    if (path / WEIGHTS_FILE).is_file():
        return CheckpointTensors(path, read_header(path / WEIGHTS_FILE))
    raise VlaError(f'{path}: no safetensors file, no {WEIGHTS_FILE} and no {INDEX_FILE} in it.')


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, checked against its length.

    Raises:
        VlaError: the file is no safetensors file, is truncated, or holds a dtype that is no floating point.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise VlaError(f'{path}: not a safetensors file, or cut off in its header ({size} bytes).')
        try:
            header = json.loads(file.read(length))
            header.pop('__metadata__', None)
            tensors = {name: _info(path, name, entry, 8 + length, size) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VlaError(f'{path}: the safetensors header is malformed ({error}).') from error
    return tensors


def write_tensors(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: torch.dtype,
    pieces: Callable[[str], Iterable[torch.Tensor]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a safetensors file in pieces; it appears under its name only when complete and on disk.

    Args:
        path: the file.
        shapes: name -> shape of every tensor, in the order they shall lie in the file.
        dtype: of every tensor; pieces are converted.
        pieces: name -> its data in order.
        metadata: strings kept in the header.

    Raises:
        VlaError: a tensor gave more or fewer numbers than its shape says.
    """
    with atomic_file(path) as file:
        file.write(_header(shapes, dtype, metadata))
        for name, shape in shapes.items():
            written = sum(_write_piece(file, piece, dtype) for piece in pieces(name))
            if written != math.prod(shape):
                raise VlaError(f'{path}: {name} gave {written} numbers, its shape {shape} has {math.prod(shape)}.')


def _info(path: Path, name: str, entry: dict[str, Any], data_start: int, size: int) -> TensorInfo:
    """One entry of a header, checked."""
    if entry['dtype'] not in DTYPES:
        raise VlaError(f'{path}: {name} has the dtype {entry["dtype"]}; weights are {", ".join(DTYPES)}.')
    dtype, shape = DTYPES[entry['dtype']], tuple(int(n) for n in entry['shape'])
    begin, end = (int(n) for n in entry['data_offsets'])
    if min(shape, default=0) < 0 or begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise VlaError(f'{path}: {name} has offsets {begin}..{end} that do not fit its shape {shape}.')
    if data_start + end > size:
        raise VlaError(f'{path}: truncated, {name} ends at byte {data_start + end} and the file has {size}.')
    return TensorInfo(path, dtype, shape, data_start + begin)


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of an index and its shards, which must name the same ones."""
    index = folder / INDEX_FILE
    try:
        weight_map = json.loads(index.read_text(encoding='utf-8'))['weight_map']
        shards = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise VlaError(f'{index}: not a readable index of shards ({error}).') from error
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise VlaError(f'{index}: the shard {shard} is missing from the folder.')
        tensors |= read_header(folder / shard)
    differing = sorted(set(tensors) ^ set(weight_map))
    if differing:
        raise VlaError(f'{index}: index and shards name different tensors: {", ".join(differing[:5])}.')
    return tensors


def _header(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, metadata: dict[str, str] | None) -> bytes:
    """Length and JSON header, padded to a multiple of eight."""
    entries: dict[str, object] = {'__metadata__': {'format': 'pt', **(metadata or {})}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {'dtype': NAMES[dtype], 'shape': list(shape), 'data_offsets': [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(',', ':')).encode('utf-8')
    header += b' ' * (-len(header) % 8)
    return len(header).to_bytes(8, 'little') + header


def _write_piece(file: BinaryIO, piece: torch.Tensor, dtype: torch.dtype) -> int:
    """Write one piece; returns how many numbers it held."""
    piece = piece.detach().to('cpu', dtype).contiguous()
    if piece.numel():
        file.write(piece.reshape(-1).view(torch.uint8).numpy().data)
    return piece.numel()
