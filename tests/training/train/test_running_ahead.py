"""On a GPU the host must run ahead of the device: nothing in a step may wait, and compiling must not break off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import training.train.trainer as trainer_module
from ki_vla.model.config import preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.model.summary import random_batch
from ki_vla.objective.batch import Batch
from ki_vla.objective.recipes import OURS, recipe
from ki_vla.objective.trainable import prepare
from training.errors import TrainingError
from training.fit.initial_policy import begin
from training.samples.collator import Packet
from training.train.distributed import ProcessGroup
from training.train.run import _parts, open_sources
from training.train.schedule import Averaged
from training.train.trainer import Tally, Trainer

MakeRun = Callable[..., Any]
WAITING = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'item')


class Waits(TorchDispatchMode):
    """Counts the operations for whose result a host would have to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        picks = name in ('index', 'index_put', 'index_put_') and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in WAITING or picks:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def trainer(run_of: MakeRun, tmp_path: Path) -> Trainer:
    """A trainer on real samples that believes its device to be far away."""
    run = run_of({'batch': 4, 'max_delay': 2, 'ema': 0.9})
    stage = run.stages[0]
    world = ProcessGroup()
    sources = open_sources(run, world)
    made = begin(run, sources.train, [sources.vlm])
    trainer = Trainer(run, stage, made.model, made.processor, _parts(stage, sources), [], tmp_path, world)
    trainer.runs_ahead = True
    return trainer


def packet_of(trainer: Trainer) -> Packet:
    packet: Packet = next(iter(trainer.loader))
    return packet


def test_nothing_in_a_step_waits_for_the_device(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    packet = packet_of(trainer)
    counted = trainer_module.counts(packet.batch, trainer.recipe)  # of a batch that is still on the host
    monkeypatch.setattr(trainer_module, 'counts', lambda batch, recipe: counted)
    with Waits() as waits:
        trainer.one_step([packet])
    assert waits.found == {}
    tally = Tally()
    with Waits() as waits:
        trainer.settle(tally)
    assert (tally.steps, trainer.skipped) == (1, 0)
    assert set(tally.means()) == {'text', 'fast', 'flow'}


def test_a_step_that_is_not_finite_changes_no_weight_before_the_host_knows_of_it(trainer: Trainer) -> None:
    packet = packet_of(trainer)
    trainer.one_step([packet])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    moments = [state['exp_avg'].clone() for state in trainer.optimiser.state.values()]
    packet.batch.actions_BHA.fill_(float('nan'))
    trainer.one_step([packet])
    assert trainer.skipped == 0, 'nobody has looked yet'
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    kept = [state['exp_avg'] for state in trainer.optimiser.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, kept, strict=True))
    assert {float(state['step']) for state in trainer.optimiser.state.values()} == {1.0}
    tally = Tally()
    trainer.settle(tally)
    assert (trainer.skipped, trainer.skips_in_a_row, tally.steps) == (1, 1, 2)


def test_too_many_skips_are_found_where_the_host_looks(trainer: Trainer) -> None:
    packet = replace(packet_of(trainer), numbers=(11, 12))
    packet.batch.actions_BHA.fill_(float('nan'))
    for _ in range(trainer.run.max_skips):
        trainer.one_step([packet])
    with pytest.raises(TrainingError, match=r'steps in a row gave no finite.*last draws 11\.\.12'):
        trainer.settle(Tally())


@pytest.mark.parametrize('shorter', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_whole_step_compiles_into_one_graph_for_targets_of_any_length(shorter: int) -> None:
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    tiny = preset('tiny')
    two = {name: getattr(tiny, name).replace(depth=2) for name in ('backbone', 'expert')}
    config = tiny.replace(vision=tiny.vision.replace(depth=1), **two)
    model = initialise(KiVla(config))
    prepare(model, recipe('ours'))
    batch = random_batch(config)
    noise, tau = torch.randn(4, 2, config.horizon, config.action_dim), torch.rand(4, 2)
    dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    expected = float(model(batch, OURS, 2, noise, tau).total.detach())
    assert float(compiled(batch, OURS, 2, noise, tau).total.detach()) == pytest.approx(expected, rel=1e-5)
    for fewer in range(1, shorter + 1):
        compiled(cut(batch, batch.target_BT.shape[1] - fewer), OURS, 2, noise, tau)
    assert sum(counters['graph_break'].values()) == 0
    assert counters['stats']['unique_graphs'] <= 2, 'one for the first length, one for all'
    dynamo.reset()


def cut(batch: Batch, length: int) -> Batch:
    names = ('target_BT', 'target_mask_BT', 'loss_mask_BT', 'action_token_BT')
    return replace(batch, **{n: v[:, :length] for n in names if (v := getattr(batch, n)) is not None})


def test_an_average_that_is_updated_now_and_then_decays_for_all_the_steps_between() -> None:
    one = torch.nn.Linear(2, 2)
    often, seldom = Averaged(one, 0.5), Averaged(one, 0.5, on_cpu=True, every=2)
    often.updates = seldom.updates = 1000  # warm
    with torch.no_grad():
        one.weight.add_(1.0)
    for _ in range(4):
        often.after_step(one)
        seldom.after_step(one)
    torch.testing.assert_close(often.weights['weight'], seldom.weights['weight'])
    assert seldom.updates == 1002
