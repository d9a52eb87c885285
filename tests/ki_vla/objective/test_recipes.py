"""Every recipe of the paper trains on the same batch, and touches exactly what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ki_vla.errors import VlaError
from ki_vla.model.config import preset
from ki_vla.model.kivla import KiVla
from ki_vla.model.summary import part_of
from ki_vla.objective.batch import Batch
from ki_vla.objective.recipes import RECIPES, Recipe, recipe
from ki_vla.objective.trainable import parts_of, prepare

VISION_LANGUAGE = {'vision', 'projector', 'embed', 'backbone'}
MOVED = {
    'ours': VISION_LANGUAGE | {'expert'},
    'ours_no_vlm': VISION_LANGUAGE | {'expert'},
    'joint': VISION_LANGUAGE | {'expert'},
    'joint_no_vlm': VISION_LANGUAGE | {'expert'},
    'pi0': VISION_LANGUAGE | {'expert'},
    'pi0_fast': VISION_LANGUAGE,
    'frozen': {'expert'},
    'hybrid': VISION_LANGUAGE | {'expert'},
    'transfusion': VISION_LANGUAGE | {'expert'},
    'oft': VISION_LANGUAGE | {'expert'},
    'naive': VISION_LANGUAGE | {'expert'},
    'naive_stride5': VISION_LANGUAGE | {'expert'},
    'pi05': VISION_LANGUAGE,  # its first stage
    'pi05_first': VISION_LANGUAGE,
    'ours_text_state': VISION_LANGUAGE | {'expert'},
    'ours_special_state': VISION_LANGUAGE | {'expert'},
    'ours_continuous_state': VISION_LANGUAGE | {'expert', 'state_proj'},
    'ours_no_fast': VISION_LANGUAGE | {'expert'},
    'graded': VISION_LANGUAGE | {'expert'},
    'deaf_first': {'expert'},  # its first stage
    'deaf': {'expert'},
    'consistent': VISION_LANGUAGE | {'expert'},
    'lower_half_frozen': {'embed', 'backbone', 'expert'},
}


def test_the_table_is_complete() -> None:
    assert set(MOVED) == set(RECIPES)


@pytest.mark.parametrize('name', RECIPES)
def test_one_step_lowers_the_loss_and_touches_exactly_the_parts_of_the_recipe(
    name: str, make_model: Callable, make_batch: Callable
) -> None:
    model = make_model(name)
    batch, chosen = make_batch(model), recipe(name).at(0.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    teacher = copy.deepcopy(model).requires_grad_(False)

    def loss() -> torch.Tensor:
        return model(batch, chosen, generator=torch.Generator().manual_seed(0), teacher=teacher).total

    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    first = loss()
    first.backward()
    for parameter, value in model.named_parameters():
        assert (value.grad is not None) == value.requires_grad, parameter
    optimiser.step()
    second = loss()
    assert bool(first.isfinite())
    assert float(second) < float(first)
    moved = {part_of(n) for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == MOVED[name]


@pytest.mark.parametrize('name', ['ours_no_vlm', 'joint_no_vlm', 'pi0_fast', 'hybrid'])
def test_without_vlm_data_language_samples_carry_no_loss(name: str, make_model: Callable, make_batch: Callable) -> None:
    model = make_model(name)
    batch = make_batch(model)
    language = ~batch.has_actions_B
    changed = batch.target_BT.clone()
    changed[language] = 7
    a, b = (
        model(x, recipe(name), generator=torch.Generator().manual_seed(0))
        for x in (batch, replace(batch, target_BT=changed))
    )
    assert torch.equal(a.total, b.total)
    assert int(a.text_count) == 0
    assert int(a.fast_count) == int(batch.loss_mask_BT[~language].sum())


def test_pi05_trains_tokens_first_and_lets_the_expert_join(make_model: Callable, make_batch: Callable) -> None:
    chosen = recipe('pi05')
    assert [chosen.at(p).name for p in (0.0, 0.69, 0.7, 1.0)] == ['pi05_first', 'pi05_first', 'joint', 'joint']
    model = make_model('pi05')
    assert not model.expert.action_in.weight.requires_grad
    prepare(model, chosen.at(0.9))
    assert model.expert.action_in.weight.requires_grad
    found = model(make_batch(model), chosen.at(0.9))
    assert float(found.flow) > 0.0


def test_transfusion_adds_only_projections(make_model: Callable) -> None:
    names = {n for n, _ in make_model('transfusion').named_parameters() if n.startswith('expert.')}
    assert names == {f'expert.{n}.{k}' for n in ('action_in', 'action_out') for k in ('weight', 'bias')}


def gradients(model: KiVla, batch: Batch, chosen: Recipe, teacher: KiVla | None = None) -> dict[str, torch.Tensor]:
    """Of every trained weight; those of the flow loss alone."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(0)
    model(batch, chosen, generator=generator, teacher=teacher).flow.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_graded_gradient_is_a_tenth_of_the_joint_one_and_the_experts_is_whole(
    make_model: Callable, make_batch: Callable
) -> None:
    model = make_model('joint')
    batch = make_batch(model)
    whole, tenth = (gradients(model, batch, recipe(name)) for name in ('joint', 'graded'))
    for name in (n for n in whole if n.startswith('backbone.')):
        assert torch.allclose(tenth[name], 0.1 * whole[name], rtol=1e-3, atol=1e-7)
    expert = next(n for n in whole if n.startswith('expert.'))
    assert torch.allclose(tenth[expert], whole[expert])


