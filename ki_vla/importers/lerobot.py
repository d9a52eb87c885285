"""lerobot's pi0_base and pi05_base, import and export: openpi's names, with the prefix `model.` in lerobot's files."""

from __future__ import annotations

from pathlib import Path

import torch

from ki_vla.errors import VlaError
from ki_vla.importers.checkpoint_metadata import CheckpointMetadata, read_metadata
from ki_vla.importers.mapping import ImportReport, convert
from ki_vla.importers.openpi import default_config, export_openpi, open_openpi, openpi_plan
from ki_vla.model.config import ModelConfig


def import_lerobot(
    source: str | Path, path: str | Path, *, config: ModelConfig | None = None, dtype: torch.dtype = torch.float32
) -> ImportReport:
    """Write our weights file from a local lerobot pi0 or pi05 policy, whether or not its names begin with `model.`.

    Args:
        source: the policy's folder (its config.json is read for the horizon), or its safetensors file.
        path: the weights file to write.
        config: the model to make; unless given, the full size in the variant that the tensors show.
        dtype: float32 or bfloat16.

    Raises:
        VlaError: see `mapping.convert`; or config.json names another kind of policy.
    """
    checkpoint = open_openpi(source)
    if config is None:
        config = default_config(checkpoint)
        config = config.replace(horizon=check_kind(read_metadata(source), config).horizon or config.horizon)
    return convert(checkpoint, openpi_plan(checkpoint, config), config, path, dtype)


def export_lerobot(
    weights: str | Path, config: ModelConfig, folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> Path:
    """Write our weights back under lerobot's names. Its config.json and processors are the caller's to add.

    Raises:
        VlaError: the structure is not one that lerobot knows.
    """
    return export_openpi(weights, config, folder, dtype=dtype, root='model.')


def check_kind(metadata: CheckpointMetadata, config: ModelConfig) -> CheckpointMetadata:
    """Refuse a config.json of another kind of policy than the tensors are.

    Raises:
        VlaError: it is.
    """
    if metadata.kind not in (None, config.name):
        raise VlaError(
            f'{metadata.path}: says the policy is {metadata.kind!r}, but the tensors are those of {config.name!r}.'
        )
    return metadata
