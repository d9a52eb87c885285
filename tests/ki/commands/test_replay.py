"""`ki replay` refuses options that cannot be meant before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ki.commands.replay import app
from ki_common.errors import KiError
from ki_policy_node.policy import backends

DEMO = Path(__file__).resolve().parents[3] / 'bundles' / 'demo'


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (['--mode', 'foo'], "mode is 'foo'; write one of auto, latest, queue, temporal_ensemble, rtc, guided."),
        (['--execute-steps', '51', '--robot', 'arm_single'], '--execute-steps is 51; write a number from 1 to 49'),
        (['--execute-steps', '500', '--bundle', str(DEMO)], '--execute-steps is 500; write a number from 1 to '),
        (['--execute-steps', '-1'], 'execute_steps is -1; write a number from 1, or 0'),
    ],
)
def test_a_replay_is_refused_before_its_policy_is_opened(
    options: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, 'open_policy', lambda *_: pytest.fail('the policy was opened'))
    done = CliRunner().invoke(app, ['bag', *options])
    assert isinstance(done.exception, KiError)
    assert told in str(done.exception)


@pytest.mark.parametrize('option', ['--latency', '--max-chunks'])
def test_a_number_below_zero_is_refused(option: str) -> None:
    done = CliRunner().invoke(app, ['bag', option, '-1'])
    assert done.exit_code == 2
    assert option in done.output
