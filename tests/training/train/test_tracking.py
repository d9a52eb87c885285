"""wandb hears of a run that asks for it, and only of that one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.errors import TrainingError
from training.train.config import Run
from training.train.run import train
from training.train.run_report import Journal
from training.train.tracking import RUN_ID_FILE, Tracker

MakeRun = Callable[..., Any]


class Service:
    """Stands for wandb, which needs a network or a service process: keeps what it is told."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **told: Any) -> Service:
        self.started.append(told)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service()
    module = SimpleNamespace(init=made.init, Settings=lambda **told: told, __spec__=SimpleNamespace(name='wandb'))
    monkeypatch.setitem(sys.modules, 'wandb', module)  # type: ignore[arg-type]
    return made


def test_a_run_that_asks_for_it_is_tracked_and_goes_on_in_the_same_one(run_of: MakeRun, service: Service) -> None:
    run = run_of({'steps': 2}).replace(wandb='kitchen')
    train(run)
    [told] = service.started
    assert (told['project'], told['name'], told['resume']) == ('kitchen', 'toy/vla', 'allow')
    assert told['config']['stages'][0]['steps'] == 2
    assert [step for step, values in service.lines if 'train/norm' in values] == [1, 2]
    assert any('validation/flow' in values for _, values in service.lines)
    assert service.finished == 1

    Tracker(run, Path(run.out) / 'vla')
    assert service.started[1]['id'] == told['id'] == (Path(run.out) / 'vla' / RUN_ID_FILE).read_text()


def test_a_run_that_does_not_ask_is_not_tracked(run_of: MakeRun, service: Service) -> None:
    train(run_of({'steps': 1}))
    assert service.started == []


def test_without_wandb_it_says_so_before_anything_is_made(run_of: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'wandb', None)
    run = run_of({'steps': 1}).replace(wandb='kitchen')
    with pytest.raises(TrainingError, match="asks for project 'kitchen', and wandb is not installed here"):
        train(run)
    assert not Path(run.out).exists()


def test_who_is_not_logged_in_is_told_what_to_do(
    run_of: MakeRun, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError('no API key configured.')

    monkeypatch.setattr(sys.modules['wandb'], 'init', refuse)
    with pytest.raises(TrainingError, match=r'no API key configured\. Run `wandb login`, set WANDB_MODE=offline'):
        Journal(tmp_path, run=run_of().replace(wandb='kitchen'))


def test_the_real_one_writes_files_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec('wandb') is None:
        pytest.skip('wandb is not installed (pip install wandb): only its stand-in was checked')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    run = Run.parse({'name': 'toy', 'wandb': 'kitchen', 'data': {'bags': 'bags'}})
    for steps in ((1, 2), (3,)):  # the second time it is resumed
        journal = Journal(tmp_path, steps[0] - 1, run=run)
        for step in steps:
            journal.write(step, 'train', {'flow': 1.0 / step})
        journal.close()
    files = list(tmp_path.glob('wandb/offline-run-*/*.wandb'))
    name = (tmp_path / RUN_ID_FILE).read_text()
    assert files
    assert {file.name for file in files} == {f'run-{name}.wandb'}
    assert b'train/flow' in files[0].read_bytes()
