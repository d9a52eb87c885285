"""The model's input: one dataclass of tensors, its checks, and the collation of samples.

Shape legend: B batch, V views, C colours, H W pixels (images) or H horizon (actions), L prompt tokens, S state columns,
T target tokens, A action dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ki_vla.errors import VlaError
from ki_vla.model.config import POINTS, ModelConfig


@dataclass(frozen=True)
class Batch:
    """Examples of every kind, side by side: action samples (M_act and M_l set), language samples (M_l only).

    Attributes:
        images_BVCHW: float32 in [-1, 1], or uint8.
        image_mask_BV: False where a camera is missing.
        prompt_BL, prompt_mask_BL: int64 ids and their validity.
        state_BS: float32, normalised.
        target_BT, target_mask_BT: int64 ids that follow the prompt, and their validity.
        loss_mask_BT: M_l, where the token loss is taken.
        actions_BHA: float32, normalised and padded.
        action_mask_BHA: M_act and padding, where the action loss is taken.
        action_token_BT: which targets are action tokens rather than text; None: all targets of samples with actions.
            It splits the reported loss; it does not change the trained one.
        dense_BVNK: for training heads (`model.dense`), int64: the word of each label that a patch shows, 0 for none and
            -1 for patches that nobody has looked at.
        offset_BVN2: from the middle of a patch to that of the thing it shows, x and y in patches; NaN without one.
        points_BM2: where in the first view the thing is that is acted on, and that which it is put on or beside, x and
            y from 0 to 1, beyond that where it has left the view; NaN if unknown.
        first_acting: where examples without actions stand before those with actions, how many those are: each kind then
            takes only the paths that carry its losses. None: in any order. A number, which costs no device a wait.
    """

    images_BVCHW: Tensor
    image_mask_BV: Tensor
    prompt_BL: Tensor
    prompt_mask_BL: Tensor
    state_BS: Tensor
    target_BT: Tensor
    target_mask_BT: Tensor
    loss_mask_BT: Tensor
    actions_BHA: Tensor
    action_mask_BHA: Tensor
    action_token_BT: Tensor | None = None
    dense_BVNK: Tensor | None = None
    offset_BVN2: Tensor | None = None
    points_BM2: Tensor | None = None
    first_acting: int | None = None

    @property
    def size(self) -> int:
        """Number of examples."""
        return self.prompt_BL.shape[0]

    @property
    def has_actions_B(self) -> Tensor:
        """Bool [B]: which examples are action samples."""
        return self.action_mask_BHA.flatten(1).any(dim=1)

    @property
    def fast_BT(self) -> Tensor:
        """Bool [B, T]: which targets are action tokens."""
        if self.action_token_BT is not None:
            return self.action_token_BT
        return self.has_actions_B[:, None].expand_as(self.target_mask_BT)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {name: value.to(device, non_blocking=non_blocking) for name, value in self._tensors()}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, as torch's data loader asks."""
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in self._tensors()}
        return replace(self, **pinned)

    def part(self, rows: slice | Tensor) -> Batch:
        """Some of the examples: a slice of them, or a mask."""
        cut: dict[str, Any] = {name: value[rows] for name, value in self._tensors()}
        return replace(self, **cut, first_acting=None)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(f.name, value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)]

    def check(self, config: ModelConfig, values: bool = False) -> Batch:
        """Refuse what does not fit the model; returns itself.

        Args:
            config: the model's.
            values: also look at the numbers (ids in range, actions and state finite). That reads the tensors, so it
                belongs on the CPU, where batches are made.

        Raises:
            VlaError: names the field, what it is and what it should be.
        """
        check_shapes(self, config)
        if values:
            check_values(self, config)
        return self


_BOOL, _INT, _FLOAT = (torch.bool,), (torch.int64,), (torch.float32, torch.bfloat16, torch.float16)
_DTYPES = {
    'images_BVCHW': (*_FLOAT, torch.uint8),
    'image_mask_BV': _BOOL,
    'prompt_BL': _INT,
    'prompt_mask_BL': _BOOL,
    'state_BS': _FLOAT,
    'target_BT': _INT,
    'target_mask_BT': _BOOL,
    'loss_mask_BT': _BOOL,
    'actions_BHA': _FLOAT,
    'action_mask_BHA': _BOOL,
    'action_token_BT': _BOOL,
    'dense_BVNK': _INT,
    'offset_BVN2': _FLOAT,
    'points_BM2': _FLOAT,
}
_RAGGED = ('images_BVCHW', 'image_mask_BV', 'prompt_BL', 'prompt_mask_BL', 'dense_BVNK', 'offset_BVN2')
_FILLS = {'dense_BVNK': -1, 'offset_BVN2': float('nan')}  # of views that are not there
_OPTIONAL = ('action_token_BT', 'dense_BVNK', 'offset_BVN2', 'points_BM2')


