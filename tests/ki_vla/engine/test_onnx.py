from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_vla.engine import onnx
from ki_vla.engine.exported import find_export
from ki_vla.engine.interface import Carry, Shape, example_inputs
from ki_vla.engine.onnx import OnnxRunner, available_providers, check_provider, open_session
from ki_vla.engine.select import open_engine
from ki_vla.errors import VlaError
from ki_vla.policy.bundle import Bundle


def carry(bundle: Bundle, mode: str) -> Carry | None:
    if mode == 'plain':
        return None
    shape = (bundle.config.horizon - 5, bundle.config.action_dim)
    return Carry(np.random.default_rng(4).standard_normal(shape, np.float32), delay=4, end=30, mode=mode)


def copy_of(exported: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(exported.folder, tmp_path / 'copy')
    return replace(exported, folder=tmp_path / 'copy')


@pytest.mark.parametrize('mode', ['plain', 'guided', 'trained'])
def test_onnx_runtime_gives_the_chunk_of_torch_at_every_static_shape(exported: Bundle, mode: str) -> None:
    with (
        open_engine(exported, 'torch', strict=True, mode='eager') as torch_engine,
        open_engine(exported, 'onnx', strict=True, threads=1) as tested,
    ):
        assert tested.buckets == [48, 96, 149]
        for length in (30, 90, 149):
            inputs = example_inputs(exported.config, Shape(3, length), seed=length)
            inputs.image_mask_V[0] = length != 90
            expected = torch_engine.infer(inputs, seed=3, carry=carry(exported, mode))
            found = tested.infer(inputs, seed=3, carry=carry(exported, mode))
            np.testing.assert_allclose(found, expected, atol=1e-4)
            assert np.abs(expected).max() > 0.5


def test_inputs_and_earlier_results_are_left_alone(exported: Bundle) -> None:
    """A value of ONNX Runtime on a CPU is the memory of its numpy array: steps must not write into the caller's."""
    with open_engine(exported, 'onnx', strict=True, threads=1) as tested:
        prefix = tested.prefill(example_inputs(exported.config, Shape(3, 48)))
        other = tested.prefill(example_inputs(exported.config, Shape(3, 48), seed=9))
        noise = np.random.default_rng(0).standard_normal((50, exported.config.action_dim), dtype=np.float32)
        kept = noise.copy()
        first = tested.denoise(prefix, noise)
        earlier = first.copy()
        assert np.abs(tested.denoise(other, noise) - first).max() > 1e-3
        np.testing.assert_array_equal(tested.denoise(prefix, noise), earlier)
        np.testing.assert_array_equal(first, earlier)
        np.testing.assert_array_equal(noise, kept)
        assert set(tested.times_ms) == {'vision', 'prefix', 'prefill', 'denoise'}


def test_a_missing_provider_says_what_is_there_and_what_to_install() -> None:
    if 'CUDAExecutionProvider' in available_providers():
        pytest.skip('this is about machines without CUDA')
    with pytest.raises(VlaError, match=r'no CUDAExecutionProvider here, only .*CPU.*install onnxruntime-gpu'):
        check_provider('cuda')


def damage_cut(folder: Path) -> None:
    path = folder / 'prefix.onnx'
    path.write_bytes(path.read_bytes()[:-100])


def damage_changed(folder: Path) -> None:
    path = folder / 'prefix.onnx'
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def damage_weights(folder: Path) -> None:
    (folder / 'weights.data').unlink()


@pytest.mark.parametrize(
    ('damage', 'sentence'),
    [
        (damage_cut, r'prefix.onnx: has \d+ bytes where \d+ were written; .* run: ki export'),
        (damage_changed, 'prefix.onnx: is not the file that was checked against torch'),
        (damage_weights, 'weights.data: is missing'),
    ],
)
def test_damaged_files_are_refused_by_name(exported: Bundle, tmp_path: Path, damage: Any, sentence: str) -> None:
    copy = copy_of(exported, tmp_path)
    damage(copy.folder / 'onnx' / 'fp32')
    with pytest.raises(VlaError, match=sentence):
        find_export(copy.folder, copy.digest, 'fp32')


def test_graphs_of_another_bundle_are_refused(exported: Bundle) -> None:
    with pytest.raises(VlaError, match=r'was exported from bundle .*, this one is ffffffffffff; run: ki export'):
        find_export(exported.folder, 'f' * 64, 'fp32')
    with pytest.raises(VlaError, match=r'has no fp16 ONNX graphs; run: ki export .* --precision fp16'):
        find_export(exported.folder, exported.digest, 'fp16')


@pytest.mark.parametrize(
    'text', ['{', '[]', '{"format": 99, "precisions": {}}', '{"format": 1, "precisions": {"fp32": {}}}']
)
def test_a_table_that_cannot_be_read_is_told(exported: Bundle, tmp_path: Path, text: str) -> None:
    copy = copy_of(exported, tmp_path)
    (copy.folder / 'onnx' / 'parity.json').write_text(text)
    with pytest.raises(VlaError, match=r'parity\.json.*export'):
        find_export(copy.folder, copy.digest, 'fp32')


def test_a_file_that_is_no_graph_is_told(tmp_path: Path) -> None:
    (tmp_path / 'broken.onnx').write_bytes(b'\x08\x07nothing')
    with pytest.raises(VlaError, match=r'broken.onnx: ONNX Runtime cannot load it'):
        open_session(tmp_path / 'broken.onnx')


def test_a_kind_that_was_not_exported_is_refused(exported: Bundle, tmp_path: Path) -> None:
    copy = copy_of(exported, tmp_path)
    path = copy.folder / 'onnx' / 'parity.json'
    table = json.loads(path.read_text())
    table['precisions']['fp32']['kinds'] = ['plain']
    path.write_text(json.dumps(table))
    with (
        open_engine(copy, 'onnx', strict=True, threads=1) as tested,
        pytest.raises(VlaError, match="cannot continue a chunk the 'guided' way; it has plain"),
    ):
        tested.infer(example_inputs(copy.config, Shape(3, 48)), carry=carry(copy, 'guided'))


def test_closing_drops_the_sessions(exported: Bundle) -> None:
    runner = OnnxRunner(find_export(exported.folder, exported.digest, 'fp32'), threads=1)
    runner.prefill(Shape(3, 48), example_inputs(exported.config, Shape(3, 48)))
    assert len(runner._sessions) == 2
    runner.close()
    assert not runner._sessions


def test_a_device_that_does_not_answer_is_told(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    export = find_export(exported.folder, exported.digest, 'fp32')
    monkeypatch.setattr(onnx, 'check_provider', lambda kind: onnx.PROVIDERS[kind])
    if 'CUDAExecutionProvider' in available_providers():
        pytest.skip('this is about machines without CUDA')
    with pytest.raises(VlaError, match=r'CUDAExecutionProvider: its device does not answer \(.*or take device cpu'):
        OnnxRunner(export, 'cuda')


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('cpu', [('CPUExecutionProvider', {})]),
        ('cuda', [('CUDAExecutionProvider', {'use_tf32': '0'}), 'CPUExecutionProvider']),
        (
            'tensorrt',
            [
                ('TensorrtExecutionProvider', {'given': 'x'}),
                ('CUDAExecutionProvider', {'use_tf32': '0'}),
                'CPUExecutionProvider',
            ],
        ),
    ],
)
def test_providers_are_told_to_keep_float32_and_who_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: list
) -> None:
    import onnxruntime

    asked: list[Any] = []

    class Session:
        def __init__(self, path: str, settings: Any, providers: list) -> None:
            asked.extend(providers)

        def get_providers(self) -> list[str]:
            return [onnx.PROVIDERS[kind]]

    monkeypatch.setattr(onnxruntime, 'InferenceSession', Session)
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: list(onnx.PROVIDERS.values()))
    open_session(tmp_path / 'x.onnx', kind, options={'given': 'x'} if kind == 'tensorrt' else None)
    assert asked == expected
