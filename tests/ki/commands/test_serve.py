"""`ki serve`, as one types it: what cannot be served is said before a policy is loaded, and Ctrl-C ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Ki = Callable[..., subprocess.CompletedProcess[str]]


def test_what_cannot_be_served_is_one_sentence(ki: Ki, tmp_path: Path) -> None:
    open_to_all = ki('serve', tmp_path, '--host', '0.0.0.0')
    assert open_to_all.returncode == 2
    assert 'give --token-file FILE with a token' in open_to_all.stderr
    assert 'write --key KEY=NAME' in ki('serve', tmp_path, '--key', 'head').stderr
    (tmp_path / 'token').write_text('short')
    assert 'write at least 16' in ki('serve', tmp_path, '--token-file', tmp_path / 'token').stderr
    assert 'manifest.json' in ki('serve', tmp_path).stderr


def test_it_says_where_it_listens_and_ends_with_ctrl_c(tmp_path: Path, root: Path) -> None:
    pytest.importorskip('websockets', reason='needs the extra serve')
    from websockets.sync.client import connect

    from ki_robot.contract.contract import load_contract
    from ki_vla.policy.untrained import write_untrained
    from ki_vla.remote.wire import unpack

    write_untrained(tmp_path / 'arm', load_contract('arm_single'))
    words = [sys.executable, '-m', 'ki.main', 'serve', str(tmp_path / 'arm'), '--port', '0', '--backend', 'torch']
    environment = os.environ | {'PYTHONPATH': str(root), 'PYTHONUNBUFFERED': '1'}
    with subprocess.Popen(
        [*words, '--allow-untrained'], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    ) as process:
        assert process.stdout is not None
        said = re.fullmatch(
            r'untrained@\w+ \(torch\) at (ws://127\.0\.0\.1:\d+); Ctrl-C ends it\n', process.stdout.readline()
        )
        assert said is not None
        with connect(said[1]) as client:
            assert unpack(client.recv())['horizon'] == 50
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        assert process.stdout.read() == 'ended\n'
