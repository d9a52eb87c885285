"""High-level inference of a two-level policy: the next subtask in words, then actions (pi0.5, section IV).

A policy trained with `Processing.subtasks` first decodes its next subtask, with the box of the object that it reaches
for, from the same images. Those words then become part of the prompt for its actions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ki_vla.model.kivla import KiVla
from ki_vla.policy.bundle import Bundle
from ki_vla.policy.generation import generate
from ki_vla.policy.model_inputs import ModelInputs
from ki_vla.policy.processor import Images, Processor

MAX_SUBTASK_TOKENS = 40  # tokens of a subtask


class SubtaskGenerator:
    """Decodes the next subtask of a two-level policy; an empty one for any other policy.

    The words come from torch whatever computes the actions: decoding them is no part of the exported graphs, and needs
    a copy of the weights.

    Args:
        bundle: of the policy.
        device: where the copy of its weights lives; a GPU, where there is one, unless given.
    """

    def __init__(self, bundle: Bundle, device: torch.device | str | None = None) -> None:
        self._processor = bundle.processor
        self._model: KiVla | None = None
        if bundle.processor.processing.subtasks:
            place = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
            self._model = bundle.model(place, torch.float32 if place.type == 'cpu' else torch.bfloat16).eval()

    def next(self, images: Images, state: np.ndarray, instruction: str) -> str:
        """The next subtask, boxes as location tokens; empty when there is none, or it does not come to an end.

        Args:
            images: by camera name.
            state: SI.
            instruction: what the robot was told.

        Raises:
            VlaError: as `Processor.inputs`.
        """
        if self._model is None:
            return ''
        asked = self._processor.inputs(images, state, instruction, asks='Subtask')
        return generate_subtasks(self._model, self._processor, [asked])[0]

    def warm_up(self) -> None:
        """Run once on black images, so that the first subtask of a run is not slower than later ones."""
        size = self._processor.config.vision.image_size
        black = np.zeros((size, size, 3), dtype=np.uint8)
        self.next(dict.fromkeys(self._processor.contract.camera_names, black), self._processor.state_stats.mean, 'wait')


def generate_subtasks(model: KiVla, processor: Processor, asked: Sequence[ModelInputs]) -> list[str]:
    """The next subtask of several moments, '' where the model does not come to an end.

    Args:
        model: on any device.
        processor: of the policy.
        asked: from `Processor.inputs(..., asks='Subtask')`.
    """
    vocabulary, device = processor.tokenizer.vocabulary, model.embed.weight.device
    width = max(len(each.prompt_L) for each in asked)
    prompts = np.full((len(asked), width), vocabulary.pad, dtype=np.int64)
    mask = np.zeros((len(asked), width), dtype=bool)
    for row, each in enumerate(asked):
        prompts[row, : len(each.prompt_L)], mask[row, : len(each.prompt_L)] = each.prompt_L, each.prompt_mask_L
    pictures = np.stack([each.sample()['images_VCHW'] for each in asked])
    views, states = (np.stack([getattr(each, name) for each in asked]) for name in ('image_mask_V', 'state_S'))
    arrays = (pictures, views, prompts, mask, states)
    images_BVCHW, views_BV, prompt_BL, mask_BL, state_BS = (torch.from_numpy(array).to(device) for array in arrays)
    allowed_C = torch.zeros(vocabulary.size, dtype=torch.bool, device=device)
    allowed_C[: vocabulary.text_size] = True
    allowed_C[vocabulary.loc_start : vocabulary.loc_start + vocabulary.loc_bins] = True
    allowed_C[[vocabulary.pad, vocabulary.bos]] = False
    prefix = model.prefill(images_BVCHW, views_BV, prompt_BL, mask_BL, state_BS, hidden=True)
    out = generate(model, prefix, MAX_SUBTASK_TOKENS, [vocabulary.eos], allowed_C)
    rows = zip(out.ids, out.mask, out.finished.tolist(), strict=True)
    return [processor.tokenizer.decode(ids[kept].tolist()).strip() if done else '' for ids, kept, done in rows]
