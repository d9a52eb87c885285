"""Knowledge insulation, proved: equations 5 and 6, and what follows from them for gradients and for values."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ki_vla
from ki_vla.model.insulation import attend
from ki_vla.model.kivla import KiVla
from ki_vla.objective.batch import Batch
from ki_vla.objective.recipes import recipe

ROOM = Path(ki_vla.__file__).parent


def gradients(loss: Tensor, model: KiVla) -> dict[str, Tensor]:
    """Gradient of a loss by every parameter; zeros where there is no path."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    given = dict(zip(named, found, strict=True))
    return {n: torch.zeros_like(p) if given.get(n) is None else given[n] for n, p in model.named_parameters()}


def run(model: KiVla, batch: Batch, name: str = 'ours', **more: object):
    return model(batch, recipe(name), generator=torch.Generator().manual_seed(3), **more)


# --- the equations ---


def test_attend_is_one_softmax_over_backbone_and_expert_keys() -> None:
    """Against the plain form: all keys in one list, one query at a time, in float64."""
    B, R, Q, S, N, G, K = 2, 3, 4, 5, 6, 2, 8
    torch.manual_seed(0)
    q = torch.randn(B, R, Q, N, K)
    k_own, v_own = torch.randn(B, R, Q, G, K), torch.randn(B, R, Q, G, K)
    k_ctx, v_ctx = torch.randn(B, S, G, K), torch.randn(B, S, G, K)
    sees_ctx, sees_own = torch.rand(B, Q, S) > 0.3, torch.eye(Q).bool() | (torch.rand(1, Q, Q) > 0.5)
    out = attend(q, k_own, v_own, k_ctx, v_ctx, sees_ctx, sees_own, insulate=True)
    for b in range(B):
        for r in range(R):
            for i in range(Q):
                for n in range(N):
                    g = n // (N // G)
                    keys = torch.cat([k_ctx[b, sees_ctx[b, i], g], k_own[b, r, sees_own[0, i], g]]).double()
                    values = torch.cat([v_ctx[b, sees_ctx[b, i], g], v_own[b, r, sees_own[0, i], g]]).double()
                    plain = (keys @ q[b, r, i, n].double()).softmax(dim=0) @ values
                    assert torch.allclose(out[b, r, i, n].double(), plain, atol=1e-5)


@pytest.mark.parametrize('insulate', [True, False])
def test_sg_stops_keys_and_values_of_the_context_and_nothing_else(insulate: bool) -> None:
    shapes = [(1, 2, 3, 4, 8), (1, 2, 3, 2, 8), (1, 2, 3, 2, 8), (1, 5, 2, 8), (1, 5, 2, 8)]
    inputs = [torch.randn(s, requires_grad=True) for s in shapes]
    out = attend(*inputs, torch.ones(1, 1, 5).bool(), torch.ones(1, 3, 3).bool(), insulate)
    found = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
    assert [g is not None and bool(g.any()) for g in found] == [True, True, True, not insulate, not insulate]


