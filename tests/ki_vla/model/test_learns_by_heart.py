"""A tiny model learns 32 samples by heart: language, action tokens and continuous actions, all at once.

Quick, and with wider bounds, tests/training/evaluate/test_held_out.py learns by heart through a whole run.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ki_vla.model.config import preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.model.summary import random_batch
from ki_vla.objective.batch import Batch
from ki_vla.objective.recipes import OURS
from ki_vla.objective.trainable import prepare
from ki_vla.policy.generation import generate

STEPS, RATE, DRAWS = 260, 5e-3, 4


def _samples(generator: torch.Generator) -> Batch:
    """16 action samples with smooth chunks and 16 language samples."""
    config = preset('tiny')
    time = torch.linspace(0.0, 1.0, config.horizon)[None, :, None]
    size, phase = (torch.rand(32, 1, config.action_dim, generator=generator) for _ in range(2))
    chunks = (0.3 + size) * torch.sin(2 * math.pi * phase + 3.0 * time)
    return replace(random_batch(config, 32, targets=6), actions_BHA=chunks)


@pytest.mark.slow
def test_ours_learns_32_samples_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    model = initialise(KiVla(preset('tiny')), generator)
    prepare(model, OURS)
    batch = _samples(generator)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    history = []
    for step in range(STEPS):
        scale = min(1.0, (step + 1) / 20) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        optimiser.param_groups[0]['lr'] = RATE * scale
        losses = model(batch, OURS, draws=DRAWS, generator=generator)
        optimiser.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        history.append(losses.report())
    for name in ('text', 'fast', 'flow'):
        last = sum(h[name] for h in history[-10:]) / 10
        assert last < history[0][name] / 10, (name, history[0][name], last)

    prefix = model.prefill(
        batch.images_BVCHW, batch.image_mask_BV, batch.prompt_BL, batch.prompt_mask_BL, batch.state_BS
    )
    with torch.no_grad():
        sampled = model.denoise(prefix, torch.randn(batch.actions_BHA.shape, generator=generator))
    mine, wanted = sampled[batch.has_actions_B], batch.actions_BHA[batch.has_actions_B]
    rmse = (mine - wanted).square().mean().sqrt() / wanted.std()
    assert float(rmse) < 0.05

    # And the tokens come back one by one: answers, and actions as the autoregressive baselines decode them.
    prefix = model.prefill(
        batch.images_BVCHW, batch.image_mask_BV, batch.prompt_BL, batch.prompt_mask_BL, batch.state_BS, hidden=True
    )
    decoded = generate(model, prefix, batch.target_BT.shape[1], stop_ids=[])
    assert torch.equal(decoded.ids[batch.target_mask_BT], batch.target_BT[batch.target_mask_BT])
