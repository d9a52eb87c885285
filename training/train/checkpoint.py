"""Checkpoints: a folder that appears complete and on disk, or not at all; read by any number of processes.

00000500/model.safetensors    weights, float32
         average.safetensors  their moving average, where there is one
         optimiser.pt         state of AdamW by the names of weights; tensors and numbers only
         state.json           step, sampler, counters, what the run must be to go on from here; sha256 of all files
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ki_common.files import atomic_folder, remove_leftovers, sha256_of
from training.errors import TrainingError
from training.train.lora import merged

WEIGHTS, AVERAGE, OPTIMISER, STATE = 'model.safetensors', 'average.safetensors', 'optimiser.pt', 'state.json'
FORMAT = 1
NAME = re.compile(r'\d{8}')


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimiser: dict[str, Any]
    state: dict[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2, keep_every: int = 0) -> Path:
    """Writes FOLDER/STEP and removes all but the `keep` newest; what was there stays whole if this fails.

    With `keep_every`, checkpoints at multiples of so many steps stay too.

    Raises:
        TrainingError: the disk takes no more, or cannot be written.
    """
    final = folder / f'{checkpoint.step:08d}'
    remove_leftovers(folder)
    try:
        with atomic_folder(final) as partial:
            save_file({name: value.contiguous() for name, value in checkpoint.weights.items()}, partial / WEIGHTS)
            if checkpoint.average is not None:
                save_file({name: value.contiguous() for name, value in checkpoint.average.items()}, partial / AVERAGE)
            torch.save(checkpoint.optimiser, partial / OPTIMISER)
            files = {
                path.name: {'bytes': path.stat().st_size, 'sha256': sha256_of(path)}
                for path in sorted(partial.iterdir())
            }
            state = {'format': FORMAT, 'step': checkpoint.step, 'files': files, **checkpoint.state}
            text = json.dumps(state | {'sha256': _digest(state)}, indent=1, sort_keys=True, allow_nan=False)
            (partial / STATE).write_text(text, encoding='utf-8')
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk says
        raise TrainingError(
            f'{final} cannot be written: {error}; free space there. Checkpoints before it are whole.'
        ) from error
    for old in checkpoints(folder)[:-keep]:
        if not keep_every or int(old.name) % keep_every:
            shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name) and (path / STATE).is_file())


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint, its files compared in size.

    Raises:
        TrainingError: it is damaged, or of another version.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding='utf-8'))
        if state['format'] != FORMAT:
            raise TrainingError(f'{path} has format {state["format"]}, this version reads {FORMAT}.')
        sizes_alone = all(isinstance(said, int) for said in state['files'].values())
        if state.pop('sha256', '') != ('' if sizes_alone else _digest(state)):
            raise ValueError(f'{STATE} was changed')
        for name, said in state['files'].items():
            if (path / name).stat().st_size != _entry(said)[0]:
                raise ValueError(f'{name} was cut short')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f'{path} is damaged ({error}); remove it to go on from an older one.') from error
    return dict(state)


def _digest(state: Mapping[str, Any]) -> str:
    """sha256 of what state.json says apart from this."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _entry(said: Any) -> tuple[int, str]:
    """Size and sha256 of a file; checkpoints of version 0.2.0 and before give the size alone."""
    return (said, '') if isinstance(said, int) else (said['bytes'], said['sha256'])


def _checked_state(path: Path) -> dict[str, Any]:
    """`read_state`, and every file compared with its sha256.

    Raises:
        TrainingError: one was changed.
    """
    state = read_state(path)
    for name, said in state['files'].items():
        _, digest = _entry(said)
        if digest and sha256_of(path / name) != digest:
            raise TrainingError(f'{path / name} was changed; remove {path} to go on from an older one.')
    return state


def read_checkpoint(path: Path) -> Checkpoint:
    """All of a checkpoint, on the CPU.

    Raises:
        TrainingError: it is damaged.
    """
    state = _checked_state(path)
    try:
        weights = load_file(path / WEIGHTS)
        average = load_file(path / AVERAGE) if (path / AVERAGE).is_file() else None
        optimiser = torch.load(path / OPTIMISER, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever damaged bytes do to a reader
        raise TrainingError(f'{path} is damaged ({error}); remove it to go on from an older one.') from error
    return Checkpoint(state['step'], weights, average, optimiser, state)


def shipped_weights(path: Path) -> dict[str, Tensor]:
    """The weights that a checkpoint's policy runs with: their average where there is one, adapters merged.

    Raises:
        TrainingError: the checkpoint is damaged.
    """
    _checked_state(path)
    return merged(load_file(path / AVERAGE if (path / AVERAGE).is_file() else path / WEIGHTS))


def check_fingerprint(path: Path, state: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint of another model, other data or another stage.

    Raises:
        TrainingError: names the first field that differs.
    """
    written = state.get('identity', {})
    # A checkpoint from before an entry was recorded says nothing of it.
    known = json.loads(json.dumps({key: each for key, each in fingerprint.items() if key in written}))
    there, here = dict(_flat(written)), dict(_flat(known))
    for name in sorted(set(there) | set(here)):
        if there.get(name) != here.get(name):
            raise TrainingError(
                f'{path} was written by another run: {name} is {there.get(name)!r} there and {here.get(name)!r} here; '
                'give this run another folder (out), or set it back.'
            )


def _flat(data: Any, where: str = '') -> Any:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _flat(value, f'{where}.{key}' if where else str(key))
    else:
        yield where, data
