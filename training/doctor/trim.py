"""A list of what is worth training on: recordings stay as they are, and training takes the steps of the list.

The file is YAML, for a human to read and edit::

    episodes:
    - {recording: bags/lift_3, sha256: 1f0c..., episode: episode_000, first: 12, end: 431}
    left_out:
    - {recording: bags/lift_4, episode: episode_000, why: duplicate}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from ki_common.configuration.model import Config
from ki_common.configuration.yaml_reader import read_yaml
from ki_common.files import write_text
from training.doctor.findings import Finding
from training.doctor.motion import idle_spans, segments_of
from training.errors import TrainingError
from training.index.index import Index
from training.samples.dataset import EpisodeDataset

LEFT_OUT = ('duplicate', 'jerk', 'frozen')  # kinds of findings whose episodes are not worth training on
MARGIN_S = 0.5  # of rest that stays before and after the motion: a policy must learn to begin, and to stop
HEAD = '# Kept by `ki doctor data --trim`: steps first..end-1 of each episode; for data.trim of a run.\n'


class _ListPart(Config):
    raises = TrainingError


class KeptSteps(_ListPart):
    """Steps of one episode that are trained on."""

    recording: str
    """Path of the recording, for the reader; the hash counts."""
    sha256: str
    """Of the recording, as the index has it."""
    episode: str
    """Of the recording, as its file in the index is called: episode_000."""
    first: int = Field(ge=0)
    """The first step."""
    end: int = Field(ge=1)
    """The step after the last one."""


class LeftOut(_ListPart):
    """One episode that is not trained on."""

    recording: str
    """Path of the recording."""
    episode: str
    """Of the recording, as its file in the index is called."""
    why: str
    """Kind of the finding: duplicate, jerk, frozen or idle."""


class StepList(_ListPart):
    """The file."""

    episodes: tuple[KeptSteps, ...] = Field(min_length=1)
    """What is trained on."""
    left_out: tuple[LeftOut, ...] = ()
    """What is not, and why: the kind of the finding."""


def trimmed(index: Index, findings: Sequence[Finding]) -> StepList:
    """The list for an index: without copies, shaking and frozen episodes, and without the rest at both ends.

    Raises:
        TrainingError: nothing would be left.
    """
    dataset = EpisodeDataset(index)
    out: dict[int, str] = {}
    for finding in findings:
        if finding.kind in LEFT_OUT:
            out.update({place.episode: finding.kind for place in finding.places})
    margin = round(MARGIN_S * index.contract.rate_hz)
    moved = {number: (0, index.episodes[number][1].steps) for number in dataset.episode_numbers}
    for segment in segments_of(dataset, every=True):
        number = segment.place.episode
        first, end = moved[number]
        for span in idle_spans(dataset, segment):
            if span.first <= first:
                first = max(first, span.end - margin)
            if span.end >= end:
                end = min(end, span.first + margin)
        moved[number] = (first, end)
    kept, left = [], []
    for number, (first, end) in moved.items():
        entry, about = index.episodes[number]
        name = about.file.removesuffix('.npz')
        rests = end - first < about.steps and end - first <= 2 * margin
        why = out.get(number, 'idle' if rests else '')
        if why:
            left.append(LeftOut(recording=entry.path, episode=name, why=why))
        else:
            kept.append(KeptSteps(recording=entry.path, sha256=entry.sha256, episode=name, first=first, end=end))
    if not kept:
        raise TrainingError(f'--trim would leave nothing of {index.folder}; look at the findings first.')
    return StepList(episodes=tuple(kept), left_out=tuple(left))


def write_list(path: Path, made: StepList) -> None:
    """Writes the file, one line an episode."""
    parts = []
    for name in ('episodes', 'left_out'):
        rows: list[Any] = [each.to_dict() for each in getattr(made, name)]
        lines = [f'- {_line(row)}' for row in rows]
        parts.append('\n'.join([f'{name}:', *lines]) if lines else f'{name}: []')
    write_text(path, HEAD + '\n'.join(parts) + '\n')


def _line(row: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(row), default_flow_style=True, sort_keys=False, width=10**6)).strip()


def kept_steps(path: Path, index: Index) -> dict[int, tuple[int, int]]:
    """Of each episode of an index that a list names, by its position there, the first step and the one after the last.

    Raises:
        TrainingError: no such list, or it is of other recordings.
    """
    made = StepList.parse(read_yaml(path, TrainingError), str(path))
    places = {(entry.sha256, about.file.removesuffix('.npz')): n for n, (entry, about) in enumerate(index.episodes)}
    found = {}
    for each in made.episodes:
        number = places.get((each.sha256, each.episode))
        if number is not None:
            found[number] = (each.first, each.end)
    if not found:
        raise TrainingError(
            f'{path} names no episode of {index.folder}: it is of other recordings; write it again with '
            '`ki doctor data --trim`.'
        )
    return found
