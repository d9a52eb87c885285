"""Which parameters, and which parts, of a model a recipe trains."""

from __future__ import annotations

from ki_vla.errors import VlaError
from ki_vla.model.config import HEAD, PARTS, ModelConfig
from ki_vla.model.kivla import KiVla
from ki_vla.objective.recipes import RECIPES, Recipe


def prepare(model: KiVla, recipe: Recipe) -> list[str]:
    """Ask for gradients exactly where this recipe trains; returns the names of the trained parameters.

    Weights that take part in no loss (the last backbone layer beyond its keys and values, when no token is predicted;
    the expert, when it has no loss) are switched off, so that optimisers and distributed wrappers meet no parameter
    without gradient.
    """
    recipe = recipe.at(0.0)
    _check_structure(model.config, recipe)
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_trains(name, model.config, recipe))
        if parameter.requires_grad:
            trained.append(name)
    return trained


def parts_of(recipe: Recipe, config: ModelConfig, actions: bool = True) -> set[str]:
    """The parts of a model (its top-level modules: vision, projector, embed, backbone, ...) that a recipe trains.

    Args:
        recipe: with all its stages.
        config: the model's structure.
        actions: whether samples with actions are drawn; without them no gradient reaches the action head.
    """
    parts: set[str] = set()
    for each in [recipe, *(RECIPES[name] for _, name in recipe.stages)]:
        parts |= {part for part in PARTS if _trains(f'{part}.', config, each)}
    if not config.state_in_prefix:
        parts.discard('state_proj')
    if config.pointer is None:
        parts.discard('pointer')
    return parts if actions and config.head != 'none' else parts - {HEAD}


def _check_structure(config: ModelConfig, recipe: Recipe) -> None:
    if recipe.action_loss and config.head != recipe.head:
        raise VlaError(
            f'recipe {recipe.name}: needs model.head {recipe.head!r}, the model has {config.head!r}; '
            'build it from recipe.configure(config).'
        )


def _is_frozen_below(name: str, config: ModelConfig, recipe: Recipe) -> bool:
    """Whether a weight is of the eyes or of the layers that `Recipe.frozen_below` keeps; heads for training are not."""
    if not recipe.frozen_below:
        return False
    parts = name.split('.')
    below = int(recipe.frozen_below * config.backbone.depth)
    if parts[0] == 'backbone' and parts[1:2] == ['layers']:
        return int(parts[2]) < below
    return parts[0] in ('vision', 'projector')


def _trains(name: str, config: ModelConfig, recipe: Recipe) -> bool:
    if name.startswith('expert.'):
        return recipe.action_loss
    if not recipe.sees or _is_frozen_below(name, config, recipe):
        return False
    if name.startswith('pointer.'):
        return recipe.token_loss  # what passes through the layers is kept with it
    tokens_reach_the_end = recipe.token_loss or recipe.head in ('shared', 'parallel')
    if not tokens_reach_the_end:
        last = f'backbone.layers.{config.backbone.depth - 1}.'
        if name == 'backbone.norm.weight':
            return False
        if name.startswith(last):
            return name.removeprefix(last).split('.')[0] in ('input_norm', 'k', 'v')
    return True
