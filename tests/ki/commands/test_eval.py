"""`ki eval` refuses to look at nothing."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from ki.commands.eval import app


@pytest.mark.parametrize('arguments', [['sim', 'bundle', '--seeds', '0'], ['data', 'bundle', '--samples', '0']])
def test_a_number_of_none_is_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert arguments[2] in done.output
