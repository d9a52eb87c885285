"""The programs that measure engines, run as a person runs them, at their smallest."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

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


def rehearse(root: Path, output: Path, *arguments: str) -> dict[str, Any]:
    done = run(root, 'benchmarks/gpu.sh', '--rehearse', '--rounds', '1', '--output', str(output), *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((output / 'rehearsal_latency.json').read_text())
    return found


@pytest.mark.slow  # quick ones hold that every program finds what it imports and that the ladder keeps to its budget
def test_the_ladder_rehearses_on_a_cpu(root: Path, tmp_path: Path) -> None:
    result = rehearse(root, tmp_path, '--rungs', 'fused', 'packed graphs')
    assert (result['not_timed'], result['skipped']) == ({}, {})
    shapes = {(row['rung'], row['views'], row['prompt'], row['kind']) for row in result['ladder']}
    same = {(3, prompt, kind) for prompt in (64, 48) for kind in ('plain', 'trained')}
    assert shapes == {(rung, *each) for rung in ('fused', 'packed graphs') for each in same} | {
        ('packed graphs', 3, 64, 'guided')
    }
    assert all(found['cosine'] > 0.999 for rung in result['parity'].values() for found in rung.values())
    profile = json.loads((tmp_path / 'rehearsal_profile.json').read_text())
    assert profile['rows'][0]['us'] > 0


@pytest.mark.slow
def test_every_line_of_the_ladder_rehearses(root: Path, tmp_path: Path) -> None:
    result = rehearse(root, tmp_path)
    assert (result['not_timed'], result['skipped']) == ({}, {})
    assert {row['rung'] for row in result['ladder']} >= {'fused', 'compiled graphs', 'eager', 'ONNX Runtime'}


@pytest.fixture
def ladder(program: Callable[[str], ModuleType], tmp_path: Path) -> Any:
    """A ladder with ten seconds left, on nothing."""
    module = program('ladder')
    result: dict[str, Any] = {
        'machine': {'gpu': 'NVIDIA H100 80GB HBM3'}, 'parity': {}, 'not_timed': {}, 'skipped': {}, 'seconds': {},
        'ladder': [],
    }  # fmt: skip
    return module.Ladder('cpu', module.preset('full'), 1, 10.0, tmp_path / 'latency.json', result)


def test_a_rung_that_breaks_off_is_told_and_the_others_are_kept(ladder: Any) -> None:
    def broken() -> None:
        ladder.result['ladder'].append({'rung': 'first'})
        raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate')

    ladder.take('first', 1.0, broken)
    ladder.take('second', 1.0, lambda: ladder.result['ladder'].append({'rung': 'second'}))
    written = json.loads(ladder.path.read_text())
    assert [row['rung'] for row in written['ladder']] == ['first', 'second']
    assert written['not_timed'] == {'first': 'OutOfMemoryError: CUDA out of memory.'}


def test_what_no_longer_fits_into_the_time_is_skipped_and_named(ladder: Any) -> None:
    ladder.take('long', 1000.0, lambda: pytest.fail('it ran'))
    assert ladder.take('short', 1.0, lambda: 'done') == 'done'
    [(name, why)] = json.loads(ladder.path.read_text())['skipped'].items()
    assert name == 'long'
    found = re.fullmatch(r'needs about 1000 s, (\d+) s are left', why)
    assert found
    assert 0 < int(found[1]) <= 10  # a slow machine has used some of it


def test_the_floor_is_that_of_the_gpu_that_is_there(ladder: Any) -> None:
    shape = ladder.__init__.__globals__['shapes_of'](ladder.config)[0]
    h100 = ladder.floor(shape)['floor_ms']
    ladder.gpu = 'NVIDIA H200'
    assert 6.0 < ladder.floor(shape)['floor_ms'] < h100 < 9.0
    ladder.gpu = 'NVIDIA GeForce'
    assert ladder.floor(shape) == {}


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
