"""The programs that measure engines, run as a person runs them, at their smallest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)


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
    assert result['not_timed'] == []
    assert {row['rung'] for row in result['ladder']} == {'eager', 'packed graphs'}
    assert {(row['views'], row['prompt']) for row in result['ladder']} == {(v, p) for v in (1, 2, 3) for p in (48, 64)}
    assert {row['rtc'] for row in result['ladder']} == {'off', 'guided'}
    assert result['parity']['fp32']['packed graphs']['guided']['max_error'] < 1e-4
    assert result['parity']['bf16']['packed graphs']['plain']['cosine'] > 0.999
    profile = json.loads((tmp_path / 'rehearsal_profile.json').read_text())
    assert profile['rows'][0]['us'] > 0
    assert 'torch alone was measured' in done.stdout


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


@pytest.mark.slow
def test_latency_of_graphs_is_measured_after_their_check(root: Path, tmp_path: Path) -> None:
    result = latency(root, tmp_path / 'latency.json', 'torch-eager', 'onnx-fp32', 'onnx-int8')
    assert result['parity']['fp32']['chunk']['max_error'] < 1e-4
    assert result['parity']['int8']['chunk']['cosine'] > 0.99
