"""FP8: scales of a bundle, found on some observations and judged on others, and who is served with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ki_robot.contract.contract import load_contract
from ki_vla.engine import fused
from ki_vla.engine.fp8_scales import FILE, digest_of, has_scales, read_scales
from ki_vla.engine.interface import Engine, Shape, example_inputs
from ki_vla.engine.select import EngineRequest, modes, open_engine
from ki_vla.errors import VlaError
from ki_vla.export.fp8 import export_fp8
from ki_vla.model.config import preset
from ki_vla.model.kivla import KiVla
from ki_vla.policy.bundle import Bundle, load_bundle, write_bundle
from ki_vla.policy.model_inputs import ModelInputs
from ki_vla.policy.untrained import tiny_for, untrained_processor


@pytest.fixture(scope='module')
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A policy of noise, as wide as the kernels' tiles."""
    contract = load_contract('bimanual_mobile')
    config = tiny_for(contract)
    gemma: dict[str, Any] = {'width': 64, 'mlp': 128, 'head_dim': 32}
    config = config.replace(backbone=config.backbone.replace(**gemma), expert=config.expert.replace(**gemma))
    model = KiVla(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            std = 0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.normal_(0.0, std, generator=generator)
    folder = tmp_path_factory.mktemp('wide') / 'bundle'
    return write_bundle(folder, name='wide', weights=model, processor=untrained_processor(contract, config))


@pytest.fixture
def copy(wide: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(wide.folder, tmp_path / 'copy')
    return replace(wide, folder=tmp_path / 'copy')


def shown(bundle: Bundle, count: int) -> list[ModelInputs]:
    shape = Shape(len(bundle.contract.cameras), 20)
    return [example_inputs(bundle.config, shape, seed) for seed in range(count)]


def test_scales_are_written_with_what_they_cost_and_change_no_digest(copy: Bundle) -> None:
    asked: list[str] = []

    def gate(engine: Engine) -> dict[str, str]:
        asked.append(str(engine.choice))
        assert engine.infer(shown(copy, 1)[0]).shape == (copy.config.horizon, copy.config.action_dim)
        return {'task': 'done'}

    path = export_fp8(copy, shown(copy, 6), steps=3, gate=gate)
    assert path == copy.folder / FILE
    said = json.loads(path.read_text())
    assert said['observations'] == 6
    assert said['task'] == {'task': 'done'}
    for each in ('prefix', 'chunk'):
        assert 0.99 <= said['parity'][each]['cosine'] < 0.9999999, 'rounded, and close'
    assert asked == ['torch (fp8) on cpu, fp8: just calibrated']
    assert load_bundle(copy.folder).digest == copy.digest
    scales = read_scales(copy)
    depths = {'vision': copy.config.vision.depth, 'prefix': copy.config.backbone.depth - 1}
    assert {stage: len(of) for stage, of in scales.items()} == depths


def test_what_the_gate_refuses_is_not_written(copy: Bundle) -> None:
    def gate(engine: Engine) -> None:
        raise VlaError('it drops everything')

    with pytest.raises(VlaError, match='drops everything'):
        export_fp8(copy, shown(copy, 4), steps=2, gate=gate)
    assert not has_scales(copy.folder)


def test_scales_that_cut_the_range_off_are_not_written(copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fused.calibrate

    def too_small(model: KiVla, observed: Any) -> fused.Scales:
        return {stage: [(a / 300, b / 300, c / 300) for a, b, c in of] for stage, of in found(model, observed).items()}

    monkeypatch.setattr(fused, 'calibrate', too_small)
    with pytest.raises(VlaError, match='fp8 graph prefix differs from torch: cosine'):
        export_fp8(copy, shown(copy, 4), steps=2)
    assert not has_scales(copy.folder)


@pytest.mark.parametrize('count', [0, 3])
def test_too_few_observations_are_refused(wide: Bundle, count: int) -> None:
    with pytest.raises(VlaError, match=rf'fp8: {count} observations, and it takes 4 .* --bags, and --observations'):
        export_fp8(wide, shown(wide, count))


def test_a_structure_without_kernels_is_refused(bundle: Bundle) -> None:
    with pytest.raises(VlaError, match=r'precision fp8: .* fused kernels are for'):
        export_fp8(bundle, shown(bundle, 4))


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'bundle': 'other'}, 'is of another bundle'),
        ({'format': 9}, 'is of another version'),
        ({'sha256': '0' * 64}, 'was changed after it was written'),
        ({'scales': {'vision': []}}, 'field scales is incomplete'),
        ({'scales': {'vision': [[1, 2, 'x']], 'prefix': []}}, 'field scales is incomplete'),
        ({'scales': {'vision': [[1, 2, -1]], 'prefix': []}}, 'is not three positive numbers'),
    ],
)
def test_scales_of_another_bundle_or_damaged_are_refused(copy: Bundle, change: dict[str, Any], sentence: str) -> None:
    good = {'format': 1, 'bundle': copy.digest, 'scales': {'vision': [], 'prefix': []}}
    path = copy.folder / FILE
    path.parent.mkdir()
    said = good | change
    path.write_text(json.dumps({'sha256': digest_of(said['scales'])} | said))
    with pytest.raises(VlaError, match=rf'{sentence}.*run: ki export .* --precision fp8'):
        read_scales(copy)
    path.write_text('{')
    with pytest.raises(VlaError, match=r'fp8\.json'):
        read_scales(copy)


def test_a_gpu_tries_fp8_first_where_the_bundle_was_exported_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ki_vla.engine.kernels.HAS_TRITON', True)
    full, asked = preset('full'), EngineRequest()
    assert modes(asked, 'torch', 'cuda', full, calibrated=True) == ['fp8', 'fused', 'fast', 'graphs']
    assert modes(asked, 'torch', 'cpu', full, calibrated=True) == [None]
    exact = EngineRequest(precision='bf16')
    assert modes(exact, 'torch', 'cuda', full, calibrated=True) == ['fused', 'fast', 'graphs']
    assert modes(EngineRequest(mode='fp8'), 'torch', 'cuda', full) == ['fp8']


@pytest.mark.parametrize(('capability', 'sentence'), [((8, 0), r'8\.0\) has no FP8'), ((9, 0), 'has no FP8 scales')])
def test_a_gpu_without_fp8_or_a_bundle_without_scales_goes_on_with_the_next_mode(
    wide: Bundle, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], sentence: str
) -> None:
    from ki_vla.engine import select

    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    with pytest.raises(VlaError, match=sentence):
        select._fp8_scales(wide, EngineRequest(mode='fp8'), 'cuda')


@pytest.mark.skipif(torch.cuda.is_available(), reason='this is about machines without CUDA')
def test_a_cpu_computes_a_bundle_for_fp8_as_it_ever_did(copy: Bundle) -> None:
    export_fp8(copy, shown(copy, 4), steps=2)
    with open_engine(copy, 'torch') as engine:
        assert str(engine.choice).startswith('torch (packed) on cpu, fp32')
