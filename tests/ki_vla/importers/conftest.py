"""Key tables of the public checkpoints, written down from their listings and not from the importers' mapping."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ki_vla.importers.stream import CheckpointTensors, TensorInfo
from ki_vla.model.config import GemmaConfig, ModelConfig, VisionConfig, preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla

Table = dict[str, tuple[int, ...]]


def siglip(prefix: str, depth: int, width: int, mlp: int, patch: int, tokens: int) -> Table:
    table: Table = {
        f'{prefix}embeddings.patch_embedding.weight': (width, 3, patch, patch),
        f'{prefix}embeddings.patch_embedding.bias': (width,),
        f'{prefix}embeddings.position_embedding.weight': (tokens, width),
        f'{prefix}post_layernorm.weight': (width,),
        f'{prefix}post_layernorm.bias': (width,),
    }
    for n in range(depth):
        at = f'{prefix}encoder.layers.{n}.'
        for name in ('layer_norm1', 'layer_norm2'):
            table |= {f'{at}{name}.weight': (width,), f'{at}{name}.bias': (width,)}
        for name in ('q_proj', 'k_proj', 'v_proj', 'out_proj'):
            table |= {f'{at}self_attn.{name}.weight': (width, width), f'{at}self_attn.{name}.bias': (width,)}
        table |= {f'{at}mlp.fc1.weight': (mlp, width), f'{at}mlp.fc1.bias': (mlp,)}
        table |= {f'{at}mlp.fc2.weight': (width, mlp), f'{at}mlp.fc2.bias': (width,)}
    return table


def gemma(prefix: str, size: GemmaConfig, adaptive: bool = False) -> Table:
    def norm(name: str) -> Table:
        if adaptive:
            return {f'{name}.dense.weight': (3 * size.width, size.width), f'{name}.dense.bias': (3 * size.width,)}
        return {f'{name}.weight': (size.width,)}

    q, kv = size.heads * size.head_dim, size.kv_heads * size.head_dim
    table = norm(f'{prefix}norm')
    for n in range(size.depth):
        at = f'{prefix}layers.{n}.'
        table |= norm(f'{at}input_layernorm') | norm(f'{at}post_attention_layernorm')
        table |= {
            f'{at}self_attn.q_proj.weight': (q, size.width),
            f'{at}self_attn.k_proj.weight': (kv, size.width),
            f'{at}self_attn.v_proj.weight': (kv, size.width),
            f'{at}self_attn.o_proj.weight': (size.width, q),
            f'{at}mlp.gate_proj.weight': (size.mlp, size.width),
            f'{at}mlp.up_proj.weight': (size.mlp, size.width),
            f'{at}mlp.down_proj.weight': (size.width, size.mlp),
        }
    return table


def _vision(prefix: str, v: VisionConfig) -> Table:
    return siglip(prefix, v.depth, v.width, v.mlp, v.patch_size, (v.image_size // v.patch_size) ** 2)


def openpi_table(config: ModelConfig, pi05: bool, root: str = '') -> Table:
    """openpi / lerobot, research listing: pi05 has 812 tensors, pi0 777."""
    w, a = config.expert.width, config.action_dim
    at, pali = f'{root}paligemma_with_expert.gemma_expert.', f'{root}paligemma_with_expert.paligemma.'
    table: Table = {
        f'{root}action_in_proj.weight': (w, a), f'{root}action_in_proj.bias': (w,),
        f'{root}action_out_proj.weight': (a, w), f'{root}action_out_proj.bias': (a,),
        f'{at}lm_head.weight': (config.vocab_size, w),
        f'{pali}lm_head.weight': (config.vocab_size, config.backbone.width),
        f'{pali}model.multi_modal_projector.linear.weight': (config.backbone.width, config.vision.width),
        f'{pali}model.multi_modal_projector.linear.bias': (config.backbone.width,),
    }  # fmt: skip
    if pi05:
        for name in ('time_mlp_in', 'time_mlp_out'):
            table |= {f'{root}{name}.weight': (w, w), f'{root}{name}.bias': (w,)}
    else:
        table |= {f'{root}state_proj.weight': (w, config.state_dim), f'{root}state_proj.bias': (w,)}
        table |= {f'{root}action_time_mlp_in.weight': (w, 2 * w), f'{root}action_time_mlp_in.bias': (w,)}
        table |= {f'{root}action_time_mlp_out.weight': (w, w), f'{root}action_time_mlp_out.bias': (w,)}
    table |= gemma(f'{at}model.', config.expert, adaptive=pi05)
    table |= gemma(f'{pali}model.language_model.', config.backbone)
    return table | _vision(f'{pali}model.vision_tower.vision_model.', config.vision)


def paligemma_table(config: ModelConfig, naming: str, rows: int) -> Table:
    """google/paligemma-3b-pt-224: 'old' as published, 'new' as newer versions of transformers name it."""
    text, rest = ('language_model.model.', '') if naming == 'old' else ('model.language_model.', 'model.')
    table: Table = {
        f'{text}embed_tokens.weight': (rows, config.backbone.width),
        f'{rest}multi_modal_projector.linear.weight': (config.backbone.width, config.vision.width),
        f'{rest}multi_modal_projector.linear.bias': (config.backbone.width,),
    }
    return table | gemma(text, config.backbone) | _vision(f'{rest}vision_tower.vision_model.', config.vision)


def openpi_jax_table(config: ModelConfig, pi05: bool) -> Table:
    """The arrays of an openpi JAX checkpoint, as its public converter lists them (`_1`: the action expert)."""
    v, w, a = config.vision, config.expert.width, config.action_dim
    L, D, h, hd = v.depth, v.width, v.heads, v.width // v.heads
    block = 'PaliGemma/img/Transformer/encoderblock/'
    attention = f'{block}MultiHeadDotProductAttention_0/'
    table: Table = {
        'PaliGemma/img/embedding/kernel': (v.patch_size, v.patch_size, 3, D),
        'PaliGemma/img/embedding/bias': (D,),
        'PaliGemma/img/pos_embedding': (1, (v.image_size // v.patch_size) ** 2, D),
        'PaliGemma/img/Transformer/encoder_norm/scale': (D,),
        'PaliGemma/img/Transformer/encoder_norm/bias': (D,),
        'PaliGemma/img/head/kernel': (D, config.backbone.width),
        'PaliGemma/img/head/bias': (config.backbone.width,),
        'PaliGemma/llm/embedder/input_embedding': (config.vocab_size, config.backbone.width),
        f'{block}MlpBlock_0/Dense_0/kernel': (L, D, v.mlp),
        f'{block}MlpBlock_0/Dense_0/bias': (L, v.mlp),
        f'{block}MlpBlock_0/Dense_1/kernel': (L, v.mlp, D),
        f'{block}MlpBlock_0/Dense_1/bias': (L, D),
        f'{attention}out/kernel': (L, h, hd, D),
        f'{attention}out/bias': (L, D),
    }
    for norm in ('LayerNorm_0', 'LayerNorm_1'):
        table |= {f'{block}{norm}/scale': (L, D), f'{block}{norm}/bias': (L, D)}
    for name in ('query', 'key', 'value'):
        table |= {f'{attention}{name}/kernel': (L, D, h, hd), f'{attention}{name}/bias': (L, h, hd)}
    for size, s, adaptive in ((config.backbone, '', False), (config.expert, '_1', pi05)):
        layers, W = 'PaliGemma/llm/layers/', size.width
        table |= {
            f'{layers}attn/q_einsum{s}/w': (size.depth, size.heads, W, size.head_dim),
            f'{layers}attn/kv_einsum{s}/w': (size.depth, 2, size.kv_heads, W, size.head_dim),
            f'{layers}attn/attn_vec_einsum{s}/w': (size.depth, size.heads, size.head_dim, W),
            f'{layers}mlp{s}/gating_einsum': (size.depth, 2, W, size.mlp),
            f'{layers}mlp{s}/linear': (size.depth, size.mlp, W),
        }
        for norm, stacked in ((f'{layers}pre_attention_norm{s}', (size.depth,)), (f'{layers}pre_ffw_norm{s}',
                              (size.depth,)), (f'PaliGemma/llm/final_norm{s}', ())):  # fmt: skip
            if adaptive:
                table |= {f'{norm}/Dense_0/kernel': (*stacked, W, 3 * W), f'{norm}/Dense_0/bias': (*stacked, 3 * W)}
            else:
                table[f'{norm}/scale'] = (*stacked, W)
    dense = {'action_in_proj': (a, w), 'action_out_proj': (w, a)}
    if pi05:
        dense |= {'time_mlp_in': (w, w), 'time_mlp_out': (w, w)}
    else:
        dense |= {'state_proj': (config.state_dim, w), 'action_time_mlp_in': (2 * w, w), 'action_time_mlp_out': (w, w)}
    for name, shape in dense.items():
        table |= {f'{name}/kernel': shape, f'{name}/bias': shape[1:]}
    return table


def write_orbax_folder(
    arrays: dict[str, np.ndarray], folder: Path, *, driver: str = 'zarr', ocdbt: bool = True, value: bool = True
) -> None:
    """Write arrays as orbax does: `params/` with one OCDBT database or plain folders, names joined by dots."""
    import tensorstore

    params = folder / 'params'
    params.mkdir(parents=True, exist_ok=True)
    base = f'{params.resolve()}/'
    kvstore = {'driver': 'ocdbt', 'base': f'file://{base}'} if ocdbt else {'driver': 'file', 'path': base}
    names = {f'params.{name.replace("/", ".")}{".value" if value else ""}': name for name in arrays}
    context = tensorstore.Context()
    with tensorstore.Transaction() as transaction:  # one version of the database, as orbax writes it
        for theirs, name in names.items():
            spec = {'driver': driver, 'kvstore': {**kvstore, 'path': f'{kvstore.get("path", "")}{theirs}/'}}
            array = arrays[name]
            store = tensorstore.open(
                spec, create=True, dtype=array.dtype.name, shape=array.shape,
                transaction=transaction if ocdbt else None, context=context,
                chunk_layout=tensorstore.ChunkLayout(chunk_shape=array.shape),
            ).result()  # fmt: skip
            store.write(array).result()
    tree = {str(tuple(theirs.split('.'))): {'value_metadata': {'value_type': 'jax.Array'}} for theirs in names}
    said = {'tree_metadata': tree, 'use_zarr3': driver == 'zarr3', 'store_array_data_equal_to_fill_value': True}
    (params / '_METADATA').write_text(json.dumps(said))


@pytest.fixture
def jax_table() -> Callable[[ModelConfig, bool], Table]:
    return openpi_jax_table


@pytest.fixture
def write_orbax() -> Callable[..., None]:
    return write_orbax_folder


@pytest.fixture
def jax_arrays() -> Callable[..., dict[str, np.ndarray]]:
    """Random arrays of an openpi JAX checkpoint."""

    def make(config: ModelConfig, pi05: bool) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(5)
        return {n: rng.normal(0, 0.1, shape).astype(np.float32) for n, shape in openpi_jax_table(config, pi05).items()}

    return make


@pytest.fixture
def tables() -> tuple[Callable[..., Table], Callable[..., Table]]:
    return openpi_table, paligemma_table


@pytest.fixture
def as_checkpoint() -> Callable[[Table], CheckpointTensors]:
    """A checkpoint of the given names and shapes without any data, for checks by name and shape at full size."""

    def make(table: Table) -> CheckpointTensors:
        return CheckpointTensors(
            Path('synthetic'), {n: TensorInfo(Path('synthetic'), torch.float32, s, 0) for n, s in table.items()}
        )

    return make


@pytest.fixture
def write() -> Callable[[Table, Path], dict[str, torch.Tensor]]:
    """Write random weights of the given names and shapes; returns them."""

    def make(table: Table, path: Path) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(5)
        tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in table.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(path))
        return tensors

    return make


@pytest.fixture
def variant() -> Callable[[str], ModelConfig]:
    """'pi05' or 'pi0' at the tiny size."""
    variants = {'pi05': {}, 'pi0': {'adaptive': False, 'state_repr': 'suffix'}}
    return lambda name: preset('tiny', **variants[name]).replace(name=name)


@pytest.fixture
def model() -> Callable[[ModelConfig], KiVla]:
    return lambda config: initialise(KiVla(config), torch.Generator().manual_seed(1))
