"""Configurations: presets, JSON round trip, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ki_vla.errors import VlaError
from ki_vla.model.config import PRESETS, GemmaConfig, ModelConfig, VisionConfig, preset
from ki_vla.model.summary import parameters_by_part, skeleton


@pytest.mark.parametrize('name', PRESETS)
def test_preset_survives_json(name: str) -> None:
    config = preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_preset_fields_can_be_replaced() -> None:
    assert preset('mini', horizon=20, action_dim=7).horizon == 20


def test_sizes_of_the_presets() -> None:
    assert sum(parameters_by_part(skeleton(preset('tiny'))).values()) < 2e6
    assert 2e6 < sum(parameters_by_part(skeleton(preset('mini'))).values()) < 15e6


def test_full_has_the_parameters_of_paligemma_and_the_300m_expert() -> None:
    parts = parameters_by_part(skeleton(preset('full')))
    assert parts['vision'] + parts['projector'] == pytest.approx(414e6, rel=0.005)
    assert parts['backbone'] == pytest.approx(1.98e9, rel=0.002)
    assert parts['embed'] == 257152 * 2048
    # 311M of transformer, and the projections of the adaptive norms.
    assert parts['expert'] - 37 * (1024 * 3072 + 3072) == pytest.approx(311e6 + 2.2e6, rel=0.005)


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (lambda: preset('huge'), 'huge'),
        (lambda: preset('tiny', colour='red'), 'colour'),
        (lambda: preset('tiny', horizon=0), 'model.horizon'),
        (lambda: preset('tiny', state_repr='smell'), 'model.state_repr'),
        (lambda: preset('tiny', head='tail'), 'model.head'),
        (lambda: preset('tiny', head='shared', state_repr='suffix'), 'suffix'),
        (lambda: VisionConfig(image_size=30, patch_size=16, width=8, depth=1, mlp=8, heads=1), 'vision.image_size'),
        (lambda: VisionConfig(image_size=32, patch_size=16, width=9, depth=1, mlp=8, heads=2), 'vision.width'),
        (lambda: GemmaConfig(width=8, depth=1, mlp=8, heads=3, kv_heads=2, head_dim=4), 'kv_heads'),
        (lambda: GemmaConfig(width=8, depth=1, mlp=8, heads=2, kv_heads=1, head_dim=5), 'head_dim'),
        (lambda: GemmaConfig(width=8, depth=True, mlp=8, heads=2, kv_heads=1, head_dim=4), 'depth'),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(change: object, named: str) -> None:
    with pytest.raises(VlaError, match=named):
        change()


@pytest.mark.parametrize('field', ['depth', 'heads', 'head_dim'])
def test_an_expert_that_cannot_read_the_backbone_is_refused(field: str) -> None:
    config = preset('tiny')
    with pytest.raises(VlaError, match=f'expert.{field}'):
        replace(config, expert=replace(config.expert, **{field: getattr(config.expert, field) * 2}))


def test_unknown_and_missing_fields_are_named() -> None:
    data = preset('tiny').to_dict()
    data['colour'] = 1
    del data['vocab_size']
    with pytest.raises(VlaError, match=r"unknown fields \['colour'\], missing fields \['vocab_size'\]"):
        ModelConfig.from_dict(data)
    data = preset('tiny').to_dict()
    data['vision'] = 3
    with pytest.raises(VlaError, match='vision'):
        ModelConfig.from_dict(data)
