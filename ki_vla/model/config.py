"""What a model is made of: frozen dataclasses and the presets `tiny` (tests), `mini` (trained and shipped), `full`.

A configuration describes *structure*, everything that decides the names and shapes of the weights. How the weights are
trained (which losses, which gradient is stopped) is a `Recipe`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ki_vla.errors import VlaError

STATE_REPRS = ('text', 'special', 'continuous', 'suffix')
# Top-level modules of a `KiVla`; `expert` is the action head, of whichever kind.
PARTS = ('vision', 'projector', 'embed', 'state_proj', 'backbone', 'expert')
HEADS = ('expert', 'shared', 'parallel', 'none')


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP tower: square images of `image_size` pixels, cut in patches of `patch_size`."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    mlp: int
    heads: int

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive or do not divide."""
        _positive('vision', self)
        if self.image_size % self.patch_size:
            raise VlaError(
                f'vision.image_size: {self.image_size} is not a multiple of vision.patch_size {self.patch_size}; '
                'choose one that is.'
            )
        if self.width % self.heads:
            raise VlaError(f'vision.width: {self.width} cannot be split over {self.heads} heads; make it a multiple.')

    @property
    def tokens(self) -> int:
        """Tokens of one view."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class GemmaConfig:
    """One Gemma transformer: the backbone, or the action expert."""

    width: int
    depth: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive or do not divide."""
        _positive('gemma', self)
        if self.heads % self.kv_heads:
            raise VlaError(f'gemma.kv_heads: {self.kv_heads} does not divide heads = {self.heads}.')
        if self.head_dim % 2:
            raise VlaError(f'gemma.head_dim: {self.head_dim} is odd; rotary positions need an even one.')


@dataclass(frozen=True)
class ModelConfig:
    """The structure of a `KiVla`.

    Attributes:
        name: what people call it; a preset's name, or yours.
        vision, backbone, expert: the three transformers. `expert` is also read when `head` is not 'expert' (not built
            then).
        vocab_size: rows of the embedding, which is also the output head.
        horizon, action_dim: the shape H x A of an action chunk, A including padding.
        state_dim: columns of the state, including padding.
        state_repr: 'text' and 'special' are prompt tokens (paper, appendix C); 'continuous' adds one projected token
            to the prefix; 'suffix' puts that token in front of the noisy actions, as pi0 does.
        head: who predicts continuous actions. 'expert': the action expert. 'shared': the backbone's own weights
            (transfusion). 'parallel': the backbone on learned queries (OpenVLA-OFT). 'none': nobody (pi0-FAST).
        adaptive: time enters through adaptive RMSNorm (the paper, pi0.5); False: through an MLP on the inputs (pi0).
        views: the most camera views one example may hold.
        max_prompt, max_targets: budgets in tokens.
    """

    name: str
    vision: VisionConfig
    backbone: GemmaConfig
    expert: GemmaConfig
    vocab_size: int
    horizon: int = 50
    action_dim: int = 32
    state_dim: int = 32
    state_repr: str = 'text'
    head: str = 'expert'
    adaptive: bool = True
    views: int = 3
    max_prompt: int = 200
    max_targets: int = 256

    def __post_init__(self) -> None:
        """Refuse what could not be built."""
        for field in ('vocab_size', 'horizon', 'action_dim', 'state_dim', 'views', 'max_prompt', 'max_targets'):
            _positive_int(f'model.{field}', getattr(self, field))
        if self.state_repr not in STATE_REPRS:
            raise VlaError(f'model.state_repr: {self.state_repr!r} is unknown; choose one of {", ".join(STATE_REPRS)}.')
        if self.head not in HEADS:
            raise VlaError(f'model.head: {self.head!r} is unknown; choose one of {", ".join(HEADS)}.')
        if self.head != 'expert':
            if self.state_repr == 'suffix':
                raise VlaError(f"model.state_repr: 'suffix' needs head 'expert', not {self.head!r}.")
            return
        for field in ('depth', 'heads', 'kv_heads', 'head_dim'):
            ours, theirs = getattr(self.expert, field), getattr(self.backbone, field)
            if ours != theirs:
                raise VlaError(
                    f'expert.{field}: {ours} differs from backbone.{field} {theirs}; the expert reads the keys and '
                    'values of the backbone layer by layer, so they must be equal.'
                )

    @property
    def prefix_tokens(self) -> int:
        """The longest prefix: every view, a full prompt and, where there is one, the state token."""
        return self.views * self.vision.tokens + self.max_prompt + (self.state_repr == 'continuous')

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; unknown and missing fields are errors."""
        values = _checked(cls, 'model', data)
        for field, kind in (('vision', VisionConfig), ('backbone', GemmaConfig), ('expert', GemmaConfig)):
            values[field] = kind(**_checked(kind, field, values[field]))
        return cls(**values)


def preset(name: str, **changes: Any) -> ModelConfig:
    """A named configuration, with some fields replaced: `preset('mini', horizon=20, action_dim=17)`.

    Raises:
        VlaError: the name is unknown, or a field is.
    """
    if name not in PRESETS:
        raise VlaError(f'preset: {name!r} is unknown; choose one of {", ".join(PRESETS)}.')
    unknown = sorted(set(changes) - {f.name for f in fields(ModelConfig)})
    if unknown:
        raise VlaError(f'preset {name}: the model has no field {", ".join(unknown)}.')
    return replace(PRESETS[name], **changes)


def _checked(kind: type, where: str, data: Any) -> dict[str, Any]:
    """A copy of `data` whose keys are exactly the fields of `kind` (fields with a default may be absent)."""
    if not isinstance(data, dict):
        raise VlaError(f'{where}: expected a table of fields, got {type(data).__name__}.')
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(data) - set(known))
    required = {n for n, f in known.items() if not _has_default(f)}
    missing = sorted(required - set(data))
    if unknown or missing:
        raise VlaError(f'{where}: unknown fields {unknown}, missing fields {missing}.')
    return dict(data)


def _has_default(field: Any) -> bool:
    from dataclasses import MISSING

    return field.default is not MISSING or field.default_factory is not MISSING


def _positive(where: str, config: Any) -> None:
    for field in fields(config):
        _positive_int(f'{where}.{field.name}', getattr(config, field.name))


def _positive_int(where: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise VlaError(f'{where}: {value!r} is not a positive whole number.')


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
