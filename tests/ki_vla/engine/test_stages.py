from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ki_vla.engine.heads import action_stage
from ki_vla.engine.interface import Shape, example_inputs
from ki_vla.engine.packing import PLAIN, Fusions
from ki_vla.engine.stages import ActionStage, Cached, Loop, PrefixStage, Step, VisionStage, pure
from ki_vla.errors import VlaError
from ki_vla.model.config import PointerConfig, preset
from ki_vla.model.kivla import KiVla
from ki_vla.policy import rtc

STEPS = 4
STRUCTURES = {
    'text': {},
    'continuous': {'state_repr': 'continuous'},
    'pi0': {'state_repr': 'suffix', 'adaptive': False},
    'suffix and adaptive': {'state_repr': 'suffix'},
    'plain norms': {'adaptive': False},
    'pointer': {'state_repr': 'both', 'pointer': PointerConfig(layer=2)},
    'pointer, without a state in the prefix': {'state_repr': 'suffix', 'pointer': PointerConfig(layer=1, cells=5)},
    'four steps a token': {'steps_per_token': 4},
    'pi0, four steps a token': {'state_repr': 'suffix', 'adaptive': False, 'steps_per_token': 4},
}
FUSIONS = {
    'none': PLAIN,
    'packed': Fusions(packed=True, folded=False, pixels=False),
    'folded': Fusions(packed=False, folded=True, pixels=False),
    'pixels': Fusions(packed=False, folded=False, pixels=True),
    'all': Fusions(),
}


class Compared:
    """A model, one observation (a camera missing), and what the model itself makes of it."""

    def __init__(self, model: KiVla) -> None:
        config = model.config
        self.model = model.requires_grad_(False)
        inputs = example_inputs(config, Shape(3, 20))
        tensors = [torch.from_numpy(getattr(inputs, name)) for name in inputs.__dataclass_fields__]
        self.images, self.image_mask, self.prompt, self.prompt_mask, self.state = tensors
        self.image_mask[1] = False
        rng = np.random.default_rng(3)
        shape = (config.horizon, config.action_dim)
        self.noise, self.previous = (torch.from_numpy(rng.standard_normal(shape, np.float32)) for _ in range(2))
        self.weights = rtc.prefix_weights(config.horizon, 2, 5)
        self.count = rtc.given_steps(2, config.horizon, config.horizon, config.steps_per_token)
        self.given = torch.arange(config.horizon) < self.count
        views = self.images.permute(0, 3, 1, 2)[None]
        with torch.no_grad():
            self.prefix = model.prefill(
                views, self.image_mask[None], self.prompt[None], self.prompt_mask[None], self.state[None]
            )

    def expected(self, kind: str) -> torch.Tensor:
        noise, previous = self.noise[None], self.previous[None]
        with torch.no_grad():
            if kind == 'plain':
                return self.model.denoise(self.prefix, noise, STEPS)[0]
            if kind == 'trained':
                return rtc.denoise_trained(self.model.field_at(self.prefix), noise, previous, self.count, STEPS)[0]
            return rtc.denoise_guided(self.model.field_at(self.prefix), noise, previous, 2, 5, STEPS)[0]

    def carried(self, kind: str) -> tuple[torch.Tensor, ...]:
        return {'plain': (), 'trained': (self.previous, self.given), 'guided': (self.previous, self.weights)}[kind]

    def cached(self, fusions: Fusions, attend: str) -> list[torch.Tensor]:
        with torch.no_grad():
            tokens = VisionStage(self.model, fusions)(self.images)
            prefix = PrefixStage(self.model, fusions, attend)
            found = prefix(tokens, self.image_mask, self.prompt, self.prompt_mask, self.state)
        return [each for each in found if each is not None]


def build(make_model: Any, structure: str, **changes: Any) -> Compared:
    return Compared(make_model(config=preset('tiny', **STRUCTURES[structure], **changes)))