def check_shapes(batch: Batch, config: ModelConfig) -> None:
    """Shapes and dtypes of a whole batch; reads no numbers."""
    B, T = batch.size, batch.target_BT.shape[-1]
    pixels = config.vision.image_size
    check_images(batch.images_BVCHW, batch.image_mask_BV, config)
    check_prompt(batch.prompt_BL, batch.prompt_mask_BL, config)
    expected = {
        'images_BVCHW': (B, batch.images_BVCHW.shape[1], 3, pixels, pixels),
        'state_BS': (B, config.state_dim),
        'target_BT': (B, T),
        'target_mask_BT': (B, T),
        'loss_mask_BT': (B, T),
        'actions_BHA': (B, config.horizon, config.action_dim),
        'action_mask_BHA': (B, config.horizon, config.action_dim),
        'action_token_BT': (B, T),
        **_dense_shapes(batch, config),
    }
    for name, shape in expected.items():
        value = getattr(batch, name)
        if value is not None:
            _expect(name, value, shape)
    if config.max_targets < T:
        raise VlaError(
            f'batch.target_BT: {T} tokens do not fit the budget of {config.max_targets} (model.max_targets).'
        )


def _dense_shapes(batch: Batch, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What labels of patches must look like; a model without heads for them takes none."""
    if config.dense is None:
        for name in _OPTIONAL[1:]:
            if getattr(batch, name) is not None:
                raise VlaError(f'batch.{name}: the model has no heads for it (model.dense); leave it out.')
        return {}
    B, V = batch.images_BVCHW.shape[:2]
    patches, labels = config.vision.tokens, len(config.dense.labels)
    return {
        'dense_BVNK': (B, V, patches, labels),
        'offset_BVN2': (B, V, patches, 2),
        'points_BM2': (B, POINTS, 2),
    }


def check_inputs(
    images_BVCHW: Tensor,
    image_mask_BV: Tensor,
    prompt_BL: Tensor,
    prompt_mask_BL: Tensor,
    state_BS: Tensor,
    config: ModelConfig,
) -> None:
    """Shapes and dtypes of what an observation becomes; reads no numbers."""
    check_images(images_BVCHW, image_mask_BV, config)
    check_prompt(prompt_BL, prompt_mask_BL, config)
    _expect('prompt_BL', prompt_BL, (len(images_BVCHW), prompt_BL.shape[1]))
    _expect('state_BS', state_BS, (len(images_BVCHW), config.state_dim))


def check_images(images_BVCHW: Tensor, image_mask_BV: Tensor, config: ModelConfig) -> None:
    """Shapes and dtypes of the camera views."""
    pixels = config.vision.image_size
    if images_BVCHW.ndim != 5:
        raise VlaError(
            f'batch.images_BVCHW: shape {tuple(images_BVCHW.shape)} is not (batch, views, 3, {pixels}, {pixels}).'
        )
    B, V = images_BVCHW.shape[:2]
    if config.views < V:
        raise VlaError(
            f'batch.images_BVCHW: {V} camera views, but the model takes at most {config.views} (model.views).'
        )
    _expect('images_BVCHW', images_BVCHW, (B, V, 3, pixels, pixels))
    _expect('image_mask_BV', image_mask_BV, (B, V))


def check_prompt(prompt_BL: Tensor, prompt_mask_BL: Tensor, config: ModelConfig) -> None:
    """Shapes, dtypes and length of the prompt."""
    if prompt_BL.ndim != 2:
        raise VlaError(f'batch.prompt_BL: shape {tuple(prompt_BL.shape)} is not (batch, tokens).')
    L = prompt_BL.shape[1]
    if config.max_prompt < L:
        raise VlaError(
            f'batch.prompt_BL: {L} tokens do not fit the prompt budget of {config.max_prompt} (model.max_prompt); '
            'shorten the instruction or ask for truncation.'
        )
    _expect('prompt_BL', prompt_BL, tuple(prompt_BL.shape))
    _expect('prompt_mask_BL', prompt_mask_BL, tuple(prompt_BL.shape))


def check_values(batch: Batch, config: ModelConfig) -> None:
    """Numbers that would poison a training run: ids out of range, actions or states that are not finite."""
    for name in ('prompt_BL', 'target_BT'):
        ids = getattr(batch, name)
        outside = (ids < 0) | (ids >= config.vocab_size)
        if bool(outside.any()):
            row, column = outside.nonzero()[0].tolist()
            raise VlaError(
                f'batch.{name}: id {int(ids[row, column])} at [{row}, {column}] is outside the vocabulary of '
                f'{config.vocab_size}.'
            )
    for name in ('actions_BHA', 'state_BS', 'images_BVCHW'):
        value = getattr(batch, name)
        if value.is_floating_point() and not bool(value.isfinite().all()):
            where = (~value.isfinite()).nonzero()[0].tolist()
            raise VlaError(
                f'batch.{name}: {value[tuple(where)].item()} at {where} is not finite; drop or fix that sample.'
            )
    outside = batch.loss_mask_BT & ~batch.target_mask_BT
    if bool(outside.any()):
        raise VlaError(f'batch.loss_mask_BT: asks for a loss on padding at {outside.nonzero()[0].tolist()}.')
    empty = ~batch.prompt_mask_BL.any(dim=1)
    if bool(empty.any()):
        raise VlaError(f'batch.prompt_mask_BL: example {int(empty.nonzero()[0])} has no prompt token at all.')


def collate(samples: Sequence[Mapping[str, Any]], pad_id: int = 0) -> Batch:
    """Put samples together: dictionaries with the names of `Batch` less the leading B, as arrays or tensors.

    `prompt_L`, `target_T` and their masks may differ in length and are padded on the right; views may differ in
    number and are padded with blank, masked images. A missing `*_mask` of tokens means all valid; `action_token_T` and
    the labels of patches may be absent everywhere. Numbers in float64 become float32.

    Raises:
        VlaError: there are no samples, or a sample lacks a field.
    """
    if not samples:
        raise VlaError('collate: there are no samples to put together.')
    columns: dict[str, Any] = {}
    for name in _DTYPES:
        short = name.replace('_B', '_', 1)
        found = [_field(sample, short, index, name in _OPTIONAL) for index, sample in enumerate(samples)]
        values = [value for value in found if value is not None]
        if len(values) < len(found):  # an optional one
            continue
        fill = pad_id if name in ('prompt_BL', 'target_BT') else _FILLS.get(name, 0)
        dtypes = _DTYPES[name]
        columns[name] = _stack(name, [v if v.dtype in dtypes else v.to(dtypes[0]) for v in values], fill)
    return Batch(**columns)


def _field(sample: Mapping[str, Any], name: str, index: int, optional: bool = False) -> Tensor | None:
    value = sample.get(name)
    if value is None and name.startswith(('prompt_mask', 'target_mask')):
        ids = sample[name.replace('_mask', '')]
        return torch.ones(len(ids), dtype=torch.bool)
    if value is None and optional:
        return None
    if value is None:
        raise VlaError(f'collate: sample {index} has no field {name}.')
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else torch.as_tensor(value)


def _stack(name: str, values: list[Tensor], fill: float) -> Tensor:
    ragged = name in _RAGGED or name.endswith('_BT')
    if ragged:
        longest = max(len(v) for v in values)
        values = [
            torch.cat([v, v.new_full((longest - len(v), *v.shape[1:]), fill)]) if len(v) < longest else v
            for v in values
        ]
    shapes = {tuple(v.shape) for v in values}
    if len(shapes) > 1:
        raise VlaError(f'collate: {name} has different shapes in one batch: {sorted(shapes)}.')
    return torch.stack(values)


def _expect(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise VlaError(f'batch.{name}: shape {tuple(value.shape)} should be {shape}.')
    if value.dtype not in _DTYPES[name]:
        wanted = ' or '.join(str(d).removeprefix('torch.') for d in _DTYPES[name])
        raise VlaError(f'batch.{name}: dtype {str(value.dtype).removeprefix("torch.")} should be {wanted}.')
