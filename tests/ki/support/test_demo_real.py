"""The second part of the demonstration: from a LeRobot dataset to the report of a replay, and why it may be skipped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from ki.commands import demo
from ki.support import demo_real
from ki.support.demo_real import EPISODES, PLACE, ROBOT, Second, find, show
from ki_common.errors import KiError
from ki_policy_node.reports.web_page import spot
from ki_robot.contract.contract import load_contract
from training.lerobot.video import VideoWriter

MakeDataset = Callable[..., Path]
TASK = 'Pick up the yellow bottle.'
STEPS = 56
INFO = {
    'codebase_version': 'v2.1',
    'fps': 30,
    'chunks_size': 1000,
    'data_path': 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
    'video_path': 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4',
}


def write_v21(folder: Path, joints: list[str], camera: str, episodes: int) -> Path:
    """A LeRobot v2.1 dataset in which every joint swings, and the command is a tenth of a second ahead."""
    key = f'observation.images.{camera}'
    numbers = {'dtype': 'float32', 'shape': [len(joints)], 'names': [joints]}
    features = {'observation.state': numbers, 'action': numbers, key: {'dtype': 'video', 'shape': [48, 64, 3]}}
    (folder / 'meta').mkdir(parents=True)
    (folder / 'meta/info.json').write_text(json.dumps(INFO | {'features': features}))
    (folder / 'meta/tasks.jsonl').write_text(json.dumps({'task_index': 0, 'task': TASK}) + '\n')
    lines = [json.dumps({'episode_index': number, 'length': STEPS}) for number in range(episodes)]
    (folder / 'meta/episodes.jsonl').write_text('\n'.join(lines) + '\n')
    for number in range(episodes):
        times = np.arange(STEPS) / 30 + number
        swing = [0.4 + 0.2 * np.sin(each[:, None] + np.arange(len(joints))) for each in (times, times + 0.1)]
        columns = {
            'observation.state': pa.array(swing[0].astype(np.float32).tolist(), pa.list_(pa.float32())),
            'action': pa.array(swing[1].astype(np.float32).tolist(), pa.list_(pa.float32())),
            'timestamp': pa.array((np.arange(STEPS) / 30).astype(np.float32)),
            'episode_index': pa.array([number] * STEPS),
            'task_index': pa.array([0] * STEPS),
        }
        path = folder / INFO['data_path'].format(episode_chunk=0, episode_index=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        video = VideoWriter(
            folder / INFO['video_path'].format(episode_chunk=0, video_key=key, episode_index=number), 30
        )
        for step in range(STEPS):
            picture = np.full((48, 64, 3), 60, np.uint8)
            picture[:, step : step + 8] = 200
            video.add(cv2.imencode('.jpg', picture)[1].reshape(-1))
        video.close()
    return folder


@pytest.fixture
def dataset() -> MakeDataset:
    """`dataset(folder)` writes one of the robot of the demonstration; other joints, camera and number on request."""
    contract = load_contract(ROBOT)
    known = [name.removesuffix('/position') for name in contract.action_names]

    def make(folder: Path, joints: list[str] = known, camera: str = 'cam_high', episodes: int = EPISODES) -> Path:
        return write_v21(folder, joints, camera, episodes)

    return make


def first_part(out: Path) -> Path:
    """What the first part leaves: a page with a spot for the second."""
    out.mkdir()
    (out / 'report.html').write_text(f'<p>ten of ten</p>{spot(PLACE)}')
    return out


def call(out: Path, folder: str | None, **options: Any) -> tuple[demo_real.Second, str]:
    console = Console(record=True, width=300, file=open(os.devnull, 'w'))  # noqa: SIM115
    second = show(out, console, folder, **options)
    return second, console.export_text()


def test_a_dataset_becomes_recordings_a_bundle_and_a_report_that_the_first_one_links(
    dataset: MakeDataset, tmp_path: Path
) -> None:
    out = first_part(tmp_path / 'shown')
    dataset(tmp_path / 'data' / 'robots' / 'g1')
    second, said = call(out, str(tmp_path / 'data'), steps=2)
    assert second.report == out / 'real' / 'report.html'
    assert 'episodes 0, 1, 2, 3 are trained on, episode 4 is held out' in said
    assert (out / 'real' / 'run' / 'bundle' / 'manifest.json').is_file()
    facts = json.loads((out / 'real' / 'run' / 'policy.json').read_text())
    assert (facts['episodes'], facts['held_episodes'], facts['samples']) == (4, 0, 4 * STEPS)
    assert all(column in said for column in facts['floored'])
    result = json.loads((out / 'real' / 'report.json').read_text())['result']
    assert result['bag'].endswith('held/episode_000004')
    assert result['instructions'] == [TASK]
    # The swing is known: no step of the held-out one is further from its start than this.
    assert 0.0 < result['error']['linear extrapolation'] < result['error']['policy']
    assert 0.0 < result['error']['hold the pose'] < 0.4
    linked = (out / 'report.html').read_text()
    assert 'ten of ten' in linked
    assert linked.count('href="real/report.html"') == 1
    sampled = json.loads((out / 'real' / 'sampled.json').read_text())['result']
    assert f'it errs by {sampled["error"]["policy"]:.4f}' in second.sentences[-1]
    assert sampled['error']['policy'] != result['error']['policy']
    for sentence in second.sentences:
        assert sentence.split('. ')[0][:60] in ' '.join(said.split())

    made = {path: path.stat().st_mtime_ns for path in (out / 'real').glob('*/episode_*/*.mcap')}
    weights = (out / 'real' / 'run' / 'bundle' / 'model.safetensors').read_bytes()
    again, _ = call(out, str(tmp_path / 'data'), steps=2)
    assert again == second
    assert made == {path: path.stat().st_mtime_ns for path in (out / 'real').glob('*/episode_*/*.mcap')}
    assert (out / 'real' / 'run' / 'bundle' / 'model.safetensors').read_bytes() == weights
    assert (out / 'report.html').read_text() == linked


@pytest.mark.parametrize(
    ('prepare', 'words'),
    [
        (lambda make, path: '', 'KI_DATA is not set'),
        (lambda make, path: str(path / 'nowhere'), 'nowhere, which is no folder'),
        (lambda make, path: str(path), 'holds no LeRobot dataset'),
        (
            lambda make, path: str(make(path / 'd', joints=['elbow', 'wrist'], episodes=1)),
            'has no state column kLeftShoulderPitch/position',
        ),
        (lambda make, path: str(make(path / 'd', camera='cam_low', episodes=1)), 'cam_high is missing'),
        (lambda make, path: str(make(path / 'd', episodes=2)), 'has 2 episodes on disk, 5 are needed'),
    ],
)
def test_what_is_skipped_is_said_loudly_with_the_fix_and_the_first_part_stays(
    dataset: MakeDataset, tmp_path: Path, prepare: Callable[[MakeDataset, Path], str], words: str
) -> None:
    out = first_part(tmp_path / 'shown')
    (tmp_path / 'data').mkdir()
    second, said = call(out, prepare(dataset, tmp_path / 'data'))
    assert second.report is None
    assert not second.failed
    assert words in said
    assert 'SECOND PART NOT SHOWN' in said
    assert 'KI_DATA=FOLDER ki demo --only-real' in said
    assert 'ki data from-lerobot DATASET' in said
    told = (out / 'report.html').read_text()
    assert 'ten of ten' in told
    assert 'class="note">Skipped' in told
    assert not (out / 'real').exists()


def test_a_dataset_that_fits_is_found_beside_others_that_do_not(dataset: MakeDataset, tmp_path: Path) -> None:
    dataset(tmp_path / 'a', joints=['elbow'], episodes=1)
    (tmp_path / 'b' / 'meta').mkdir(parents=True)
    (tmp_path / 'b' / 'meta' / 'info.json').write_text('[')
    wanted = dataset(tmp_path / 'c' / 'd')
    assert find(str(tmp_path)).folder == wanted


def test_a_changed_dataset_starts_over_and_a_folder_of_yours_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / 'real'
    demo_real._make_room(out, {'dataset': 'a'})
    (out / 'train').mkdir()
    demo_real._make_room(out, {'dataset': 'a'})
    assert (out / 'train').is_dir()
    demo_real._make_room(out, {'dataset': 'b'})
    assert not (out / 'train').exists()
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'thesis.txt').write_text('precious')
    with pytest.raises(KiError, match='holds something else'):
        demo_real._make_room(mine, {'dataset': 'a'})
    assert (mine / 'thesis.txt').read_text() == 'precious'


def test_what_is_done_is_known_again_from_anywhere_but_not_when_the_training_differs(tmp_path: Path) -> None:
    here, there = (demo_real._run(tmp_path / name, None) for name in ('a', 'b'))
    assert here.data.bags == str(tmp_path / 'a' / 'train' / 'index')
    assert demo_real._digest(here) == demo_real._digest(there)
    assert demo_real._digest(here) != demo_real._digest(demo_real._run(tmp_path / 'a', 2))


def test_an_unreadable_episode_ends_the_second_part_with_its_number(dataset: MakeDataset, tmp_path: Path) -> None:
    out = first_part(tmp_path / 'shown')
    folder = dataset(tmp_path / 'data')
    video = folder / INFO['video_path'].format(
        episode_chunk=0, video_key='observation.images.cam_high', episode_index=2
    )
    video.write_bytes(video.read_bytes()[:200])
    second, said = call(out, str(tmp_path / 'data'), steps=2)
    assert second.report is None
    assert second.failed
    assert '1 of the episodes 0, 1, 2, 3 cannot be read' in said
    assert not (out / 'real' / 'train').exists()


def test_the_command_alone_says_what_it_skips_and_that_nothing_was_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('KI_DATA', raising=False)
    done = CliRunner().invoke(demo.app, ['--only-real', '--out', str(tmp_path / 'shown')])
    assert done.exit_code == 2, done.output
    assert 'KI_DATA is not set' in done.output


@pytest.mark.parametrize(
    ('second', 'alone', 'status'),
    [
        (Second(('Skipped',)), True, 2),
        (Second(('Skipped',)), False, 0),
        (Second(('Failed',), failed=True), False, 1),
        (Second(('Failed',), failed=True), True, 1),
        (Second(('Stopped',), stopped=True), True, 130),
        (Second(('Shown',), report=Path('report.html')), True, 0),
    ],
)
def test_how_the_second_part_ended_is_the_status(
    second: Second, alone: bool, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo_real, 'show', lambda out, console: second)
    assert demo._second(tmp_path, Console(), alone) == status


@pytest.mark.slow
def test_real_recordings_give_a_report_on_every_joint(ki_data: Path, tmp_path: Path) -> None:
    """A few steps of training: the path is looked at here; how good the policy is, the demonstration says."""
    second, _ = call(tmp_path / 'shown', str(ki_data), steps=3)
    assert second.report is not None
    assert second.result is not None
    contract = load_contract(ROBOT)
    assert set(second.result['error_by_column']['policy']) == set(contract.action_names)
    assert set(second.result['error_by_unit']) == {'rad', '1'}
    assert 0.02 < second.result['error']['hold the pose'] < 0.06
    assert second.result['seconds'] > 10.0
