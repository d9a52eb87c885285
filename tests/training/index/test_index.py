"""Recordings become episodes once; what is wrong with them is named, and never ends a run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ki_bags import message_builders
from ki_bags.reader import open_bag
from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import OutputOptions
from ki_robot.messages.arrays import set_time
from ki_robot.messages.pixels import DEPTH_WHITE_MM
from ki_robot.messages.video import VIDEO_MESSAGES
from ki_robot.observation.buffer import ObservationBuffer
from training.errors import TrainingError
from training.index.episodes import IndexOptions
from training.index.index import check_index, hash_bag, index_bags, load_index, signature
from training.samples.dataset import EpisodeDataset

MakeBag = Callable[..., Path]
START_NS = 1_700_000_000_000_000_000


def arrays_of(index: Any, number: int = 0) -> dict[str, np.ndarray]:
    entry, about = index.episodes[number]
    with np.load(entry.folder / about.file) as stored:
        return {name: stored[name] for name in stored.files}


def test_an_episode_is_on_the_grid_with_states_held_and_commands_in_force(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, truth: Callable[[Any], np.ndarray]
) -> None:
    index = index_bags(make_bag(), toy, tmp_path / 'index')
    [(_, about)] = index.episodes
    arrays = arrays_of(index)
    seconds = (arrays['stamps'] - START_NS) / 1e9
    assert about.steps == 41
    assert about.outcome == 'success'
    assert about.texts[arrays['text'][0]] == 'lift the cup'
    np.testing.assert_array_equal(np.diff(arrays['stamps']), toy.step_ns)
    np.testing.assert_allclose(arrays['state'][:, :3], truth(seconds), atol=1e-12)
    np.testing.assert_allclose(arrays['actions'][:, :3], truth(seconds + 0.1), atol=1e-12)
    np.testing.assert_allclose(arrays['actions'][:, 3], 0.1)
    assert arrays['valid'].all()
    assert arrays['action_valid'].all()
    # 30 Hz pictures on a 20 Hz grid: the newest at or before each step.
    ages = arrays['stamps'] - arrays['scene.stamp']
    assert ages.min() == 0
    assert 0 < ages.max() < 1e9 / 30


def test_states_are_interpolated_where_a_column_asks_for_it(make_bag: MakeBag, tmp_path: Path, toy: Contract) -> None:
    odd = Contract.parse({**toy.to_dict(), 'rate_hz': 13.0})  # a grid that falls between the messages
    options = IndexOptions(columns={'joint1/position': 'linear'})
    arrays = arrays_of(index_bags(make_bag(), odd, tmp_path / 'index', options))
    seconds = (arrays['stamps'] - START_NS) / 1e9
    linear = np.abs(arrays['state'][:, 0] - np.sin(seconds)).max()
    held = np.abs(arrays['state'][:, 1] - np.cos(seconds / 2)).max()
    assert linear < 2e-5
    assert 1e-4 < held < 0.01


def test_what_has_not_changed_is_not_read_again(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    first, second = make_bag('one'), make_bag('two', seconds=1.0)
    out = tmp_path / 'index'
    before = index_bags(first.parent, toy, out)
    read: list[str] = []
    index_bags(first.parent, toy, out, progress=lambda done, total, path: read.append(path))
    assert read == []
    shutil.rmtree(second)
    make_bag('two', seconds=1.5)
    after = index_bags(first.parent, toy, out, progress=lambda done, total, path: read.append(path))
    assert read == [str(second)]
    assert before.entries[0].key == after.entries[0].key
    assert before.hash != after.hash
    assert len(list((out / 'bags').iterdir())) == 2


def test_a_write_ahead_log_that_came_later_is_another_recording(tmp_path: Path) -> None:
    database = tmp_path / 'a.db3'
    database.write_bytes(b'x')
    before = signature(database), hash_bag(database)
    (tmp_path / 'a.db3-wal').write_bytes(b'y')
    after = signature(database), hash_bag(database)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_recording_that_could_not_be_read_for_a_moment_is_tried_again(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_bag(seconds=1.0)
    with monkeypatch.context() as away:
        away.setattr('training.index.index.hash_bag', lambda path: (_ for _ in ()).throw(OSError('stale file handle')))
        lost = index_bags(path, toy, tmp_path / 'index')
    assert 'it cannot be read: stale file handle' in next(iter(lost.problems)).text
    assert not lost.episodes
    assert len(index_bags(path, toy, tmp_path / 'index').episodes) == 1


def test_an_index_says_when_it_was_touched(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    out = tmp_path / 'index'
    index = index_bags(make_bag(), toy, out)
    file = index.entries[0].folder / index.episodes[0][1].file
    assert not os.access(file, os.W_OK) or os.geteuid() == 0
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(bytes(data))
    assert 'index_changed' in check_index(index).kinds()
    with pytest.raises(TrainingError, match='was changed after it was written'):
        EpisodeDataset(index)
    assert len(index_bags(tmp_path / 'bags', toy, out).episodes) == 1
    entry = index.entries[0].folder / 'entry.json'
    entry.chmod(0o644)
    entry.write_text(entry.read_text().replace('success', 'failure'))
    assert 'index_changed' in check_index(load_index(out)).kinds()
    [(_, about)] = index_bags(tmp_path / 'bags', toy, out).episodes
    assert about.outcome == index.episodes[0][1].outcome, 'what somebody wrote into an entry was taken over'
    [recordings] = out.glob('recordings-*.jsonl')
    recordings.write_text(recordings.read_text().replace('success', 'failure'))
    with pytest.raises(TrainingError, match='was changed after it was written'):
        load_index(out)
    assert not check_index(index_bags(tmp_path / 'bags', toy, out)).kinds() & {'index_changed', 'index_lost'}


def test_a_recording_that_was_changed_since_is_named(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    """One flipped bit: SQLite would give another number, and say nothing."""
    bag = make_bag()
    index = index_bags(bag, toy, tmp_path / 'index')
    assert not check_index(index)
    [file] = bag.glob('*.mcap')
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    assert check_index(index).kinds() == {'bag_changed'}
    shutil.rmtree(bag)
    assert check_index(index).kinds() == {'bag_gone'}


def test_two_workers_and_one_give_the_same_index(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    for name in ('a', 'b', 'c'):
        make_bag(name, seconds=1.0, task=name)
    one = index_bags(tmp_path / 'bags', toy, tmp_path / 'one')
    two = index_bags(tmp_path / 'bags', toy, tmp_path / 'two', workers=2)
    assert one.hash == two.hash
    assert [each.key for each in one.entries] == [each.key for each in two.entries]
    for number in range(3):
        for name, array in arrays_of(one, number).items():
            np.testing.assert_array_equal(array, arrays_of(two, number)[name])


def test_an_unfit_recording_is_told_by_topic_and_the_others_go_on(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, scribe: Any
) -> None:
    make_bag('good')
    make_bag('no_camera', without=('/scene/image_raw/compressed',))
    make_bag('no_joints', without=('/joint_states',))
    with BagWriter(tmp_path / 'bags' / 'other_robot') as bag:
        writer = scribe(bag)
        for index in range(50):
            writer.joints(START_NS + index * 10**7, (0.0, 0.0), names=('shoulder', 'elbow'))
    with BagWriter(tmp_path / 'bags' / 'empty') as bag:
        bag.add_topic('/joint_states', 'sensor_msgs/msg/JointState')
    index = index_bags(tmp_path / 'bags', toy, tmp_path / 'index')
    assert [Path(entry.path).name for entry, _ in index.episodes] == ['good']
    told = {Path(each.where).name: each.text for each in index.problems if each.kind == 'refused'}
    assert 'camera scene (scene/image_raw/compressed)' in told['no_camera']
    assert 'state stream joint_states' in told['no_joints']
    assert set(told) == {'no_camera', 'no_joints', 'other_robot', 'empty'}
    [stranger] = [each for each in index.problems if each.kind == 'other_joints']
    assert stranger.count == 50
    assert "lacks 'joint1'" in stranger.text


def test_a_missing_optional_camera_costs_only_its_pictures(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    index = index_bags(make_bag(without=('/wrist/image_raw/compressed',)), toy, tmp_path / 'index')
    assert index.problems.kinds() == {'missing_topic'}
    sample = EpisodeDataset(index)[0]
    assert set(sample.images) == {'scene'}


def test_actions_come_from_future_states_where_no_command_was_recorded(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, truth: Callable[[Any], np.ndarray]
) -> None:
    path = make_bag(without=('/arm_controller/joint_trajectory',))
    index = index_bags(path, toy, tmp_path / 'index')
    arrays = arrays_of(index)
    seconds = (arrays['stamps'] - START_NS) / 1e9
    np.testing.assert_allclose(arrays['actions'][:, :2], truth(seconds + 0.05)[:, :2], atol=1e-9)
    np.testing.assert_allclose(arrays['actions'][:, 2], truth(seconds + 0.1)[:, 2], atol=1e-9)
    assert {each.field for each in index.problems if each.kind == 'action_from_state'} == {
        'joint1/position',
        'joint2/position',
    }
    strict = index_bags(path, toy, tmp_path / 'strict', IndexOptions(actions='commands'))
    assert not strict.episodes
    assert any('arm_controller/joint_trajectory' in each.text for each in strict.problems)


def test_several_points_are_followed_in_time(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    with BagWriter(tmp_path / 'bag') as bag:
        writer = scribe(bag, without=('/arm_controller/joint_trajectory',))
        writer.stretch(1.0)
        writer.without = ()
        writer.arm(START_NS, [(0.2, 0.0, 1.0), (0.4, 1.0, 1.0)])
    arrays = arrays_of(index_bags(tmp_path / 'bag', toy, tmp_path / 'index', IndexOptions(task='x')))
    seconds = (arrays['stamps'] - START_NS) / 1e9
    np.testing.assert_allclose(arrays['actions'][:, 0], np.clip((seconds - 0.2) / 0.2, 0.0, 1.0), atol=1e-9)


@pytest.mark.parametrize('kind', ['joint_trajectory', 'joint_state'])
def test_a_leader_commands_by_joint_states(kind: str, toy: Contract, tmp_path: Path, scribe: Any) -> None:
    arm = toy.outputs[0].replace(kind=kind, options=OutputOptions())
    robot = toy.replace(outputs=(arm, *toy.outputs[1:]))
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/arm_controller/joint_trajectory',))
        writer.stretch(1.0)
        writer.without = ()
        for number in range(21):
            now_ns = START_NS + number * 50_000_000
            value = message_builders.joint_state(now_ns, ['joint2', 'joint1'], [0.5, 0.01 * number])
            writer.send('/arm_controller/joint_trajectory', now_ns, value)
    index = index_bags(tmp_path / 'bag', robot, tmp_path / 'index')
    assert not index.problems
    arrays = arrays_of(index)
    np.testing.assert_allclose(arrays['actions'][:, 0], (arrays['stamps'] - START_NS) / 5e9, atol=1e-9)


def test_drivers_that_share_a_topic_are_read_each_for_its_joints(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    joints = toy.state_streams[0]
    first, second = joints.replace(name='first'), joints.replace(name='second')
    state = tuple(
        column.replace(source='first' if column.name == 'joint1/position' else 'second')
        if column.source == 'joint_states'
        else column
        for column in toy.state
    )
    robot = toy.replace(state_streams=(first, second, toy.state_streams[1]), state=state)
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/joint_states',))
        writer.stretch(1.0)
        writer.without = ()
        for number in range(101):
            now_ns = START_NS + number * 10_000_000
            writer.joints(now_ns, (0.1, 0.2, 0.03), ('joint1',))
            writer.joints(now_ns + 2_000_000, (0.1, 0.2, 0.03), ('gripper', 'joint2'))
            writer.joints(now_ns + 3_000_000, (0.0, 0.0, 0.0), ('UR1_joint1', 'UR1_joint2', 'UR1_gripper'))
    index = index_bags(tmp_path / 'bag', robot, tmp_path / 'index')
    assert not index.problems
    np.testing.assert_allclose(arrays_of(index)['state'][:, :3], [[0.1, 0.2, 0.03]] * len(arrays_of(index)['state']))
    whole = index_bags(tmp_path / 'bag', toy, tmp_path / 'whole')
    assert not whole.episodes
    assert any('a state stream of their own' in each.text for each in whole.problems)


def test_episodes_by_marker_by_metadata_and_one_per_recording(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    second = 10**9
    with BagWriter(tmp_path / 'bags' / 'marked') as bag:
        writer = scribe(bag)
        writer.stretch(6.0)
        for number, (begin, outcome) in enumerate([(0, 1), (2, 3), (4, 2)]):
            writer.marker(START_NS + begin * second, 0, number, f'task {number}')
            writer.marker(START_NS + (begin + 1) * second, 1, number, f'task {number}', outcome)
        writer.marker(START_NS + 5 * second, 0, 3, 'task 3')
    spans = [{'start_ns': START_NS, 'end_ns': START_NS + second, 'task': 'told', 'outcome': 'success'}]
    for name, custom in (('told', {'episodes': json.dumps(spans)}), ('whole', {'task': 'whole'})):
        with BagWriter(tmp_path / 'bags' / name, custom=custom) as bag:
            scribe(bag).stretch(2.0)
    index = index_bags(tmp_path / 'bags', toy, tmp_path / 'index')
    found = [(about.texts[0], about.outcome, about.steps) for _, about in index.episodes]
    assert found == [
        ('task 0', 'success', 21),
        ('task 2', 'failure', 21),
        ('task 3', 'unlabeled', 21),
        ('told', 'success', 21),
        ('whole', 'unlabeled', 41),
    ]
    assert {'discarded', 'open_episode'} == index.problems.kinds()


def test_instructions_and_subtasks_change_within_an_episode(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    with BagWriter(tmp_path / 'bag') as bag:
        writer = scribe(bag)
        writer.say('/instruction', START_NS - 5, 'of an earlier episode')
        writer.marker(START_NS, 0, 0, 'tidy up')
        writer.stretch(2.0)
        writer.say('/subtask', START_NS + 10**9, 'grasp the cup')
        writer.say('/instruction', START_NS + 15 * 10**8, 'stop')
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    data = EpisodeDataset(index)
    assert [data[step].instruction for step in (0, 29, 30, 40)] == ['tidy up', 'tidy up', 'stop', 'stop']
    assert [data[step].subtask for step in (0, 19, 20, 40)] == ['', '', 'grasp the cup', 'grasp the cup']


def test_a_clock_that_jumps_back_cuts_the_recording(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag)
        writer.stretch(2.0)
        writer.stretch(2.0, begin_s=3.0, base_ns=START_NS - 100 * 10**9, log_base_ns=START_NS)
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    assert 'clock_jump' in index.problems.kinds()
    assert [about.steps for _, about in index.episodes] == [41, 41]
    second = arrays_of(index, 1)
    assert second['stamps'][0] == START_NS - 97 * 10**9
    # Commands without a stamp follow the robot's clock across the jump.
    seconds = (second['stamps'] - START_NS) / 1e9 + 100
    np.testing.assert_allclose(second['actions'][:, 2], 0.04 + 0.03 * np.sin(seconds + 0.1), atol=1e-9)


def test_one_late_message_is_dropped_and_cuts_nothing(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag)
        writer.stretch(1.0)
        writer.joints(START_NS - 20 * 10**9, (9.0, 9.0, 9.0), log_ns=START_NS + 1_005_000_000)
        writer.stretch(1.0, begin_s=1.01)
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    assert len(index.episodes) == 1
    assert [
        each.count for each in index.problems if each.kind == 'backward_stamp' and each.field == 'joint_states'
    ] == [1]
    assert np.abs(arrays_of(index)['state'][:, 0]).max() <= 1.0


def test_steps_without_fresh_input_are_no_samples(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    """The camera pauses for a second: the live node would hold, so nothing is learned there."""
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/scene/image_raw/compressed',))
        writer.stretch(3.0)
        writer.without = ()
        for index in [*range(31), *range(60, 91)]:
            time_ns = START_NS + round(index / 30 * 1e9)
            writer.image('scene', time_ns, np.asarray(cv2_jpeg(index)))
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    arrays = arrays_of(index)
    seconds = (arrays['stamps'] - START_NS) / 1e9
    # Older than 0.2 s (max_age_s) it is stale; before that, 0.1 s behind the joints (sync_tolerance_s) is too far.
    np.testing.assert_array_equal(arrays['valid'], (seconds <= 1.1 + 1e-9) | (seconds >= 2.0 - 1e-9))
    data = EpisodeDataset(index)
    assert len(data) == int(arrays['valid'].sum())
    counts = {each.kind: each.count for each in index.problems}
    assert counts['stale'] == int(((seconds > 1.2 + 1e-9) & (seconds < 2.0 - 1e-9)).sum())
    assert counts['stale'] + counts['unsynchronized'] == int((~arrays['valid']).sum())


@pytest.mark.parametrize(
    ('offset_s', 'kind'), [(0.5, 'future_stamp'), (-0.5, 'stale'), (0.03, ''), (-0.1, ''), (0.06, 'future_stamp')]
)
@pytest.mark.parametrize('log_base_ns', [None, 5_000_000_000])
def test_a_frame_is_taken_by_the_index_where_the_live_buffer_takes_it(
    offset_s: float, kind: str, log_base_ns: int | None, toy: Contract, tmp_path: Path, scribe: Any
) -> None:
    """A camera on another clock, with the recorder on the robot's clock and on one of its own."""
    buffer = ObservationBuffer(toy)
    refused = 0
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/scene/image_raw/compressed',))
        writer.stretch(2.0, log_base_ns=log_base_ns)
        writer.without = ()
        for index in range(61):
            now_ns = START_NS + round(index / 30 * 1e9)
            stamp_ns, data = now_ns + round(offset_s * 1e9), cv2_jpeg(index)
            writer.image('scene', stamp_ns, data, now_ns if log_base_ns is None else now_ns - START_NS + log_base_ns)
            refused += not buffer.push('scene', message_builders.compressed(stamp_ns, data), now_ns)
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    assert refused == (61 if kind else 0)
    counted = [each for each in index.problems if each.field == 'scene']
    assert [(each.kind, each.count) for each in counted] == ([(kind, refused)] if kind else [])
    assert len(EpisodeDataset(index) if index.episodes else []) == (0 if kind else int(arrays_of(index)['valid'].sum()))


