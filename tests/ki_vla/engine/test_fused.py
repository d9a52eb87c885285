from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ki_vla.engine import kernels
from ki_vla.engine.fused import (
    FusedActionStage,
    FusedPrefixStage,
    FusedVisionStage,
    QuantisedPrefixLayer,
    QuantisedVisionLayer,
    calibrate,
    quantise,
    why_not,
)
from ki_vla.engine.graphs import capture_eagerly
from ki_vla.engine.interface import Carry, Choice, Engine, Shape, example_inputs
from ki_vla.engine.packing import Fusions
from ki_vla.engine.stages import ActionStage, Loop, PrefixStage, VisionStage
from ki_vla.engine.torch import MODES, TorchMode, TorchRunner, check_fused
from ki_vla.errors import VlaError
from ki_vla.model.config import ModelConfig, preset
from ki_vla.model.kivla import KiVla

STEPS = 4


def small(**changes: Any) -> ModelConfig:
    """As small as the kernels' tiles allow."""
    tiny = preset('tiny', **changes)
    wide = {'width': 64, 'mlp': 128, 'head_dim': 32}
    return tiny.replace(backbone=tiny.backbone.replace(**wide), expert=tiny.expert.replace(**wide))


@pytest.mark.parametrize('structure', [{}, {'state_repr': 'continuous'}])
def test_fused_stages_give_the_numbers_of_packed_ones(make_model: Any, structure: dict[str, str]) -> None:
    model = make_model(config=small(**structure)).requires_grad_(False)
    config = model.config
    assert why_not(config) == ''
    inputs = example_inputs(config, Shape(3, 20))
    images, mask, *rest = (torch.from_numpy(getattr(inputs, name)) for name in inputs.__dataclass_fields__)
    mask[1] = False  # a camera is missing
    noise, previous = torch.randn(2, config.horizon, config.action_dim)
    given = torch.arange(config.horizon) < 2
    with torch.no_grad():
        tokens = VisionStage(model, Fusions())(images)
        torch.testing.assert_close(FusedVisionStage(model)(images), tokens, atol=1e-5, rtol=1e-5)
        packed = PrefixStage(model, Fusions())(tokens, mask, *rest)
        fused = FusedPrefixStage(model)(tokens, mask, *rest)
        S = packed.k.shape[1]
        torch.testing.assert_close((fused.k[:, :S], fused.v[:, :S], *fused[2:5]), packed[:5], atol=1e-5, rtol=1e-5)
        cached = [each for each in packed if each is not None]
        stage, fused_stage = ActionStage(model, STEPS, Fusions()), FusedActionStage(model, STEPS)
        for kind, carried in (('plain', ()), ('trained', (previous, given))):
            expected = Loop(stage, kind)(noise, *carried, *cached)
            torch.testing.assert_close(fused_stage(fused, noise, *carried), expected, atol=1e-5, rtol=1e-5)


def test_the_fused_mode_gives_the_chunk_of_the_model_itself(make_model: Any) -> None:
    rows = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    config = small()
    engines = [
        Engine(TorchRunner(make_model(config=config), STEPS, MODES[mode], capture=capture_eagerly), config,
               Choice('torch', mode, 'cpu', 'fp32', ''))
        for mode in ('eager', 'fused')
    ]  # fmt: skip
    with engines[0] as reference, engines[1] as tested:
        for length in (30, 60, 30):
            inputs = example_inputs(config, Shape(3, length), seed=length)
            for kind in (None, 'trained', 'guided'):
                carry = None if kind is None else Carry(rows, delay=2, end=5, mode=kind)
                expected = reference.infer(inputs, seed=5, carry=carry)
                np.testing.assert_allclose(tested.infer(inputs, seed=5, carry=carry), expected, atol=1e-5)


@pytest.mark.parametrize(
    ('config', 'reason'),
    [
        (preset('tiny'), 'backbone: fused kernels are for one key/value head of a power of two'),
        (preset('full', state_repr='suffix'), 'no state token before the actions'),
        (preset('full', adaptive=False), 'adaptive norms'),
        (preset('full', horizon=100), 'at most 64 actions'),
        (small().replace(expert=small().expert.replace(mlp=96)), 'expert: fused kernels are for widths'),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(config: ModelConfig, reason: str) -> None:
    assert reason in why_not(config)
    with torch.device('meta'):
        model = KiVla(config)
    with pytest.raises(VlaError, match=r"mode 'fused': .*take mode 'fast' or 'graphs'"):
        check_fused(model, torch.device('cpu'))


def test_a_gpu_without_triton_or_bfloat16_is_told_what_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device('meta'):
        model = KiVla(small())
    monkeypatch.setattr(kernels, 'HAS_TRITON', False)
    with pytest.raises(VlaError, match='Triton is not installed'):
        check_fused(model, torch.device('cuda'))
    monkeypatch.setattr(kernels, 'HAS_TRITON', True)
    with pytest.raises(VlaError, match='compute in bf16'):
        check_fused(model, torch.device('cuda'))


def test_stages_in_fp8_stay_close_to_those_in_full_precision(make_model: Any) -> None:
    model = make_model(config=small()).requires_grad_(False)
    observed = []
    for seed in range(3):
        inputs = example_inputs(model.config, Shape(3, 20), seed=seed)
        observed.append(tuple(torch.from_numpy(getattr(inputs, name)) for name in inputs.__dataclass_fields__))
    images, *rest = observed[0]
    with torch.no_grad():
        vision, prefix = FusedVisionStage(model), FusedPrefixStage(model)
        tokens = vision(images)
        keys = prefix(tokens, *rest).k[:, :-8]
        quantise(vision, prefix, calibrate(model, observed))
        found = vision(images)
        assert all(isinstance(layer, QuantisedVisionLayer) for layer in vision.layers)
        assert [isinstance(layer, QuantisedPrefixLayer) for layer in prefix.layers] == [True, True, False]
        assert 0.99 < F.cosine_similarity(found.flatten(), tokens.flatten(), 0) < 0.999999
        assert F.cosine_similarity(prefix(found, *rest).k[:, :-8].flatten(), keys.flatten(), 0) > 0.99


def test_fp8_is_refused_without_fused_stages_or_with_scales_that_do_not_fit(make_model: Any) -> None:
    with pytest.raises(VlaError, match='FP8 is for fused stages'):
        TorchRunner(make_model(config=small()), STEPS, TorchMode(fp8=True))
    with pytest.raises(VlaError, match='FP8 needs scales'):
        TorchRunner(make_model(config=small()), STEPS, TorchMode(fused=True, fp8=True))
    shallow = {'vision': [(1.0, 1.0, 1.0)], 'prefix': [(1.0, 1.0, 1.0)]}
    with pytest.raises(VlaError, match='are for other layers'):
        TorchRunner(make_model(config=small()), STEPS, TorchMode(fused=True, fp8=True), scales=shallow)


@pytest.fixture
def counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(root / 'benchmarks')
    return importlib.import_module('launches')


def test_a_chunk_of_the_full_model_launches_few_kernels(counted: Any) -> None:
    found = counted.totals(preset('full'), 'fused')
    assert {name: found[name] <= goal for name, goal in counted.GOAL.items()} == dict.fromkeys(counted.GOAL, True)
    assert found['chunk'] < 1500


def test_no_keys_or_values_are_copied(counted: Any) -> None:
    names = counted.stages(small(), 'fused')['loop']
    assert set(names) <= {'linear', 'qkv', 'gated_up', 'attend_parts', 'combine', 'field', 'new_zeros'}
