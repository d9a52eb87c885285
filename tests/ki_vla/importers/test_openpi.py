"""openpi and lerobot: every tensor accounted for, and back out bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ki_vla.config import preset
from ki_vla.errors import VlaError
from ki_vla.importers.lerobot import export_lerobot, import_lerobot
from ki_vla.importers.mapping import account, our_shapes
from ki_vla.importers.openpi import default_config, export_openpi, import_openpi, openpi_plan


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


def test_each_of_our_parts_holds_what_its_name_says(tables, write, variant, tmp_path):
    config = variant('pi05')
    theirs = write(tables[0](config, True), tmp_path / 'in.safetensors')
    import_openpi(tmp_path / 'in.safetensors', tmp_path / 'ours.safetensors', config=config)
    ours = load_file(tmp_path / 'ours.safetensors')
    pali, expert = 'paligemma_with_expert.paligemma.', 'paligemma_with_expert.gemma_expert.model.'
    pairs = {
        'embed.weight': f'{pali}lm_head.weight',
        'expert.time_in.weight': 'time_mlp_in.weight',
        'expert.layers.2.mlp_norm.dense.bias': f'{expert}layers.2.post_attention_layernorm.dense.bias',
        'backbone.layers.1.down.weight': f'{pali}model.language_model.layers.1.mlp.down_proj.weight',
        'vision.position': f'{pali}model.vision_tower.vision_model.embeddings.position_embedding.weight',
        'vision.layers.0.k.bias': f'{pali}model.vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.bias',
    }
    for mine, name in pairs.items():
        assert torch.equal(ours[mine], theirs[name]), mine


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


def test_another_kind_of_checkpoint_says_what_was_looked_for(write, tmp_path):
    write({'transformer.wte.weight': (3, 4)}, tmp_path / 'in.safetensors')
    with pytest.raises(VlaError, match=r'no pi0 or pi0\.5; looked for action_in_proj'):
        import_openpi(tmp_path / 'in.safetensors', tmp_path / 'ours.safetensors')


def test_lerobot_configuration_gives_the_horizon_and_must_agree(tables, as_checkpoint, tmp_path):
    from ki_vla.importers.lerobot import _with_policy_config

    config = default_config(as_checkpoint(tables[0](preset('full'), True)))
    (tmp_path / 'config.json').write_text(json.dumps({'type': 'pi05', 'chunk_size': 30}))
    assert _with_policy_config(config, tmp_path).horizon == 30
    (tmp_path / 'config.json').write_text(json.dumps({'type': 'pi0'}))
    with pytest.raises(VlaError, match="says the policy is 'pi0'"):
        _with_policy_config(config, tmp_path)


def test_a_structure_that_openpi_does_not_know_is_not_exported(model, tmp_path):
    config = preset('tiny', state_repr='continuous')
    save_file(model(config).state_dict(), tmp_path / 'ours.safetensors')
    with pytest.raises(VlaError, match='have no such part'):
        export_openpi(tmp_path / 'ours.safetensors', config, tmp_path / 'out')


def test_export_checks_the_weights_against_the_configuration(model, tmp_path):
    config = preset('tiny')
    save_file(model(config).state_dict(), tmp_path / 'ours.safetensors')
    deeper = replace(
        config, backbone=replace(config.backbone, depth=4), expert=replace(config.expert, depth=4)
    )  # fmt: skip
    with pytest.raises(VlaError, match='does not fit its configuration'):
        export_openpi(tmp_path / 'ours.safetensors', deeper, tmp_path / 'out')
