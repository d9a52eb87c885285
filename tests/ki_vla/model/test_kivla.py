"""The whole model: training is inference, missing cameras, draws, speed, numbers in half precision."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ki_vla.errors import VlaError
from ki_vla.model import flow
from ki_vla.model.config import preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla, Prefix
from ki_vla.objective.batch import Batch
from ki_vla.objective.recipes import recipe


def prefill(model: KiVla, batch: Batch, **more: bool) -> Prefix:
    return model.prefill(
        batch.images_BVCHW, batch.image_mask_BV, batch.prompt_BL, batch.prompt_mask_BL, batch.state_BS, **more
    )


@pytest.mark.parametrize('targets', [10, 0], ids=['with targets', 'without targets'])
@pytest.mark.parametrize('name', ['ours', 'joint', 'pi0', 'hybrid', 'transfusion', 'ours_continuous_state'])
def test_training_and_inference_have_the_same_field(
    name: str, targets: int, make_model: Callable, make_batch: Callable
) -> None:
    """The flow loss of a training step, against the one computed from a cached prefix and the field alone."""
    model = make_model(name)
    batch = make_batch(model, targets=targets)
    noise, tau = torch.randn(4, 2, 8, 4), torch.rand(4, 2)
    draws = 1 if name == 'hybrid' else 2
    noise, tau = noise[:, :draws], tau[:, :draws]
    fields = []
    original = model._field
    model._field = lambda *a, **k: fields.append(original(*a, **k)) or fields[-1]
    trained = model(batch, recipe(name), draws=draws, noise_BRHA=noise, tau=tau)
    model._field = original
    with torch.no_grad():
        noisy = flow.noised(batch.actions_BHA[:, None], noise, tau[..., None])
        field = model.field(prefill(model, batch), noisy, tau)
    assert (fields[0][0] - field).abs().max() < 1e-5
    mask = batch.action_mask_BHA[:, None].expand_as(field)
    loss = (field - (noise - batch.actions_BHA[:, None]))[mask].square().mean()
    assert float(trained.flow) == pytest.approx(float(loss), rel=1e-4)


def test_what_a_missing_camera_shows_does_not_matter(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    images = batch.images_BVCHW.clone()
    images[-1, -1] = 1.0
    noise = torch.randn(4, 8, 4)
    a, b = (model.denoise(prefill(model, x), noise, steps=3) for x in (batch, replace(batch, images_BVCHW=images)))
    assert torch.allclose(a, b, atol=1e-6)
    images[-1, 0] = 1.0
    other = model.denoise(prefill(model, replace(batch, images_BVCHW=images)), noise, steps=3)
    assert not torch.allclose(a[-1], other[-1], atol=1e-4)


def test_a_missing_camera_is_the_same_as_one_that_was_never_there(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    mask = torch.tensor([[True, True, False]] * 4)
    fewer = replace(batch, images_BVCHW=batch.images_BVCHW[:, :2], image_mask_BV=mask[:, :2])
    noise = torch.randn(4, 8, 4)
    a = model.denoise(prefill(model, replace(batch, image_mask_BV=mask)), noise, steps=3)
    assert torch.allclose(a, model.denoise(prefill(model, fewer), noise, steps=3), atol=1e-5)


def test_padding_of_the_prompt_does_not_matter(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    wider = replace(
        batch,
        prompt_BL=torch.cat([batch.prompt_BL, torch.full((4, 7), 5)], dim=1),
        prompt_mask_BL=torch.cat([batch.prompt_mask_BL, torch.zeros(4, 7, dtype=torch.bool)], dim=1),
    )
    a, b = (model(x, generator=torch.Generator().manual_seed(0)) for x in (batch, wider))
    assert float(a.total) == pytest.approx(float(b.total), rel=1e-5)


def test_two_draws_are_the_mean_of_each(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    noise, tau = torch.randn(4, 2, 8, 4), torch.rand(4, 2)
    both = model(batch, draws=2, noise_BRHA=noise, tau=tau).flow
    each = [model(batch, noise_BRHA=noise[:, [r]], tau=tau[:, [r]]).flow for r in range(2)]
    assert float(both) == pytest.approx(float(sum(each) / 2), rel=1e-5)


def test_training_for_real_time_chunking_gives_the_first_actions(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    noise, plain_BR = torch.randn(4, 1, 8, 4), torch.rand(4, 1)
    tau_BRH, given_BRH = flow.give_first_actions(plain_BR, 8, 4, torch.Generator().manual_seed(0))
    losses = [
        model(batch, noise_BRHA=noise, tau=tau, given_BRH=given).flow
        for tau, given in ((plain_BR, None), (tau_BRH, given_BRH))
    ]
    assert not torch.equal(*losses)
    moved = noise + 3.0 * given_BRH[..., None]
    assert torch.equal(model(batch, noise_BRHA=moved, tau=tau_BRH, given_BRH=given_BRH).flow, losses[1])
    losses[1].backward()
    assert bool(model.expert.action_in.weight.grad.any())


def test_the_same_seed_gives_the_same_losses(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    a, b, c = (model(batch, generator=torch.Generator().manual_seed(s)).flow for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize('name', ['ours', 'pi0'])
def test_recomputing_blocks_changes_no_gradient(name: str, make_model: Callable, make_batch: Callable) -> None:
    found = []
    for checkpointing in (False, True):
        model = make_model(name)
        model.checkpointing = checkpointing
        model(make_batch(model), recipe(name), generator=torch.Generator().manual_seed(0)).total.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name_ in found[0]:
        assert torch.allclose(found[0][name_], found[1][name_], rtol=1e-4, atol=1e-6), name_


def test_half_precision_trains_and_stays_near(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    exact = model(batch, generator=torch.Generator().manual_seed(0))
    with torch.autocast('cpu', torch.bfloat16):
        half = model(batch, generator=torch.Generator().manual_seed(0))
    half.total.backward()
    assert half.total.dtype == torch.float32
    assert float(half.total) == pytest.approx(float(exact.total), rel=0.03)
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_weights_in_half_precision_run(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    noise = torch.randn(4, 8, 4)
    exact = model.field(prefill(model, batch), noise, torch.full((4,), 0.5))
    half = model.to(torch.bfloat16)
    field = half.field(prefill(half, batch), noise, torch.full((4,), 0.5))
    assert (field.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_parallel_decoding_gives_a_chunk_without_noise(make_model: Callable, make_batch: Callable) -> None:
    model = make_model('oft')
    prefix = prefill(model, make_batch(model))
    assert model.parallel_actions(prefix).shape == (4, 8, 4)
    with pytest.raises(VlaError, match='parallel'):
        model.field(prefix, torch.zeros(4, 8, 4), torch.zeros(4))
    ours = make_model()
    with pytest.raises(VlaError, match='parallel'):
        ours.parallel_actions(prefill(ours, make_batch(ours)))


def test_a_bad_batch_is_refused_before_anything_is_computed(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    with pytest.raises(VlaError, match='state_BS'):
        model(replace(batch, state_BS=batch.state_BS[:, :1]))


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda b: replace(b, images_BVCHW=b.images_BVCHW.repeat(1, 2, 1, 1, 1)), '6 camera views.*at most 3'),
        (lambda b: replace(b, prompt_BL=b.prompt_BL[:2], prompt_mask_BL=b.prompt_mask_BL[:2]), 'prompt_BL: shape'),
        (lambda b: replace(b, prompt_mask_BL=b.prompt_mask_BL.long()), 'prompt_mask_BL: dtype int64'),
        (lambda b: replace(b, state_BS=b.state_BS[:, :1]), r'state_BS: shape \(4, 1\) should be \(4, 4\)'),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(
    spoil: Callable[[Batch], Batch], message: str, make_model: Callable, make_batch: Callable
) -> None:
    model = make_model()
    with pytest.raises(VlaError, match=message):
        prefill(model, spoil(make_batch(model)))


def test_noise_and_numbers_that_do_not_fit_are_refused(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model)
    prefix = prefill(model, batch)
    with pytest.raises(VlaError, match=r'noise: shape \(4, 7, 4\)'):
        model.denoise(prefix, torch.randn(4, 7, 4))
    with pytest.raises(VlaError, match='steps: 0'):
        model.denoise(prefix, torch.randn(4, 8, 4), steps=0)
    with pytest.raises(VlaError, match='max_delay: 8'):
        flow.give_first_actions(torch.rand(4, 1), 8, 8)
    with pytest.raises(VlaError, match='pass tau as well'):
        model(batch, given_BRH=torch.zeros(4, 1, 8, dtype=torch.bool))


def test_several_candidates_from_one_prefix(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    prefix, noise = prefill(model, make_batch(model)), torch.randn(4, 3, 8, 4)
    together = model.denoise(prefix, noise, steps=4)
    assert torch.allclose(together[:, 1], model.denoise(prefix, noise[:, 1], steps=4), atol=1e-5)
    assert not together.requires_grad


def test_hybridvla_with_several_draws_is_refused(make_model: Callable, make_batch: Callable) -> None:
    model = make_model('hybrid')
    with pytest.raises(VlaError, match='only 1 draw'):
        model(make_batch(model), recipe('hybrid'), draws=2)


def test_fresh_weights_predict_evenly_and_stay_small() -> None:
    from ki_vla.model.summary import random_batch

    model = initialise(KiVla(preset('tiny')), torch.Generator().manual_seed(0))
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    found = model(random_batch(model.config))
    assert 7.0 < float(found.tokens) < 10.0, 'ln 2048 = 7.6'
    assert 1.0 < float(found.flow) < 3.0, 'a zero field: the variance of omega - a'


def test_a_tiny_forward_takes_less_than_50_ms(make_model: Callable, make_batch: Callable) -> None:
    model = make_model()
    batch = make_batch(model, size=1)
    best = 1.0
    with torch.no_grad():
        for _ in range(5):
            start = time.process_time()
            model(batch)
            best = min(best, time.process_time() - start)
    assert best < 0.05


class _Prefill(torch.nn.Module):
    def __init__(self, model: KiVla) -> None:
        super().__init__()
        self.model = model

    def forward(self, images, image_mask, prompt, prompt_mask, state):
        tokens = self.model.encode(images)
        prefix = self.model.prefix(tokens, image_mask, prompt, prompt_mask, state)
        return torch.stack(prefix.k), torch.stack(prefix.v), prefix.mask_BS


class _Step(torch.nn.Module):
    def __init__(self, model: KiVla) -> None:
        super().__init__()
        self.model = model

    def forward(self, k, v, mask, noisy, tau):
        return self.model.field(Prefix(k, v, mask), noisy, tau)


def test_prefill_and_step_are_graphs_of_tensors(make_model: Callable, make_batch: Callable) -> None:
    """They export, so no Python looks at a value; and the exported graphs give the same numbers for other inputs."""
    model = make_model().eval()
    batches = [make_batch(model, seed=s) for s in (0, 1)]
    inputs = [(b.images_BVCHW, b.image_mask_BV, b.prompt_BL, b.prompt_mask_BL, b.state_BS) for b in batches]
    with torch.no_grad():
        prefill_graph = torch.export.export(_Prefill(model), inputs[0]).module()
        k, v, mask = prefill_graph(*inputs[1])
        reference = prefill(model, batches[1])
        assert torch.allclose(k, reference.k, atol=1e-5)
        assert torch.equal(mask, reference.mask_BS)
        noisy, tau = torch.randn(4, 8, 4), torch.rand(4, 8)
        step_graph = torch.export.export(_Step(model), (k, v, mask, noisy, tau)).module()
        other = torch.randn(4, 8, 4), torch.rand(4, 8)
        assert torch.allclose(step_graph(k, v, mask, *other), model.field(reference, *other), atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_gives_the_numbers_of_the_cpu(make_model: Callable, make_batch: Callable) -> None:
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device: the numbers of a GPU were not compared')
    model = make_model()
    batch = make_batch(model)
    expected = model(batch, draws=2, generator=torch.Generator().manual_seed(0))
    model.cuda()
    found = model(batch.to('cuda'), draws=2, generator=torch.Generator().manual_seed(0))
    assert float(found.total) == pytest.approx(float(expected.total), rel=1e-3)
    with torch.autocast('cuda', torch.bfloat16):
        half = model(batch.to('cuda'), draws=2, generator=torch.Generator().manual_seed(0))
    half.total.backward()
    assert float(half.total) == pytest.approx(float(expected.total), rel=0.03)
