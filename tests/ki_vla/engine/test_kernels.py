"""Fused kernels without a GPU: in Triton's interpreter against twins and float64, and compiled for an H100."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ki_vla.engine import kernels
from ki_vla.engine.kernels import Launch

triton = pytest.importorskip('triton', reason='Triton is not installed: kernels were neither interpreted nor compiled')

SHARED = 227 * 1024  # bytes of shared memory that a block may have on an H100
H100 = 90


@pytest.mark.parametrize('numbers', ['not bfloat16', pytest.param('bfloat16', marks=pytest.mark.slow)])
def test_kernels_are_right_in_the_interpreter(root: Path, numbers: str) -> None:
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:randomly', '-p', 'no:cacheprovider', '-k', numbers]
    environment = os.environ | {'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [*command, 'tests/ki_vla/engine/kernels_interpreted.py'],
        cwd=root, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert ' passed' in done.stdout
    assert 'skipped' not in done.stdout


INTEGERS = {*kernels.NUMBERS} - {'size', 'out_scale', 'x_scale'}
SWITCHES = ('NORM', 'GELU', 'RESIDUAL', 'GATE', 'BIAS', 'FACTOR', 'QUANTISE')
NONE = dict.fromkeys(SWITCHES, False)
SCALES = {'size', 'out_scale', 'x_scale'}
slow = pytest.mark.slow


def linear(M: int, inputs: int, outputs: int, **switches: bool) -> Launch:
    return kernels.linear_launch(M, inputs, outputs, **{**NONE, **switches})


# name, launch at full size, the float32 pointers, whether a large product must be one of warp groups
FULL = [
    ('linear', linear(50, 4096, 1024, RESIDUAL=True, GATE=True), '', True),
    pytest.param('linear', linear(50, 32, 1024, BIAS=True), 'x', True, marks=slow),
    pytest.param('linear', linear(768, 1152, 4304, NORM=True, BIAS=True, GELU=True), 'column_sum', True),
    pytest.param('linear', linear(768, 4304, 1152, BIAS=True, RESIDUAL=True), '', True, marks=slow),
    ('qkv', kernels.qkv_launch(1024, 8, 256), 'scale bias cos sin', True),
    ('gated_up', kernels.gated_up_launch(1024, 4096), 'scale bias', True),
    ('field', kernels.field_launch(50, 1024, 32), 'scale bias noisy previous out', False),
    pytest.param('attend', kernels.attend_launch(400, 1018, 8, 256, 16)[0], 'bias most total out', True, marks=slow),
    ('attend', kernels.attend_launch(7744, 968, 8, 256, 1)[0], 'bias', True),
    ('combine', kernels.combine_launch(400, 16, 256), 'mixed most total', False),
    ('rotate_rows', kernels.rotate_rows_launch(968, 2048, 8, 256), 'cos sin', False),
    (
        'linear',
        linear(768, 1152, 4304, BIAS=True, GELU=True, FACTOR=True, QUANTISE=True),
        'factor x:fp8 w:fp8 out:fp8',
        True,
    ),
    ('quantise_rows', kernels.quantise_rows_launch(968, 2048, 'rms'), 'out:fp8', False),
    pytest.param('quantise_gated', kernels.quantise_gated_launch(968, 16384), 'out:fp8', False, marks=slow),
    ('gate_rows', kernels.gate_rows_launch(968, 2048, 16384), '', False),
]


def compiled(name: str, launch: Launch, floats: str) -> Any:
    """A kernel as a cubin for an H100, made by the compiler alone."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernels, f'{name}_kernel')
    constants = {**launch.constants, 'F32': False}
    types = {}
    for each in kernel.arg_names:
        if each in constants:
            types[each] = 'constexpr'
        elif each in INTEGERS:
            types[each] = 'i32'
        else:
            types[each] = 'fp32' if each in SCALES else '*i32' if each == 'given' else '*bf16'
        if each in floats.split():
            types[each] = '*fp32'
        if f'{each}:fp8' in floats.split():
            types[each] = '*fp8e4nv'
    aligned = {(i,): [['tt.divisibility', 16]] for i, each in enumerate(types.values()) if each.startswith('*')}
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=aligned)
    options = {'num_warps': launch.warps, 'num_stages': launch.stages}
    return triton.compile(source, target=GPUTarget('cuda', H100, 32), options=options)


@pytest.mark.parametrize(('name', 'launch', 'floats', 'by_warp_groups'), FULL)
def test_kernels_compile_for_an_h100_without_spilling(
    name: str, launch: Launch, floats: str, by_warp_groups: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compiled(name, launch, floats)
    assert made.metadata.shared <= SHARED
    assert ('wgmma.mma_async' in made.asm['ptx']) == by_warp_groups
    (tmp_path / 'kernel.ptx').write_text(made.asm['ptx'])
    ptxas = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'ptxas'
    command = [ptxas, '-v', '--gpu-name', f'sm_{H100}a', tmp_path / 'kernel.ptx', '-o', tmp_path / 'kernel.cubin']
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert re.findall(r'(\d+) bytes spill (?:stores|loads)', said) == ['0', '0'], said


def test_the_expert_keeps_an_h100_busy() -> None:
    """Weights are read by as many programs as it takes: 132 processors, each at most a few programs."""
    for launch in (FULL[0][1], kernels.qkv_launch(1024, 8, 256), kernels.gated_up_launch(1024, 4096)):
        assert launch.grid[0] >= 64
    rows, parts = kernels.attend_launch(400, 1018, 8, 256, kernels.PARTS)[0].grid
    assert 66 <= rows * parts <= 264
