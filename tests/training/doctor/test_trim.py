"""What is not worth training on is left out by a list; the recordings are not touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.doctor.diagnose import diagnose
from training.doctor.trim import kept_steps, trimmed, write_list
from training.errors import TrainingError
from training.index.index import Index
from training.samples.dataset import EpisodeDataset

WAIT = 60


@pytest.fixture
def index(sound: list[Any], index_of: Callable[..., Index]) -> Index:
    """Four episodes, the first of which ends in waiting, and a copy of the second."""
    first = sound[0]
    first.state[-2:, 3], first.action[-2:, 3] = 0.0, 0.0

    def wait(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.repeat(values[-1:], WAIT, axis=0)])

    pictures = {camera: wait(each) for camera, each in first.pictures.items()}
    waiting = first.with_(state=wait(first.state), action=wait(first.action), pictures=pictures)
    copy = sound[1].with_(state=sound[1].state + 1e-7)
    return index_of([waiting, *sound[1:], copy])


def test_copies_and_rest_at_the_ends_are_left_out(index: Index, tmp_path: Path) -> None:
    made = trimmed(index, diagnose(index))
    assert [each.why for each in made.left_out] == ['duplicate']
    write_list(tmp_path / 'kept.yaml', made)
    kept = kept_steps(tmp_path / 'kept.yaml', index)
    assert sorted(kept) == [0, 1, 2, 3]
    assert kept[0][1] == pytest.approx(170, abs=12), 'half a second of rest stays'
    assert kept[1] == (0, 160)
    dataset = EpisodeDataset(index, kept=kept)
    assert dataset.episode_numbers == [0, 1, 2, 3]
    assert len(dataset) == sum(end - first for first, end in kept.values())
    last = kept[0][1] - 1
    assert dataset.chunk(0, last)[1].tolist() == [True] + [False] * 7, 'no action beyond the list is learned'


def test_the_start_of_a_trimmed_episode_is_where_the_list_lets_it_begin(index: Index) -> None:
    starts = EpisodeDataset(index, kept={1: (40, 160)}, first=20).starts()
    assert starts[:, 1].tolist() == list(range(40, 60))


def test_a_list_of_other_recordings_is_refused(index: Index, tmp_path: Path) -> None:
    write_list(tmp_path / 'kept.yaml', trimmed(index, ()))
    text = (tmp_path / 'kept.yaml').read_text()
    for entry in index.entries:
        text = text.replace(entry.sha256, 'f' * 64)
    (tmp_path / 'kept.yaml').write_text(text)
    with pytest.raises(TrainingError, match='of other recordings'):
        kept_steps(tmp_path / 'kept.yaml', index)
    (tmp_path / 'kept.yaml').write_text('episodes: [{recording: a, first: -1}]\n')
    with pytest.raises(TrainingError, match=r'kept\.yaml'):
        kept_steps(tmp_path / 'kept.yaml', index)


def test_short_episodes_stay_and_nothing_is_no_list(sound: list[Any], index_of: Callable[..., Index]) -> None:
    def cut(each: Any, steps: int, still: bool = False) -> Any:
        rest = np.zeros((steps, 4))
        pictures = {camera: shown[:steps] for camera, shown in each.pictures.items()}
        state, action = (rest, rest) if still else (each.state[:steps], each.action[:steps])
        return each.with_(state=state, action=action, pictures=pictures)

    short = trimmed(index_of([cut(each, 5) for each in sound]), ())
    assert [(each.first, each.end) for each in short.episodes] == [(0, 5)] * 4
    with pytest.raises(TrainingError, match='would leave nothing'):
        trimmed(index_of([cut(sound[0], 100, still=True)]), ())
