"""openpi and lerobot: every tensor accounted for, and back out bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ki_vla.errors import VlaError
from ki_vla.importers.lerobot import export_lerobot, import_lerobot
from ki_vla.importers.mapping import account, our_shapes
from ki_vla.importers.openpi import default_config, export_openpi, import_openpi, openpi_plan
from ki_vla.model.config import preset


@pytest.mark.parametrize('root', ['', 'model.'])
@pytest.mark.parametrize(('pi05', 'count'), [(True, 812), (False, 777)])
def test_full_size_tables_are_accounted_for_to_the_last_tensor(tables, as_checkpoint, root, pi05, count):
    table = tables[0](preset('full'), pi05, root)
    assert len(table) == count
    checkpoint = as_checkpoint(table)
    config = default_config(checkpoint)
    assert (config.name, config.adaptive) == (('pi05', True) if pi05 else ('pi0', False))
    report = account(checkpoint, openpi_plan(checkpoint, config), config, our_shapes(config), Path('x'))
    assert len(report.used) == count - 1
    assert report.dead == (f'{root}paligemma_with_expert.gemma_expert.lm_head.weight',)
    assert not report.fresh
    assert not report.dropped_rows


def test_full_size_pi05_table_has_the_bytes_of_the_public_file(tables):
    table = tables[0](preset('full'), True)
    numbers = sum(torch.Size(shape).numel() for shape in table.values())
    header_bytes = 14_467_165_872 - 4 * numbers
    assert 0 < header_bytes < 200_000


@pytest.mark.parametrize('name', ['pi05', 'pi0'])
@pytest.mark.parametrize('root', ['', 'model.'])
def test_weights_go_in_load_strictly_and_come_out_bit_for_bit(tables, write, variant, tmp_path, name, root):
    config = variant(name)
    theirs = write(tables[0](config, name == 'pi05', root), tmp_path / 'in' / 'model.safetensors')
    import_ = import_lerobot if root else import_openpi
    report = import_(tmp_path / 'in', tmp_path / 'ours.safetensors', config=config)
    assert set(report.used) | set(report.dead) == set(theirs)
    ours = load_file(tmp_path / 'ours.safetensors')
    assert {n: tuple(v.shape) for n, v in ours.items()} == our_shapes(config)
    if root:
        export_lerobot(tmp_path / 'ours.safetensors', config, tmp_path / 'out')
    else:
        export_openpi(tmp_path / 'ours.safetensors', config, tmp_path / 'out')
    again = load_file(tmp_path / 'out' / 'model.safetensors')
    assert set(again) == set(theirs)
    for key, value in again.items():
        if key in report.dead:
            assert not value.any()
        else:
            assert torch.equal(value, theirs[key]), key


PALI = 'paligemma_with_expert.paligemma.'
EXPERT = 'paligemma_with_expert.gemma_expert.model.'
TOWER = f'{PALI}model.vision_tower.vision_model.'
TEXT = f'{PALI}model.language_model.'
# Many tensors of a layer have the same shape: only a list by hand shows that none was taken for another.
PAIRS = {
    'embed.weight': f'{PALI}lm_head.weight',
    'projector.weight': f'{PALI}model.multi_modal_projector.linear.weight',
    'backbone.norm.weight': f'{TEXT}norm.weight',
    'backbone.layers.1.input_norm.weight': f'{TEXT}layers.1.input_layernorm.weight',
    'backbone.layers.1.mlp_norm.weight': f'{TEXT}layers.1.post_attention_layernorm.weight',
    'backbone.layers.1.q.weight': f'{TEXT}layers.1.self_attn.q_proj.weight',
    'backbone.layers.1.k.weight': f'{TEXT}layers.1.self_attn.k_proj.weight',
    'backbone.layers.1.v.weight': f'{TEXT}layers.1.self_attn.v_proj.weight',
    'backbone.layers.1.o.weight': f'{TEXT}layers.1.self_attn.o_proj.weight',
    'backbone.layers.1.gate.weight': f'{TEXT}layers.1.mlp.gate_proj.weight',
    'backbone.layers.1.up.weight': f'{TEXT}layers.1.mlp.up_proj.weight',
    'backbone.layers.1.down.weight': f'{TEXT}layers.1.mlp.down_proj.weight',
    'expert.layers.2.q.weight': f'{EXPERT}layers.2.self_attn.q_proj.weight',
    'expert.layers.2.k.weight': f'{EXPERT}layers.2.self_attn.k_proj.weight',
    'expert.layers.2.v.weight': f'{EXPERT}layers.2.self_attn.v_proj.weight',
    'expert.layers.2.o.weight': f'{EXPERT}layers.2.self_attn.o_proj.weight',
    'expert.layers.2.gate.weight': f'{EXPERT}layers.2.mlp.gate_proj.weight',
    'expert.layers.2.up.weight': f'{EXPERT}layers.2.mlp.up_proj.weight',
    'expert.layers.2.down.weight': f'{EXPERT}layers.2.mlp.down_proj.weight',
    'expert.action_in.weight': 'action_in_proj.weight',
    'expert.action_out.bias': 'action_out_proj.bias',
    'vision.patch.weight': f'{TOWER}embeddings.patch_embedding.weight',
    'vision.position': f'{TOWER}embeddings.position_embedding.weight',
    'vision.norm.weight': f'{TOWER}post_layernorm.weight',
    'vision.norm.bias': f'{TOWER}post_layernorm.bias',
    'vision.layers.1.norm1.weight': f'{TOWER}encoder.layers.1.layer_norm1.weight',
    'vision.layers.1.norm2.bias': f'{TOWER}encoder.layers.1.layer_norm2.bias',
    'vision.layers.1.q.weight': f'{TOWER}encoder.layers.1.self_attn.q_proj.weight',
    'vision.layers.1.k.weight': f'{TOWER}encoder.layers.1.self_attn.k_proj.weight',
    'vision.layers.1.v.bias': f'{TOWER}encoder.layers.1.self_attn.v_proj.bias',
    'vision.layers.1.out.weight': f'{TOWER}encoder.layers.1.self_attn.out_proj.weight',
    'vision.layers.1.fc1.weight': f'{TOWER}encoder.layers.1.mlp.fc1.weight',
    'vision.layers.1.fc2.bias': f'{TOWER}encoder.layers.1.mlp.fc2.bias',
}
PAIRS_PI05 = {
    'expert.time_in.weight': 'time_mlp_in.weight',
    'expert.time_out.weight': 'time_mlp_out.weight',
    'expert.norm.dense.weight': f'{EXPERT}norm.dense.weight',
    'expert.layers.2.input_norm.dense.weight': f'{EXPERT}layers.2.input_layernorm.dense.weight',
    'expert.layers.2.mlp_norm.dense.bias': f'{EXPERT}layers.2.post_attention_layernorm.dense.bias',
}
PAIRS_PI0 = {
    'expert.state_in.weight': 'state_proj.weight',
    'expert.time_in.weight': 'action_time_mlp_in.weight',
    'expert.time_out.bias': 'action_time_mlp_out.bias',
    'expert.norm.weight': f'{EXPERT}norm.weight',
    'expert.layers.2.input_norm.weight': f'{EXPERT}layers.2.input_layernorm.weight',
    'expert.layers.2.mlp_norm.weight': f'{EXPERT}layers.2.post_attention_layernorm.weight',
}


@pytest.mark.parametrize('name', ['pi05', 'pi0'])
def test_each_of_our_parts_holds_what_its_name_says(tables, write, variant, tmp_path, name):
    config = variant(name)
    theirs = write(tables[0](config, name == 'pi05'), tmp_path / 'in.safetensors')
    import_openpi(tmp_path / 'in.safetensors', tmp_path / 'ours.safetensors', config=config)
    ours = load_file(tmp_path / 'ours.safetensors')
    for mine, their_name in (PAIRS | (PAIRS_PI05 if name == 'pi05' else PAIRS_PI0)).items():
        assert torch.equal(ours[mine], theirs[their_name]), mine


def test_bfloat16_in_and_out(tables, write, variant, tmp_path):
    config = variant('pi05')
    theirs = write(tables[0](config, True), tmp_path / 'in.safetensors')
    import_openpi(tmp_path / 'in.safetensors', tmp_path / 'ours.safetensors', config=config, dtype=torch.bfloat16)
    ours = load_file(tmp_path / 'ours.safetensors')
    assert {v.dtype for v in ours.values()} == {torch.bfloat16}
    key = 'paligemma_with_expert.paligemma.lm_head.weight'
    assert torch.equal(ours['embed.weight'], theirs[key].to(torch.bfloat16))
    export_openpi(tmp_path / 'ours.safetensors', config, tmp_path / 'out', dtype=torch.bfloat16)
    assert torch.equal(load_file(tmp_path / 'out' / 'model.safetensors')[key], ours['embed.weight'])


def test_differences_are_listed_all_at_once_and_nothing_is_written(tables, write, variant, tmp_path):
    config = variant('pi05')
    table = tables[0](config, True)
    del table['time_mlp_out.bias']
    table['something.new'] = (3,)
    table['action_out_proj.bias'] = (99,)
    write(table, tmp_path / 'in.safetensors')
    with pytest.raises(VlaError) as caught:
        import_openpi(tmp_path / 'in.safetensors', tmp_path / 'ours.safetensors', config=config)
    message = str(caught.value)
    assert '1 missing: time_mlp_out.bias' in message
    assert '1 unexpected: something.new' in message
    assert '1 wrong shape: action_out_proj.bias is [99], should be [4]' in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.safetensors']


def test_pi0_weights_do_not_pass_for_pi05(tables, write, variant, tmp_path):
    write(tables[0](variant('pi0'), False), tmp_path / 'in.safetensors')
    with pytest.raises(VlaError, match=r'missing: time_mlp_in\.weight'):
        import_openpi(tmp_path / 'in.safetensors', tmp_path / 'ours.safetensors', config=variant('pi05'))


def test_a_tied_copy_is_accepted_when_equal_and_refused_when_not(tables, write, variant, tmp_path):
    config = variant('pi05')
    theirs = write(tables[0](config, True), tmp_path / 'in.safetensors')
    head, copy = (
        f'paligemma_with_expert.paligemma.{n}.weight' for n in ('lm_head', 'model.language_model.embed_tokens')
    )
    save_file(theirs | {copy: theirs[head].clone()}, tmp_path / 'in.safetensors')
    report = import_openpi(tmp_path / 'in.safetensors', tmp_path / 'ours.safetensors', config=config)
    assert report.tied == (copy,)
    save_file(theirs | {copy: theirs[head] + 1}, tmp_path / 'in.safetensors')
    with pytest.raises(VlaError, match='should be copies'):
        import_openpi(tmp_path / 'in.safetensors', tmp_path / 'ours2.safetensors', config=config)
    assert not (tmp_path / 'ours2.safetensors').exists()


def test_nan_weights_are_refused_and_leave_no_file(tables, write, variant, tmp_path):
    config = variant('pi05')
    theirs = write(tables[0](config, True), tmp_path / 'in.safetensors')
    theirs['time_mlp_in.bias'][3] = torch.nan
    save_file(theirs, tmp_path / 'in.safetensors')
    with pytest.raises(VlaError, match=r'time_mlp_in\.bias holds NaN'):
        import_openpi(tmp_path / 'in.safetensors', tmp_path / 'ours.safetensors', config=config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.safetensors']


def test_a_checkpoint_is_not_overwritten_by_its_own_import(tables, write, variant, tmp_path):
    config = variant('pi05')
    write(tables[0](config, True), tmp_path / 'in.safetensors')
    before = (tmp_path / 'in.safetensors').read_bytes()
    with pytest.raises(VlaError, match='is the checkpoint itself'):
        import_openpi(tmp_path / 'in.safetensors', tmp_path / '.' / 'in.safetensors', config=config)
    assert (tmp_path / 'in.safetensors').read_bytes() == before


def test_another_kind_of_checkpoint_says_what_was_looked_for(write, tmp_path):
    write({'transformer.wte.weight': (3, 4)}, tmp_path / 'in.safetensors')
    with pytest.raises(VlaError, match=r'no pi0 or pi0\.5; looked for action_in_proj'):
        import_openpi(tmp_path / 'in.safetensors', tmp_path / 'ours.safetensors')


def test_lerobot_configuration_gives_the_horizon_and_must_agree(tables, as_checkpoint, tmp_path):
    from ki_vla.importers.checkpoint_metadata import read_metadata
    from ki_vla.importers.lerobot import check_kind

    config = default_config(as_checkpoint(tables[0](preset('full'), True)))
    (tmp_path / 'config.json').write_text(json.dumps({'type': 'pi05', 'chunk_size': 30}))
    assert check_kind(read_metadata(tmp_path), config).horizon == 30
    (tmp_path / 'config.json').write_text(json.dumps({'type': 'pi0'}))
    with pytest.raises(VlaError, match="says the policy is 'pi0'"):
        check_kind(read_metadata(tmp_path), config)


def test_a_structure_that_openpi_does_not_know_is_not_exported(model, tmp_path):
    config = preset('tiny', state_repr='continuous')
    save_file(model(config).state_dict(), tmp_path / 'ours.safetensors')
    with pytest.raises(VlaError, match='have no such part'):
        export_openpi(tmp_path / 'ours.safetensors', config, tmp_path / 'out')


def test_export_checks_the_weights_against_the_configuration(model, tmp_path):
    config = preset('tiny')
    save_file(model(config).state_dict(), tmp_path / 'ours.safetensors')
    deeper = config.replace(backbone=config.backbone.replace(depth=4), expert=config.expert.replace(depth=4)
    )  # fmt: skip
    with pytest.raises(VlaError, match='does not fit its configuration'):
        export_openpi(tmp_path / 'ours.safetensors', deeper, tmp_path / 'out')
