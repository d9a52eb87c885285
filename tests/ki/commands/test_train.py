"""`ki train`: what the words of the command make of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ki.commands.train import app
from training.errors import TrainingError

CONFIG: dict[str, Any] = {
    'data': {'arrays': 'made', 'vlm': ['words.jsonl'], 'validation': 0.25, 'outcomes': ['success'], 'task': 'tidy up'},
    'stages': [{'vlm': 0.5}],
}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The runs that the command would have trained."""
    runs: list[Any] = []
    monkeypatch.setattr('ki.commands.train.fit', runs.append)
    return runs


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_recordings_take_the_place_of_those_of_a_configuration_and_of_nothing_else(
    tmp_path: Path, trained: list[Any]
) -> None:
    config = tmp_path / 'run.yaml'
    config.write_text(yaml.safe_dump(CONFIG))
    for given in ([], ['--task', 'lift the cup']):
        result = run(config, '--bags', 'mine', *given)
        assert result.exit_code == 0, result.output
    one, other = (each.data for each in trained)
    assert (one.bags, one.arrays, one.task) == ('mine', None, 'tidy up')
    assert (one.vlm, one.validation, one.outcomes) == (('words.jsonl',), 0.25, ('success',))
    assert other.task == 'lift the cup'


def test_words_that_would_do_nothing_are_refused(tmp_path: Path, trained: list[Any]) -> None:
    config = tmp_path / 'run.yaml'
    config.write_text(yaml.safe_dump(CONFIG))
    for given, says in (
        ([config, '--task', 'lift the cup'], '--task: it is the instruction of recordings named with --bags'),
        ([config, '--data-only'], '--data-only: the configuration has no section simulate'),
        (['--bags', 'mine', '--data-only'], 'no section simulate'),
        ([], r'name a configuration .*or recordings with --bags'),
    ):
        with pytest.raises(TrainingError, match=says):
            raise run(*given).exception or AssertionError('it was taken')
    assert not trained