def test_a_deaf_stage_does_not_read_the_words(make_model: Callable, make_batch: Callable) -> None:
    chosen = recipe('deaf_first')
    assert [chosen.at(p).name for p in (0.0, 0.29, 0.3)] == ['deaf', 'deaf', 'ours']
    model = make_model('deaf')
    batch = make_batch(model)
    other = replace(batch, prompt_BL=batch.prompt_BL.roll(1, 0))
    deaf = [model(b, recipe('deaf'), generator=torch.Generator().manual_seed(0)).flow for b in (batch, other)]
    assert torch.equal(*deaf)
    heard = [model(b, recipe('frozen'), generator=torch.Generator().manual_seed(0)).flow for b in (batch, other)]
    assert not torch.equal(*heard)


def test_consistency_costs_nothing_at_the_start_and_grows_with_what_is_forgotten(
    make_model: Callable, make_batch: Callable
) -> None:
    model = make_model('consistent')
    batch = make_batch(model)
    teacher = copy.deepcopy(model).requires_grad_(False)

    def text(name: str) -> float:
        return float(model(batch, recipe(name), generator=torch.Generator().manual_seed(0), teacher=teacher).text)

    assert text('consistent') == pytest.approx(text('joint'), abs=1e-5)
    with torch.no_grad():
        model.embed.weight.add_(0.05 * torch.randn_like(model.embed.weight))
    assert text('consistent') > text('joint') + 1e-4
    with pytest.raises(VlaError, match='pass it as teacher'):
        model(batch, recipe('consistent'))


def test_the_lower_half_keeps_still_and_the_upper_one_learns(make_model: Callable) -> None:
    model = make_model('lower_half_frozen')
    depth = model.config.backbone.depth
    for name, parameter in model.named_parameters():
        if name.startswith('backbone.layers.'):
            assert parameter.requires_grad == (int(name.split('.')[2]) >= depth // 2), name


@pytest.mark.parametrize('name', sorted(RECIPES))
def test_every_recipe_shapes_a_model_whose_expert_groups_steps(name: str) -> None:
    model = recipe(name).configure(preset('tiny').replace(horizon=20, steps_per_token=5))
    assert model.steps_per_token == (5 if model.head == 'expert' else 1)


@pytest.mark.parametrize(
    ('name', 'said', 'told'),
    [
        ('ours', 'text', 'text'),
        ('ours', 'both', 'both'),
        ('ours', 'none', 'none'),
        ('oft', 'both', 'continuous'),
        ('pi0_fast', 'suffix', 'text'),
        ('pi0', 'both', 'suffix'),
        ('ours_text_state', 'both', 'text'),
        ('ours_special_state', 'both', 'special'),
        ('ours_continuous_state', 'text', 'continuous'),
    ],
)
def test_the_state_is_told_as_the_model_says_where_the_recipe_is_not_about_it(name: str, said: str, told: str) -> None:
    config = preset('tiny').changed({'state_repr': said})
    assert recipe(name).configure(config).state_repr == told
    assert recipe(name).configure(preset('tiny'), {'state_repr': said}).state_repr == told, 'a run says so'


def test_structure_that_does_not_fit_is_refused() -> None:
    model = KiVla(recipe('pi0_fast').configure(preset('tiny')))
    with pytest.raises(VlaError, match=r'needs model\.head'):
        prepare(model, recipe('ours'))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: recipe('theirs'), 'theirs'),
        (lambda: Recipe('x', '', targets='words'), 'targets'),
        (lambda: Recipe('x', '', head='tail'), 'head'),
        (lambda: Recipe('x', '', targets_see_actions=True), 'insulate'),
        (lambda: Recipe('x', '', passes=1.5), r'passes is 1\.5'),
        (lambda: Recipe('x', '', frozen_below=-0.1), r'frozen_below is -0\.1'),
        (lambda: Recipe('x', '', vlm_data=False, consistency=1.0), 'needs vlm_data'),
    ],
)
def test_recipes_that_mean_nothing_are_refused(make: Callable[[], Recipe], message: str) -> None:
    with pytest.raises(VlaError, match=message):
        make()


