"""What must be the same for a run to resume from a checkpoint: model, fitted artifacts, data and stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ki_vla.model.config import ModelConfig
from ki_vla.policy.processor import Processor
from training.fit.fitted_artifacts import digests
from training.samples.dataset import EpisodeDataset
from training.samples.mixture import Part
from training.samples.vlm_data import VlmDataset
from training.train.config import Run, Stage

DRAWN = ('validation', 'split_seed', 'stride', 'outcomes', 'subtask', 'start_steps')  # decide which samples are drawn


def resume_fingerprint(
    run: Run,
    stage: Stage,
    processor: Processor,
    others: Mapping[str, Processor],
    parts: Sequence[Part],
    data_hash: str,
) -> dict[str, Any]:
    """Plain data; `others` are the processors of the other robots, `parts` what the stage draws from."""
    made = {
        'model': _model(processor.config),
        'data': data_hash,
        'seed': run.seed,
        'stage': _stage(stage),
        'tokens': None if run.tokens is None else run.tokens.to_dict(),
        'processing': _processing(processor),
        'lora': run.lora,
        'parts': digests(processor),
        'data.vlm': [part.source.hash for part in parts if isinstance(part.source, VlmDataset)],
        **{f'data.{name}': getattr(run.data, name) for name in DRAWN},
    }
    if others:
        made['embodiments'] = {
            'weights': {each.robot: each.weight for each in run.embodiments},
            'data': {part.name: part.source.index.hash for part in parts if isinstance(part.source, EpisodeDataset)},
            'statistics': {name: digests(each)['statistics'] for name, each in others.items()},
        }
    return made


def _model(config: ModelConfig) -> dict[str, Any]:
    """As `ModelConfig`, without what is as it was before there was a choice."""
    return {name: value for name, value in config.to_dict().items() if (name, value) != ('steps_per_token', 1)}


def _stage(stage: Stage) -> dict[str, Any]:
    """As `Stage`, without how a step is cut, and without what is as it was before there was a choice."""
    made = stage.to_dict()
    before = (('sight', False), ('optimiser', 'adamw'))
    return {name: value for name, value in made.items() if name != 'accumulate' and (name, value) not in before}


def _processing(processor: Processor) -> dict[str, Any]:
    """As `Processing`; before there was a choice, checkpoints of pictures that were decoded in full did not say so."""
    made = processor.processing.to_dict()
    return {name: value for name, value in made.items() if (name, value) != ('jpeg_decode', 'full')}
