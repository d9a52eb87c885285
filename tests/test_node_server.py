"""Nodes of the tests are processes of their own, though one server forks them all."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip('rclpy')


def test_a_served_process_has_its_own_arguments_environment_output_and_end(
    rigs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = rigs.node_server()
    monkeypatch.setenv('HOME', '/home/of/a/test')
    said = server.start('site', ['--user-base'], tmp_path / 'said.log')
    refused = server.start('json.tool', [str(tmp_path / 'absent.json')], tmp_path / 'refused.log')
    waits = server.start('http.server', ['--bind', '127.0.0.1', '0'], tmp_path / 'waits.log')
    said.wait(10.0)
    assert '/home/of/a/test' in (tmp_path / 'said.log').read_text()
    assert refused.wait(10.0) != 0
    assert 'absent.json' in (tmp_path / 'refused.log').read_text()
    with pytest.raises(subprocess.TimeoutExpired):
        waits.wait(0.1)
    assert waits.poll() is None
    waits.send_signal(signal.SIGTERM)
    assert waits.wait(10.0) == -signal.SIGTERM
    waits.kill()  # does nothing to what has ended
