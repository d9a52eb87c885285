"""The paper's method, its baselines and its ablations, as data. docs/recipes.md gives the line of the paper for each.

A recipe says what is trained and which gradients flow. `configure` gives the structure it needs, `trainable.prepare`
freezes what it does not train, and `KiVla.forward(batch, recipe)` computes its losses. All recipes read the same
`Batch`; in the data they differ by `targets` (which tokens stand for an action) and `vlm_data` (whether language
samples are mixed in).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ki_vla.errors import VlaError
from ki_vla.model.config import HEADS, STATE_REPRS, Head, ModelConfig, StateRepr

TARGETS = ('fast', 'naive', 'naive_stride5', 'none')
WITHOUT_EXPERT: dict[StateRepr, StateRepr] = {'both': 'continuous', 'suffix': 'text'}


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        name: its key in `RECIPES`.
        about: one line for people.
        targets: the tokens that stand for an action in L_FAST; 'none': actions are not predicted as tokens.
        vlm_data: language samples are trained on; otherwise they carry no loss.
        head: who predicts continuous actions (`ModelConfig.head`).
        loss: 'flow', 'l1', or 'none' for actions that are only tokens.
        insulate: stop the gradient from the action expert to the backbone.
        frozen: only the action expert is trained.
        passes: share of that gradient that goes on where it is not stopped, 0..1.
        hears: the words of the prompt are read; else they are masked.
        consistency: weight of the divergence of what the model says to questions from what it said before this stage.
        frozen_below: the eyes, and this share of the backbone's layers from below, are not trained.
        targets_see_actions: target tokens attend to the expert's noisy actions (HybridVLA).
        adaptive: structure; see `ModelConfig`.
        state_repr: how the state is told, where that is what the recipe is about; None: as the model has it, which
            is in words, as in the paper, where nobody says otherwise.
        alpha: weight of the action loss; 1 under insulation, where it trains weights of its own.
        stages: for recipes in stages: (share of training at which it starts, recipe name), in order. The other fields
            are those of the last stage; train with `at(progress)`, and `prepare` again when that changes.
    """

    name: str
    about: str
    targets: str = 'fast'
    vlm_data: bool = True
    head: Head = 'expert'
    loss: str = 'flow'
    insulate: bool = True
    passes: float = 1.0
    frozen: bool = False
    frozen_below: float = 0.0
    hears: bool = True
    consistency: float = 0.0
    targets_see_actions: bool = False
    adaptive: bool = True
    state_repr: StateRepr | None = None
    alpha: float = 1.0
    stages: tuple[tuple[float, str], ...] = ()

    def __post_init__(self) -> None:
        """Refuse combinations that mean nothing."""
        for field, said, allowed in (
            ('targets', self.targets, TARGETS),
            ('head', self.head, HEADS),
            ('state_repr', self.state_repr or 'text', STATE_REPRS),
        ):
            if said not in allowed:
                raise VlaError(f'recipe {self.name}: {field} {said!r} is not one of {", ".join(allowed)}.')
        for field in ('passes', 'frozen_below'):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise VlaError(f'recipe {self.name}: {field} is {getattr(self, field)}; write a share from 0 to 1.')
        if self.consistency and not (self.vlm_data and self.token_loss):
            raise VlaError(f'recipe {self.name}: consistency compares answers to questions, so it needs vlm_data true.')
        if self.targets_see_actions and (self.head != 'expert' or self.insulate):
            raise VlaError(f'recipe {self.name}: targets_see_actions needs head expert and insulate false.')

    @property
    def token_loss(self) -> bool:
        """Whether there is a cross-entropy at all."""
        return not self.frozen and (self.targets != 'none' or self.vlm_data)

    @property
    def sees(self) -> bool:
        """Whether some gradient reaches the image tokens, so that heads on them (`model.dense`) train too."""
        return not self.frozen and (self.token_loss or not self.insulate or self.head != 'expert')

    @property
    def action_loss(self) -> bool:
        """Whether there is a loss on continuous actions."""
        return self.loss != 'none'

    def configure(self, config: ModelConfig, changes: Mapping[str, Any] | None = None) -> ModelConfig:
        """The given model with the structure that this recipe needs, and what a run changes of it besides.

        Only an expert groups several steps in a token, and only an expert has a state token of its own: a model without
        one is told the state in the prefix alone.

        Args:
            config: the model.
            changes: see `ModelConfig.changed`; `state_repr` counts where the recipe is not about it.

        Raises:
            VlaError: a change that does not fit.
        """
        rest = dict(changes or {})
        said = rest.pop('state_repr', config.state_repr)
        grouped, state = config.steps_per_token, self.state_repr or said
        if self.head != 'expert':
            grouped, state = 1, WITHOUT_EXPERT.get(state, state)
        shaped = config.replace(head=self.head, adaptive=self.adaptive, state_repr=state, steps_per_token=grouped)
        return shaped.changed(rest)

    def at(self, progress: float) -> Recipe:
        """The recipe in force at a share of training, 0..1: itself, or the stage that has started last."""
        current = self
        for start, name in self.stages:
            if progress >= start:
                current = recipe(name)
        return current


def recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        VlaError: no such recipe.
    """
    if name not in RECIPES:
        raise VlaError(f'recipe: {name!r} is unknown; choose one of {", ".join(RECIPES)}.')
    return RECIPES[name]


def _table(*rows: Recipe) -> dict[str, Recipe]:
    return {row.name: row for row in rows}


_OURS = Recipe('ours', 'knowledge insulation: FAST and language train the backbone, flow matching the expert')
_JOINT = replace(_OURS, name='joint', about='joint-training: as ours, without the stop-gradient', insulate=False)

RECIPES: dict[str, Recipe] = _table(
    _OURS,
    replace(_OURS, name='ours_no_vlm', about='ours w/o VLM data', vlm_data=False),
    _JOINT,
    replace(_JOINT, name='joint_no_vlm', about='joint-training w/o VLM data', vlm_data=False),
    Recipe(
        'pi0',
        'flow matching only, gradients through the whole model, robot data only',
        targets='none',
        vlm_data=False,
        insulate=False,
        adaptive=False,
        state_repr='suffix',
    ),
    Recipe('pi0_fast', 'autoregressive action tokens only, robot data only', vlm_data=False, head='none', loss='none'),
    replace(
        _OURS,
        name='frozen',
        about='frozen backbone: only the expert is trained',
        targets='none',
        vlm_data=False,
        frozen=True,
    ),
    Recipe(
        'hybrid',
        'HybridVLA: naive tokens attend to the noisy actions of the expert, no stop-gradient',
        targets='naive',
        vlm_data=False,
        insulate=False,
        targets_see_actions=True,
    ),
    Recipe(
        'transfusion',
        "the backbone's own weights denoise",
        targets='none',
        vlm_data=False,
        head='shared',
        insulate=False,
    ),
    Recipe(
        'oft',
        'OpenVLA-OFT: parallel decoding, bidirectional, L1, text state',
        targets='none',
        vlm_data=False,
        head='parallel',
        loss='l1',
        insulate=False,
    ),
    replace(_OURS, name='naive', about='ours with naive tokens', targets='naive'),
    replace(_OURS, name='naive_stride5', about='ours with naive tokens of every fifth step', targets='naive_stride5'),
    replace(
        _JOINT,
        name='pi05',
        about='two stages: FAST and language first, then a fresh expert joins without stop-gradient',
        stages=((0.0, 'pi05_first'), (0.7, 'joint')),
    ),
    replace(
        _OURS, name='pi05_first', about='first stage of pi05: action tokens and language, expert untouched', loss='none'
    ),
    replace(_OURS, name='ours_text_state', about='ours, state in words', state_repr='text'),
    replace(_OURS, name='ours_special_state', about='ours, state as special tokens', state_repr='special'),
    replace(_OURS, name='ours_continuous_state', about='ours, state as one projected token', state_repr='continuous'),
    # Arms of control, for what the field doubts about insulation.
    replace(
        _OURS,
        name='ours_no_fast',
        about='insulation without action tokens: language alone trains the backbone',
        targets='none',
    ),
    replace(_JOINT, name='graded', about='a tenth of the gradient from the expert reaches the backbone', passes=0.1),
    replace(
        _OURS,
        name='deaf_first',
        about='the expert is first trained without the words, on a frozen backbone; then ours',
        stages=((0.0, 'deaf'), (0.3, 'ours')),
    ),
    replace(
        _OURS,
        name='deaf',
        about='first stage of deaf_first: the expert alone, the prompt masked',
        targets='none',
        vlm_data=False,
        frozen=True,
        hears=False,
    ),
    replace(
        _JOINT,
        name='consistent',
        about='joint-training that keeps its answers to questions near those of a frozen copy of the start',
        consistency=1.0,
    ),
    replace(
        _JOINT,
        name='lower_half_frozen',
        about='joint-training with the eyes and the lower half of the backbone frozen',
        frozen_below=0.5,
    ),
)
OURS = RECIPES['ours']
