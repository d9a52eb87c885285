"""The action expert. pi0's form of it is compared with transformers in tests/parity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ki_vla.errors import VlaError
from ki_vla.model.config import preset
from ki_vla.model.expert import Expert, grouped
from ki_vla.model.gemma import AdaptiveNorm, rms
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla, Prefix


def _prefix(model: KiVla, make_batch: Callable) -> Prefix:
    b = make_batch(model)
    return model.prefill(b.images_BVCHW, b.image_mask_BV, b.prompt_BL, b.prompt_mask_BL, b.state_BS)


def test_adaptive_norm_by_hand() -> None:
    norm = AdaptiveNorm(6, 4)
    x, cond = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 1, 4)
    out = cond @ norm.dense.weight.T + norm.dense.bias
    y, gate = norm(x, cond)
    assert torch.allclose(y, rms(x) * (1 + out[..., :6]) + out[..., 6:12], atol=1e-6)
    assert torch.allclose(gate, out[..., 12:])


def test_a_fresh_expert_is_closed(make_model: Callable, make_batch: Callable) -> None:
    """Zero-initialised adaptive norms: nothing of the prefix enters, and the field is zero."""
    model = make_model()
    initialise(model, torch.Generator().manual_seed(0))
    assert not model.field(_prefix(model, make_batch), torch.randn(4, 8, 4), torch.rand(4)).any()


def test_time_matters_and_one_tau_for_all_steps_is_a_tau_for_each(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    prefix, noisy = _prefix(model, make_batch), torch.randn(4, 8, 4)
    tau = torch.tensor([0.1, 0.5, 0.7, 0.0])
    same = model.field(prefix, noisy, tau)
    each = model.field(prefix, noisy, tau[:, None].expand(-1, 8))
    assert torch.allclose(same, each, atol=1e-5)
    mixed = tau[:, None].repeat(1, 8)
    mixed[:, :2] = 1.0
    assert (model.field(prefix, noisy, mixed) - same).abs().max() > 1e-3


@pytest.mark.parametrize('name', ['ours', 'pi0', 'transfusion'])
def test_draws_that_share_a_prefix_do_not_see_each_other(name: str, make_model: Callable, make_batch: Callable) -> None:
    model = make_model(name)
    prefix, noisy, tau = _prefix(model, make_batch), torch.randn(4, 3, 8, 4), torch.rand(4, 3)
    together = model.field(prefix, noisy, tau)
    alone = torch.stack([model.field(prefix, noisy[:, r], tau[:, r]) for r in range(3)], dim=1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_steps_of_a_token_are_read_and_written_in_their_order(make_model: Callable, make_batch: Callable) -> None:
    model = make_model(config=preset('tiny', steps_per_token=4))
    assert isinstance(model.expert, Expert)
    prefix, noisy, tau = _prefix(model, make_batch), torch.randn(4, 8, 4), torch.full((4,), 0.3)
    tokens = grouped(noisy, 4)
    assert torch.equal(tokens[1, 1], torch.cat([noisy[1, 4], noisy[1, 5], noisy[1, 6], noisy[1, 7]]))
    # What one step of a token says is read by its own rows of the first matrix.
    with torch.no_grad():
        model.expert.action_in.weight[:, 4:8] = 0.0
    before, other = model.field(prefix, noisy, tau), noisy.clone()
    assert before.shape == noisy.shape
    other[:, [1, 5]] += 1.0  # the second of each token
    assert torch.equal(model.field(prefix, other, tau), before)
    other[:, 2] += 1.0
    assert (model.field(prefix, other, tau) - before).abs().max() > 1e-3


def test_every_token_of_several_steps_has_a_time_of_its_own(make_model: Callable, make_batch: Callable) -> None:
    model = make_model(config=preset('tiny', steps_per_token=2))
    prefix, noisy = _prefix(model, make_batch), torch.randn(4, 8, 4)
    whole = torch.full((4,), 0.3)
    steps = whole[:, None].expand(4, 8).clone()
    torch.testing.assert_close(model.field(prefix, noisy, steps), model.field(prefix, noisy, whole))
    steps[:, :2] = 1.0
    given = model.field(prefix, noisy, steps)
    assert (given - model.field(prefix, noisy, whole)).abs().amax(dim=(0, 2)).min() > 1e-6, 'all tokens hear of it'


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'steps_per_token': 3}, 'steps_per_token is 3; write a divisor of the horizon, 8'),
        ({'steps_per_token': 2, 'head': 'shared'}, "steps_per_token is 2; head 'shared' needs 1"),
    ],
)
def test_tokens_that_a_chunk_cannot_be_cut_into_are_refused(changes: dict, says: str) -> None:
    with pytest.raises(VlaError, match=says):
        preset('tiny', **changes)


def test_order_of_actions_matters_and_all_see_all(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    prefix, noisy, tau = _prefix(model, make_batch), torch.randn(4, 8, 4), torch.full((4,), 0.3)
    other = noisy.clone()
    other[:, -1] += 1.0
    assert (model.field(prefix, noisy, tau) - model.field(prefix, other, tau))[:, 0].abs().max() > 1e-4
    turned = model.field(prefix, noisy.flip(1), tau).flip(1)
    assert (turned - model.field(prefix, noisy, tau)).abs().max() > 1e-4


def test_the_state_token_of_pi0_does_not_look_at_the_actions(make_model: Callable, make_batch: Callable) -> None:
    model = make_model('pi0')
    prefix = _prefix(model, make_batch)
    states = []
    for _ in range(2):
        _, keys, _ = model._field(prefix, torch.randn(4, 1, 8, 4), torch.full((4, 1), 0.3), insulate=True)
        states.append(keys[-1][:, :, 0])
    assert torch.equal(*states)
