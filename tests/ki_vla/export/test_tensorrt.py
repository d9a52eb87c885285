"""What is around TensorRT: what an engine fits, when it is built, what is refused. TensorRT itself does not run."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_vla.engine.exported import Export, find_export
from ki_vla.engine.interface import Shape, example_inputs
from ki_vla.engine.onnx import OnnxRunner, available_providers
from ki_vla.errors import VlaError
from ki_vla.export.tensorrt import (
    build_engine,
    has_engine,
    open_runner,
    provider_options,
    require_cache,
    target_of,
    this_machine,
)
from ki_vla.policy.bundle import Bundle

MACHINE = ('NVIDIA A sm_90', '10.9.0', '1.23.0')


@pytest.fixture
def case(exported: Bundle, tmp_path: Path) -> tuple[Bundle, Export]:
    shutil.copytree(exported.folder, tmp_path / 'copy')
    copy = replace(exported, folder=tmp_path / 'copy')
    return copy, replace(find_export(copy.folder, copy.digest, 'fp32'), kinds=('plain',))


def build(case: tuple[Bundle, Export], **changes: Any) -> Path:
    """The graphs on the CPU in place of TensorRT: everything around it is real."""
    return build_engine(*case, machine=MACHINE, runner=lambda cache: OnnxRunner(case[1], threads=1), **changes)


def test_a_built_engine_is_found_again_on_the_same_machine_only(case: tuple[Bundle, Export]) -> None:
    lines: list[str] = []
    folder = build(case, progress=lines.append)
    assert require_cache(*case, machine=MACHINE) == folder
    assert [line.split('s  ')[1] for line in lines[:3]] == [
        f'building for 3 views, {slots} prompt slots' for slots in (48, 96, 149)
    ]
    table = json.loads((folder / 'engine.json').read_text())
    assert table['target']['gpu'] == MACHINE[0]
    assert table['parity']['chunk']['max_error'] < 1e-4
    with pytest.raises(
        VlaError, match=r'was built for gpu NVIDIA A sm_90, here NVIDIA B sm_120; run: ki export .* --to ten'
    ):
        require_cache(*case, machine=('NVIDIA B sm_120', *MACHINE[1:]))
    with pytest.raises(VlaError, match=r'was built for tensorrt 10.9.0, here 10.10.0'):
        require_cache(*case, machine=(MACHINE[0], '10.10.0', MACHINE[2]))


def test_without_an_engine_nothing_is_built_unless_asked_for(case: tuple[Bundle, Export]) -> None:
    with pytest.raises(VlaError, match=r'has no TensorRT engine; run: ki export'):
        require_cache(*case, machine=MACHINE)
    assert not (case[0].folder / 'engines').exists()


def test_changed_graphs_need_another_engine(case: tuple[Bundle, Export]) -> None:
    bundle, export = case
    before = target_of(bundle, export, MACHINE)
    path = export.folder / 'plain.onnx'
    path.write_bytes(path.read_bytes() + b' ')
    after = target_of(bundle, export, MACHINE)
    assert before.key != after.key
    assert replace(after, graphs=before.graphs) == before


def test_an_engine_that_differs_from_torch_is_not_kept(case: tuple[Bundle, Export]) -> None:
    class Wrong(OnnxRunner):
        def denoise(self, *args: Any) -> np.ndarray:
            return super().denoise(*args) + 0.01

    with pytest.raises(VlaError, match='fp32 graph plain differs from torch'):
        build_engine(*case, machine=MACHINE, runner=lambda cache: Wrong(case[1], threads=1))
    assert list((case[0].folder / 'engines').iterdir()) == []


def test_unless_told_otherwise_the_tensorrt_provider_is_what_builds(
    case: tuple[Bundle, Export], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ki_vla.export import tensorrt

    caches: list[Path] = []

    def on_the_cpu(export: Export, cache: Path) -> OnnxRunner:
        caches.append(cache)
        return OnnxRunner(export, threads=1)

    monkeypatch.setattr(tensorrt, 'open_runner', on_the_cpu)
    folder = build_engine(*case, machine=MACHINE)
    assert (folder / 'engine.json').is_file()
    assert [each.parent for each in caches] == [folder.parent]
    shutil.rmtree(folder.parent)


def test_no_engine_is_opened_that_the_table_does_not_answer_for(case: tuple[Bundle, Export]) -> None:
    def with_engine(cache: Path) -> OnnxRunner:
        (cache / 'plain').mkdir()
        (cache / 'plain/a.engine').write_bytes(b'built here')
        (cache / 'sm90.timing').write_bytes(b'timings')
        return OnnxRunner(case[1], threads=1)

    folder = build_engine(*case, machine=MACHINE, runner=with_engine)
    (folder / 'sm90.timing').write_bytes(b'more timings')
    assert require_cache(*case, machine=MACHINE) == folder
    (folder / 'plain/a.engine').write_bytes(b'other code')
    with pytest.raises(VlaError, match=r'a\.engine: is not the file .* run: ki export'):
        require_cache(*case, machine=MACHINE)
    (folder / 'plain/a.engine').write_bytes(b'built here')
    (folder / 'plain/b.engine').symlink_to('a.engine')
    with pytest.raises(VlaError, match=r'b\.engine: is not in engine.json'):
        require_cache(*case, machine=MACHINE)
    shutil.rmtree(folder.parent)


def test_a_build_that_breaks_off_leaves_nothing(case: tuple[Bundle, Export]) -> None:
    def broken(cache: Path) -> OnnxRunner:
        (cache / 'half.engine').write_bytes(b'x')
        raise MemoryError

    with pytest.raises(VlaError, match='out of memory while building a TensorRT engine'):
        build_engine(*case, machine=MACHINE, runner=broken)
    assert list((case[0].folder / 'engines').iterdir()) == []


def test_the_provider_is_told_where_to_keep_engines_and_how_to_compute(tmp_path: Path) -> None:
    half = provider_options(tmp_path, 'fp16', 'prefix', {'views': 3, 'prompt': 48})
    assert half == {
        'trt_engine_cache_enable': 'True',
        'trt_engine_cache_path': str(tmp_path / 'prefix-prompt48-views3'),
        'trt_timing_cache_enable': 'True',
        'trt_timing_cache_path': str(tmp_path),
        'trt_fp16_enable': 'True',
        'trt_layer_norm_fp32_fallback': 'True',
    }
    flags = {p: {k for k in provider_options(tmp_path, p, 'plain', {}) if '16' in k} for p in ('fp32', 'fp16', 'bf16')}
    assert flags == {'fp32': set(), 'fp16': {'trt_fp16_enable'}, 'bf16': {'trt_bf16_enable'}}
    assert 'trt_layer_norm_fp32_fallback' not in provider_options(tmp_path, 'fp32', 'plain', {})


def test_every_static_shape_keeps_its_engines_apart(
    case: tuple[Bundle, Export], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider names engines by inputs and nodes alone, so shapes in one folder would overwrite each other."""
    from ki_vla.engine import onnx
    from ki_vla.export import tensorrt

    folders: list[str] = []

    def on_the_cpu(path: Path, kind: str, sizes: Any, threads: int, options: Any) -> Any:
        folders.append(Path(options['trt_engine_cache_path']).name)
        return open_session(path, 'cpu', sizes, 1)

    open_session = onnx.open_session
    monkeypatch.setattr(onnx, 'open_session', on_the_cpu)
    monkeypatch.setattr(tensorrt, 'OnnxRunner', OnCpu)
    monkeypatch.delenv('NVIDIA_TF32_OVERRIDE', raising=False)
    bundle, export = case
    runner = open_runner(export, tmp_path)
    for prompt in (48, 96):
        shape = Shape(3, prompt)
        prefix = runner.prefill(shape, example_inputs(bundle.config, shape))
        runner.denoise(shape, prefix, np.zeros((50, bundle.config.action_dim), np.float32), None)
    assert folders == ['vision-views3', *(f'{g}-{s}' for p in (48, 96) for g, s in names(p))]