def cv2_jpeg(value: int) -> np.ndarray:
    return cv2.imencode('.jpg', np.full((24, 32, 3), value, np.uint8))[1].reshape(-1)


def test_a_truncated_recording_gives_the_episode_up_to_the_cut(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, truth: Callable[[Any], np.ndarray]
) -> None:
    path = make_bag(seconds=20.0)
    [file] = path.glob('*.mcap')
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    index = index_bags(path, toy, tmp_path / 'index')
    [(_, about)] = index.episodes
    assert 40 < about.steps < 401
    assert {'damaged', 'count', 'open_episode'} <= index.problems.kinds()
    arrays = arrays_of(index)
    np.testing.assert_allclose(arrays['state'][:, :3], truth((arrays['stamps'] - START_NS) / 1e9), atol=1e-12)


def test_broken_pictures_are_counted_and_stepped_over(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, scribe: Any
) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/scene/image_raw/compressed',))
        writer.stretch(1.0)
        writer.without = ()
        for index in range(31):
            data = cv2_jpeg(index)
            if index == 10:
                data = data[: len(data) // 2]  # cut off: seen at once
            if index == 20:
                data = data.copy()
                data[2:-2] = 0  # whole, and no picture inside
            writer.image('scene', START_NS + round(index / 30 * 1e9), data)
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    assert sum(each.count for each in index.problems if each.kind == 'undecodable') >= 1
    data = EpisodeDataset(index)
    assert all(len(data[position].images) == 2 for position in range(len(data)))


def test_namespaced_topics_are_found_and_ambiguous_ones_asked_about(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag)
        send = writer.send
        writer.send = lambda topic, log_ns, value: send(f'/robot1{topic}', log_ns, value)
        writer.stretch(1.0)
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    assert len(index.episodes) == 1
    with BagWriter(tmp_path / 'two', custom={'task': 'x'}) as bag:
        for robot in ('a', 'b'):
            writer = scribe(bag)
            send = writer.send
            writer.send = lambda topic, log_ns, value, robot=robot, send=send: send(f'/{robot}{topic}', log_ns, value)
            writer.stretch(0.5)
    index = index_bags(tmp_path / 'two', toy, tmp_path / 'index2')
    assert not index.episodes
    assert any(each.kind == 'ambiguous_topic' and '--remap' in each.text for each in index.problems)


def test_real_recordings_of_other_robots_are_refused_by_name(ki_data: Path, toy: Contract, tmp_path: Path) -> None:
    index = index_bags(ki_data / 'rosbag2_upstream_testbags', toy, tmp_path / 'index')
    assert len(index.entries) == 6
    assert not index.episodes
    told = [each.text for each in index.problems if each.kind == 'refused']
    assert len(told) == 6
    assert any('wrong_format' in text for text in told)


def test_raw_pictures_are_stored_without_loss(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(24, 32, 3), dtype=np.uint8)
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/scene/image_raw/compressed',))
        writer.stretch(1.0)
        for index in range(31):
            time_ns = START_NS + round(index / 30 * 1e9)
            message_builders.put(bag, 'scene/image_raw', time_ns, message_builders.raw(time_ns, pixels))
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    assert 'other_transport' in index.problems.kinds()
    np.testing.assert_array_equal(EpisodeDataset(index, resize=False)[3].images['scene'], pixels)


@pytest.mark.parametrize('head', [b'', bytes(12)])
def test_a_depth_picture_is_stored_as_what_its_label_says(
    head: bytes, toy: Contract, tmp_path: Path, scribe: Any
) -> None:
    depth = np.tile(np.linspace(300, 3000, 32).astype(np.uint16), (24, 1))
    file = np.frombuffer(head + bytes(cv2.imencode('.png', depth)[1]), np.uint8)
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/scene/image_raw/compressed',))
        writer.stretch(1.0)
        for index in range(31):
            time_ns = START_NS + round(index / 30 * 1e9)
            picture = message_builders.compressed(time_ns, file)
            picture.format = '16UC1; compressedDepth png' if head else '16UC1; png compressed '
            message_builders.put(bag, 'scene/image_raw/compressed', time_ns, picture)
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    expected = np.rint(depth * (255 / DEPTH_WHITE_MM)).astype(np.uint8)
    seen = EpisodeDataset(index, resize=False)[3].images['scene']
    np.testing.assert_array_equal(seen, np.repeat(expected[..., None], 3, axis=2))


def test_a_killed_indexing_leaves_nothing_that_looks_whole(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    out = tmp_path / 'index'
    path = make_bag()
    (out / 'bags' / f'.abc.partial-{2**22 + 1}').mkdir(parents=True)  # beyond the highest process id of Linux
    with pytest.raises(TrainingError, match='run `ki data index` first'):
        load_index(out)
    index_bags(path, toy, out)
    assert not list((out / 'bags').glob('*partial*'))
    assert sum(1 for _ in open_bag(path).messages()) == index_bags(path, toy, out).entries[0].messages


def test_nothing_to_index_is_one_sentence(toy: Contract, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match='holds no recording'):
        index_bags(tmp_path, toy, tmp_path / 'index')
    with pytest.raises(TrainingError, match='choose one of hold, linear'):
        IndexOptions(state='cubic')


def test_options_that_name_nothing_of_the_robot_are_refused(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    path = make_bag(seconds=1.0)
    for options, says in (
        (
            IndexOptions(columns={'joint_1/position': 'linear'}),
            "--column: toy has no 'joint_1/position'; did you mean joint1/",
        ),
        (
            IndexOptions(remap={'joint_state': 'joints'}),
            "--remap: toy has no 'joint_state'; did you mean joint_states?",
        ),
        (IndexOptions(remap={'xyz': 'joints'}), "--remap: toy has no 'xyz'; it has scene/image_raw/compressed, "),
    ):
        with pytest.raises(TrainingError) as caught:
            index_bags(path, toy, tmp_path / 'index', options)
        assert str(caught.value).startswith(says)
    IndexOptions(columns={'joint1/position': 'linear'}, remap={'scene/image_raw': 'front', 'odom': 'o'}).check(toy)


@pytest.mark.parametrize('transport', ['video', 'ffmpeg'])
def test_a_camera_that_comes_as_video_is_indexed_from_its_first_key_frame(
    transport: str, toy: Contract, tmp_path: Path, scribe: Any
) -> None:
    av = pytest.importorskip('av')
    context = av.CodecContext.create('libx264', 'w')
    context.width, context.height, context.pix_fmt, context.time_base = 64, 48, 'yuv420p', Fraction(1, 30)
    context.options = {'preset': 'ultrafast', 'tune': 'zerolatency', 'g': '10'}
    camera = toy.cameras[0].replace(topic='scene/video', transport=transport)
    robot = toy.replace(cameras=(camera, toy.cameras[1]))
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/scene/image_raw/compressed',))
        writer.stretch(2.0)
        for number in range(61):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * number, np.uint8), format='rgb24')
            frame.pts = number
            [packet] = context.encode(frame)
            if number >= 5:  # the recorder began in the middle of a group
                now_ns = START_NS + number * 10**9 // 30
                message_builders.put(bag, '/scene/video', now_ns, packet_of(transport, bytes(packet), now_ns))
    index = index_bags(tmp_path / 'bag', robot, tmp_path / 'index')
    assert {(each.field, each.kind, each.count) for each in index.problems} == {('/scene/video', 'no_key_frame', 5)}
    data = EpisodeDataset(index, resize=False)
    for sample in (data[0], data[len(data) - 1]):
        shade = 4 * round((sample.stamp_ns - START_NS) / 1e9 * 30 - 0.49)
        assert sample.images['scene'].shape == (48, 64, 3)
        assert abs(float(sample.images['scene'].mean()) - shade) < 4
    assert data[0].stamp_ns >= START_NS + 10 * 10**9 // 30, 'nothing is shown before the first key frame'


def packet_of(transport: str, data: bytes, stamp_ns: int) -> Any:
    """A packet of a video as its message."""
    message = message_builders.empty(VIDEO_MESSAGES[transport])
    set_time(message.timestamp if transport == 'video' else message.header.stamp, stamp_ns)
    if transport == 'video':
        message.format = 'h264'
    else:
        message.encoding = 'libx264'
    message.data = np.frombuffer(data, np.uint8)
    return message
