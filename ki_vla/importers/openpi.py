"""openpi's checkpoints of pi0 and pi0.5: import of its JAX (see `orbax`) and PyTorch ones, export as PyTorch.

Both models hold PaliGemma and an action expert side by side. The text embedding is stored under the name of the output
head it is tied to; the expert's own output head is a leftover that nothing reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from ki_vla.errors import VlaError
from ki_vla.importers.mapping import ImportPlan, ImportReport, convert, gemma_name, our_shapes, pick, vision_name
from ki_vla.importers.orbax import OrbaxTensors, default_jax_config, is_orbax, open_orbax, orbax_plan
from ki_vla.importers.stream import WEIGHTS_FILE, TensorSource, open_checkpoint, write_tensors
from ki_vla.model.config import ModelConfig, preset

ROOT = 'paligemma_with_expert.'
DEAD_HEAD = f'{ROOT}gemma_expert.lm_head.weight'
PI05_EXPERT = {'action_in': 'action_in_proj', 'action_out': 'action_out_proj', 'time_in': 'time_mlp_in',
               'time_out': 'time_mlp_out'}  # fmt: skip
PI0_EXPERT = {'action_in': 'action_in_proj', 'action_out': 'action_out_proj', 'time_in': 'action_time_mlp_in',
              'time_out': 'action_time_mlp_out', 'state_in': 'state_proj'}  # fmt: skip


def import_openpi(
    source: str | Path, path: str | Path, *, config: ModelConfig | None = None, dtype: torch.dtype = torch.float32
) -> ImportReport:
    """Write our weights file from a local openpi pi0 or pi0.5 checkpoint.

    Args:
        source: folder with `params/` (JAX) or model.safetensors (PyTorch), or that file.
        path: the weights file to write.
        config: the model to make; unless given, the full size in the variant (pi0, pi0.5) that the tensors show.
        dtype: float32 or bfloat16.

    Raises:
        VlaError: see `mapping.convert`.
    """
    checkpoint = open_openpi(source)
    config = config or default_config(checkpoint)
    return convert(checkpoint, openpi_plan(checkpoint, config), config, path, dtype)


def open_openpi(source: str | Path) -> TensorSource:
    """The tensors of an openpi or lerobot checkpoint, in whichever form.

    Raises:
        VlaError: see `open_orbax` and `open_checkpoint`.
    """
    return open_orbax(source) if is_orbax(source) else open_checkpoint(source)


def default_config(checkpoint: TensorSource) -> ModelConfig:
    """The full-size configuration of the variant a checkpoint holds; action width as found, horizon 50.

    Raises:
        VlaError: it is no pi0 and no pi0.5.
    """
    if isinstance(checkpoint, OrbaxTensors):
        return default_jax_config(checkpoint)
    root = find_root(checkpoint)
    action_dim = checkpoint.tensors[f'{root}action_in_proj.weight'].shape[-1]
    config = preset('full', action_dim=action_dim, state_dim=action_dim)
    if f'{root}time_mlp_in.weight' in checkpoint.tensors:
        return config.replace(name='pi05')
    return config.replace(name='pi0', adaptive=False, state_repr='suffix', max_prompt=48)


def find_root(checkpoint: TensorSource) -> str:
    """What stands in front of every name: nothing, or 'model.' in what lerobot saved."""
    return pick(checkpoint, ('', 'model.'), lambda root: f'{root}action_in_proj.weight', 'pi0 or pi0.5')


def openpi_plan(checkpoint: TensorSource, config: ModelConfig) -> ImportPlan:
    """Where every tensor of our model lies in an openpi or lerobot checkpoint."""
    if isinstance(checkpoint, OrbaxTensors):
        return orbax_plan(config)
    root = find_root(checkpoint)
    tower = pick(
        checkpoint,
        (f'{root}{ROOT}paligemma.model.vision_tower.vision_model.', f'{root}{ROOT}paligemma.model.vision_tower.'),
        lambda prefix: f'{prefix}embeddings.patch_embedding.weight',
        'SigLIP tower',
    )
    sources = {ours: openpi_names(ours, config, root, tower) for ours in our_shapes(config)}
    return ImportPlan(
        sources, dead=frozenset({root + DEAD_HEAD, f'{root}{ROOT}gemma_expert.model.embed_tokens.weight'})
    )


def openpi_names(ours: str, config: ModelConfig, root: str = '', tower: str | None = None) -> tuple[str, ...]:
    """Our name -> the names it may have there, the usual one first.

    Raises:
        VlaError: openpi has no such part, for instance a continuous state token in the prefix.
    """
    pali = f'{root}{ROOT}paligemma.'
    part, *rest = ours.split('.')
    if part == 'vision':
        return (vision_name(ours, tower or f'{pali}model.vision_tower.vision_model.'),)
    if part == 'projector':
        return (f'{pali}model.multi_modal_projector.linear.{rest[0]}',)
    if part == 'embed':
        return (f'{pali}lm_head.weight', f'{pali}model.language_model.embed_tokens.weight')
    if part == 'backbone':
        return (gemma_name(ours, f'{pali}model.language_model.'),)
    if part == 'expert' and config.head == 'expert':
        if rest[0] in ('layers', 'norm'):
            return (gemma_name(ours, f'{root}{ROOT}gemma_expert.model.'),)
        names = PI05_EXPERT if config.adaptive else PI0_EXPERT
        if rest[0] in names:
            return (f'{root}{names[rest[0]]}.{rest[1]}',)
    raise VlaError(
        f'{ours}: pi0 and pi0.5 have no such part (head {config.head!r}, state {config.state_repr!r}, '
        f'adaptive {config.adaptive}); only their own structure can be read or written.'
    )


def export_openpi(
    weights: str | Path,
    config: ModelConfig,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    root: str = '',
) -> Path:
    """Write our weights back in openpi's layout: model.safetensors and config.json.

    The dead head of the expert is written as zeros, because strict loaders ask for it.

    Args:
        weights: our weights file.
        config: its structure.
        folder: where to write.
        dtype: float32 or bfloat16.
        root: 'model.' for the names of what lerobot saves; no config.json then.

    Raises:
        VlaError: the structure is not one that openpi knows.
    """
    checkpoint, folder = open_checkpoint(weights), Path(folder)
    names = {openpi_names(ours, config, root)[0]: ours for ours in our_shapes(config)}
    shapes = {theirs: checkpoint.tensors[ours].shape for theirs, ours in names.items() if ours in checkpoint.tensors}
    if set(checkpoint.tensors) != set(names.values()):
        differing = sorted(set(checkpoint.tensors) ^ set(names.values()))
        raise VlaError(f'{weights}: does not fit its configuration; missing or unexpected: {", ".join(differing[:8])}.')
    dead = root + DEAD_HEAD
    shapes[dead] = (config.vocab_size, config.expert.width)

    def pieces(theirs: str) -> Iterable[torch.Tensor]:
        if theirs == dead:
            return (torch.zeros(1, config.expert.width) for _ in range(config.vocab_size))
        return checkpoint.pieces(names[theirs])

    write_tensors(folder / WEIGHTS_FILE, shapes, dtype, pieces)
    description = {
        'action_dim': config.action_dim,
        'action_horizon': config.horizon,
        'paligemma_variant': 'gemma_2b',
        'action_expert_variant': 'gemma_300m',
        'precision': 'bfloat16' if dtype == torch.bfloat16 else 'float32',
    }
    if not root:
        (folder / 'config.json').write_text(json.dumps(description, indent=2) + '\n', encoding='utf-8')
    return folder
