"""What a run fits on its data before its first step, kept in its folder: it goes on with the same, or not at all.

    parts/stats.json   normalisation of state and actions
          others/      the same of each other robot in the run, by name
          tokenizer/   tokenizer.json, vocabulary.json
          fast.json    codec of the action tokens, where there is one
          fit.json     what FAST cost, where it was fitted

Fitted again, a word more in the data gives another vocabulary, and another machine other last digits; weights mean
nothing with either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ki_common.errors import KiError
from ki_common.files import atomic_folder
from ki_robot.transforms import Stats, load_stats, save_stats
from ki_vla.policy.processor import Processor
from ki_vla.tokens.actions import ActionCodec, load_codec, save_codec
from ki_vla.tokens.tokenizer import TextTokenizer, load_tokenizer
from training.errors import TrainingError
from training.fit.fast_fit import FastReport

ARTIFACTS = 'parts'
STATS, OTHERS, TOKENIZER, CODEC, FIT = 'stats.json', 'others', 'tokenizer', 'fast.json', 'fit.json'


@dataclass(frozen=True)
class FittedArtifacts:
    """Statistics (`state`, `actions`), tokenizer, codec of the actions, what was measured when it was fitted; and the
    statistics of the other robots in the run, by name.
    """

    stats: dict[str, Stats]
    tokenizer: TextTokenizer
    codec: ActionCodec | None
    fast: FastReport | None
    others: Mapping[str, dict[str, Stats]] = field(default_factory=dict)


def save_artifacts(folder: Path, artifacts: FittedArtifacts) -> None:
    """Writes them in place of those that are there, whole or not at all; a disk that is full raises OSError."""
    with atomic_folder(folder) as partial:
        save_stats(partial / STATS, artifacts.stats)
        (partial / OTHERS).mkdir()
        for name, stats in artifacts.others.items():
            save_stats(partial / OTHERS / f'{name}.json', stats)
        artifacts.tokenizer.save(partial / TOKENIZER)
        if artifacts.codec is not None:
            save_codec(artifacts.codec, partial / CODEC)
        if artifacts.fast is not None:
            (partial / FIT).write_text(json.dumps(artifacts.fast.to_dict(), indent=1), encoding='utf-8')


def load_artifacts(folder: Path) -> FittedArtifacts:
    """Reads what `save_artifacts` wrote.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        stats = _both(folder / STATS)
        others = {file.stem: _both(file) for file in sorted((folder / OTHERS).glob('*.json'))}
        codec = load_codec(folder / CODEC) if (folder / CODEC).is_file() else None
        fast = None
        if (folder / FIT).is_file():
            fast = FastReport(**json.loads((folder / FIT).read_text(encoding='utf-8')))
        return FittedArtifacts(stats, load_tokenizer(folder / TOKENIZER), codec, fast, others)
    except (OSError, ValueError, KeyError, TypeError, KiError) as error:
        raise TrainingError(
            f'{folder} is damaged ({error}); the checkpoints beside it need it: take it from a copy, or begin in '
            'another folder (out).'
        ) from error


def _both(file: Path) -> dict[str, Stats]:
    stats = load_stats(file)
    return {'state': stats['state'], 'actions': stats['actions']}


def digests(processor: Processor) -> dict[str, str]:
    """What weights were trained with, part by part: a checkpoint is gone on from with the same alone."""
    tokenizer, codec = processor.tokenizer, processor.codec
    moments = [
        [list(each.names), *(getattr(each, name).tolist() for name in ('mean', 'std', 'q01', 'q99'))]
        for each in (processor.state_stats, processor.action_stats)
    ]
    told = {
        'tokenizer': [tokenizer.vocabulary.to_dict(), json.loads(tokenizer.tokenizer.to_str())],
        'codec': None if codec is None else codec.to_dict(),
        'statistics': moments,
    }
    return {name: _digest(value) for name, value in told.items()}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
