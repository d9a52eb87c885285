from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ki_vla.engine import onnx
from ki_vla.engine.interface import Shape, example_inputs
from ki_vla.engine.onnx import OnnxRunner
from ki_vla.engine.select import EngineRequest, candidates, modes, open_engine
from ki_vla.errors import VlaError
from ki_vla.model.config import preset
from ki_vla.policy.bundle import Bundle

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason='this is about machines without CUDA')


@pytest.mark.parametrize(
    ('backend', 'device', 'cuda', 'exported', 'expected'),
    [
        ('auto', 'auto', False, False, ['torch cpu']),
        ('auto', 'auto', False, True, ['onnx cpu', 'torch cpu']),
        ('auto', 'auto', True, False, ['torch cuda', 'torch cpu']),
        ('auto', 'auto', True, True, ['torch cuda', 'onnx cpu', 'torch cpu']),
        ('auto', 'cpu', True, True, ['onnx cpu', 'torch cpu']),
        ('torch', 'auto', True, True, ['torch cuda', 'onnx cpu', 'torch cpu']),
        ('onnx', 'auto', True, True, ['onnx cuda', 'torch cuda', 'onnx cpu', 'torch cpu']),
        ('onnx', 'cpu', False, False, ['onnx cpu', 'torch cpu']),
        ('tensorrt', 'auto', False, True, ['tensorrt cuda', 'onnx cpu', 'torch cpu']),
        ('torch', 'cuda', False, False, ['torch cuda', 'torch cpu']),
    ],
)
def test_what_is_tried_and_in_which_order(
    backend: str, device: str, cuda: bool, exported: bool, expected: list[str]
) -> None:
    found = candidates(EngineRequest(backend, device), cuda, exported, built=False)
    assert [f'{kind} {where}' for kind, where, _ in found] == expected


def test_tensorrt_is_tried_unasked_only_where_an_engine_was_built() -> None:
    found = candidates(EngineRequest(), cuda=True, exported=True, built=True)
    assert [kind for kind, _, _ in found] == ['tensorrt', 'torch', 'onnx', 'torch']
    assert candidates(EngineRequest(device='cpu'), cuda=True, exported=True, built=True)[0][0] == 'onnx'


def test_on_a_gpu_kernels_are_fused_where_they_fit_else_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = EngineRequest()
    pi0 = preset('full', adaptive=False, state_repr='suffix')
    monkeypatch.setattr('ki_vla.engine.kernels.HAS_TRITON', True)
    assert modes(asked, 'torch', 'cuda', preset('full')) == ['fused', 'fast', 'graphs']
    assert modes(asked, 'torch', 'cuda', pi0) == ['fast', 'graphs']
    assert modes(EngineRequest(precision='fp16'), 'torch', 'cuda', preset('full')) == ['fast', 'graphs']
    assert modes(EngineRequest(mode='eager'), 'torch', 'cuda', preset('full')) == ['eager']
    assert modes(asked, 'torch', 'cpu', preset('full')) == modes(asked, 'onnx', 'cuda', preset('full')) == [None]
    monkeypatch.setattr('ki_vla.engine.kernels.HAS_TRITON', False)
    assert modes(asked, 'torch', 'cuda', preset('full')) == ['graphs']


@NO_CUDA
def test_auto_takes_checked_graphs_on_a_cpu_and_logs_why(exported: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), open_engine(exported) as engine:
        assert (engine.choice.backend, engine.choice.device, engine.choice.precision) == ('onnx', 'cpu', 'fp32')
    assert 'onnx (CPUExecutionProvider) on cpu, fp32: exported and checked' in caplog.text


@NO_CUDA
def test_auto_without_graphs_takes_torch_and_says_how_to_have_graphs(bundle: Bundle) -> None:
    with open_engine(bundle) as engine:
        assert str(engine.choice) == 'torch (packed) on cpu, fp32: no ONNX graphs in the bundle (ki export makes them)'
        assert engine.infer(example_inputs(bundle.config, Shape(3, 20))).shape == (50, bundle.config.action_dim)


@NO_CUDA
@pytest.mark.parametrize(
    ('wishes', 'sentence'),
    [
        ({'backend': 'onnx'}, 'has no fp32 ONNX graphs; run: ki export'),
        ({'backend': 'onnx', 'precision': 'int8'}, 'has no int8 ONNX graphs'),
        ({'backend': 'torch', 'device': 'cuda'}, 'torch sees no CUDA device here'),
        ({'backend': 'torch', 'precision': 'int8'}, 'backend torch has no precision int8'),
        ({'backend': 'torch', 'mode': 'graphs', 'precision': 'int8'}, 'no precision int8'),
    ],
)
def test_strict_refuses_and_otherwise_the_next_best_is_taken_with_a_warning(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, wishes: dict[str, str], sentence: str
) -> None:
    with pytest.raises(VlaError, match=sentence):
        open_engine(bundle, strict=True, **wishes)
    if wishes.get('precision') == 'int8':
        return
    with open_engine(bundle, **wishes) as engine:
        assert engine.choice.backend == 'torch'
        assert sentence.split(';')[0] in engine.choice.reason
    assert 'cannot be had' in caplog.text