def test_every_recipe_is_in_the_documentation(root) -> None:
    text = (root / 'docs' / 'recipes.md').read_text()
    missing = [name for name in RECIPES if f'`{name}`' not in text]
    assert not missing


@pytest.mark.parametrize('without', [0, 3, 8], ids=['all act', 'some act', 'none acts'])
@pytest.mark.parametrize('name', ['ours', 'ours_no_fast', 'joint', 'hybrid', 'oft', 'transfusion', 'consistent'])
def test_examples_in_order_take_shorter_paths_to_the_same_losses_and_gradients(
    name: str, without: int, make_model: Callable, make_batch: Callable
) -> None:
    model = make_model(name)
    batch, chosen = make_batch(model, size=8), recipe(name).at(0.0)
    acting = torch.arange(8) >= without
    batch = replace(batch, action_mask_BHA=batch.action_mask_BHA[:1].expand(8, -1, -1) & acting[:, None, None])
    assert int(batch.has_actions_B.sum()) == 8 - without
    teacher = copy.deepcopy(model) if chosen.consistency else None
    generator = torch.Generator().manual_seed(3)
    noise, tau = torch.randn(batch.actions_BHA.shape, generator=generator), torch.rand(8, generator=generator)

    def trained(batch: Batch) -> tuple[list[float], dict[str, torch.Tensor]]:
        model.zero_grad()
        found = model(batch, chosen, noise_BRHA=noise[:, None], tau=tau[:, None], teacher=teacher)
        found.total.backward()
        told = [float(each) for each in (found.total, found.text, found.fast, found.flow)]
        return told, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    (whole, slopes), (short, others) = trained(batch), trained(replace(batch, first_acting=without))
    assert short == pytest.approx(whole, rel=1e-5, abs=1e-7)
    assert set(others) == set(slopes)
    for part, slope in slopes.items():
        torch.testing.assert_close(others[part], slope, rtol=1e-3, atol=1e-6)


def test_batches_are_shared(make_model: Callable, make_batch: Callable) -> None:
    """Structure differs, the batch does not."""
    a, b = (make_batch(make_model(n)) for n in ('ours', 'oft'))
    assert isinstance(a, Batch)
    assert torch.equal(a.images_BVCHW, b.images_BVCHW)
    assert torch.equal(a.actions_BHA, b.actions_BHA)


@pytest.mark.parametrize(
    ('name', 'actions', 'expected'),
    [
        ('ours', True, {'vision', 'projector', 'embed', 'backbone', 'expert'}),
        ('ours', False, {'vision', 'projector', 'embed', 'backbone'}),
        ('frozen', True, {'expert'}),
        ('pi05_first', True, {'vision', 'projector', 'embed', 'backbone'}),
        ('pi05', True, {'vision', 'projector', 'embed', 'backbone', 'expert'}),
        ('pi0_fast', True, {'vision', 'projector', 'embed', 'backbone'}),
        ('ours_continuous_state', True, {'vision', 'projector', 'embed', 'backbone', 'state_proj', 'expert'}),
    ],
)
def test_the_parts_that_a_recipe_trains_are_those_that_prepare_gives_gradients(name, actions, expected):
    chosen = recipe(name)
    config = chosen.configure(preset('tiny'))
    assert parts_of(chosen, config, actions) == expected
    if actions and not chosen.stages:
        with torch.device('meta'):
            model = KiVla(config)
        assert {each.split('.')[0] for each in prepare(model, chosen)} == expected
