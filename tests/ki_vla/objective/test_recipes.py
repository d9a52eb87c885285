"""Every recipe of the paper trains on the same batch, and touches exactly what it says."""

from __future__ import annotations

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
    'ours_special_state': VISION_LANGUAGE | {'expert'},
    'ours_continuous_state': VISION_LANGUAGE | {'expert', 'state_proj'},
    'continuous_state_first': VISION_LANGUAGE | {'state_proj'},
    'ours_both_states': VISION_LANGUAGE | {'expert', 'state_proj'},
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

    def loss() -> torch.Tensor:
        return model(batch, chosen, generator=torch.Generator().manual_seed(0)).total

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
    ],
)
def test_recipes_that_mean_nothing_are_refused(make: Callable[[], Recipe], message: str) -> None:
    with pytest.raises(VlaError, match=message):
        make()


def test_every_recipe_is_in_the_documentation(root) -> None:
    text = (root / 'docs' / 'recipes.md').read_text()
    missing = [name for name in RECIPES if f'`{name}`' not in text]
    assert not missing


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
