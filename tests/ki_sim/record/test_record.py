"""Recordings: the same bytes per seed, as arrays and as bags, whole files only, and a second call that goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ki_bags.reader import open_bag
from ki_robot.contract.contract import load_contract
from ki_robot.messages.arrays import joint_positions, odometry_values, stamp_ns
from ki_robot.messages.images import decode_compressed
from ki_sim.errors import SimError
from ki_sim.record.batch import jobs, record, record_one
from ki_sim.record.job import RecordingJob
from ki_sim.record.record import Recording, load, record_episode, save
from ki_sim.record.sim_bags import EPOCH_NS, ROBOT, write_bag
from ki_sim.world.robot import COLUMNS, POSITION_JOINTS
from ki_sim.world.world import STEP_NS


@pytest.fixture(scope='module')
def recording(arms) -> Recording:
    return record_episode('demo', 2, image_size=32, arms=arms)


@pytest.fixture(scope='module')
def bag(recording, tmp_path_factory) -> Path:
    return write_bag(recording, tmp_path_factory.mktemp('bags') / 'demo')


def test_a_recording_holds_a_row_for_every_step(recording):
    assert recording.success
    assert recording.meta()['instruction'] == recording.episode.instruction
    times = [frame.time_ns for frame in recording.frames]
    assert np.all(np.diff(times) == STEP_NS)
    assert all(len(frame.ticks) == 5 for frame in recording.frames[1:])
    assert all(set(frame.images) == {'head', 'left_wrist', 'right_wrist'} for frame in recording.frames)


def test_what_is_measured_follows_what_is_commanded(recording):
    states = np.array([frame.state for frame in recording.frames])
    actions = np.array([frame.action for frame in recording.frames])
    assert np.abs(states[1:, :6] - actions[:-1, :6]).max() < 0.1
    assert np.abs(states[0, :14] - actions[0, :14]).max() < 0.05


def test_arrays_survive_the_file(recording, tmp_path):
    path = save(recording, tmp_path / 'a' / 'x.npz')
    found = load(path)
    assert [str(name) for name in found['columns']] == list(COLUMNS)
    assert np.allclose(found['action'], [frame.action for frame in recording.frames])
    assert found['meta']['task'] == 'demo'
    assert str(found['subtasks'][found['subtask'][-1]]) == 'rest, the task is done'
    image = found['images'](len(recording.frames) - 1, 'right_wrist')
    assert image.shape == (32, 32, 3)
    raw = recording.frames[-1].images['right_wrist']
    assert found['jpeg'][found['offset'][-1, -2] : found['offset'][-1, -1]].tobytes() == raw
    assert list(path.parent.iterdir()) == [path]


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / 'x.npz').write_bytes(b'nothing')
    with pytest.raises(SimError, match=r'x\.npz is not a recording'):
        load(tmp_path / 'x.npz')


def test_the_same_seed_gives_the_same_bag_bit_for_bit(bag, tmp_path, arms):
    again = write_bag(record_episode('demo', 2, image_size=32, arms=arms), tmp_path / 'demo')
    for file in sorted(bag.iterdir()):
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256((again / file.name).read_bytes()).digest()


def test_the_bag_has_every_topic_of_the_contract_at_its_rate(bag, recording):
    contract, steps = load_contract(ROBOT), len(recording.frames)
    topics = open_bag(bag).topics
    for camera in contract.cameras:
        assert topics[f'/{camera.topic}'].count == steps
    for output in contract.outputs:
        assert topics[f'/{output.topic}'].count == steps
    assert topics['/joint_states'].count == 5 * (steps - 1) + 1 == topics['/odom'].count
    assert topics['/episode'].count == 2
    assert topics['/instruction'].count == 1
    assert topics['/subtask'].count >= 5


def test_the_bag_says_what_the_recording_says(bag, recording):
    opened = open_bag(bag)
    found: dict[str, list] = {}
    for message in opened.messages():
        found.setdefault(message.topic, []).append((message.log_ns, opened.decode(message)))
    frame = recording.frames[7]
    stamp = frame.time_ns + EPOCH_NS
    trajectory = next(m for t, m in found['/left_arm_controller/joint_trajectory'] if t == stamp)
    assert np.array_equal(trajectory.points[0].positions, frame.action[:6])
    assert list(trajectory.joint_names) == [f'left_joint{i}' for i in range(1, 7)]
    assert trajectory.points[0].time_from_start.nanosec == STEP_NS
    twist = next(m for t, m in found['/base_controller/cmd_vel'] if t == stamp)
    assert twist.header.frame_id == 'base_link'
    joints = next(m for t, m in found['/joint_states'] if t == stamp)
    assert np.array_equal(joint_positions(joints, POSITION_JOINTS), frame.state[:14])
    assert np.array_equal(joints.effort, frame.ticks[-1].effort)
    odometry = next(m for t, m in found['/odom'] if t == stamp)
    assert np.allclose(odometry_values(odometry, COLUMNS[14:]), frame.state[14:])
    image = next(m for t, m in found['/head_camera/image_raw/compressed'] if t == stamp)
    assert decode_compressed(image).shape == (32, 32, 3)
    assert stamp_ns(image.header) == stamp
    (_, first), (_, last) = found['/episode']
    assert (first.phase, last.phase, last.outcome) == (0, 1, 1)
    assert first.task == recording.episode.instruction == found['/instruction'][0][1].text
    assert found['/subtask'][-1][1].text == 'rest, the task is done'


def test_a_second_call_writes_only_what_is_missing(tmp_path):
    work = jobs(['demo'], 2, tmp_path, first_seed=5, format='npz', image_size=16)
    first = record_one(work[0])
    assert first.status == 'written'
    stamp = Path(work[0].path).stat().st_mtime_ns
    assert [result.status for result in record(work, workers=1)] == ['present', 'written']
    assert Path(work[0].path).stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == ['demo-000005.npz', 'demo-000006.npz']


def test_what_a_stopped_run_left_behind_is_done_again(tmp_path, recording, monkeypatch):
    monkeypatch.setattr('ki_sim.record.record.record_episode', lambda *_, **__: recording)
    (work,) = jobs(['demo'], 1, tmp_path, format='bag', image_size=16)
    Path(work.path + '.partial').mkdir()
    assert record_one(work).status == 'written'
    assert [path.name for path in tmp_path.iterdir()] == ['demo-000000']


@pytest.mark.parametrize('format', ['bag', 'npz'])
@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'image_size': 16}, r'images of 32x32, and 16x16 is asked for: give --image-size 32, or another folder'),
        ({'image_size': 32, 'quality': 60}, r'quality 92, and 60 is asked for: give --quality 92, or another folder'),
    ],
)
def test_a_folder_of_other_pictures_is_not_gone_on_with(tmp_path, recording, format, options, said):
    present, missing = jobs(['demo'], 2, tmp_path, first_seed=2, format=format, **options)
    write = write_bag if format == 'bag' else save
    write(recording, Path(present.path))
    with pytest.raises(SimError, match=said):
        record([missing, present], workers=1)
    assert not Path(missing.path).exists()
    (same,) = jobs(['demo'], 1, tmp_path, first_seed=2, format=format, image_size=32)
    assert [result.status for result in record([same], workers=1)] == ['present']


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'tasks': ['mop']}, "task 'mop' is not known"),
        ({'format': 'zip'}, "format 'zip' is not known"),
        ({'split': 'heldout'}, 'not for action data|is for evaluation'),
        ({'episodes': 0}, 'ask for at least 1'),
        ({'image_size': 0}, 'image size 0x0 cannot be drawn'),
        ({'quality': 0}, 'quality 0 is not one of JPEG: use 1 to 100'),
        ({'quality': 200}, 'quality 200'),
    ],
)
def test_wrong_orders_are_refused(tmp_path, options, said):
    with pytest.raises(SimError, match=said):
        jobs(**{'tasks': ['demo'], 'episodes': 1, 'out': tmp_path, **options})


def test_a_failed_episode_is_left_out_unless_asked_for(tmp_path, recording, monkeypatch):
    (work,) = jobs(['demo'], 1, tmp_path, format='npz', image_size=16)
    failed = Recording(recording.episode, recording.frames[:20], success=False)
    monkeypatch.setattr('ki_sim.record.record.record_episode', lambda *_, **__: failed)
    assert record_one(work).status == 'failed'
    assert not list(tmp_path.iterdir())
    kept = record_one(RecordingJob(**{**work.__dict__, 'keep_failures': True}))
    assert kept.status == 'written'
    assert load(work.path)['meta']['success'] is False
