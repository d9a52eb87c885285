"""What is around TensorRT: what an engine fits, when it is built, what is refused. TensorRT itself does not run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_vla.bundle import Bundle
from ki_vla.engine.exported import Export, find_export
from ki_vla.engine.onnx import OnnxRunner, available_providers
from ki_vla.errors import VlaError
from ki_vla.export.tensorrt import build_engine, provider_options, require_cache, target_of, this_machine

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


def test_a_build_that_breaks_off_leaves_nothing(case: tuple[Bundle, Export]) -> None:
    def broken(cache: Path) -> OnnxRunner:
        (cache / 'half.engine').write_bytes(b'x')
        raise MemoryError

    with pytest.raises(VlaError, match='out of memory while building a TensorRT engine'):
        build_engine(*case, machine=MACHINE, runner=broken)
    assert list((case[0].folder / 'engines').iterdir()) == []


def test_the_provider_is_told_where_to_keep_engines_and_how_to_compute(tmp_path: Path) -> None:
    half = provider_options(tmp_path, 'fp16')
    assert half['trt_engine_cache_path'] == half['trt_timing_cache_path'] == str(tmp_path)
    assert (half['trt_fp16_enable'], half['trt_bf16_enable']) == ('1', '0')
    assert provider_options(tmp_path, 'bf16')['trt_bf16_enable'] == '1'


def test_a_machine_without_tensorrt_is_told_what_is_missing(case: tuple[Bundle, Export]) -> None:
    if 'TensorrtExecutionProvider' in available_providers():
        pytest.skip('this is about machines without TensorRT')
    with pytest.raises(VlaError, match='no TensorrtExecutionProvider here'):
        this_machine()
    with pytest.raises(VlaError, match='no TensorrtExecutionProvider here'):
        require_cache(*case, build=True)
