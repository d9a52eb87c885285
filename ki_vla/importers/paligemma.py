"""google/paligemma-3b-pt-224 (and -mix, -448 with the fitting configuration): the backbone that training starts from.

Two namings exist: `language_model.model.layers...` (as published) and `model.language_model.layers...` (as newer
versions of transformers name it in memory). The checkpoint has no action expert: that part is initialised anew, and the
report says so.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ki_vla.importers.mapping import ImportPlan, ImportReport, convert, gemma_name, our_shapes, pick, vision_name
from ki_vla.importers.stream import TensorSource, open_checkpoint
from ki_vla.model.config import ModelConfig, preset

# The published embedding has 257216 rows, 64 of them padding after the 257152 tokens.
PADDING_ROWS = 64


def import_paligemma(
    source: str | Path, path: str | Path, *, config: ModelConfig | None = None, dtype: torch.dtype = torch.float32
) -> ImportReport:
    """Write our weights file from a local PaliGemma checkpoint.

    Args:
        source: folder with the shards and their index, or one safetensors file.
        path: the weights file to write.
        config: the model to make; the 3B backbone with the 300M expert unless given.
        dtype: float32 or bfloat16.

    Raises:
        VlaError: see `mapping.convert`.
    """
    config = config or preset('full')
    checkpoint = open_checkpoint(source)
    return convert(checkpoint, paligemma_plan(checkpoint, config), config, path, dtype)


def paligemma_plan(checkpoint: TensorSource, config: ModelConfig) -> ImportPlan:
    """Where every tensor of our model lies in a PaliGemma checkpoint."""
    root = pick(checkpoint, ('', 'model.'), lambda root: f'{root}multi_modal_projector.linear.weight', 'PaliGemma')
    text = 'model.language_model.' if root else 'language_model.model.'
    head = 'lm_head.weight' if root else 'language_model.lm_head.weight'
    tower = pick(
        checkpoint,
        (f'{root}vision_tower.vision_model.', f'{root}vision_tower.'),
        lambda prefix: f'{prefix}embeddings.patch_embedding.weight',
        'SigLIP tower',
    )
    sources: dict[str, tuple[str, ...]] = {}
    fresh = []
    for ours in our_shapes(config):
        part = ours.split('.')[0]
        if part == 'vision':
            sources[ours] = (vision_name(ours, tower),)
        elif part == 'projector':
            sources[ours] = (f'{root}multi_modal_projector.linear.{ours.split(".")[1]}',)
        elif part == 'embed':
            sources[ours] = (f'{text}embed_tokens.weight', head)
        elif part == 'backbone':
            sources[ours] = (gemma_name(ours, text),)
        else:
            fresh.append(ours)
    return ImportPlan(sources, rows={'embed.weight': PADDING_ROWS}, fresh=tuple(fresh))
