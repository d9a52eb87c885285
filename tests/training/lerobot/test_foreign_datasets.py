"""Datasets of others: their clocks, films, names and units; nothing is guessed, and nothing sound is refused."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ki_bags.reader import open_bag
from ki_common.errors import KiError
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.messages.arrays import stamp_ns
from ki_robot.messages.images import decode_compressed
from training.errors import TrainingError
from training.index.index import index_bags
from training.lerobot import parquet
from training.lerobot.column_map import ColumnMap, camera_words, column_of, load_map
from training.lerobot.parquet import ParquetReader
from training.lerobot.read import LerobotDataset
from training.lerobot.to_bags import EPOCH_NS, from_lerobot, write_draft

Write = Callable[..., Path]
Read = Callable[[np.ndarray], int]
STEPS = np.arange(60)


def seen(bag_path: Path, read_number: Read) -> tuple[list[int], list[float]]:
    """Which picture stands at which second of an imported recording."""
    bag, numbers, times = open_bag(bag_path), [], []
    for message in bag.messages():
        if message.type == 'sensor_msgs/msg/CompressedImage':
            decoded = bag.decode(message)
            numbers.append(read_number(decode_compressed(decoded)))
            times.append((stamp_ns(decoded.header) - EPOCH_NS) / 1e9)
    return numbers, times


def states(bag_path: Path) -> np.ndarray:
    bag = open_bag(bag_path)
    rows = [bag.decode(each) for each in bag.messages() if each.type == 'sensor_msgs/msg/JointState']
    return np.array([[*row.position, *row.velocity] for row in rows])


# Clocks and films.


@pytest.mark.parametrize(
    ('times_s', 'fps', 'said'),
    [
        (STEPS / 15, 30, 'timestamps go at 15 steps a second, but fps is 30'),
        (np.where(STEPS >= 30, STEPS / 30 - 0.9, STEPS / 30), 30, r'fall back at step 30, from 0.967 s to 0.100 s'),
        (np.where(STEPS == 7, np.nan, STEPS / 30), 30, 'not finite'),
        (
            STEPS / 30 + 2.0 * (STEPS >= 30),
            30,
            r'ends after 30 of 60 .*pause for 2.03 s, which the film does not',
        ),
        (STEPS / 30, 25, 'timestamps go at 30 steps a second, but fps is 25'),
    ],
)
def test_an_episode_whose_clock_is_wrong_is_refused_by_name(
    write_dataset: Write, tmp_path: Path, times_s: Any, fps: float, said: str
) -> None:
    dataset = write_dataset(60, times_s=times_s, fps=fps)
    _, problems = from_lerobot(dataset, tmp_path / 'out')
    [problem] = problems
    assert (problem.field, problem.kind) == ('episode 0', 'unreadable')
    assert re.search(said, problem.text), problem.text
    assert not (tmp_path / 'out/episode_000000').exists()


def test_a_pause_that_the_film_has_too_stays_a_pause(write_dataset: Write, tmp_path: Path, read_number: Read) -> None:
    times = STEPS / 30 + 2.0 * (STEPS >= 30)
    dataset = write_dataset(60, times_s=times, film_times_s=times)
    contract, problems = from_lerobot(dataset, tmp_path / 'out')
    assert [(each.kind, each.count) for each in problems] == [('gap', 1)]
    numbers, stamps = seen(tmp_path / 'out/episode_000000', read_number)
    assert numbers == list(range(60))
    np.testing.assert_allclose(stamps, times, atol=1e-6)
    index = index_bags(tmp_path / 'out', contract, tmp_path / 'index')
    [(_, about)] = index.episodes
    assert about.steps == 120
    assert about.usable < 70, 'what lies in the pause is no sample'


@pytest.mark.parametrize('b_frames', [0, 2])
def test_pictures_of_a_quicker_film_are_found_by_their_times(
    write_dataset: Write, tmp_path: Path, read_number: Read, b_frames: int
) -> None:
    dataset = write_dataset(30, film_numbers=range(60), film_times_s=np.arange(60) / 60, b_frames=b_frames)
    _, problems = from_lerobot(dataset, tmp_path / 'out')
    assert not problems
    assert seen(tmp_path / 'out/episode_000000', read_number)[0] == list(range(0, 60, 2))


def test_a_film_that_lost_pictures_is_refused_and_not_shifted(write_dataset: Write, tmp_path: Path) -> None:
    kept = [number for number in range(30) if number not in (12, 13)]
    dataset = write_dataset(30, film_numbers=kept, film_times_s=[number / 30 for number in kept])
    _, problems = from_lerobot(dataset, tmp_path / 'out')
    [problem] = problems
    assert 'has no picture for step 12 of 30, at 0.400 s' in problem.text


def test_a_dataset_without_its_files_is_one_sentence(write_dataset: Write, tmp_path: Path) -> None:
    dataset = write_dataset(3)
    film = dataset / 'videos/chunk-000/observation.images.front/episode_000000.mp4'
    film.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 990\n')
    with pytest.raises(TrainingError, match=r'has no episode on disk: .*run `git lfs pull`'):
        from_lerobot(dataset, tmp_path / 'out')
    film.unlink()
    with pytest.raises(TrainingError, match=r'episode_000000.mp4 is missing; copy the whole dataset'):
        from_lerobot(dataset, tmp_path / 'out')


def test_lost_instructions_are_a_loss(write_dataset: Write, tmp_path: Path) -> None:
    dataset = write_dataset(5)
    (dataset / 'meta/tasks.jsonl').write_text('nothing')
    _, problems = from_lerobot(dataset, tmp_path / 'out')
    assert problems.kinds() == {'tasks_lost'}
    assert problems.is_loss


# Names, units and kinds.


@pytest.mark.parametrize(
    ('name', 'column'),
    [
        ('shoulder', 'shoulder/position'),
        ('shoulder.pos', 'shoulder/position'),
        ('wrist_roll.pos', 'wrist_roll/position'),
        ('kLeftShoulderPitch', 'kLeftShoulderPitch/position'),
        ('position.shoulder', 'shoulder/position'),
        ('joint_1.vel', 'joint_1/velocity'),
        ('velocity.joint_1', 'joint_1/velocity'),
        ('joint_1.torque', 'joint_1/effort'),
        ('left_arm/joint_1', 'left_arm/joint_1/position'),
        ('base/linear/x/velocity', 'base/linear/x/velocity'),
        ('x.vel', '?'),
        ('theta.vel', '?'),
        ('delta_x', '?'),
        ('roll', '?'),
        ('twist.linear.x', '?'),
        ('joint_1_current', '?'),
        ('0', '?'),
        ('', '?'),
    ],
)
def test_a_name_becomes_a_column_only_beyond_doubt(name: str, column: str) -> None:
    assert column_of(name) == column


def test_all_that_cannot_be_known_is_asked_for_in_one_message(write_dataset: Write, tmp_path: Path) -> None:
    """A mobile arm: degrees, a velocity in degrees a second, a base."""
    values = np.stack([90 * np.sin(STEPS / 9), np.cos(STEPS / 9), 0.1 * np.ones(60), 30 * np.cos(STEPS / 9)], axis=1)
    dataset = write_dataset(60, names=('lift.pos', 'pan.pos', 'x.vel', 'pan.vel'), values=values)
    with pytest.raises(TrainingError) as caught:
        from_lerobot(dataset, tmp_path / 'out')
    message = str(caught.value)
    assert 'unit of state observation.state[lift.pos] (from -89.91 to 89.99)' in message
    assert 'column and unit of state observation.state[x.vel]' in message
    assert 'unit of action action[pan.vel]' in message
    assert '[pan.pos]' not in message, 'radians that lie within a turn are taken as such'
    assert '--draft' in message
    assert not (tmp_path / 'out').exists()


def test_a_draft_that_was_completed_converts_units_and_signs(write_dataset: Write, tmp_path: Path) -> None:
    values = np.stack([90 * np.sin(STEPS / 9), 50 + 40 * np.cos(STEPS / 9), 0.1 * np.cos(STEPS / 9)], axis=1)
    dataset = write_dataset(60, names=('lift.pos', 'gripper.pos', 'x.vel'), values=values)
    draft = tmp_path / 'map.yaml'
    assert len(write_draft(dataset, draft)) == 6
    text = draft.read_text()
    assert 'from -89.91 to 89.99' in text
    with pytest.raises(TrainingError, match='exists already'):
        write_draft(dataset, draft)
    with pytest.raises(TrainingError, match=r'state\[0\].unit .*lift.pos.* is not answered.*actions\[2\]'):
        from_lerobot(dataset, tmp_path / 'out', map_file=draft)
    data = yaml.safe_load(text)
    for title in ('state', 'actions'):
        lift, gripper, base = data[title]
        lift.update(unit='deg', invert=True)
        gripper.update(unit='percent', scale=0.08, column='gripper/position')
        base.update(unit='m/s', column='base/linear/x/velocity', offset=0.5)
    data['cameras'] = {'eye': 'observation.images.front'}
    draft.write_text(yaml.safe_dump(data))
    contract, problems = from_lerobot(dataset, tmp_path / 'out', map_file=draft)
    assert not problems
    assert contract.camera_names == ('eye',)
    assert [column.unit for column in contract.state] == ['rad', '1', 'm/s']
    found = states(tmp_path / 'out/episode_000000')
    np.testing.assert_allclose(found[:, 0], -np.deg2rad(values[:, 0].astype(np.float32)), atol=1e-9)
    np.testing.assert_allclose(found[:, 1], values[:, 1].astype(np.float32) * 0.0008, atol=1e-9)
    np.testing.assert_allclose(found[:, -1], values[:, 2].astype(np.float32) + 0.5, atol=1e-7)
    index = index_bags(tmp_path / 'out', contract, tmp_path / 'index')
    assert not index.problems
    assert index.episodes


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'element': 'elbow'}, "names 'elbow' in observation.state; it has a.pos, b.pos"),
        ({'element': 2}, 'names element 2 of 2'),
        ({'feature': 'state'}, "names the feature 'state'; numbers are in observation.state, action"),
        ({'column': 'b/position'}, 'b/position, which another entry has, too'),
        ({'unit': 'deg/s'}, "unit is 'deg/s'; a/position is stored in rad, deg"),
        ({'column': 'a/torque'}, "column is 'a/torque'; end it in position, velocity, effort"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_by_field(
    write_dataset: Write, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    dataset = write_dataset()
    draft = tmp_path / 'map.yaml'
    assert write_draft(dataset, draft) == []
    data = yaml.safe_load(draft.read_text())
    data['state'][0].update(change)
    draft.write_text(yaml.safe_dump(data))
    with pytest.raises(KiError) as caught:
        from_lerobot(dataset, tmp_path / 'out', map_file=draft)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    'names',
    [
        {'lift': 0, 'pan': 1},
        {'pan': 1, 'lift': 0},
        {'motors': ['lift', 'pan']},
        {'left': ['lift'], 'right': ['pan']},
        [['lift', 'pan']],
    ],
)
def test_names_are_taken_in_every_form_of_the_field(write_dataset: Write, tmp_path: Path, names: Any) -> None:
    contract, problems = from_lerobot(write_dataset(names=names), tmp_path / 'out')
    assert contract.state_names == ('lift/position', 'pan/position')
    assert not problems


def test_groups_that_share_names_keep_them_apart(write_dataset: Write, tmp_path: Path) -> None:
    contract, _ = from_lerobot(write_dataset(names={'left': ['lift'], 'right': ['lift']}), tmp_path / 'out')
    assert contract.state_names == ('left_lift/position', 'right_lift/position')


@pytest.mark.parametrize('names', [None, ['state'], {'lift': 0, 'pan': 7}, ['lift', 'lift']])
def test_numbers_without_names_are_named_by_a_map(write_dataset: Write, tmp_path: Path, names: Any) -> None:
    dataset = write_dataset(names=names, keys=('state', 'actions'), cameras=('image', 'wrist_image'))
    with pytest.raises(TrainingError, match=r'column and unit of state state\[0\].*state\[1\].*action actions\[1\]'):
        from_lerobot(dataset, tmp_path / 'out')
    entries = {
        title: [
            {'feature': feature, 'element': place, 'column': f'joint{place + 1}/position', 'unit': 'rad'}
            for place in range(2)
        ]
        for title, feature in (('state', 'state'), ('actions', 'actions'))
    }
    (tmp_path / 'map.yaml').write_text(yaml.safe_dump({**entries, 'cameras': {'top': 'image'}}))
    contract, problems = from_lerobot(dataset, tmp_path / 'out', map_file=tmp_path / 'map.yaml')
    assert not problems
    assert (contract.state_names, contract.camera_names) == (('joint1/position', 'joint2/position'), ('top',))


def test_scalar_features_are_columns_too(write_dataset: Write, tmp_path: Path) -> None:
    opening = np.linspace(0, 100, 30, dtype=np.float32)
    dataset = write_dataset(extra={'observation.gripper': opening})
    draft = tmp_path / 'map.yaml'
    write_draft(dataset, draft)
    assert 'observation.gripper (1)' in draft.read_text()
    data = yaml.safe_load(draft.read_text())
    entry = {'feature': 'observation.gripper', 'element': 0, 'column': 'gripper/position', 'unit': 'percent'}
    data['state'].append(entry)
    draft.write_text(yaml.safe_dump(data))
    contract, problems = from_lerobot(dataset, tmp_path / 'out', map_file=draft)
    assert not problems
    assert contract.state_names[-1] == 'gripper/position'
    np.testing.assert_allclose(states(tmp_path / 'out/episode_000000')[:, 2], opening / 100, atol=1e-6)


def test_cameras_of_any_name_are_found(write_dataset: Write, tmp_path: Path) -> None:
    cameras = ('observation.images.0', 'observation.images.top view', 'observation.images.cam-high')
    assert camera_words(['0', 'top view', 'cam-high', 'cam.high']) == {
        'camera_0': '0',
        'top_view': 'top view',
        'cam_high': 'cam-high',
        'cam_high_2': 'cam.high',
    }
    contract, problems = from_lerobot(write_dataset(cameras=cameras), tmp_path / 'out')
    assert not problems
    assert contract.camera_names == ('camera_0', 'top_view', 'cam_high')


def test_degrees_are_asked_for_also_where_a_contract_is_given(write_dataset: Write, tmp_path: Path) -> None:
    contract, _ = from_lerobot(write_dataset(), tmp_path / 'out')
    (tmp_path / 'robot.yaml').write_text(yaml.safe_dump(contract.to_dict()))
    shutil.rmtree(tmp_path / 'dataset')
    dataset = write_dataset(values=np.full((30, 2), math.degrees(1.0)))
    with pytest.raises(TrainingError, match=r'state\[0\].unit \(observation.state, a.pos\) is not answered'):
        from_lerobot(dataset, tmp_path / 'out2', str(tmp_path / 'robot.yaml'))


# Files that are broken.


JUNK = [None, True, -1, 0, 1e308, 10**30, '', 'x', [], {}, [[]], [None], {'a': 1}, '../../../etc/passwd', '\x00']
JUNK += ['{episode_index:2000000000d}', '{video_key.__class__.__mro__}', '{0}']


def places(tree: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def test_whatever_stands_in_the_metadata_is_read_or_refused_in_one_sentence(
    write_dataset: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(3)
    path = dataset / 'meta/info.json'
    sound = json.loads(path.read_text())
    whole = LerobotDataset(dataset).episode(0)
    shared = ParquetReader()
    monkeypatch.setattr('training.lerobot.read.ParquetReader', lambda: shared)  # a process for all of them
    outcomes = []
    for number, place in enumerate([each for each in places(sound) if each]):
        for junk in (JUNK[number % len(JUNK)], JUNK[(7 * number + 3) % len(JUNK)]):
            tree = json.loads(json.dumps(sound))
            at = tree
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = junk
            path.write_text(json.dumps(tree))
            try:
                episode = LerobotDataset(dataset).episode(0)
            except TrainingError as error:
                outcomes.append('refused' if '\n' not in str(error) else 'in several lines')
            else:
                if episode.state.size and tree['features'].keys() == sound['features'].keys():
                    np.testing.assert_array_equal(episode.state, whole.state)
                outcomes.append('read')
    assert {'refused', 'read'} == set(outcomes)
    shared.close()


def test_a_table_that_never_ends_costs_its_time_limit(write_dataset: Write) -> None:
    table = write_dataset() / 'data/chunk-000/episode_000000.parquet'
    reader = ParquetReader(limit_s=0.5)
    reader._process = parquet._begin()
    os.kill(reader._process.pid, signal.SIGSTOP)  # stands still, as in a page without an end
    with pytest.raises(TrainingError, match=r'was not read within \d s: it is damaged'):
        reader.table(table)
    assert reader._process is None


def test_a_table_that_takes_its_reader_down_costs_only_itself(write_dataset: Write) -> None:
    table = write_dataset() / 'data/chunk-000/episode_000000.parquet'
    reader = ParquetReader()
    assert len(reader.table(table)) == 30
    assert reader._process is not None
    reader._process.kill()
    with pytest.raises(TrainingError, match='took the process down that read it'):
        reader.table(table)
    assert len(reader.table(table)) == 30, 'the next one begins a new process'
    reader.close()


def test_a_map_is_refused_with_its_file(tmp_path: Path) -> None:
    (tmp_path / 'map.yaml').write_text('state: 3\nactions: []\n')
    with pytest.raises(TrainingError, match=r'map.yaml: state is 3; write a list'):
        load_map(tmp_path / 'map.yaml')


def test_our_own_contract_counts_where_a_dataset_brings_it(write_dataset: Write, tmp_path: Path) -> None:
    made, _ = from_lerobot(write_dataset(), tmp_path / 'out')
    (tmp_path / 'dataset/meta/contract.json').write_text(json.dumps({**made.to_dict(), 'name': 'ours'}))
    again, _ = from_lerobot(tmp_path / 'dataset', tmp_path / 'out2')
    assert again == Contract.parse({**made.to_dict(), 'name': 'ours'})


def test_the_map_in_the_documentation_is_one() -> None:
    page = Path(__file__).resolve().parents[3] / 'docs/how-to/your-recordings.md'
    [text] = re.findall(r'```yaml\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL)
    found = ColumnMap.parse(yaml.safe_load(text), str(page))
    assert found.state[1].factor == pytest.approx(0.0008)
    assert found.state[0].factor == pytest.approx(-math.pi / 180)


def test_a_robot_told_by_hand_poses_is_imported_by_its_joints(write_dataset: Write, tmp_path: Path) -> None:
    """What its streams measure are joints; the hands of its policy are made of them."""
    robot = load_contract('bimanual_hands').robot
    assert robot.state_names == robot.action_names
    middle = [0.5 * (each.limits.lower + each.limits.upper) for each in robot.actions]
    cameras = tuple(f'observation.images.{name}' for name in robot.camera_names)
    dataset = write_dataset(5, names=robot.state_names, values=np.tile(middle, (5, 1)), cameras=cameras, fps=30)
    contract, problems = from_lerobot(dataset, tmp_path / 'out', 'bimanual_hands')
    assert not problems
    assert contract == load_contract('bimanual_hands')
    found = states(tmp_path / 'out/episode_000000')
    assert found.shape == (5, len(middle))
