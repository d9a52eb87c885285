"""openpi's JAX folders: each array in its place, every one accounted for, damage refused."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ki_vla.errors import VlaError
from ki_vla.importers import orbax
from ki_vla.importers.mapping import account, our_shapes
from ki_vla.importers.openpi import import_openpi
from ki_vla.importers.orbax import OrbaxTensors, default_jax_config, open_orbax, orbax_plan
from ki_vla.model.config import preset

pytest.importorskip('tensorstore', reason='needs the extra openpi')

BLOCK = 'PaliGemma/img/Transformer/encoderblock/'
ATTENTION = f'{BLOCK}MultiHeadDotProductAttention_0/'
LAYERS = 'PaliGemma/llm/layers/'


@pytest.mark.parametrize('pi05', [True, False])
def test_full_size_arrays_are_accounted_for_to_the_last_one(jax_table, tmp_path, pi05):
    tensors = {}
    for name, shape in jax_table(preset('full'), pi05).items():
        tensors |= orbax._views(tmp_path, name, shape)
    checkpoint = OrbaxTensors(tmp_path, tensors, {}, 0)
    config = default_jax_config(checkpoint)
    assert (config.name, config.adaptive, config.action_dim) == ('pi05' if pi05 else 'pi0', pi05, 32)
    report = account(checkpoint, orbax_plan(config), config, our_shapes(config), tmp_path / 'x')
    assert set(report.used) == set(tensors)
    # openpi's PyTorch file has one tensor more, the unused head of the expert.
    assert len(report.used) == (811 if pi05 else 776)


@pytest.mark.parametrize('pi05', [True, False])
def test_each_of_our_parts_holds_what_the_public_converter_puts_there(jax_arrays, write_orbax, variant, tmp_path, pi05):
    config = variant('pi05' if pi05 else 'pi0').replace(action_dim=6, state_dim=5)
    arrays = jax_arrays(config, pi05)
    write_orbax(arrays, tmp_path / 'in')
    report = import_openpi(tmp_path / 'in', tmp_path / 'ours.safetensors', config=config)
    assert not report.fresh
    ours = load_file(tmp_path / 'ours.safetensors')
    assert {n: tuple(v.shape) for n, v in ours.items()} == our_shapes(config)
    v, expert = config.vision, config.expert
    heads = expert.heads * expert.head_dim
    expected = {
        'vision.patch.weight': arrays['PaliGemma/img/embedding/kernel'].transpose(3, 2, 0, 1),
        'vision.position': arrays['PaliGemma/img/pos_embedding'].reshape(-1, v.width),
        'vision.norm.weight': arrays['PaliGemma/img/Transformer/encoder_norm/scale'],
        'vision.layers.1.q.weight': arrays[f'{ATTENTION}query/kernel'][1].reshape(-1, v.width).T,
        'vision.layers.1.v.bias': arrays[f'{ATTENTION}value/bias'][1].reshape(-1),
        'vision.layers.1.out.weight': arrays[f'{ATTENTION}out/kernel'][1].reshape(-1, v.width).T,
        'vision.layers.1.norm2.bias': arrays[f'{BLOCK}LayerNorm_1/bias'][1],
        'vision.layers.1.fc1.weight': arrays[f'{BLOCK}MlpBlock_0/Dense_0/kernel'][1].T,
        'projector.weight': arrays['PaliGemma/img/head/kernel'].T,
        'embed.weight': arrays['PaliGemma/llm/embedder/input_embedding'],
        'backbone.layers.2.mlp_norm.weight': arrays[f'{LAYERS}pre_ffw_norm/scale'][2],
        'backbone.layers.2.k.weight': arrays[f'{LAYERS}attn/kv_einsum/w'][2, 0, 0].T,
        'backbone.layers.2.down.weight': arrays[f'{LAYERS}mlp/linear'][2].T,
        'expert.layers.1.q.weight': arrays[f'{LAYERS}attn/q_einsum_1/w'][1]
        .transpose(0, 2, 1).reshape(heads, expert.width),
        'expert.layers.1.v.weight': arrays[f'{LAYERS}attn/kv_einsum_1/w'][1, 1, 0].T,
        'expert.layers.1.o.weight': arrays[f'{LAYERS}attn/attn_vec_einsum_1/w'][1].reshape(heads, expert.width).T,
        'expert.layers.1.gate.weight': arrays[f'{LAYERS}mlp_1/gating_einsum'][1, 0].T,
        'expert.layers.1.up.weight': arrays[f'{LAYERS}mlp_1/gating_einsum'][1, 1].T,
        'expert.action_in.weight': arrays['action_in_proj/kernel'].T,
        'expert.action_out.bias': arrays['action_out_proj/bias'],
    }  # fmt: skip
    if pi05:
        expected |= {
            'expert.norm.dense.weight': arrays['PaliGemma/llm/final_norm_1/Dense_0/kernel'].T,
            'expert.layers.1.input_norm.dense.bias': arrays[f'{LAYERS}pre_attention_norm_1/Dense_0/bias'][1],
            'expert.time_in.weight': arrays['time_mlp_in/kernel'].T,
        }
    else:
        expected |= {
            'expert.norm.weight': arrays['PaliGemma/llm/final_norm_1/scale'],
            'expert.state_in.weight': arrays['state_proj/kernel'].T,
            'expert.time_out.weight': arrays['action_time_mlp_out/kernel'].T,
        }
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name].numpy(), value, err_msg=name)


@pytest.mark.parametrize(
    ('driver', 'ocdbt', 'value', 'dtype'),
    [('zarr3', True, True, np.float32), ('zarr', False, False, ml_dtypes.bfloat16), ('zarr', True, False, np.float16)],
)
def test_every_form_that_orbax_writes_is_read(
    jax_arrays, write_orbax, variant, tmp_path, monkeypatch, driver, ocdbt, value, dtype
):
    """zarr or zarr3, one database or plain folders, with and without flax's `value`; in pieces of a few rows."""
    monkeypatch.setattr(orbax, 'PIECE_BYTES', 1000)
    config = variant('pi05')
    arrays = {name: each.astype(dtype) for name, each in jax_arrays(config, True).items()}
    write_orbax(arrays, tmp_path / 'in', driver=driver, ocdbt=ocdbt, value=value)
    import_openpi(tmp_path / 'in' / 'params', tmp_path / 'ours.safetensors', config=config)
    ours = load_file(tmp_path / 'ours.safetensors')
    embedding = arrays['PaliGemma/llm/embedder/input_embedding'].astype(np.float32)
    np.testing.assert_array_equal(ours['embed.weight'].numpy(), embedding)
    gate = arrays[f'{LAYERS}mlp/gating_einsum'][0, 0].astype(np.float32).T
    np.testing.assert_array_equal(ours['backbone.layers.0.gate.weight'].numpy(), gate)


