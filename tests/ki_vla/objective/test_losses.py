"""The three losses and their masks (equation 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ki_vla.objective import losses
from ki_vla.objective.recipes import recipe


def test_masked_mean_of_nothing_is_zero_with_a_gradient() -> None:
    values = torch.randn(3, requires_grad=True)
    mean = losses.masked_mean(values, torch.zeros(3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0.0
    assert values.grad.tolist() == [0.0, 0.0, 0.0]


def test_nonsense_under_the_mask_does_not_leak() -> None:
    values = torch.tensor([1.0, float('nan'), 3.0])
    assert float(losses.masked_mean(values, torch.tensor([True, False, True]))) == 2.0


def test_action_loss_counts_unmasked_entries_only() -> None:
    predicted, wanted = torch.zeros(1, 2, 3, 2), torch.full((1, 1, 3, 2), 2.0)
    mask = torch.zeros(1, 1, 3, 2, dtype=torch.bool)
    mask[..., 0, :] = True
    wanted[..., 1:, :] = 1e9
    assert float(losses.action_loss(predicted, wanted.expand(1, 2, 3, 2), mask, 'flow')) == 4.0
    assert float(losses.action_loss(predicted, wanted.expand(1, 2, 3, 2), mask, 'l1')) == 2.0


def test_logits_in_parts_are_the_logits_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, table = torch.randn(10, 6, requires_grad=True), torch.randn(30, 6, requires_grad=True)
    ids = torch.randint(0, 30, (10,))
    whole = losses.token_losses(hidden, table, ids)
    expected = torch.autograd.grad(whole.sum(), [hidden, table])
    monkeypatch.setattr(losses, 'LOGIT_ROWS', 3)
    parts = losses.token_losses(hidden, table, ids)
    assert torch.allclose(parts, whole)
    for a, b in zip(torch.autograd.grad(parts.sum(), [hidden, table]), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_token_loss_is_the_cross_entropy_of_every_next_token(make_model: Callable, make_batch: Callable) -> None:
    """Against the logits of an inference prefix, position by position; M_l chooses the positions."""
    model = make_model()
    batch = make_batch(model)
    loss_mask = batch.target_mask_BT.clone()
    loss_mask[:, ::3] = False
    batch = replace(batch, loss_mask_BT=loss_mask)
    found = model(batch, recipe('ours'))
    with torch.no_grad():
        prefix = model.prefill(
            batch.images_BVCHW, batch.image_mask_BV, batch.prompt_BL, batch.prompt_mask_BL, batch.state_BS, hidden=True
        )
        logits = model.logits(model.token_hidden(prefix, batch.target_BT, batch.target_mask_BT))
    each = F.cross_entropy(logits.flatten(0, 1), batch.target_BT.flatten(), reduction='none').view_as(batch.target_BT)
    assert float(found.tokens) == pytest.approx(float(each[loss_mask].mean()), rel=1e-5)
    actions = batch.has_actions_B
    assert float(found.fast) == pytest.approx(float(each[actions][loss_mask[actions]].mean()), rel=1e-5)
    assert float(found.text) == pytest.approx(float(each[~actions][loss_mask[~actions]].mean()), rel=1e-5)
    assert int(found.fast_count + found.text_count) == int(loss_mask.sum())


def test_samples_without_actions_carry_no_flow_loss(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    spoiled = batch.actions_BHA.clone()
    spoiled[~batch.has_actions_B] = 1e6
    a, b = (
        model(x, recipe('ours'), generator=torch.Generator().manual_seed(0))
        for x in (batch, replace(batch, actions_BHA=spoiled))
    )
    assert torch.equal(a.flow, b.flow)


def test_a_batch_of_language_only_has_no_flow_loss_and_trains(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    found = model(replace(batch, action_mask_BHA=torch.zeros_like(batch.action_mask_BHA)), recipe('ours'))
    assert float(found.flow) == 0.0
    assert float(found.fast) == 0.0
    found.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_a_batch_without_targets_has_no_token_loss_and_trains(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    empty = {n: getattr(batch, n)[:, :0] for n in ('target_BT', 'target_mask_BT', 'loss_mask_BT')}
    found = model(replace(batch, **empty), recipe('ours'))
    assert float(found.tokens) == 0.0
    found.total.backward()
    assert float(found.flow) > 0.0


def test_text_in_front_of_action_tokens_is_reported_as_text(make_model: Callable, make_batch: Callable) -> None:
    """What to do next, then how: one sample with both."""
    model = make_model()
    batch = make_batch(model)
    which = batch.has_actions_B[:, None] & (torch.arange(10) >= 4)
    found = model(replace(batch, action_token_BT=which), recipe('ours'))
    plain = model(batch, recipe('ours'))
    assert int(found.fast_count) == int((which & batch.loss_mask_BT).sum())
    assert float(found.tokens) == pytest.approx(float(plain.tokens))


def test_alpha_weighs_the_flow_loss(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    found = model(make_batch(model), replace(recipe('ours'), alpha=0.25))
    assert float(found.total) == pytest.approx(float(found.tokens) + 0.25 * float(found.flow), rel=1e-6)
    assert set(found.report()) == {'total', 'tokens', 'text', 'fast', 'flow', 'dense'}
