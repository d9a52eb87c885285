"""Keys and values of a backbone that stands still are computed once, and the expert learns from them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ki_vla.errors import VlaError
from ki_vla.model.config import preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.model.summary import random_batch
from ki_vla.objective.recipes import recipe
from training.errors import TrainingError
from training.samples.collator import Packet
from training.train.checkpoint import checkpoints, read_checkpoint
from training.train.kept import KeptSamples, prefixed, sent
from training.train.run import train
from training.train.run_report import read_metrics

MakeRun = Callable[..., Any]
CPU = torch.device('cpu')


def packet_of(model: KiVla, seed: int = 0, size: int = 4) -> Packet:
    batch = random_batch(model.config, size, seed=seed)
    shape = (size, 2, model.config.horizon, model.config.action_dim)
    torch.manual_seed(seed)
    numbers = tuple(range(size * seed, size * seed + size))
    return Packet(batch, torch.randn(shape), torch.rand(size, 2), numbers)


@pytest.mark.parametrize('changes', [{}, {'state_repr': 'both', 'pointer': {'layer': 2}}])
def test_what_is_kept_gives_the_loss_of_the_samples(changes: dict[str, Any]) -> None:
    chosen = recipe('frozen')
    model = initialise(KiVla(chosen.configure(preset('tiny')).changed(changes)), torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.expert.action_out.weight)
    packet = packet_of(model)
    whole = model(packet.batch, chosen, 2, packet.noise_BRHA, packet.tau_BR)
    kept = prefixed(model, packet, CPU)
    assert kept.prefix is not None
    assert kept.prefix.passing_BnD == (), 'nobody reads it again'
    found = model(packet.batch, chosen, 2, packet.noise_BRHA, packet.tau_BR, prefix=sent(kept.prefix, CPU))
    torch.testing.assert_close(found.flow, whole.flow, atol=0, rtol=2e-3)
    torch.testing.assert_close(found.total, whole.total, atol=0, rtol=2e-3)
    assert found.report().keys() == whole.report().keys()
    with pytest.raises(VlaError, match='recipe ours: it trains the backbone, so the prefix cannot be given'):
        model(packet.batch, recipe('ours'), 2, packet.noise_BRHA, packet.tau_BR, prefix=sent(kept.prefix, CPU))


def test_what_half_precision_cannot_hold_is_refused() -> None:
    model = initialise(KiVla(preset('tiny')), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.backbone.layers[0].v.weight.mul_(1e6)
    with pytest.raises(TrainingError, match='keys or values of the backbone are too large to be kept'):
        prefixed(model, packet_of(model), CPU)


def test_every_epoch_gives_each_step_once_in_another_order_with_other_noise() -> None:
    model = initialise(KiVla(preset('tiny')), torch.Generator().manual_seed(0))
    kept = KeptSamples([packet_of(model, seed) for seed in range(6)], 3, accumulate=2)
    given = list(islice(kept.after(0), 18))
    epochs = [[packet.numbers[0] // 4 for packet in given[first : first + 6]] for first in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert all(epoch[i] + 1 == epoch[i + 1] for epoch in epochs for i in (0, 2, 4)), 'packets of a step stay together'
    first = [packet for packet in given if packet.numbers[0] == 0]
    assert len(first) == 3
    assert len({float(packet.noise_BRHA[0, 0, 0, 0]) for packet in first}) == 3
    assert len({float(packet.tau_BR[0, 0]) for packet in first}) == 3
    again = list(islice(kept.after(5), 8))
    assert all(torch.equal(a.noise_BRHA, b.noise_BRHA) for a, b in zip(again, given[10:18], strict=True))


def test_the_noise_of_a_sample_does_not_depend_on_what_a_step_is_cut_into() -> None:
    model = initialise(KiVla(preset('tiny')), torch.Generator().manual_seed(0))
    whole = packet_of(model, 1)
    half = replace(whole, numbers=whole.numbers[2:], noise_BRHA=whole.noise_BRHA[2:], tau_BR=whole.tau_BR[2:])
    (one,), (other,) = (list(islice(KeptSamples([each], 3).after(7), 1)) for each in (whole, half))
    assert torch.equal(one.noise_BRHA[2:], other.noise_BRHA)
    assert torch.equal(one.tau_BR[2:], other.tau_BR)


def test_a_run_that_keeps_samples_is_resumed_to_the_last_bit(run_of: MakeRun, tmp_path: Path) -> None:
    stage = {'recipe': 'frozen', 'kept': 10, 'vlm': 0}
    told: list[tuple[str, dict[str, Any]]] = []
    assert train(run_of(stage, out=str(tmp_path / 'whole')), lambda *each: told.append(each)) is not None
    assert [values['samples'] for kind, values in told if kind in ('keeping', 'kept')] == [12, 12], 'whole batches'

    def stop_at_four(kind: str, values: dict[str, Any]) -> None:
        if kind == 'step' and values['step'] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    halves = run_of(stage, out=str(tmp_path / 'halves'))
    assert train(halves, stop_at_four) is None
    assert train(halves) is not None
    ours, theirs = (read_checkpoint(checkpoints(tmp_path / n / 'vla' / 'checkpoints')[-1]) for n in ('whole', 'halves'))
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)
    drop = ('samples_per_s', 'waiting')
    lines = [
        [
            {k: v for k, v in line.items() if k not in drop}
            for line in read_metrics(tmp_path / name / 'vla')
            if line['kind'] == 'train'
        ]
        for name in ('whole', 'halves')
    ]
    assert lines[0] == lines[1]
    assert all(line['flow'] > 0 for line in lines[0])
