"""Configurations: presets, JSON round trip, refusals."""

from __future__ import annotations

import json

import pytest

from ki_vla.errors import VlaError
from ki_vla.model.config import PRESETS, GemmaConfig, ModelConfig, VisionConfig, preset
from ki_vla.model.kivla import skeleton
from ki_vla.model.summary import parameters_by_part

VISION = VisionConfig(image_size=32, patch_size=16, width=8, depth=1, mlp=8, heads=2)
GEMMA = GemmaConfig(width=8, depth=1, mlp=8, heads=2, kv_heads=1, head_dim=4)


@pytest.mark.parametrize('name', PRESETS)
def test_preset_survives_json(name: str) -> None:
    config = preset(name)
    assert ModelConfig.parse(json.loads(json.dumps(config.to_dict()))) == config


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
        (lambda: preset('tiny', horizon=0), 'horizon is 0; write a whole number above 0'),
        (lambda: preset('tiny', state_repr='smell'), "state_repr is 'smell'; write one of text, special"),
        (lambda: preset('tiny', head='tail'), "head is 'tail'; write one of expert"),
        (lambda: preset('tiny', head='shared', state_repr='suffix'), 'suffix'),
        (lambda: VISION.replace(image_size=30), 'image_size is 30; write a multiple of patch_size, 16'),
        (lambda: VISION.replace(width=9), 'width is 9; write a multiple of heads, 2'),
        (lambda: GEMMA.replace(kv_heads=3), 'kv_heads is 3; write a divisor of heads, 2'),
        (lambda: GEMMA.replace(head_dim=5), 'head_dim is 5; write an even number'),
        (lambda: GEMMA.replace(depth=True), 'depth is True; write a whole number above 0'),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(change: object, named: str) -> None:
    with pytest.raises(VlaError, match=named):
        change()


@pytest.mark.parametrize('field', ['depth', 'heads', 'head_dim'])
def test_an_expert_that_cannot_read_the_backbone_is_refused(field: str) -> None:
    config = preset('tiny')
    with pytest.raises(VlaError, match=f'expert.{field}'):
        config.replace(expert=config.expert.replace(**{field: getattr(config.expert, field) * 2}))


def test_unknown_and_missing_fields_are_named() -> None:
    data = preset('tiny').to_dict()
    data['colour'] = 1
    del data['vocab_size']
    with pytest.raises(VlaError, match=r"^config\.json has the unknown field 'colour'; .* Also wrong: vocab_size\.$"):
        ModelConfig.parse(data, 'config.json')
    data = preset('tiny').to_dict()
    data['vision'] = 3
    with pytest.raises(VlaError, match='vision is 3; write a mapping of fields'):
        ModelConfig.parse(data)
