"""Graphs on a provider that is not the one they were checked on. The CPU stands for both."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ki_vla.engine.exported import Export, find_export
from ki_vla.engine.onnx import OnnxRunner
from ki_vla.engine.select import open_engine
from ki_vla.errors import VlaError
from ki_vla.export import parity, provider_parity
from ki_vla.export.provider_parity import require_parity
from ki_vla.policy.bundle import Bundle

KEPT = 'parity_cpu.json'


@pytest.fixture
def case(exported: Bundle, tmp_path: Path) -> tuple[Bundle, Export]:
    """Graphs that were checked on CUDA, by what is written of them."""
    shutil.copytree(exported.folder, tmp_path / 'copy')
    copy = replace(exported, folder=tmp_path / 'copy')
    path = copy.folder / 'onnx' / 'parity.json'
    table = json.loads(path.read_text())
    table['precisions']['fp32'] |= {'device': 'cuda', 'kinds': ['plain']}
    path.write_text(json.dumps(table))
    return copy, find_export(copy.folder, copy.digest, 'fp32')


def test_graphs_are_checked_once_where_they_were_not_yet(
    case: tuple[Bundle, Export], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, export = case
    with open_engine(bundle, 'onnx', strict=True, device='cpu', threads=1) as engine:
        assert engine.choice.device == 'cpu'
    assert 'was checked on cuda, not on cpu; checking it once' in caplog.text
    assert f'ki export {bundle.folder} --precision fp32 --device cpu' in caplog.text
    kept = json.loads((export.folder / KEPT).read_text())
    assert kept['parity']['chunk']['max_error'] < 1e-4
    monkeypatch.setattr(parity, 'measure', None)
    require_parity(bundle, export, 'cpu')
    require_parity(bundle, export, 'cuda')  # where they were checked


@pytest.mark.parametrize('change', ['machine', 'graphs', 'damage'])
def test_another_machine_or_export_is_checked_anew(
    case: tuple[Bundle, Export], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    bundle, export = case
    counted: list[str] = []
    near = {'chunk': {'cosine': 1.0, 'max_error': 0.0, 'max_value': 1.0}}
    monkeypatch.setattr(parity, 'reference', lambda *_: None)
    monkeypatch.setattr(parity, 'measure', lambda *_: counted.append(change) or near)
    require_parity(bundle, export, 'cpu', 'one')
    require_parity(bundle, export, 'cpu', 'one')
    assert len(counted) == 1
    if change == 'damage':
        (export.folder / KEPT).write_text('{')
    changed = replace(export, digest='another') if change == 'graphs' else export
    require_parity(bundle, changed, 'cpu', 'other' if change == 'machine' else 'one')
    assert len(counted) == 2


def test_graphs_that_differ_there_are_refused_now_and_at_the_next_start(
    case: tuple[Bundle, Export], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, export = case
    real = OnnxRunner.denoise
    monkeypatch.setattr(OnnxRunner, 'denoise', lambda *given: real(*given) + 0.01)
    sentence = 'agrees with torch on cuda, but not on cpu: fp32 graph '
    with pytest.raises(VlaError, match=sentence):
        require_parity(bundle, export, 'cpu')
    monkeypatch.setattr(parity, 'measure', None)
    with pytest.raises(VlaError, match=sentence):
        require_parity(bundle, export, 'cpu')
    with open_engine(bundle, device='cpu') as engine:
        assert engine.choice.backend == 'torch'
        assert sentence in engine.choice.reason


def test_a_bundle_that_cannot_be_written_to_is_checked_at_every_start(
    case: tuple[Bundle, Export], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(provider_parity, 'write_text', read_only)
    with caplog.at_level(logging.WARNING):
        require_parity(*case, 'cpu')
    assert f'{KEPT}: cannot be written (Read-only file system), so the next start checks again' in caplog.text
    assert not (case[1].folder / KEPT).exists()


def test_a_provider_that_is_not_there_says_so_before_torch_has_worked(
    exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ki_vla.engine.onnx import available_providers

    if 'CUDAExecutionProvider' in available_providers():
        pytest.skip('this is about machines without CUDA')
    monkeypatch.setattr(parity, 'reference', None)
    with pytest.raises(VlaError, match='no CUDAExecutionProvider here'):
        require_parity(exported, find_export(exported.folder, exported.digest, 'fp32'), 'cuda')
