"""What a model is made of: its configuration, and the presets `tiny` (tests), `mini` (trained and shipped), `full`.

A configuration describes *structure*, everything that decides the names and shapes of the weights. How the weights are
trained (which losses, which gradient is stopped) is a `Recipe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import PositiveInt, model_validator
from typing_extensions import Self

from ki_common.configuration.model import Config
from ki_vla.errors import VlaError

PromptState = Literal['text', 'special', 'continuous']
StateRepr = Literal[PromptState, 'suffix', 'none']
Head = Literal['expert', 'shared', 'parallel', 'none']
STATE_REPRS: tuple[StateRepr, ...] = get_args(StateRepr)
HEADS: tuple[Head, ...] = get_args(Head)
# Top-level modules of a `KiVla`, with which the names of weights begin; HEAD is the action head, of whichever kind.
PARTS = ('vision', 'projector', 'embed', 'state_proj', 'backbone', 'expert')
HEAD = 'expert'


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
    projected token to the prefix; `suffix` puts that token in front of the noisy actions, as pi0 does; `none` does not
    show it, as openpi's pi05_libero."""
    head: Head = 'expert'
    """Who predicts continuous actions: the action `expert`; `shared`, the backbone's own weights (transfusion);
    `parallel`, the backbone on learned queries (OpenVLA-OFT); `none`, nobody (pi0-FAST)."""
    adaptive: bool = True
    """Time enters through adaptive RMSNorm (the paper, pi0.5); false: through an MLP on the inputs (pi0)."""
    views: PositiveInt = 3
    """The most camera views that one example may hold."""
    max_prompt: PositiveInt = 200
    """The most tokens of a prompt."""
    max_targets: PositiveInt = 256
    """The most tokens that follow a prompt."""

    @model_validator(mode='after')
    def _expert_reads_the_backbone(self) -> Self:
        if self.head != 'expert':
            if self.state_repr == 'suffix':
                raise ValueError(f"state_repr is 'suffix', which needs head 'expert', not {self.head!r}; change one")
            return self
        for name in ('depth', 'heads', 'kv_heads', 'head_dim'):
            ours, theirs = getattr(self.expert, name), getattr(self.backbone, name)
            if ours != theirs:
                raise ValueError(
                    f'expert.{name} is {ours}; write that of the backbone, {theirs}: the expert reads the keys and '
                    'values of the backbone layer by layer'
                )
        return self

    @property
    def prefix_tokens(self) -> int:
        """The longest prefix: every view, a full prompt and, where there is one, the state token."""
        return self.views * self.vision.tokens + self.max_prompt + (self.state_repr == 'continuous')

    def changed(self, changes: Mapping[str, Any]) -> ModelConfig:
        """A copy with some fields replaced; a mapping for vision, backbone or expert replaces some fields of it."""
        parts = {
            name: getattr(self, name).replace(**each) for name, each in changes.items() if isinstance(each, Mapping)
        }
        return self.replace(**{**changes, **parts})


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
