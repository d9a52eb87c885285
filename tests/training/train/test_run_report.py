"""What is written for people to read never ends what it tells of."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from training.errors import TrainingError
from training.train.run_report import CURVES, METRICS, Journal, read_metrics


def test_a_disk_that_takes_no_more_is_told_once_and_costs_only_what_it_did_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)  # it writes in a thread of its own, later
    told: list[str] = []
    journal = Journal(tmp_path, warn=told.append)
    journal.write(1, 'train', {'flow': 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / METRICS).stat().st_size + 10, hard))
    try:
        journal.write(2, 'train', {'flow': 0.9})
        journal.write(3, 'train', {'flow': 0.8})
        assert len(told) == 1
        assert 'metrics cannot be written' in told[0]
        assert 'free space' in told[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.write(4, 'train', {'flow': 0.7})
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [line['step'] for line in read_metrics(tmp_path)] == [1, 4], 'no half of a line is left'
    assert len(told) == 1


def test_lines_of_a_life_that_was_lost_are_dropped_and_curves_drawn(tmp_path: Path) -> None:
    for first in (0, 2):
        journal = Journal(tmp_path, first)
        for step in range(first + 1, first + 4):
            journal.write(step, 'train', {'flow': 1.0 / step})
        journal.close()
    assert [line['step'] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    pytest.importorskip('matplotlib')
    assert (tmp_path / CURVES).is_file()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(TrainingError, match=r'file/vla cannot be written: .*free space there'):
        Journal(tmp_path / 'file' / 'vla')
