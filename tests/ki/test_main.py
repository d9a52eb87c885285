"""`ki` finds its subcommands by file name, quickly, and says errors in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from ki import main
from ki_common.errors import KiError

Ki = Callable[..., subprocess.CompletedProcess[str]]


def test_help_lists_every_file_and_no_helper(ki_process: Ki, root: Path) -> None:
    done = ki_process('--help')
    assert done.returncode == 0
    files = {path.stem.replace('_', '-') for path in (root / 'ki' / 'commands').glob('[a-z]*.py')}
    listed = {line.split()[0] for line in done.stdout.split('Commands:')[1].splitlines() if line.strip()}
    assert files <= listed
    assert not any(name.startswith('_') for name in listed)


def test_help_loads_no_heavy_library() -> None:
    code = (
        'import sys, ki.main\n'
        'try: ki.main.app(["--help"], prog_name="ki")\n'
        'except SystemExit: pass\n'
        'print(sorted({"torch", "rclpy", "mujoco", "onnxruntime", "cv2", "transformers"} & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[]'


@pytest.mark.parametrize(
    ('given', 'spins'),
    [({}, str(main.SPINS)), ({'GOMP_SPINCOUNT': '5'}, '5'), ({'OMP_WAIT_POLICY': 'ACTIVE'}, None)],
)
def test_threads_that_wait_sleep_soon_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spins: str | None
) -> None:
    found = []
    monkeypatch.setattr(main, 'app', lambda prog_name: found.append(os.environ.get('GOMP_SPINCOUNT')))
    for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    main.main()
    assert found == [spins]


def test_an_unknown_command_is_refused(ki: Ki) -> None:
    done = ki('nothing')
    assert done.returncode == 2
    assert "No such command 'nothing'" in done.stderr


def test_an_error_becomes_one_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: object) -> None:
        raise KiError('The arm has no elbow.')

    monkeypatch.setattr(main, 'app', fails)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == 'ki: The arm has no elbow.\n'


@pytest.mark.parametrize(('module', 'words'), [('rclpy', 'Source your ROS 2'), ('mujoco', 'make setup')])
def test_a_missing_library_is_named_with_what_fixes_it(
    module: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: object) -> None:
        raise ModuleNotFoundError(f'No module named {module!r}', name=module)

    monkeypatch.setattr(main, 'app', fails)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert module in said
    assert words in said


def test_what_the_file_system_refuses_is_named_with_its_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(main, 'app', lambda **_: tmp_path.read_text())
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f'ki: {tmp_path}: Is a directory\n'


def test_a_missing_file_of_our_own_is_a_bug_and_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise ModuleNotFoundError('No module named ki_vla.nothing', name='ki_vla.nothing')

    monkeypatch.setattr(main, 'app', fails)
    with pytest.raises(ModuleNotFoundError):
        main.main()


def test_a_warning_is_one_sentence_without_the_code_that_gave_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)  # put back afterwards
    monkeypatch.setattr(main, 'app', lambda **_: warnings.showwarning(UserWarning('It is late.'), UserWarning, 'x', 1))
    main.main()
    assert capsys.readouterr().err == 'ki: note: It is late.\n'
