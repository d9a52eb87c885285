"""What a model is made of: its configuration, and the presets `tiny` (tests), `mini` (trained and shipped), `full`.

A configuration describes *structure*, everything that decides the names and shapes of the weights. How the weights are
trained (which losses, which gradient is stopped) is a `Recipe`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from ki_common.configuration.model import Config
from ki_vla.errors import VlaError

PromptState = Literal['text', 'special', 'continuous']
StateRepr = Literal[PromptState, 'suffix', 'both', 'none']
Head = Literal['expert', 'shared', 'parallel', 'none']
STATE_REPRS: tuple[StateRepr, ...] = get_args(StateRepr)
HEADS: tuple[Head, ...] = get_args(Head)
# Ways of denoising that a head has: from noise alone, after actions given clean, after actions it is guided to (`rtc`).
HEAD_KINDS: dict[Head, tuple[str, ...]] = {
    'expert': ('plain', 'trained', 'guided'),
    'shared': ('plain', 'trained', 'guided'),
    'parallel': ('plain',),
    'none': (),
}
# Top-level modules of a `KiVla`, with which the names of weights begin; HEAD is the action head, of whichever kind.
PARTS = ('vision', 'projector', 'embed', 'state_proj', 'backbone', 'pointer', 'expert')
HEAD = 'expert'
POINTS = 2  # places that are pointed at: of what is acted on, and of what it is put on or beside


class VlaConfig(Config):
    """The base of the configurations of this package."""

    raises = VlaError


class VisionConfig(VlaConfig):
    """The SigLIP tower."""

    image_size: PositiveInt
    """Side of the square images, pixels."""
    patch_size: PositiveInt
    """Side of a patch, pixels; divides the image size."""
    width: PositiveInt
    """Channels of a token."""
    depth: PositiveInt
    """Layers."""
    mlp: PositiveInt
    """Channels inside the feed-forward of a layer."""
    heads: PositiveInt
    """Attention heads; they share the width."""

    @model_validator(mode='after')
    def _sizes_divide(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f'image_size is {self.image_size}; write a multiple of patch_size, {self.patch_size}')
        if self.width % self.heads:
            raise ValueError(f'width is {self.width}; write a multiple of heads, {self.heads}')
        return self

    @property
    def tokens(self) -> int:
        """Tokens of one view."""
        return (self.image_size // self.patch_size) ** 2


class GemmaConfig(VlaConfig):
    """One Gemma transformer: the backbone, or the action expert."""

    width: PositiveInt
    """Channels of a token."""
    depth: PositiveInt
    """Layers."""
    mlp: PositiveInt
    """Channels inside the feed-forward of a layer."""
    heads: PositiveInt
    """Query heads."""
    kv_heads: PositiveInt
    """Key and value heads; divides the query heads."""
    head_dim: PositiveInt
    """Channels of a head; even, for the rotary positions."""

    @model_validator(mode='after')
    def _sizes_divide(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f'kv_heads is {self.kv_heads}; write a divisor of heads, {self.heads}')
        if self.head_dim % 2:
            raise ValueError(f'head_dim is {self.head_dim}; write an even number, for the rotary positions')
        return self


class DenseConfig(VlaConfig):
    """Heads that say what every patch of a picture shows, and where the thing is that the words ask for.

    They teach a vision tower without pretraining to see: without them a small model stays blind for thousands of steps.
    """

    labels: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Words by name of a label: {colour: [red, green], kind: [block, cup]}; data name things with them."""
    layers: tuple[PositiveInt, ...] | None = None
    """Layers of the backbone after which the heads read what the words ask for, ascending; by default the last but one.
    Later layers see it, and with them the action expert; the output of the last one is seen by no other."""
    background: float = Field(default=0.08, gt=0, le=1)
    """Weight of a patch that shows nothing; one with a thing has 1."""

    @model_validator(mode='after')
    def _words_are_there_once(self) -> Self:
        for name, words in self.labels.items():
            if not words or len(set(words)) < len(words):
                raise ValueError(f'labels.{name} is {list(words)}; write one or more words, each once')
        return self


class PointerConfig(VlaConfig):
    """What says where in the first view the thing is that the words ask for, and that which it is put on or beside.
    `dense` trains it.

    Heads of `dense` point in any case. With this the action expert hears it beside the state, and a bundle keeps it.
    """

    layer: PositiveInt
    """Layer of the backbone after which the last token of the prefix points; one of `dense.layers`."""
    cells: PositiveInt = 12
    """Cells along a side of the view, between which it says how sure it is."""


