from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ki_common.share import ShareError, share_file, share_folders


def install(prefix: Path, package: str, name: str) -> Path:
    path = prefix / 'share' / package / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_the_source_tree_wins_over_every_installation(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, 'ki_policy_node', 'config/dds/lan.xml')
    install(tmp_path, 'ki_msgs', 'msg/ActionChunk.msg')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    assert share_file('ki_policy_node', 'config/dds/lan.xml') == root / 'config/dds/lan.xml'
    assert share_file('ki_msgs', 'msg/ActionChunk.msg') == root / 'ki_msgs/msg/ActionChunk.msg'


def test_a_sourced_workspace_wins_over_the_environment_and_an_overlay_over_what_it_overlays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay, underlay, environment = (tmp_path / name for name in ('overlay', 'underlay', 'environment'))
    monkeypatch.setattr(sys, 'prefix', str(environment))
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{overlay}::{underlay}')
    assert share_folders('some_msgs') == [each / 'share' / 'some_msgs' for each in (overlay, underlay, environment)]
    for prefix in (environment, underlay, overlay):
        expected = install(prefix, 'some_msgs', 'msg/Name.msg')
        assert share_file('some_msgs', 'msg/Name.msg') == expected


def test_a_missing_file_names_every_folder_that_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    with pytest.raises(ShareError, match=r'msg/Name\.msg of some_msgs') as error:
        share_file('some_msgs', 'msg/Name.msg')
    assert str(tmp_path / 'share' / 'some_msgs') in str(error.value)
    assert 'build some_msgs' in str(error.value)