def names(prompt: int) -> list[tuple[str, str]]:
    prefix = 3 * 4 + prompt
    return [('prefix', f'prompt{prompt}-views3'), ('plain', f'context{prefix + 50}-prefix{prefix}')]


class OnCpu(OnnxRunner):
    """Told what TensorRT would be told, its values in host memory."""

    def __init__(self, export: Export, kind: str, options: Any) -> None:
        super().__init__(export, 'cpu', 1, options)


def test_float32_engines_are_not_rounded_to_tf32(
    case: tuple[Bundle, Export], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ki_vla.export import tensorrt

    monkeypatch.setattr(tensorrt, 'OnnxRunner', OnCpu)
    monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '1')
    open_runner(case[1], tmp_path)
    assert os.environ['NVIDIA_TF32_OVERRIDE'] == '1'  # whoever set it decides
    monkeypatch.delenv('NVIDIA_TF32_OVERRIDE')
    open_runner(replace(case[1], precision='fp16'), tmp_path)
    assert 'NVIDIA_TF32_OVERRIDE' not in os.environ
    open_runner(case[1], tmp_path)
    assert os.environ['NVIDIA_TF32_OVERRIDE'] == '0'


def test_an_engine_of_any_machine_is_seen(case: tuple[Bundle, Export]) -> None:
    assert not has_engine(case[0].folder)
    build(case)
    assert has_engine(case[0].folder)


def test_a_machine_without_tensorrt_is_told_what_is_missing(case: tuple[Bundle, Export]) -> None:
    if 'TensorrtExecutionProvider' in available_providers():
        pytest.skip('this is about machines without TensorRT')
    with pytest.raises(VlaError, match='no TensorrtExecutionProvider here'):
        this_machine()
    with pytest.raises(VlaError, match='no TensorrtExecutionProvider here'):
        require_cache(*case, build=True)