class ModelConfig(VlaConfig):
    """The structure of a `KiVla`."""

    name: str
    """What people call it: a preset's name, or yours."""
    vision: VisionConfig
    """The vision tower."""
    backbone: GemmaConfig
    """The language model."""
    expert: GemmaConfig
    """The action expert; also read where `head` is not `expert` (not built then)."""
    vocab_size: PositiveInt
    """Rows of the embedding, which is also the output head."""
    horizon: PositiveInt = 50
    """Action steps of a chunk."""
    action_dim: PositiveInt = 32
    """Columns of an action, with padding."""
    state_dim: PositiveInt = 32
    """Columns of the state, with padding."""
    state_repr: StateRepr = 'text'
    """How the state is shown: `text` and `special` are prompt tokens (paper, appendix C); `continuous` adds one
    projected token to the prefix; `suffix` puts that token in front of the noisy actions, as pi0 does; `both` does
    both, so that the backbone plans with the state and the expert has it at first hand; `none` does not show it, as
    openpi's pi05_libero."""
    head: Head = 'expert'
    """Who predicts continuous actions: the action `expert`; `shared`, the backbone's own weights (transfusion);
    `parallel`, the backbone on learned queries (OpenVLA-OFT); `none`, nobody (pi0-FAST)."""
    steps_per_token: PositiveInt = 1
    """Action steps that the expert reads and writes as one token. A chunk of 50 steps may be 10 tokens.
    The steps of a token have one time in the flow, so a chunk is continued by whole tokens."""
    adaptive: bool = True
    """Time enters through adaptive RMSNorm (the paper, pi0.5); false: through an MLP on the inputs (pi0)."""
    views: PositiveInt = 3
    """The most camera views that one example may hold."""
    max_prompt: PositiveInt = 200
    """The most tokens of a prompt."""
    max_targets: PositiveInt = 256
    """The most tokens that follow a prompt."""
    dense: DenseConfig | None = None
    """Heads for training only; a bundle has none of them."""
    pointer: PointerConfig | None = None
    """Tells the action expert where the things are that the words ask for; it needs `state_repr` suffix or both."""

    @model_validator(mode='after')
    def _expert_reads_the_backbone(self) -> Self:
        if self.head != 'expert':
            if self.state_for_expert:
                raise ValueError(
                    f'state_repr is {self.state_repr!r}, which needs head expert, not {self.head!r}; change one'
                )
            return self
        for name in ('depth', 'heads', 'kv_heads', 'head_dim'):
            ours, theirs = getattr(self.expert, name), getattr(self.backbone, name)
            if ours != theirs:
                raise ValueError(
                    f'expert.{name} is {ours}; write that of the backbone, {theirs}: the expert reads the keys and '
                    'values of the backbone layer by layer'
                )
        return self

    @model_validator(mode='after')
    def _tokens_hold_whole_steps(self) -> Self:
        if self.horizon % self.steps_per_token:
            raise ValueError(
                f'steps_per_token is {self.steps_per_token}; write a divisor of the horizon, {self.horizon}'
            )
        if self.steps_per_token > 1 and self.head != 'expert':
            raise ValueError(
                f'steps_per_token is {self.steps_per_token}; head {self.head!r} needs 1, or take an expert'
            )
        return self

    @model_validator(mode='after')
    def _expert_hears_the_pointer(self) -> Self:
        if self.pointer is None:
            return self
        if not self.state_for_expert:
            raise ValueError(
                f'pointer is heard beside the state, and state_repr is {self.state_repr!r}; write suffix or both'
            )
        if self.pointer.layer >= self.backbone.depth:
            raise ValueError(
                f'pointer.layer is {self.pointer.layer}; write a number from 1 to {self.backbone.depth - 1}, below '
                'backbone.depth'
            )
        if self.dense is not None and self.pointer.layer not in self.dense_layers:
            raise ValueError(
                f'pointer.layer is {self.pointer.layer}; write one of dense.layers, {list(self.dense_layers)}, which '
                'teach it to point'
            )
        return self

    @model_validator(mode='after')
    def _heads_read_what_another_layer_reads(self) -> Self:
        layers, depth = self.dense_layers, self.backbone.depth
        if any(not a < b for a, b in itertools.pairwise((0, *layers, depth))):
            raise ValueError(
                f'dense.layers is {list(layers)}; write numbers from 1 to {depth - 1}, ascending: backbone.depth is '
                f'{depth}, and the output of its last layer is seen by no other'
            )
        return self

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Layers of the backbone after which the heads for training read what the words ask for."""
        if self.dense is None:
            return ()
        return self.dense.layers or (self.backbone.depth - 1,)

    @property
    def action_tokens(self) -> int:
        """Tokens of a chunk in the action expert."""
        return self.horizon // self.steps_per_token

    @property
    def denoising_kinds(self) -> tuple[str, ...]:
        """Ways of denoising."""
        return HEAD_KINDS[self.head]

    @property
    def state_in_prefix(self) -> bool:
        """Whether the prefix ends with a projected state token."""
        return self.state_repr in ('continuous', 'both')

    @property
    def state_for_expert(self) -> bool:
        """Whether a state token stands in front of the noisy actions."""
        return self.state_repr in ('suffix', 'both')

    @property
    def state_token_dim(self) -> int:
        """Numbers from which the state token of the expert is made: the state, and what the pointer says."""
        return self.state_dim + (0 if self.pointer is None else POINTS * (2 * self.pointer.cells + 2))

    @property
    def prompt_state(self) -> PromptState | None:
        """How the prompt speaks of the state; None: it is the plain prompt of pi0."""
        if self.state_repr == 'suffix' or self.state_repr == 'none':
            return None
        return 'continuous' if self.state_repr == 'both' else self.state_repr

    @property
    def prefix_tokens(self) -> int:
        """The longest prefix: every view, a full prompt and, where there is one, the state token."""
        return self.views * self.vision.tokens + self.max_prompt + self.state_in_prefix

    def changed(self, changes: Mapping[str, Any]) -> ModelConfig:
        """A copy with some fields replaced; a mapping for a part of it replaces some fields of that."""
        parts: dict[str, VlaConfig] = {}
        for name, each in changes.items():
            if isinstance(each, Mapping):
                before = getattr(self, name)
                parts[name] = OPTIONAL[name].parse(each, name) if before is None else before.replace(**each)
        return self.replace(**{**changes, **parts})


# Parts that a preset need not have.
OPTIONAL: dict[str, type[VlaConfig]] = {'dense': DenseConfig, 'pointer': PointerConfig}


def preset(name: str, **changes: Any) -> ModelConfig:
    """A named configuration, with some fields replaced: `preset('mini', horizon=20, action_dim=17)`.

    Raises:
        VlaError: the name is unknown, or a field is.
    """
    if name not in PRESETS:
        raise VlaError(f'preset: {name!r} is unknown; choose one of {", ".join(PRESETS)}.')
    return PRESETS[name].replace(**changes)


PRESETS: dict[str, ModelConfig] = {
    # For tests: everything is there, nothing is large.
    'tiny': ModelConfig(
        name='tiny',
        vision=VisionConfig(image_size=32, patch_size=16, width=48, depth=2, mlp=96, heads=3),
        backbone=GemmaConfig(width=64, depth=3, mlp=128, heads=4, kv_heads=1, head_dim=16),
        expert=GemmaConfig(width=48, depth=3, mlp=96, heads=4, kv_heads=1, head_dim=16),
        vocab_size=2048,
        horizon=8,
        action_dim=4,
        state_dim=4,
        max_prompt=64,
        max_targets=64,
    ),
    # What is trained here on two cores: 96 px views of 36 tokens, four layers.
    'mini': ModelConfig(
        name='mini',
        vision=VisionConfig(image_size=96, patch_size=16, width=128, depth=3, mlp=384, heads=4),
        backbone=GemmaConfig(width=128, depth=4, mlp=384, heads=4, kv_heads=1, head_dim=32),
        expert=GemmaConfig(width=128, depth=4, mlp=256, heads=4, kv_heads=1, head_dim=32),
        vocab_size=4096,
        action_dim=17,
        state_dim=17,
        max_prompt=96,
        max_targets=192,
    ),
    # PaliGemma 3B at 224 px with the 300M action expert (paper, appendix B; "num_heads=18" there is a slip for 8).
    'full': ModelConfig(
        name='full',
        vision=VisionConfig(image_size=224, patch_size=14, width=1152, depth=27, mlp=4304, heads=16),
        backbone=GemmaConfig(width=2048, depth=18, mlp=16384, heads=8, kv_heads=1, head_dim=256),
        expert=GemmaConfig(width=1024, depth=18, mlp=4096, heads=8, kv_heads=1, head_dim=256),
        vocab_size=257152,
    ),
}
