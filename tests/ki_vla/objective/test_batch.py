"""Batches: what is refused, and how samples are put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ki_vla.errors import VlaError
from ki_vla.model.config import preset
from ki_vla.model.summary import random_batch
from ki_vla.objective.batch import Batch, collate

CONFIG = preset('tiny')


def test_a_good_batch_passes() -> None:
    batch = random_batch(CONFIG)
    assert batch.check(CONFIG, values=True) is batch


def _nan(batch: Batch) -> Batch:
    actions = batch.actions_BHA.clone()
    actions[1, 2, 3] = float('nan')
    return replace(batch, actions_BHA=actions)


def _id(batch: Batch) -> Batch:
    prompt = batch.prompt_BL.clone()
    prompt[0, 4] = CONFIG.vocab_size
    return replace(batch, prompt_BL=prompt)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda b: replace(b, images_BVCHW=b.images_BVCHW[:, :, :, :-1]), 'images_BVCHW: shape'),
        (lambda b: replace(b, images_BVCHW=b.images_BVCHW[0]), 'images_BVCHW: shape'),
        (lambda b: replace(b, images_BVCHW=b.images_BVCHW.repeat(1, 2, 1, 1, 1)), '6 camera views.*at most 3'),
        (lambda b: replace(b, images_BVCHW=b.images_BVCHW.int()), 'images_BVCHW: dtype int32'),
        (lambda b: replace(b, image_mask_BV=b.image_mask_BV[:, :2]), 'image_mask_BV: shape'),
        (lambda b: replace(b, prompt_BL=b.prompt_BL.repeat(1, 9)), '108 tokens.*budget of 64'),
        (lambda b: replace(b, prompt_BL=b.prompt_BL.int()), 'prompt_BL: dtype int32 should be int64'),
        (lambda b: replace(b, state_BS=b.state_BS[:, :2]), r'state_BS: shape \(4, 2\) should be \(4, 4\)'),
        (lambda b: replace(b, actions_BHA=b.actions_BHA[:, :-1]), 'actions_BHA: shape'),
        (lambda b: replace(b, action_mask_BHA=b.action_mask_BHA.float()), 'action_mask_BHA: dtype'),
        (lambda b: replace(b, loss_mask_BT=b.loss_mask_BT[:, 1:]), 'loss_mask_BT: shape'),
        (lambda b: random_batch(CONFIG, targets=65), 'target_BT: 65 tokens'),
        (_nan, r'actions_BHA: nan at \[1, 2, 3\]'),
        (_id, r'prompt_BL: id 2048 at \[0, 4\]'),
        (lambda b: replace(b, loss_mask_BT=torch.ones_like(b.loss_mask_BT)), 'loss_mask_BT: asks for a loss'),
        (lambda b: replace(b, prompt_mask_BL=b.prompt_mask_BL & False), 'example 0 has no prompt token'),
    ],
)
def test_what_does_not_fit_is_named(spoil: Callable[[Batch], Batch], message: str) -> None:
    with pytest.raises(VlaError, match=message):
        spoil(random_batch(CONFIG)).check(CONFIG, values=True)


def _sample(prompt: int, targets: int, views: int, **changes: object) -> dict[str, object]:
    pixels = CONFIG.vision.image_size
    fields: dict[str, object] = {
        'images_VCHW': np.full((views, 3, pixels, pixels), 7, np.uint8),
        'image_mask_V': np.ones(views, bool),
        'prompt_L': np.arange(prompt),
        'state_S': np.zeros(CONFIG.state_dim),
        'target_T': np.arange(targets),
        'loss_mask_T': np.ones(targets, bool),
        'actions_HA': np.zeros((CONFIG.horizon, CONFIG.action_dim)),
        'action_mask_HA': np.ones((CONFIG.horizon, CONFIG.action_dim), bool),
    }
    return {**fields, **changes}


def test_samples_of_different_lengths_are_padded_on_the_right() -> None:
    batch = collate([_sample(3, 5, 2), _sample(6, 0, 3)], pad_id=9).check(CONFIG, values=True)
    assert batch.prompt_BL.tolist() == [[0, 1, 2, 9, 9, 9], [0, 1, 2, 3, 4, 5]]
    assert batch.prompt_mask_BL.sum(dim=1).tolist() == [3, 6]
    assert batch.target_mask_BT.sum(dim=1).tolist() == [5, 0]
    assert batch.image_mask_BV.tolist() == [[True, True, False], [True, True, True]]
    assert batch.images_BVCHW.dtype == torch.uint8
    assert batch.actions_BHA.dtype == torch.float32
    assert batch.action_token_BT is None


def test_samples_that_cannot_be_put_together_are_refused() -> None:
    with pytest.raises(VlaError, match='no samples'):
        collate([])
    with pytest.raises(VlaError, match='sample 1 has no field state_S'):
        collate([_sample(1, 1, 1), {k: v for k, v in _sample(1, 1, 1).items() if k != 'state_S'}])
    with pytest.raises(VlaError, match='state_BS has different shapes'):
        collate([_sample(1, 1, 1), _sample(1, 1, 1, state_S=np.zeros(9))])


def test_uint8_images_are_the_same_as_floats(make_model: Callable) -> None:
    model = make_model()
    raw = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(model.encode(raw), model.encode(raw.float() / 127.5 - 1.0), atol=1e-6)


def test_a_batch_moves_whole() -> None:
    batch = random_batch(CONFIG).to('meta')
    assert batch.images_BVCHW.is_meta
    assert batch.action_mask_BHA.is_meta
