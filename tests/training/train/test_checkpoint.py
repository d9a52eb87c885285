"""A checkpoint is whole or absent, whatever the disk does."""

from __future__ import annotations

import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from training.errors import TrainingError
from training.train.checkpoint import (
    AVERAGE,
    OPTIMISER,
    STATE,
    WEIGHTS,
    Checkpoint,
    check_fingerprint,
    checkpoints,
    read_checkpoint,
    shipped_weights,
    write_checkpoint,
)
from training.train.run import train


def made(step: int, size: int = 4) -> Checkpoint:
    weights = {'a': torch.full((size,), float(step))}
    average = {'a': torch.full((size,), float(step) / 2)}
    return Checkpoint(step, weights, average, {'state': {'a': torch.ones(2)}}, {'sampler': {'position': step}})


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process grow beyond a size: what a full disk does, without a disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_what_is_written_is_read_and_the_oldest_go(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        write_checkpoint(tmp_path, made(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ['00000006', '00000009']
    read = read_checkpoint(checkpoints(tmp_path)[-1])
    assert read.step == 9
    assert read.state['sampler'] == {'position': 9}
    assert torch.equal(read.weights['a'], torch.full((4,), 9.0))
    assert torch.equal(shipped_weights(checkpoints(tmp_path)[-1])['a'], torch.full((4,), 4.5))


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path: Path, small_files: Callable[[int], None]) -> None:
    write_checkpoint(tmp_path, made(3))
    small_files(100_000)
    with pytest.raises(TrainingError, match=r'00000006 cannot be written.*free space there'):
        write_checkpoint(tmp_path, made(6, size=1_000_000))
    assert [path.name for path in tmp_path.iterdir()] == ['00000003'], 'no half of anything is left'
    assert read_checkpoint(tmp_path / '00000003').step == 3


def test_a_run_goes_on_when_a_checkpoint_on_the_way_cannot_be_written(
    run_of: Callable[..., Any], small_files: Callable[[int], None]
) -> None:
    run = run_of({'steps': 5}, save_every=2, validate_every=100)
    warnings = []

    def tell(kind: str, values: dict[str, Any]) -> None:
        if kind == 'step':
            small_files(100_000 if values['step'] == 2 else resource.RLIM_INFINITY)
        elif kind == 'warning':
            warnings.append(values['text'])

    assert train(run, tell) is not None
    assert len(warnings) == 1
    assert 'free space' in warnings[0]


def test_leftovers_of_a_writer_that_was_killed_are_not_read_and_go_with_the_next(tmp_path: Path) -> None:
    leftover = tmp_path / f'.00000003.partial-{2**22 + 1}'  # beyond the highest process id of Linux
    leftover.mkdir()
    (leftover / WEIGHTS).write_bytes(b'half')
    assert checkpoints(tmp_path) == []
    write_checkpoint(tmp_path, made(6))
    assert [path.name for path in tmp_path.iterdir()] == ['00000006']


@pytest.mark.parametrize('name', [WEIGHTS, OPTIMISER, STATE])
def test_damage_is_named_with_the_fix(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, made(3))
    (path / name).write_bytes((path / name).read_bytes()[:-7])
    with pytest.raises(TrainingError, match=f'{path}.*remove'):
        read_checkpoint(path)


@pytest.mark.parametrize('name', [WEIGHTS, AVERAGE, OPTIMISER, STATE])
def test_no_flipped_bit_is_loaded(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, made(3)) / name
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 60):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if name == STATE and damaged.split() == whole.split():
            continue  # a blank became another blank
        with pytest.raises(TrainingError, match=f'{path.parent}.*remove'):
            read_checkpoint(path.parent)
    path.write_bytes(whole)
    assert read_checkpoint(path.parent).step == 3


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, made(3))

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / 'exploded',))

    torch.save(Bomb(), path / OPTIMISER)
    data = json.loads((path / STATE).read_text())

    del data['sha256']  # as an older version wrote it: sizes alone
    data['files'] = {name: (path / name).stat().st_size for name in data['files']}
    (path / STATE).write_text(json.dumps(data))
    with pytest.raises(TrainingError, match='damaged'):
        read_checkpoint(path)
    assert not (tmp_path / 'exploded').exists()


def test_another_run_is_named_by_the_first_field_that_differs(tmp_path: Path) -> None:
    state = {'identity': {'data': 'abc', 'stage': {'rate': 1e-3}}}
    check_fingerprint(tmp_path, state, {'data': 'abc', 'stage': {'rate': 1e-3}})
    with pytest.raises(TrainingError, match="data is 'abc' there and 'xyz' here"):
        check_fingerprint(tmp_path, state, {'data': 'xyz', 'stage': {'rate': 1e-3}})
