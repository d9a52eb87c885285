"""openpi's JAX checkpoints: an orbax folder read with tensorstore, without jax and piece by piece.

Such a folder holds zarr arrays, in one OCDBT database (`manifest.ocdbt`) or each in a folder of its own, and
`_METADATA`, which names them. All layers of a kind lie in one array, kernels stand input first and heads have an axis
of their own. An `ArrayView` is one tensor as torch has it, named after its array and the place in it:
`PaliGemma/llm/layers/mlp/gating_einsum[3,0]`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ki_common.errors import first_line
from ki_common.files import read_json
from ki_vla.errors import VlaError
from ki_vla.importers.mapping import ImportPlan, our_shapes
from ki_vla.importers.stream import PIECE_BYTES, Pieces
from ki_vla.model.config import ModelConfig, preset

PARAMS, MANIFEST, METADATA = 'params', 'manifest.ocdbt', '_METADATA'
ARRAY_FILES = ('.zarray', 'zarr.json')
SMALLEST_CACHE = 2**28
READABLE = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16, 'float64': torch.float64}

VISION, TEXT = 'PaliGemma/img', 'PaliGemma/llm'
BLOCK = f'{VISION}/Transformer/encoderblock'
ATTENTION = f'{BLOCK}/MultiHeadDotProductAttention_0'
INPUTS = {
    'action_in': 'action_in_proj',
    'action_out': 'action_out_proj',
    'state_in': 'state_proj',
}
TIME = {True: {'time_in': 'time_mlp_in', 'time_out': 'time_mlp_out'},
        False: {'time_in': 'action_time_mlp_in', 'time_out': 'action_time_mlp_out'}}  # fmt: skip
VISION_ARRAYS = {
    'norm1.weight': f'{BLOCK}/LayerNorm_0/scale',
    'norm1.bias': f'{BLOCK}/LayerNorm_0/bias',
    'norm2.weight': f'{BLOCK}/LayerNorm_1/scale',
    'norm2.bias': f'{BLOCK}/LayerNorm_1/bias',
    'fc1.weight': f'{BLOCK}/MlpBlock_0/Dense_0/kernel',
    'fc1.bias': f'{BLOCK}/MlpBlock_0/Dense_0/bias',
    'fc2.weight': f'{BLOCK}/MlpBlock_0/Dense_1/kernel',
    'fc2.bias': f'{BLOCK}/MlpBlock_0/Dense_1/bias',
    **{
        f'{ours}.{kind}': f'{ATTENTION}/{theirs}/{"kernel" if kind == "weight" else "bias"}'
        for ours, theirs in {'q': 'query', 'k': 'key', 'v': 'value', 'out': 'out'}.items()
        for kind in ('weight', 'bias')
    },
}


@dataclass(frozen=True)
class ArrayLayout:
    """How views lie in an array: its first `split` axes count them, the rest is put in the order `axes`, and the axes
    in `merge` (first and last) become one.
    """

    split: int = 0
    axes: tuple[int, ...] | None = None
    merge: tuple[int, int] | None = None


# The first pattern that fits counts. Letters: L layers, D width, N heads, K key heads, H head width, M feed-forward.
LAYOUTS = tuple(
    (re.compile(pattern), layout)
    for pattern, layout in (
        (rf'{VISION}/embedding/kernel', ArrayLayout(axes=(3, 2, 0, 1))),  # rows, columns, colours, D
        (rf'{VISION}/pos_embedding', ArrayLayout(split=1)),
        (rf'{ATTENTION}/(query|key|value)/kernel', ArrayLayout(1, (1, 2, 0), (0, 1))),  # L D N H
        (rf'{ATTENTION}/(query|key|value)/bias', ArrayLayout(1, (0, 1), (0, 1))),  # L N H
        (rf'{ATTENTION}/out/kernel', ArrayLayout(1, (2, 0, 1), (1, 2))),  # L N H D
        (rf'{BLOCK}/.*/kernel', ArrayLayout(1, (1, 0))),
        (rf'{BLOCK}/.*', ArrayLayout(1)),
        (rf'{TEXT}/layers/attn/q_einsum(_1)?/w', ArrayLayout(1, (0, 2, 1), (0, 1))),  # L N D H
        (rf'{TEXT}/layers/attn/kv_einsum(_1)?/w', ArrayLayout(2, (0, 2, 1), (0, 1))),  # L 2 K D H
        (rf'{TEXT}/layers/attn/attn_vec_einsum(_1)?/w', ArrayLayout(1, (2, 0, 1), (1, 2))),  # L N H D
        (rf'{TEXT}/layers/mlp(_1)?/gating_einsum', ArrayLayout(2, (1, 0))),  # L 2 D M
        (rf'{TEXT}/layers/mlp(_1)?/linear', ArrayLayout(1, (1, 0))),  # L M D
        (rf'{TEXT}/layers/.*/kernel', ArrayLayout(1, (1, 0))),
        (rf'{TEXT}/layers/.*', ArrayLayout(1)),
        (r'.*/kernel', ArrayLayout(0, (1, 0))),
    )
)


@dataclass(frozen=True)
class ArrayView:
    """One tensor in an array: where it begins there, and its shape as torch has it."""

    array: str
    index: tuple[int, ...]
    layout: ArrayLayout
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class OrbaxTensors:
    """The tensors of an orbax folder by name; a `TensorSource`.

    Attributes:
        path: the folder.
        tensors: every tensor by name.
        specs: how tensorstore opens each array.
        largest: bytes of the largest chunk, which has to be in memory as a whole.
    """

    path: Path
    tensors: dict[str, ArrayView]
    specs: dict[str, dict[str, Any]]
    largest: int
    _open: dict[str, Any] = field(default_factory=dict, repr=False)

    def pieces(self, name: str, rows: int | None = None) -> Pieces:
        """A tensor in pieces of some rows each, reading no further than row `rows`."""
        view = self.tensors[name]
        store = self._store(view.array)[view.index]
        if view.layout.axes is not None:
            store = store.transpose(view.layout.axes)
        if not view.shape:
            yield _as_torch(self._read(name, store)).reshape(())
            return
        per_row = math.prod(store.shape[1:]) * store.dtype.numpy_dtype.itemsize
        step = max(1, PIECE_BYTES // max(1, per_row))
        left = view.shape[0] if rows is None else rows
        for start in range(0, store.shape[0], step):
            part = store[start : min(start + step, store.shape[0])]
            piece = _as_torch(self._read(name, part)).reshape(-1, *view.shape[1:])[:left]
            yield piece
            left -= len(piece)
            if left <= 0:
                return

    def files(self) -> set[Path]:
        """Every file that is read."""
        return {file for file in self.path.rglob('*') if file.is_file()}

    def order(self, name: str) -> tuple[object, ...]:
        """Views of one array are read one after the other, so that each chunk is unpacked once."""
        view = self.tensors[name]
        return (view.array, view.index)

    def _store(self, array: str) -> Any:
        """An array opened for reading; only the one in hand is kept open."""
        import tensorstore

        if array not in self._open:
            self._open.clear()
            limit = max(SMALLEST_CACHE, self.largest + self.largest // 8)
            context = tensorstore.Context({'cache_pool': {'total_bytes_limit': limit}})
            self._open[array] = tensorstore.open(self.specs[array], read=True, context=context).result()
        return self._open[array]

    def _read(self, name: str, part: Any) -> np.ndarray:
        try:
            return np.asarray(part.read().result())
        except (ValueError, OSError) as error:
            raise VlaError(
                f'{self.path}: {name} cannot be read ({first_line(error)}); the folder is damaged or was not copied '
                'as a whole: copy it again.'
            ) from error


def is_orbax(path: str | Path) -> bool:
    """Whether a folder is an openpi JAX checkpoint, or the `params` in one."""
    return _params_folder(Path(path)) is not None


def open_orbax(path: str | Path) -> OrbaxTensors:
    """The tensors of an openpi JAX checkpoint: its folder (`params/` in it), or `params` itself.

    Raises:
        VlaError: no such folder, an array that cannot be opened, one that holds no floating point numbers, or weights
            of low-rank adapters, which are not the whole policy.
    """
    folder = _params_folder(Path(path))
    if folder is None:
        raise VlaError(f'{path}: no openpi JAX checkpoint; there is no {PARAMS}/{METADATA} nor {PARAMS}/{MANIFEST}.')
    stores = _stores(folder)
    adapters = sorted(name for name in stores if 'lora' in name)
    if adapters:
        raise VlaError(
            f'{folder}: holds {len(adapters)} arrays of low-rank adapters ({adapters[0]}, ...); merge them into the '
            'weights with openpi first, or take a checkpoint that was trained as a whole.'
        )
    tensors: dict[str, ArrayView] = {}
    for name, store in stores.items():
        if store.dtype.name not in READABLE:
            raise VlaError(f'{folder}: {name} has the dtype {store.dtype.name}; weights are {", ".join(READABLE)}.')
        tensors |= _views(folder, name, tuple(store.shape))
    largest = max(
        (math.prod(s.chunk_layout.read_chunk.shape) * s.dtype.numpy_dtype.itemsize for s in stores.values()), default=0
    )
    return OrbaxTensors(folder, tensors, {name: store.spec().to_json() for name, store in stores.items()}, largest)


def default_jax_config(checkpoint: OrbaxTensors) -> ModelConfig:
    """The full-size configuration of the variant a checkpoint holds; action width as found, horizon 50.

    Raises:
        VlaError: it is no pi0 and no pi0.5.
    """
    found = checkpoint.tensors.get('action_in_proj/kernel')
    if found is None:
        what = (
            'pi0-FAST, which has no action expert' if f'{TEXT}/embedder/input_embedding' in checkpoint.tensors else ''
        )
        what = what or f'something else; it begins with {", ".join(sorted(checkpoint.tensors)[:3])}'
        raise VlaError(f'{checkpoint.path}: no pi0 or pi0.5: there is no action_in_proj/kernel. This is {what}.')
    action_dim = found.shape[-1]
    config = preset('full', action_dim=action_dim, state_dim=action_dim)
    if 'time_mlp_in/kernel' in checkpoint.tensors:
        return config.replace(name='pi05')
    return config.replace(name='pi0', adaptive=False, state_repr='suffix', max_prompt=48)


def orbax_plan(config: ModelConfig) -> ImportPlan:
    """Where every tensor of our model lies in an openpi JAX checkpoint."""
    return ImportPlan({ours: (jax_name(ours, config),) for ours in our_shapes(config)})


def jax_name(ours: str, config: ModelConfig) -> str:
    """Our name -> the name of the view.

    Raises:
        VlaError: openpi has no such part.
    """
    part, *rest = ours.split('.')
    if part == 'vision':
        return _vision_name(rest)
    if part == 'projector':
        return f'{VISION}/head/{"kernel" if rest[0] == "weight" else "bias"}'
    if part == 'embed':
        return f'{TEXT}/embedder/input_embedding'
    if part == 'backbone':
        return _gemma_name(rest, '')
    if part == 'expert' and config.head == 'expert':
        if rest[0] in ('layers', 'norm'):
            return _gemma_name(rest, '_1')
        theirs = (INPUTS | TIME[config.adaptive]).get(rest[0])
        if theirs is not None:
            return f'{theirs}/{"kernel" if rest[1] == "weight" else "bias"}'
    raise VlaError(
        f'{ours}: pi0 and pi0.5 have no such part (head {config.head!r}, state {config.state_repr!r}, '
        f'adaptive {config.adaptive}); only their own structure can be read.'
    )


def _vision_name(rest: list[str]) -> str:
    part, *more = rest
    if part == 'patch':
        return f'{VISION}/embedding/{"kernel" if more[0] == "weight" else "bias"}'
    if part == 'position':
        return f'{VISION}/pos_embedding[0]'
    if part == 'norm':
        return f'{VISION}/Transformer/encoder_norm/{"scale" if more[0] == "weight" else "bias"}'
    layer, piece, kind = more
    return f'{VISION_ARRAYS[f"{piece}.{kind}"]}[{layer}]'


def _gemma_name(rest: list[str], expert: str) -> str:
    """Of the backbone, or of the expert, whose arrays end in `_1`."""
    if rest[0] == 'norm':
        return f'{TEXT}/final_norm{expert}/{_norm_array(rest[1:])}'
    _, layer, piece, *kind = rest
    arrays = {
        'q': f'attn/q_einsum{expert}/w[{layer}]',
        'k': f'attn/kv_einsum{expert}/w[{layer},0]',
        'v': f'attn/kv_einsum{expert}/w[{layer},1]',
        'o': f'attn/attn_vec_einsum{expert}/w[{layer}]',
        'gate': f'mlp{expert}/gating_einsum[{layer},0]',
        'up': f'mlp{expert}/gating_einsum[{layer},1]',
        'down': f'mlp{expert}/linear[{layer}]',
    }
    norms = {'input_norm': 'pre_attention_norm', 'mlp_norm': 'pre_ffw_norm'}
    if piece in norms:
        return f'{TEXT}/layers/{norms[piece]}{expert}/{_norm_array(kind)}[{layer}]'
    return f'{TEXT}/layers/{arrays[piece]}'


def _norm_array(kind: list[str]) -> str:
    """`weight`, or the projection of an adaptive norm."""
    return {'weight': 'scale', 'dense.weight': 'Dense_0/kernel', 'dense.bias': 'Dense_0/bias'}['.'.join(kind)]


def _params_folder(path: Path) -> Path | None:
    """The folder that holds the arrays."""
    for folder in (path / PARAMS, path):
        if (folder / MANIFEST).is_file() or (folder / METADATA).is_file():
            return folder
    return None


def _stores(folder: Path) -> dict[str, Any]:
    """Every array by its name, without what orbax and flax put around it, opened for its metadata."""
    import tensorstore

    base = f'file://{folder.resolve()}/'
    kvstore = (
        {'driver': 'ocdbt', 'base': base} if (folder / MANIFEST).is_file() else {'driver': 'file', 'path': base[7:]}
    )
    # Where this is not said, an array of one value (new biases are 0) has no chunks; where it is, a lost chunk shows.
    said = read_json(folder / METADATA, VlaError) if (folder / METADATA).is_file() else {}
    all_chunks = said.get('store_array_data_equal_to_fill_value') is True
    try:
        keys = [key.decode() for key in tensorstore.KvStore.open(kvstore).result().list().result()]
        opened = {}
        for key in keys:
            array, _, file = key.rpartition('/')
            if file not in ARRAY_FILES or not array.startswith(f'{PARAMS}.'):
                continue
            spec = {
                'driver': 'zarr' if file == ARRAY_FILES[0] else 'zarr3',
                'kvstore': {**kvstore, 'path': f'{kvstore.get("path", "")}{array}/'},
                'recheck_cached_data': False,
                'fill_missing_data_reads': not all_chunks,
            }
            opened[array] = tensorstore.open(spec, read=True)
        return {_bare_name(array): each.result() for array, each in opened.items()}
    except (ValueError, OSError) as error:
        raise VlaError(
            f'{folder}: cannot be opened ({first_line(error)}); the folder is damaged or was not copied as a whole.'
        ) from error


def _bare_name(array: str) -> str:
    """`params.PaliGemma.img.embedding.bias.value` -> `PaliGemma/img/embedding/bias`."""
    return array.removeprefix(f'{PARAMS}.').removesuffix('.value').replace('.', '/')


def _views(folder: Path, array: str, shape: tuple[int, ...]) -> dict[str, ArrayView]:
    """The tensors in an array, by name."""
    layout = next((layout for pattern, layout in LAYOUTS if pattern.fullmatch(array)), ArrayLayout())
    inner = shape[layout.split :]
    if len(shape) < layout.split or (layout.axes is not None and len(inner) != len(layout.axes)):
        dimensions = layout.split + len(layout.axes or ())
        raise VlaError(f'{folder}: {array} has the shape {list(shape)}; {dimensions} dimensions are needed.')
    if layout.axes is not None:
        inner = tuple(inner[axis] for axis in layout.axes)
    if layout.merge is not None:
        first, last = layout.merge
        inner = (*inner[:first], math.prod(inner[first : last + 1]), *inner[last + 1 :])
    return {
        f'{array}[{",".join(map(str, index))}]' if index else array: ArrayView(array, index, layout, inner)
        for index in _places(shape[: layout.split])
    }


def _places(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(count) for count in counts))


def _as_torch(values: np.ndarray) -> torch.Tensor:
    """An array read by tensorstore as a tensor of the same dtype; numpy has no bfloat16 of its own."""
    values = np.ascontiguousarray(values)
    if values.dtype.name == 'bfloat16':
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
