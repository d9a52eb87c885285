"""PaliGemma: both namings, padded rows, and an action expert that is new on purpose."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ki_vla.errors import VlaError
from ki_vla.importers.mapping import account, our_shapes
from ki_vla.importers.paligemma import import_paligemma, paligemma_plan
from ki_vla.model.config import preset
from ki_vla.model.kivla import KiVla


@pytest.mark.parametrize('naming', ['old', 'new'])
def test_full_size_table_is_accounted_for(tables, as_checkpoint, naming):
    config = preset('full')
    checkpoint = as_checkpoint(tables[1](config, naming, rows=257216))
    report = account(checkpoint, paligemma_plan(checkpoint, config), config, our_shapes(config), Path('x'))
    assert set(report.used) == set(checkpoint.tensors)
    assert report.dropped_rows == {'embed.weight': 64}
    assert report.fresh
    assert all(name.startswith('expert.') for name in report.fresh)


@pytest.mark.parametrize('naming', ['old', 'new'])
def test_backbone_is_taken_padding_dropped_and_the_expert_is_new(tables, write, tmp_path, naming):
    config = preset('tiny')
    theirs = write(tables[1](config, naming, rows=config.vocab_size + 64), tmp_path / 'in' / 'model.safetensors')
    report = import_paligemma(tmp_path / 'in', tmp_path / 'ours.safetensors', config=config)
    ours = load_file(tmp_path / 'ours.safetensors')
    model = KiVla(config)
    model.load_state_dict(ours, strict=True)
    embedding = theirs[
        ('language_model.model.' if naming == 'old' else 'model.language_model.') + 'embed_tokens.weight'
    ]
    assert torch.equal(ours['embed.weight'], embedding[: config.vocab_size])
    assert 'FRESHLY INITIALISED (expert)' in str(report)
    assert set(report.fresh) == {name for name in ours if name.startswith('expert.')}
    # New and usable: matrices are neither zero nor garbage, adaptive norms start closed.
    assert 0.0 < ours['expert.layers.0.q.weight'].std() < 1.0
    assert not ours['expert.layers.0.input_norm.dense.weight'].any()
    import_paligemma(tmp_path / 'in', tmp_path / 'again.safetensors', config=config)
    assert torch.equal(
        load_file(tmp_path / 'again.safetensors')['expert.layers.0.q.weight'], ours['expert.layers.0.q.weight']
    )


def test_shards_and_their_index_are_read(tables, write, tmp_path):
    config = preset('tiny')
    tensors = write(tables[1](config, 'old', rows=config.vocab_size), tmp_path / 'whole.safetensors')
    names, shards = sorted(tensors), tmp_path / 'shards'
    shards.mkdir()
    parts = {'model-00001-of-00002.safetensors': names[::2], 'model-00002-of-00002.safetensors': names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, shards / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    index = shards / 'model.safetensors.index.json'
    index.write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))
    import_paligemma(shards, tmp_path / 'a.safetensors', config=config)
    import_paligemma(tmp_path / 'whole.safetensors', tmp_path / 'b.safetensors', config=config)
    a, b = load_file(tmp_path / 'a.safetensors'), load_file(tmp_path / 'b.safetensors')
    assert all(torch.equal(a[key], b[key]) for key in b)
    index.write_text(json.dumps({'weight_map': weight_map | {'extra': 'model-00001-of-00002.safetensors'}}))
    with pytest.raises(VlaError, match='name different tensors: extra'):
        import_paligemma(shards, tmp_path / 'c.safetensors', config=config)
    index.write_text(json.dumps({'weight_map': weight_map | {'extra': 'gone.safetensors'}}))
    with pytest.raises(VlaError, match=r'gone\.safetensors is missing'):
        import_paligemma(shards, tmp_path / 'c.safetensors', config=config)


def test_what_transformers_saves_is_read_into_an_equal_backbone(tmp_path):
    transformers = pytest.importorskip('transformers')
    config = preset('tiny')
    v, b = config.vision, config.backbone
    theirs = transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            vision_config={
                'model_type': 'siglip_vision_model', 'hidden_size': v.width, 'intermediate_size': v.mlp,
                'num_hidden_layers': v.depth, 'num_attention_heads': v.heads, 'image_size': v.image_size,
                'patch_size': v.patch_size, 'projection_dim': b.width, 'vision_use_head': False,
            },
            text_config={
                'model_type': 'gemma', 'hidden_size': b.width, 'intermediate_size': b.mlp, 'num_hidden_layers': b.depth,
                'num_attention_heads': b.heads, 'num_key_value_heads': b.kv_heads, 'head_dim': b.head_dim,
                'vocab_size': config.vocab_size + 64, 'hidden_activation': 'gelu_pytorch_tanh',
            },
            projection_dim=b.width, hidden_size=b.width, image_token_index=config.vocab_size,
        )
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / 'published')
    import_paligemma(tmp_path / 'published', tmp_path / 'ours.safetensors', config=config)
    state = {key: value.clone() for key, value in theirs.state_dict().items()}  # the names it has in memory
    save_file(state, tmp_path / 'memory.safetensors')
    report = import_paligemma(tmp_path / 'memory.safetensors', tmp_path / 'ours2.safetensors', config=config)
    assert report.tied == ('lm_head.weight',)
    first, second = load_file(tmp_path / 'ours.safetensors'), load_file(tmp_path / 'ours2.safetensors')
    assert all(torch.equal(first[key], second[key]) for key in first)
    text = theirs.model.language_model
    assert torch.equal(first['backbone.layers.2.up.weight'], text.layers[2].mlp.up_proj.weight)
    assert torch.equal(first['embed.weight'], text.embed_tokens.weight[: config.vocab_size])
    _compare_logits(theirs.eval(), first, config)


def _compare_logits(theirs, weights, config):
    """Picture, prompt and answer through both models: the imported weights compute the same."""
    ours = KiVla(config)
    ours.load_state_dict(weights, strict=True)
    B, N, L, T = 2, config.vision.tokens, 5, 3
    torch.manual_seed(0)
    images = torch.rand(B, 3, config.vision.image_size, config.vision.image_size) * 2 - 1
    prompt, answer = torch.randint(3, 2000, (B, L)), torch.randint(3, 2000, (B, T))
    ones = torch.ones(B, L, dtype=torch.bool)
    ids = torch.cat([torch.full((B, N), config.vocab_size), prompt, answer], dim=1)
    with torch.no_grad():
        prefix = ours.prefill(images[:, None], ones[:, :1], prompt, ones, torch.zeros(B, config.state_dim), hidden=True)
        mine = ours.logits(ours.token_hidden(prefix, answer, ones[:, :T]))
        types = (torch.arange(N + L + T)[None].expand(B, -1) >= N + L).long()
        found = theirs(
            input_ids=ids, pixel_values=images, attention_mask=torch.ones_like(ids), token_type_ids=types, labels=ids
        )
    reference = found.logits[:, N + L - 1 : N + L - 1 + T, : config.vocab_size]
    assert reference.std() > 0.01
    assert (mine - reference).abs().max() < 1e-4


def test_too_many_rows_are_not_taken_for_padding(tables, write, tmp_path):
    config = preset('tiny')
    write(tables[1](config, 'old', rows=config.vocab_size + 65), tmp_path / 'in.safetensors')
    with pytest.raises(VlaError, match='wrong shape'):
        import_paligemma(tmp_path / 'in.safetensors', tmp_path / 'ours.safetensors', config=config)
