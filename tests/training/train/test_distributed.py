"""One and two processes give the same run, and read each other's checkpoints. Real processes, gloo, on the CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from training.train.checkpoint import checkpoints, read_checkpoint
from training.train.distributed import open_world
from training.train.run import train
from training.train.run_report import read_metrics

MakeRun = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys
import training.train.distributed as distributed
import training.train.trainer as trainer
from torch.distributed.tensor import DTensor
from training.train.config import load_run
from training.train.run import train

def sharded(model, world, bf16, shard=trainer.shard):
    shard(model, world, bf16)
    assert {isinstance(parameter, DTensor) for parameter in model.parameters()} == {len(sys.argv) > 2}

trainer.shard = sharded
if len(sys.argv) > 2:  # block by block, as large models are
    distributed.SMALL = 0
train(load_run(sys.argv[1]))
"""


def two_processes(run: Any, folder: Path, blocks: bool = False) -> None:
    """The run over two processes, as torchrun would start them; `blocks`: sharded as large models are, else whole."""
    folder.mkdir(exist_ok=True)
    config = folder / 'run.yaml'
    config.write_text(yaml.safe_dump(run.to_dict()), encoding='utf-8')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(2):
        environment = os.environ | {
            'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': str(port), 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT),
        }  # fmt: skip
        with (folder / f'rank{rank}.log').open('w') as log:
            command = [sys.executable, '-c', PROGRAM, str(config), *(['blocks'] if blocks else [])]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    codes = [process.wait(timeout=240) for process in started]
    assert codes == [0, 0], ''.join((folder / f'rank{rank}.log').read_text()[-3000:] for rank in range(2))


def losses(out: str) -> list[dict[str, float]]:
    keep = ('step', 'text', 'fast', 'flow', 'norm')
    lines = read_metrics(Path(out) / 'vla')
    return [{k: v for k, v in line.items() if k in keep} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('blocks', 'changes'),
    [
        (blocks, changes)
        for blocks in (False, True)
        for changes in ({}, {'optimiser': 'muon'}, {'recipe': 'frozen', 'kept': 8, 'vlm': 0})
    ],
)
def test_two_processes_train_what_one_trains_and_one_goes_on_where_two_stopped(
    run_of: MakeRun, tmp_path: Path, blocks: bool, changes: dict[str, Any]
) -> None:
    alone, both = (
        run_of({'steps': 6, 'batch': 4, 'accumulate': 2, **changes}, out=str(tmp_path / name))
        for name in ('alone', 'both')
    )
    train(alone)
    two_processes(both, tmp_path / 'both', blocks)
    for one, two in zip(losses(alone.out), losses(both.out), strict=True):
        assert one == pytest.approx(two, abs=1e-4), json.dumps([one, two])

    last = [checkpoints(Path(run.out) / 'vla' / 'checkpoints') for run in (alone, both)]
    ours, theirs = (read_checkpoint(paths[-1]) for paths in last)
    for name in ours.weights:
        torch.testing.assert_close(ours.weights[name], theirs.weights[name], rtol=1e-3, atol=2e-4)

    # Two processes stopped at step 3; one goes on.
    import shutil

    shutil.rmtree(last[1][-1])
    assert checkpoints(Path(both.out) / 'vla' / 'checkpoints')[-1].name == '00000003'
    assert train(both) is not None
    assert losses(both.out)[-1] == pytest.approx(losses(alone.out)[-1], abs=1e-4)


def test_processes_wait_for_the_first_one_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr('torch.distributed.init_process_group', lambda kind, timeout: given.append(timeout))
    open_world('cpu')
    assert given[0] >= timedelta(hours=6)