def test_values_do_not_depend_on_insulation(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    assert torch.equal(run(model, batch, 'ours').total, run(model, batch, 'joint').total)


def test_the_equations_can_be_read_in_under_sixty_lines() -> None:
    assert len((ROOM / 'model' / 'insulation.py').read_text().splitlines()) < 60


def test_a_gradient_is_stopped_in_one_place() -> None:
    """No other module of the forward pass detaches, or computes without a graph."""
    places = []
    for path in sorted(p for room in ('model', 'objective', 'policy') for p in (ROOM / room).glob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in (
                'detach',
                'detach_',
                'no_grad',
                'inference_mode',
                'data',
            ):
                places.append((path.name, node.attr))
    # What remains: sampling tokens, prefilling for inference, initialising, reports, the Jacobian of guided chunking.
    elsewhere = {p for p in places if p[0] != 'insulation.py'}
    assert [p for p in places if p[0] == 'insulation.py'] == [('insulation.py', 'detach')] * 3
    assert elsewhere == {
        ('generation.py', 'no_grad'),
        ('kivla.py', 'no_grad'),
        ('initial_weights.py', 'no_grad'),
        ('losses.py', 'detach'),
        ('rtc.py', 'detach'),
        ('rtc.py', 'no_grad'),
    }


# --- gradients ---


@pytest.mark.parametrize('checkpointing', [False, True], ids=['plain', 'checkpointing'])
@pytest.mark.parametrize('draws', [1, 3])
@pytest.mark.parametrize('name', ['ours', 'ours_continuous_state', 'naive'])
def test_flow_loss_moves_the_expert_and_nothing_else(
    name: str, draws: int, checkpointing: bool, make_model: Callable, make_batch: Callable
) -> None:
    model = make_model(name)
    model.checkpointing = checkpointing
    found = gradients(run(model, make_batch(model), name, draws=draws).flow, model)
    for parameter, gradient in found.items():
        moved = bool(gradient.any())
        assert moved == parameter.startswith('expert.'), parameter


@pytest.mark.parametrize('name', ['joint', 'hybrid', 'pi0'])
def test_without_the_stop_gradient_flow_loss_moves_all_of_the_prefix(
    name: str, make_model: Callable, make_batch: Callable
) -> None:
    model = make_model(name)
    found = gradients(run(model, make_batch(model), name).flow, model)
    # The last layer's output is nobody's key, so no path leads from it to the expert.
    last = tuple(f'backbone.layers.2.{n}.' for n in ('q', 'o', 'mlp_norm', 'gate', 'up', 'down'))
    for parameter, gradient in found.items():
        # A bias on all keys alike changes no softmax.
        if parameter.startswith('vision.layers') and parameter.endswith('.k.bias'):
            continue
        assert bool(gradient.any()) == (not parameter.startswith((*last, 'backbone.norm'))), parameter


def test_frozen_backbone_learns_nothing(make_model: Callable, make_batch: Callable) -> None:
    model = make_model('frozen')
    run(model, make_batch(model), 'frozen').total.backward()
    for parameter, value in model.named_parameters():
        if parameter.startswith('expert.'):
            assert value.grad is not None, parameter
            assert bool(value.grad.any()), parameter
        else:
            assert value.grad is None, parameter


@pytest.mark.parametrize('name', ['ours', 'joint'])
def test_token_losses_never_move_the_expert(name: str, make_model: Callable, make_batch: Callable) -> None:
    model = make_model(name)
    found = gradients(run(model, make_batch(model), name).tokens, model)
    assert not any(bool(g.any()) for n, g in found.items() if n.startswith('expert.'))
    assert all(bool(g.any()) for n, g in found.items() if n.startswith('backbone.'))


def test_token_loss_and_its_gradients_are_bit_equal_with_and_without_the_actions(
    make_model: Callable, make_batch: Callable
) -> None:
    model = make_model()
    batch = make_batch(model)
    together, alone = run(model, batch, 'ours'), run(model, batch, 'pi05_first')
    assert torch.equal(together.tokens, alone.tokens)
    assert float(alone.flow) == 0.0
    # Of the whole objective: under insulation the flow loss adds nothing to a backbone gradient, not even rounding.
    first, second = gradients(together.total, model), gradients(alone.total, model)
    for parameter in first:
        if not parameter.startswith('expert.'):
            assert torch.equal(first[parameter], second[parameter]), parameter


# --- values ---


def test_the_field_does_not_depend_on_the_action_tokens(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    other = replace(batch, target_BT=torch.randint_like(batch.target_BT, model.config.vocab_size))
    assert not torch.equal(run(model, batch).tokens, run(model, other).tokens)
    assert torch.equal(run(model, batch).flow, run(model, other).flow)


@pytest.mark.parametrize(('name', 'seen'), [('ours', False), ('joint', False), ('hybrid', True)])
def test_token_logits_see_the_noisy_actions_only_in_hybridvla(
    name: str, seen: bool, make_model: Callable, make_batch: Callable
) -> None:
    model = make_model(name)
    batch = make_batch(model)
    a, b = (run(model, batch, name, noise_BRHA=torch.randn(4, 1, 8, 4), tau=torch.full((4, 1), 0.4)) for _ in range(2))
    assert not torch.equal(a.flow, b.flow)
    assert torch.equal(a.tokens, b.tokens) != seen


def test_the_prefix_does_not_depend_on_what_follows(make_model: Callable, make_batch: Callable) -> None:
    """The keys and values that training leaves for the expert are those of inference, which knows no targets."""
    model = make_model()
    batch = make_batch(model)
    seen = []
    reference = model.prefill(
        batch.images_BVCHW, batch.image_mask_BV, batch.prompt_BL, batch.prompt_mask_BL, batch.state_BS
    )
    original = model._field

    def spy(prefix, *more, **named):
        seen.append(prefix)
        return original(prefix, *more, **named)

    model._field = spy
    run(model, batch)
    assert torch.equal(torch.stack(seen[0].k), reference.k)
    assert torch.equal(torch.stack(seen[0].v), reference.v)


def test_action_tokens_are_read_causally(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    prefix = model.prefill(
        batch.images_BVCHW, batch.image_mask_BV, batch.prompt_BL, batch.prompt_mask_BL, batch.state_BS, hidden=True
    )
    other = batch.target_BT.clone()
    other[:, 4] = (other[:, 4] + 1) % model.config.vocab_size
    a, b = (model.token_hidden(prefix, t, batch.target_mask_BT) for t in (batch.target_BT, other))
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.equal(a[:, 5:], b[:, 5:])