@pytest.mark.parametrize('fusions', FUSIONS)
@pytest.mark.parametrize('structure', STRUCTURES)
def test_every_fusion_alone_gives_the_numbers_of_the_model(make_model: Any, structure: str, fusions: str) -> None:
    case = build(make_model, structure)
    cached = case.cached(FUSIONS[fusions], 'matmul')
    valid = case.prefix.mask_BS[0]
    torch.testing.assert_close(cached[0][:, valid], case.prefix.k[:, 0][:, valid], atol=2e-5, rtol=1e-5)
    stage = ActionStage(case.model, STEPS, FUSIONS[fusions])
    for kind in case.model.config.denoising_kinds:
        with torch.no_grad():
            actions = Loop(stage, kind)(case.noise, *case.carried(kind), *cached)
        torch.testing.assert_close(actions, case.expected(kind), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('attend', ['matmul', 'sdpa'])
@pytest.mark.parametrize('kv_heads', [1, 2])
def test_both_attentions_serve_shared_and_grouped_heads(make_model: Any, kv_heads: int, attend: str) -> None:

    tiny = preset('tiny')
    heads = {name: getattr(tiny, name).replace(kv_heads=kv_heads) for name in ('backbone', 'expert')}
    case = build(make_model, 'pi0', **heads)
    cached = case.cached(Fusions(), attend)
    with torch.no_grad():
        actions = Loop(ActionStage(case.model, STEPS, Fusions(), attend))(case.noise, *cached)
    torch.testing.assert_close(actions, case.expected('plain'), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('kind', ['plain', 'trained', 'guided'])
def test_single_steps_make_the_same_chunk_as_the_loop(make_model: Any, kind: str) -> None:
    case = build(make_model, 'text')
    cached = case.cached(Fusions(), 'matmul')
    step = Step(ActionStage(case.model, STEPS, Fusions()), kind)
    actions = case.noise
    with torch.no_grad():
        for row in range(STEPS):
            actions = step(actions, torch.tensor([row]), *case.carried(kind), *cached)
    torch.testing.assert_close(actions, case.expected(kind), atol=1e-5, rtol=1e-5)


def test_a_guided_step_written_out_needs_no_autograd(make_model: Any) -> None:
    case = build(make_model, 'text')
    cached = case.cached(Fusions(), 'matmul')
    step = Step(ActionStage(case.model, STEPS, Fusions()), 'guided')
    tensors = (case.noise, torch.tensor([0]), *case.carried('guided'), *cached)
    with torch.no_grad():
        written_out = pure(step, tensors)
    assert not any('autograd' in str(node.target) for node in written_out.graph.nodes)
    actions = case.noise
    with torch.inference_mode():
        for row in range(STEPS):
            actions = written_out(actions, torch.tensor([row]), *case.carried('guided'), *cached)
    torch.testing.assert_close(actions, case.expected('guided'), atol=1e-5, rtol=1e-5)
    assert (actions - case.expected('plain')).abs().max() > 1e-2


def test_padding_and_missing_cameras_are_not_read(make_model: Any) -> None:
    case = build(make_model, 'text')
    before = Loop(ActionStage(case.model, STEPS, Fusions()))(case.noise, *case.cached(Fusions(), 'matmul'))
    case.images[1] = 255 - case.images[1]
    case.prompt[~case.prompt_mask] = 7
    after = Loop(ActionStage(case.model, STEPS, Fusions()))(case.noise, *case.cached(Fusions(), 'matmul'))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(make_model: Any, dtype: torch.dtype) -> None:
    case = build(make_model, 'text')
    expected = case.expected('plain')
    case.model.to(dtype)
    cached = case.cached(Fusions(), 'matmul')
    assert Cached(*cached).k.dtype == dtype
    with torch.no_grad():
        actions = Loop(ActionStage(case.model, STEPS, Fusions()))(case.noise, *cached)
    assert torch.nn.functional.cosine_similarity(actions.flatten(), expected.flatten(), dim=0) > 0.999


def test_a_model_without_continuous_actions_has_no_stage_for_them(make_model: Any) -> None:
    with pytest.raises(VlaError, match="'none' has no continuous actions; it says them as tokens"):
        action_stage(make_model('pi0_fast'), 2, PLAIN)