def test_differences_are_listed_by_array_and_nothing_is_written(jax_arrays, write_orbax, variant, tmp_path):
    config = variant('pi05')
    arrays = jax_arrays(config, True)
    del arrays['time_mlp_out/bias']
    arrays['PaliGemma/llm/something'] = np.zeros(3, np.float32)
    arrays[f'{LAYERS}mlp_1/linear'] = arrays[f'{LAYERS}mlp_1/linear'][:2]
    write_orbax(arrays, tmp_path / 'in')
    with pytest.raises(VlaError) as caught:
        import_openpi(tmp_path / 'in', tmp_path / 'ours.safetensors', config=config)
    message = str(caught.value)
    assert f'2 missing: time_mlp_out/bias, {LAYERS}mlp_1/linear[2]' in message
    assert '1 unexpected: PaliGemma/llm/something' in message
    assert not (tmp_path / 'ours.safetensors').exists()


def test_a_checkpoint_of_another_family_is_refused_by_name(jax_arrays, write_orbax, variant, tmp_path):
    arrays = jax_arrays(variant('pi05'), True)
    fast = {name: value for name, value in arrays.items() if name.startswith('PaliGemma') and '_1' not in name}
    write_orbax(fast, tmp_path / 'fast')
    with pytest.raises(VlaError, match='This is pi0-FAST, which has no action expert'):
        import_openpi(tmp_path / 'fast', tmp_path / 'ours.safetensors')
    arrays['PaliGemma/llm/layers/attn/q_einsum/lora_a'] = np.zeros((3, 4, 64, 8), np.float32)
    write_orbax(arrays, tmp_path / 'adapters')
    with pytest.raises(VlaError, match='low-rank adapters'):
        import_openpi(tmp_path / 'adapters', tmp_path / 'ours.safetensors')
    write_orbax(jax_arrays(variant('pi05'), True), tmp_path / 'pi05')
    with pytest.raises(VlaError, match=r'missing: .*state_proj/kernel'):
        import_openpi(tmp_path / 'pi05', tmp_path / 'ours.safetensors', config=variant('pi0'))


