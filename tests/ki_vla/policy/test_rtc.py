"""Real-time chunking: weights, the true Jacobian, given actions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ki_vla.errors import VlaError
from ki_vla.model import flow
from ki_vla.policy import rtc


def test_weights_are_one_then_fall_then_nothing() -> None:
    linear = rtc.prefix_weights(10, delay=3, end=7, schedule='linear')
    assert linear[:3].tolist() == [1.0, 1.0, 1.0]
    assert linear[3:7].tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert not linear[7:].any()
    exp = rtc.prefix_weights(10, delay=3, end=7)
    assert exp[3:7].tolist() == pytest.approx([w * math.expm1(w) / (math.e - 1) for w in (0.8, 0.6, 0.4, 0.2)])
    assert rtc.prefix_weights(10, 3, 7, 'zeros').tolist() == [1.0] * 3 + [0.0] * 7
    assert rtc.prefix_weights(10, 3, 7, 'ones').tolist() == [1.0] * 7 + [0.0] * 3


def test_weights_of_several_delays_at_once() -> None:
    delay, end = torch.tensor([0, 3]), torch.tensor([5, 7])
    for schedule in rtc.SCHEDULES:
        both = rtc.prefix_weights(10, delay, end, schedule)
        for row in range(2):
            alone = rtc.prefix_weights(10, int(delay[row]), int(end[row]), schedule)
            assert torch.allclose(both[row], alone)


def test_strength_is_bounded_and_follows_the_formula() -> None:
    tau = torch.tensor([0.0, 0.1, 0.5, 0.9])
    found = rtc.guidance_strength(tau, 5.0)
    assert found[0] == 5.0
    assert found[2] == pytest.approx(2.0)
    assert bool((found <= 5.0).all())
    assert rtc.guidance_strength(torch.tensor([0.5]), 1.5)[0] == 1.5


def _curved(noisy: Tensor, tau: Tensor) -> Tensor:
    """A field in which every action depends on every other, so that the Jacobian is far from the identity."""
    mixed = torch.tanh(noisy.flip(1) * 0.7 + noisy.roll(1, dims=2))
    return mixed * (1.0 + tau[..., None]) + 0.3 * noisy


def test_the_correction_is_the_vector_jacobian_product() -> None:
    torch.manual_seed(0)
    noisy, previous = torch.randn(1, 4, 3).double(), torch.randn(1, 4, 3).double()
    weights, tau = rtc.prefix_weights(4, 1, 3)[None].double(), torch.tensor([[0.6]]).double()

    def estimate(x: Tensor) -> Tensor:
        return flow.clean_estimate(x, _curved(x, tau), tau)

    jacobian = torch.autograd.functional.jacobian(estimate, noisy).reshape(12, 12)
    error = ((previous - estimate(noisy)) * weights[..., None]).reshape(12)
    expected = _curved(noisy, tau) - rtc.guidance_strength(tau) * (jacobian.T @ error).view(1, 4, 3)
    assert torch.allclose(rtc.guide(_curved, previous, weights)(noisy, tau), expected, atol=1e-10)
    identity = _curved(noisy, tau) - rtc.guidance_strength(tau) * error.view(1, 4, 3)
    assert not torch.allclose(expected, identity, atol=1e-2)


def test_guided_chunk_is_near_the_old_one_where_it_must_and_free_elsewhere(
    make_model: Callable, make_batch: Callable
) -> None:
    model = make_model()
    b = make_batch(model)
    prefix = model.prefill(b.images_BVCHW, b.image_mask_BV, b.prompt_BL, b.prompt_mask_BL, b.state_BS)
    noise, previous = torch.randn(4, 8, 4), 0.5 * torch.randn(4, 5, 4)
    with torch.no_grad():
        free = model.denoise(prefix, noise)
        held = rtc.denoise_guided(model.field_at(prefix), noise, previous, delay=3, end=5)
    before, after = ((x[:, :3] - previous[:, :3]).square().mean() for x in (free, held))
    assert float(after) < 0.2 * float(before)
    assert not held.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_without_weight_the_guided_chunk_is_the_free_one(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    b = make_batch(model)
    prefix = model.prefill(b.images_BVCHW, b.image_mask_BV, b.prompt_BL, b.prompt_mask_BL, b.state_BS)
    noise = torch.randn(4, 8, 4)
    held = rtc.denoise_guided(model.field_at(prefix), noise, torch.randn(4, 8, 4), delay=0, end=0)
    assert torch.allclose(held, model.denoise(prefix, noise), atol=1e-6)


def test_what_lies_beyond_the_end_is_not_looked_at(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    b = make_batch(model)
    field = model.field_at(model.prefill(b.images_BVCHW, b.image_mask_BV, b.prompt_BL, b.prompt_mask_BL, b.state_BS))
    noise, previous = torch.randn(4, 8, 4), torch.randn(4, 8, 4)
    short = rtc.denoise_guided(field, noise, previous[:, :5], delay=2, end=5)
    assert torch.allclose(short, rtc.denoise_guided(field, noise, previous, delay=2, end=5), atol=1e-6)


def test_trained_chunking_gives_the_old_actions_exactly_and_tells_the_model(
    make_model: Callable, make_batch: Callable
) -> None:
    model = make_model()
    b = make_batch(model)
    field = model.field_at(model.prefill(b.images_BVCHW, b.image_mask_BV, b.prompt_BL, b.prompt_mask_BL, b.state_BS))
    seen = []

    def spy(noisy: Tensor, tau: Tensor) -> Tensor:
        seen.append((noisy, tau))
        return field(noisy, tau)

    noise, previous = torch.randn(4, 8, 4), torch.randn(4, 6, 4)
    chunk = rtc.denoise_trained(spy, noise, previous, delay=3, steps=4)
    assert torch.equal(chunk[:, :3], previous[:, :3])
    assert not torch.allclose(chunk[:, 3:], model_free := flow.euler(field, noise, 4)[:, 3:], atol=1e-4)
    assert model_free.shape == (4, 5, 4)
    for step, (noisy, tau) in enumerate(seen):
        assert torch.equal(noisy[:, :3], previous[:, :3])
        assert tau.shape == (4, 8)
        assert bool((tau[:, :3] == 1.0).all())
        assert bool((tau[:, 3:] == step / 4).all())


@pytest.mark.parametrize(
    ('delay', 'rows', 'per_token', 'given'),
    [(3, 8, 1, 3), (0, 8, 4, 0), (1, 8, 4, 4), (4, 8, 4, 4), (5, 8, 4, 4), (7, 8, 1, 7), (3, 3, 4, 0), (3, 5, 2, 4)],
)
def test_tokens_that_are_given_are_whole_are_there_and_leave_one(
    delay: int, rows: int, per_token: int, given: int
) -> None:
    assert rtc.given_steps(delay, rows, 8, per_token) == given


def test_trained_chunking_without_delay_is_free(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    b = make_batch(model)
    field = model.field_at(model.prefill(b.images_BVCHW, b.image_mask_BV, b.prompt_BL, b.prompt_mask_BL, b.state_BS))
    noise = torch.randn(4, 8, 4)
    chunk = rtc.denoise_trained(field, noise, torch.zeros(4, 0, 4), delay=0)
    assert torch.allclose(chunk, flow.euler(field, noise, 10), atol=1e-5)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: rtc.prefix_weights(10, 5, 4), 'delay 5 and end 4'),
        (lambda: rtc.prefix_weights(10, 5, 11), 'horizon = 10'),
        (lambda: rtc.prefix_weights(10, 1, 4, 'soft'), 'soft'),
        (lambda: rtc.denoise_guided(_curved, torch.zeros(1, 8, 3), torch.zeros(1, 4, 3), 2, 5), '4 steps are left'),
        (lambda: rtc.denoise_guided(_curved, torch.zeros(1, 8, 3), torch.zeros(1, 5, 2), 2, 5), r'shape \(1, 5, 2\)'),
        (lambda: rtc.denoise_trained(_curved, torch.zeros(1, 8, 3), torch.full((1, 5, 3), torch.nan), 2), 'not finite'),
        (lambda: rtc.denoise_trained(_curved, torch.zeros(1, 8, 3), torch.zeros(1, 8, 3), 8), 'below the horizon'),
    ],
)
def test_old_chunks_that_do_not_fit_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(VlaError, match=message):
        call()
