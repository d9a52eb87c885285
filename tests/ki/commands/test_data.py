"""`ki bags`: from recordings to an index, a report, statistics and a LeRobot dataset, as the README shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ki.commands.data import app
from ki.commands.doctor import app as doctor
from ki_common.errors import KiError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope='module')
def recordings(ki_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a real robot, as recordings."""
    import shutil

    import pyarrow.parquet as pq

    source, short = ki_data / 'unitree_g1_lerobot_v21', tmp_path_factory.mktemp('g1')
    shutil.copytree(source / 'meta', short / 'meta')
    for number in (1, 2):
        data = f'data/chunk-000/episode_{number:06d}.parquet'
        video = f'videos/chunk-000/observation.images.cam_high/episode_{number:06d}.mp4'
        for name in (data, video):
            (short / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pq.read_table(source / data).slice(0, 60), short / data)
        shutil.copy(source / video, short / video)
    bags = tmp_path_factory.mktemp('bags') / 'bags'
    result = run('from-lerobot', short, '--out', bags, '--robot', 'g1_upper_body')
    assert result.exit_code == 0, result.output
    assert 'absent_episode' in result.output
    return bags


def test_from_recordings_to_a_dataset(recordings: Path, tmp_path: Path) -> None:
    index = tmp_path / 'index'
    result = run('index', recordings, '--robot', 'g1_upper_body', '--out', index, '--workers', 1)
    assert result.exit_code == 0, result.output
    assert '2 episodes in 2 recordings, 120 steps' in result.output
    shown = run('show', index)
    assert 'episode_000002' in shown.output
    assert 'joint_states' in shown.output
    checked = run('check', index, '--deep')
    assert checked.exit_code == 0, checked.output
    assert 'Every file of the index is as it was written.' in checked.output
    examined = CliRunner().invoke(doctor, ['data', str(index)])
    assert examined.exit_code == 0, examined.output
    assert 'every episode has the instruction' in examined.output
    counted = run('stats', index, '--out', tmp_path / 'stats.json')
    assert counted.exit_code == 0, counted.output
    assert json.loads((tmp_path / 'stats.json').read_text())['actions']['provenance']['contract'] == 'g1_upper_body'
    fitted = run('fast', index, '--out', tmp_path / 'fast.json', '--size', 512)
    assert 'values a token' in fitted.output
    written = run('to-lerobot', index, '--out', tmp_path / 'lerobot', '--codec', 'copy')
    assert written.exit_code == 0, written.output
    assert json.loads((tmp_path / 'lerobot/meta/info.json').read_text())['total_frames'] == 120


def test_nothing_usable_is_exit_status_one_with_a_table(ki_data: Path, tmp_path: Path) -> None:
    folder = ki_data / 'rosbag2_upstream_testbags' / 'rosbag2_tests' / 'resources' / 'mcap'
    result = run('index', folder, '--out', tmp_path / 'index', '--workers', 1)
    assert result.exit_code == 1
    assert 'wrong_format' in result.output
    assert 'No episode can be used.' in result.output


def test_a_loss_is_exit_status_one_with_what_to_do(recordings: Path, tmp_path: Path) -> None:
    """A half copied recording among sound ones: their episodes are there, and the loss is no small print."""
    import shutil

    bags = tmp_path / 'bags'
    shutil.copytree(recordings, bags)
    file = next((bags / 'episode_000002').glob('*.mcap'))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    result = run('index', bags, '--robot', 'g1_upper_body', '--out', tmp_path / 'index', '--workers', 1)
    assert result.exit_code == 1, result.output
    assert '2 episodes in 2 recordings' in result.output
    assert 'what to do' in result.output
    assert 'copy the file again; what lies before is read' in result.output


def test_an_import_that_loses_an_episode_is_exit_status_one(ki_data: Path, tmp_path: Path) -> None:
    import shutil

    source, short = ki_data / 'unitree_g1_lerobot_v21', tmp_path / 'g1'
    shutil.copytree(source / 'meta', short / 'meta')
    data, video = (
        'data/chunk-000/episode_000001.parquet',
        'videos/chunk-000/observation.images.cam_high/episode_000001.mp4',
    )
    for name in (data, video):
        (short / name).parent.mkdir(parents=True)
    shutil.copy(source / data, short / data)
    (short / video).write_bytes(b'no film')
    result = run('from-lerobot', short, '--out', tmp_path / 'bags', '--robot', 'g1_upper_body')
    assert result.exit_code == 1, result.output
    assert 'unreadable' in result.output
    assert run('from-lerobot', short).exit_code == 2
    draft = run('from-lerobot', short, '--draft', tmp_path / 'map.yaml')
    assert draft.exit_code == 0, draft.output
    assert 'element: kLeftElbow, column: kLeftElbow/position, unit: rad' in (tmp_path / 'map.yaml').read_text()


def test_a_changed_index_fails_the_check(recordings: Path, tmp_path: Path) -> None:
    index = tmp_path / 'index'
    run('index', recordings, '--robot', 'g1_upper_body', '--out', index, '--workers', 1)
    [file, *_] = sorted(index.glob('bags/*/cam_high.images'))
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1])
    result = run('check', index)
    assert result.exit_code == 1
    assert 'index_changed' in result.output


def test_one_recording_is_indexed_beside_itself(recordings: Path, tmp_path: Path) -> None:
    import shutil

    bag = tmp_path / 'one'
    shutil.copytree(recordings / 'episode_000001', bag)
    for data in (bag, next(bag.glob('*.mcap'))):
        result = run('index', data, '--robot', 'g1_upper_body', '--workers', 1)
        assert result.exit_code == 0, result.output
        assert data.with_name(f'{data.name}.index').is_dir()
        assert '1 episodes in 1 recordings' in run('show', data).output


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    assert run('index', tmp_path, '--remap', 'a=b').exit_code == 2
    result = run('show', tmp_path)
    assert isinstance(result.exception, KiError)
    assert 'run `ki data index` first' in str(result.exception)