@NO_CUDA
def test_nothing_left_is_told_with_every_reason(bundle: Bundle) -> None:
    with pytest.raises(VlaError, match=r'no engine can be opened for noise@.*not torch on cpu \(backend torch has no'):
        open_engine(bundle, 'torch', precision='int8')


@NO_CUDA
def test_tensorrt_without_a_gpu_falls_back_and_strict_does_not(exported: Bundle) -> None:
    with pytest.raises(VlaError, match=r'no TensorrtExecutionProvider here'):
        open_engine(exported, 'tensorrt', strict=True)
    with open_engine(exported, 'tensorrt') as engine:
        assert engine.choice.backend == 'onnx'
        assert 'not tensorrt on cuda (ONNX Runtime has no TensorrtExecutionProvider' in engine.choice.reason


def test_damaged_graphs_are_left_for_torch(exported: Bundle, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(exported.folder, tmp_path / 'copy')
    copy = replace(exported, folder=tmp_path / 'copy')
    (copy.folder / 'onnx' / 'fp32' / 'plain.onnx').unlink()
    with open_engine(copy, device='cpu') as engine:
        assert engine.choice.backend == 'torch'
        assert 'plain.onnx: is missing' in engine.choice.reason


def test_graphs_for_another_number_of_steps_are_refused(exported: Bundle) -> None:
    with pytest.raises(VlaError, match='was exported for 10 Euler steps, 5 are wanted; export again with --steps 5'):
        open_engine(exported, 'onnx', strict=True, steps=5)


@pytest.mark.parametrize(
    ('wishes', 'sentence'),
    [
        ({'backend': 'jax'}, "engine backend: 'jax' is unknown; choose one of auto, torch, onnx, tensorrt"),
        ({'device': 'tpu'}, "engine device: 'tpu' is unknown"),
        ({'mode': 'slow'}, "engine mode: 'slow' is unknown"),
        ({'precision': 'fp8'}, "engine precision: 'fp8' is unknown"),
        ({'colour': 'red'}, "unexpected keyword argument 'colour'"),
    ],
)
def test_unknown_wishes_are_named(bundle: Bundle, wishes: dict[str, str], sentence: str) -> None:
    with pytest.raises(VlaError, match=sentence):
        open_engine(bundle, **wishes)


def test_an_engine_that_cannot_compute_leads_to_the_next_with_the_reason(
    exported: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError('no kernel image is available\nfor execution on the device')

    monkeypatch.setattr(OnnxRunner, 'denoise', broken)
    sentence = (
        'engine onnx does not start on cpu (no kernel image is available); check driver and libraries (ki doctor)'
    )
    with pytest.raises(VlaError, match=re.escape(sentence)):
        open_engine(exported, 'onnx', strict=True, device='cpu')
    with open_engine(exported, device='cpu') as engine:
        assert engine.choice.backend == 'torch'
        assert sentence in engine.choice.reason
    assert sentence in caplog.text


def test_what_an_engine_opened_to_start_stays_open(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = onnx.open_session

    def counted(path: Path, *rest: object) -> object:
        opened.append(path.stem)
        return real(path, *rest)

    monkeypatch.setattr(onnx, 'open_session', counted)
    with open_engine(exported, 'onnx', strict=True, device='cpu', threads=1) as engine:
        assert opened == ['vision', 'prefix', 'plain']
        engine.infer(example_inputs(exported.config, Shape(3, 30)))
        assert opened == ['vision', 'prefix', 'plain']


def test_cuda_graphs_on_a_cpu_are_refused_or_replaced(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(VlaError, match=r"engine mode 'graphs': CUDA graphs need a CUDA device .* take mode 'packed'"):
        open_engine(bundle, 'torch', strict=True, device='cpu', mode='graphs')
    with open_engine(bundle, 'torch', device='cpu', mode='graphs') as engine:
        assert (engine.choice.mode, engine.choice.device) == ('packed', 'cpu')
        assert "not mode 'graphs', which needs a CUDA device" in engine.choice.reason
    assert "mode 'packed' is taken" in caplog.text