def test_a_lost_chunk_is_an_error_and_not_a_tensor_of_zeros(jax_arrays, write_orbax, variant, tmp_path):
    config = variant('pi05')
    write_orbax(jax_arrays(config, True), tmp_path / 'in', ocdbt=False)
    (tmp_path / 'in' / 'params' / 'params.time_mlp_in.kernel.value' / '0.0').unlink()
    with pytest.raises(VlaError, match=r'time_mlp_in/kernel cannot be read .* copy it again'):
        import_openpi(tmp_path / 'in', tmp_path / 'ours.safetensors', config=config)
    assert not (tmp_path / 'ours.safetensors').exists()
    # Older orbax writes no chunk where an array is all zeros: there it is one.
    path = tmp_path / 'in' / 'params' / '_METADATA'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'store_array_data_equal_to_fill_value': False}))
    import_openpi(tmp_path / 'in', tmp_path / 'ours.safetensors', config=config)
    assert not load_file(tmp_path / 'ours.safetensors')['expert.time_in.weight'].any()


def test_a_database_with_a_file_missing_is_refused(jax_arrays, write_orbax, variant, tmp_path):
    config = variant('pi05')
    write_orbax(jax_arrays(config, True), tmp_path / 'in')
    for file in (tmp_path / 'in' / 'params' / 'd').iterdir():
        file.unlink()
    with pytest.raises(VlaError, match='not copied as a whole'):
        import_openpi(tmp_path / 'in', tmp_path / 'ours.safetensors', config=config)


def test_bfloat16_arrays_become_a_bfloat16_file_bit_for_bit(jax_arrays, write_orbax, variant, tmp_path):
    config = variant('pi05')
    arrays = {name: each.astype(ml_dtypes.bfloat16) for name, each in jax_arrays(config, True).items()}
    write_orbax(arrays, tmp_path / 'in')
    import_openpi(tmp_path / 'in', tmp_path / 'ours.safetensors', config=config, dtype=torch.bfloat16)
    ours = load_file(tmp_path / 'ours.safetensors')['embed.weight']
    embedding = arrays['PaliGemma/llm/embedder/input_embedding'].view(np.int16)
    np.testing.assert_array_equal(ours.view(torch.int16).numpy(), embedding)


def test_a_folder_that_is_no_checkpoint_says_what_was_looked_for(tmp_path):
    with pytest.raises(VlaError, match=r'no params/_METADATA nor params/manifest\.ocdbt'):
        open_orbax(tmp_path)


SAVE = """
import sys
import jax
import numpy as np
import orbax.checkpoint as ocp

flat = dict(np.load(sys.argv[1]))
tree = {}
for name, array in flat.items():
    place = tree
    for part in name.split('/'):
        place = place.setdefault(part, {})
    place['value'] = jax.numpy.asarray(array)
for kind, zarr3 in (('zarr', False), ('zarr3', True)):
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=zarr3)
    ocp.Checkpointer(handler).save(f'{sys.argv[2]}/{kind}/params', {'params': tree})
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_folders_that_orbax_itself_wrote_are_read(jax_arrays, variant, tmp_path):
    """With orbax-checkpoint and jax in an environment of their own."""
    python = tmp_path / 'venv' / 'bin' / 'python'
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
    made = subprocess.run([python, '-m', 'pip', 'install', '-q', 'orbax-checkpoint', 'jax'], capture_output=True)
    if made.returncode:
        pytest.skip('orbax-checkpoint cannot be installed here: its folders were not read')
    config = variant('pi05')
    arrays = jax_arrays(config, True)
    np.savez(tmp_path / 'arrays.npz', **arrays)
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': ''}
    subprocess.run([python, '-c', SAVE, tmp_path / 'arrays.npz', tmp_path], check=True, env=environment)
    for kind in ('zarr', 'zarr3'):
        import_openpi(tmp_path / kind, tmp_path / f'{kind}.safetensors', config=config)
        ours = load_file(tmp_path / f'{kind}.safetensors')
        embedding = arrays['PaliGemma/llm/embedder/input_embedding']
        np.testing.assert_array_equal(ours['embed.weight'].numpy(), embedding)
