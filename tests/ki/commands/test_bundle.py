"""`ki bundle` on real folders."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Ki = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope='module')
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ki_robot.contract.contract import load_contract
    from ki_vla.policy.untrained import write_untrained

    return write_untrained(tmp_path_factory.mktemp('bundles') / 'arm', load_contract('arm_single')).folder


def test_show_tells_what_a_policy_is_and_that_it_fits(ki: Ki, bundle: Path) -> None:
    done = ki('bundle', 'show', bundle, '--robot', 'arm_single')
    assert done.returncode == 0, done.stderr
    assert 'untrained@' in done.stdout
    assert done.stdout.splitlines()[-1] == 'fits the robot arm_single'


def test_a_robot_that_does_not_fit_is_one_sentence_that_names_fields(ki: Ki, bundle: Path) -> None:
    done = ki('bundle', 'show', bundle, '--robot', 'bimanual_static')
    assert done.returncode == 2
    assert 'does not fit the robot bimanual_static' in done.stderr
    assert 'Traceback' not in done.stderr


def test_an_untrained_bundle_is_made_once_and_never_overwritten_unasked(ki: Ki, tmp_path: Path) -> None:
    assert ki('bundle', 'untrained', tmp_path / 'made', '--robot', 'arm_single').returncode == 0
    again = ki('bundle', 'untrained', tmp_path / 'made', '--robot', 'arm_single')
    assert again.returncode == 2
    assert str(tmp_path / 'made') in again.stderr


def test_weights_of_another_vocabulary_are_not_written_for_programs_that_would_misread_them(
    ki: Ki, bundle: Path, tmp_path: Path
) -> None:
    done = ki('bundle', 'weights', bundle, tmp_path / 'out')
    assert done.returncode == 2
    assert 'tokenizer of its own' in done.stderr
    assert not (tmp_path / 'out').exists()


def test_import_names_a_checkpoint_that_is_not_there(ki: Ki, tmp_path: Path) -> None:
    done = ki(
        'bundle', 'import', 'openpi', tmp_path / 'none', tmp_path / 'out', '--robot', 'arm_single',
        '--stats', tmp_path / 'norm_stats.json', '--tokenizer', tmp_path / 'tokenizer.json',
    )  # fmt: skip
    assert done.returncode == 2
    assert str(tmp_path / 'none') in done.stderr
    assert 'Traceback' not in done.stderr


def test_check_shows_what_a_policy_sees_and_answers_by_column(ki: Ki, bundle: Path, tmp_path: Path) -> None:
    done = ki('bundle', 'check', bundle)
    assert done.returncode == 0, done.stderr
    assert 'view 1: scene (scene), 224 x 224' in done.stdout
    assert 'State: ' in done.stdout
    assert 'joint7/position' in done.stdout
    (tmp_path / 'golden.npz').write_bytes(b'nothing')
    refused = ki('bundle', 'check', bundle, '--golden', tmp_path / 'golden.npz')
    assert refused.returncode == 2
    assert 'not a golden file' in refused.stderr


def test_import_asks_for_cameras_in_pairs(ki: Ki, tmp_path: Path) -> None:
    (tmp_path / 'in').mkdir()
    done = ki(
        'bundle', 'import', 'openpi', tmp_path / 'in', tmp_path / 'out', '--robot', 'arm_single', '--camera', 'scene',
        '--tokenizer', tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert 'write --camera VIEW=CAMERA' in done.stderr
