"""The programs that measure engines, run as a person runs them, at their smallest."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ki_common.errors import KiError


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)


@pytest.fixture
def program(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`program(name)` imports a program of benchmarks/."""
    monkeypatch.syspath_prepend(root / 'benchmarks')
    monkeypatch.syspath_prepend(root / 'benchmarks' / 'gpu')
    return importlib.import_module


def test_the_ladder_rehearses_on_a_cpu(root: Path, tmp_path: Path) -> None:
    done = run(
        root,
        'benchmarks/gpu.sh',
        '--rehearse',
        '--rungs',
        'eager',
        'packed graphs',
        '--rounds',
        '1',
        '--output',
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'rehearsal_latency.json').read_text())
    assert result['not_timed'] == {}
    assert {row['rung'] for row in result['ladder']} == {'eager', 'packed graphs'}
    assert {(row['views'], row['prompt']) for row in result['ladder']} == {(v, p) for v in (1, 2, 3) for p in (48, 64)}
    assert {row['rtc'] for row in result['ladder']} == {'off', 'guided'}
    assert result['parity']['fp32']['packed graphs']['guided']['max_error'] < 1e-4
    assert result['parity']['bf16']['packed graphs']['plain']['cosine'] > 0.999
    profile = json.loads((tmp_path / 'rehearsal_profile.json').read_text())
    assert profile['rows'][0]['us'] > 0
    assert result['onnx'] == 'not asked for'


def test_a_rung_that_breaks_off_is_told_and_the_others_are_kept(
    program: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    ladder = program('ladder')

    def broken() -> Iterator[dict[str, str]]:
        yield {'rung': 'first'}
        raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate')

    result: dict = {'ladder': [], 'not_timed': {}}
    rungs = [('first', broken()), ('second', iter([{'rung': 'second'}]))]
    ladder.measure(iter(rungs), result, tmp_path / 'latency.json')
    written = json.loads((tmp_path / 'latency.json').read_text())
    assert [row['rung'] for row in written['ladder']] == ['first', 'second']
    assert written['not_timed'] == {'first': 'OutOfMemoryError: CUDA out of memory.'}


@pytest.mark.slow
def test_the_ladder_rehearses_onnx_runtime(root: Path, tmp_path: Path) -> None:
    rungs = ('--rungs', 'eager', 'ONNX Runtime')
    done = run(root, 'benchmarks/gpu.sh', '--rehearse', *rungs, '--rounds', '1', '--output', str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'rehearsal_latency.json').read_text())
    assert (result['onnx'], result['not_timed']) == ('measured', {})
    rows = [row for row in result['ladder'] if row['rung'] == 'ONNX Runtime']
    assert {row['rtc'] for row in rows} == {'off', 'guided'}
    assert all(row['parity']['max_error'] < 1e-4 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this is about machines without CUDA')
def test_the_ladder_without_a_gpu_says_how_to_rehearse(root: Path) -> None:
    done = run(root, 'benchmarks/gpu.sh')
    assert (done.returncode, done.stderr.strip()) == (
        2,
        'no CUDA device here; run this on a GPU, or with --rehearse to try the script on a CPU.',
    )


def latency(root: Path, output: Path, *backends: str) -> dict:
    small = ('--preset', 'tiny', '--views', '1', '--prompt', '48', '--rounds', '2', '--threads', '1')
    command = (sys.executable, 'benchmarks/latency.py', *small, '--output', str(output), '--backends', *backends)
    done = run(root, *command)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


def test_latency_is_measured_by_backend_and_stage(root: Path, tmp_path: Path) -> None:
    result = latency(root, tmp_path / 'latency.json', 'torch-eager', 'torch-packed')
    assert [(row['prompt'], row['rtc']) for row in result['results']] == [(48, 'off'), (48, 'guided')]
    for row in result['results']:
        assert row['floor_ms'] > 0
        for found in row['engines'].values():
            assert 0 < found['min_ms'] <= found['p50_ms'] <= found['p99_ms']
            assert {'vision', 'prefix', 'denoise'} <= set(found['stages_p50_ms'])
        assert row['engines']['torch-eager']['ratio_to_first'] == 1.0


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--backends', 'torch-graphs'], '--backends torch-graphs: on cpu there are torch-eager, torch-packed, '),
        (['--backends', 'onnx-fp8'], '--backends onnx-fp8: on cpu there are'),
        (['--device', 'cuda'], '--device cuda: torch sees no CUDA device here; take cpu'),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason='this is about machines without CUDA')
def test_what_cannot_be_measured_here_is_refused_before_anything_runs(
    program: Callable[[str], ModuleType],
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    latency = program('latency')
    monkeypatch.setattr(latency, 'model_of_noise', lambda *_: pytest.fail('it ran'))
    with pytest.raises((SystemExit, KiError)) as end:
        latency.main(arguments)
    assert sentence in capsys.readouterr().err + str(end.value)


@pytest.mark.slow
def test_latency_of_graphs_is_measured_after_their_check(root: Path, tmp_path: Path) -> None:
    result = latency(root, tmp_path / 'latency.json', 'torch-eager', 'onnx-fp32', 'onnx-int8')
    assert result['parity']['fp32']['chunk']['max_error'] < 1e-4
    assert result['parity']['int8']['chunk']['cosine'] > 0.99
