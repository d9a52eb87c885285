"""Samples are what the live node would have seen, with what was commanded from there on."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ki_bags.reader import open_bag
from ki_robot.contract.contract import Contract
from ki_robot.messages.arrays import joint_values, odometry_values, stamp_ns
from ki_robot.observation.observation import build_observation, decode_camera
from training.errors import TrainingError
from training.index.episodes import runs_of
from training.index.index import EpisodeInfo, index_bags
from training.samples.dataset import EpisodeDataset, split_episodes, starts_of

MakeBag = Callable[..., Path]
START_NS = 1_700_000_000_000_000_000


@pytest.mark.parametrize('picture_size', [None, 8])
def test_a_sample_is_bit_for_bit_what_the_live_node_sees(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, picture_size: int | None
) -> None:
    """Messages are played in order; at each step of the grid the newest ones make the live observation."""
    path = make_bag(seconds=1.0)
    data = EpisodeDataset(index_bags(path, toy, tmp_path / 'index'), picture_size=picture_size, resize=False)
    bag = open_bag(path)
    played = [(each.log_ns, each.topic, bag.decode(each)) for each in bag.messages()]
    cameras = {f'/{camera.topic}': camera for camera in toy.cameras}
    columns = {s.name: [c.name for c in toy.state if c.source == s.name] for s in toy.state_streams}
    compared = 0
    for position in range(len(data)):
        sample = data[position]
        images, image_stamps, states, state_stamps = {}, {}, {}, {}
        for log_ns, topic, message in played:
            if log_ns > sample.stamp_ns:
                continue
            if topic in cameras:
                camera = cameras[topic]
                images[camera.name] = decode_camera(camera, message, size=picture_size)
                image_stamps[camera.name] = stamp_ns(message.header)
            elif topic == '/joint_states':
                states['joint_states'] = joint_values(message, columns['joint_states'])
                state_stamps['joint_states'] = stamp_ns(message.header)
            elif topic == '/odom':
                states['odom'] = odometry_values(message, columns['odom'])
                state_stamps['odom'] = stamp_ns(message.header)
        live = build_observation(toy, images, image_stamps, states, state_stamps, 'lift the cup')
        np.testing.assert_array_equal(sample.state_S, live.state)
        assert list(sample.images) == list(live.images)
        for name, image in live.images.items():
            np.testing.assert_array_equal(sample.images[name], image)
        assert sample.instruction == live.instruction
        compared += 1
    assert compared == 21


def test_chunks_end_with_the_episode(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    data = EpisodeDataset(index_bags(make_bag(), toy, tmp_path / 'index'))
    full, last = data[0], data[len(data) - 1]
    assert full.action_mask_H.all()
    np.testing.assert_array_equal(last.action_mask_H, [True] + [False] * 7)
    np.testing.assert_array_equal(last.actions_HN, np.repeat(last.actions_HN[:1], 8, axis=0))
    fifth = data[len(data) - 5]
    np.testing.assert_array_equal(fifth.action_mask_H, np.arange(8) < 5)
    whole = data.arrays(0)['actions']
    np.testing.assert_array_equal(fifth.actions_HN[:5], whole[-5:])


def test_outcomes_strides_and_splits_choose_samples(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    for name, outcome in (('a', 1), ('b', 2), ('c', 1), ('d', 0)):
        make_bag(name, seconds=1.0, outcome=outcome, task=name)
    index = index_bags(tmp_path / 'bags', toy, tmp_path / 'index')
    assert EpisodeDataset(index).episode_numbers == [0, 2, 3]
    assert EpisodeDataset(index, outcomes=('failure',)).episode_numbers == [1]
    assert len(EpisodeDataset(index, stride=4)) == 3 * 6
    train, held = split_episodes(index, 0.3)
    assert sorted(train + held) == [0, 1, 2, 3]
    assert 1 <= len(held) <= 3
    assert split_episodes(index, 0.3) == (train, held)
    assert split_episodes(index, 0.0) == ([0, 1, 2, 3], [])
    with pytest.raises(TrainingError, match='no usable step'):
        EpisodeDataset(index, outcomes=('discard',))


def test_a_dataset_travels_to_another_process(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    data = EpisodeDataset(index_bags(make_bag(), toy, tmp_path / 'index'))
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again[5].state_S, data[5].state_S)
    np.testing.assert_array_equal(again[5].images['scene'], data[5].images['scene'])


def test_images_can_be_stored_at_the_size_of_the_model(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    from training.index.episodes import IndexOptions

    path = make_bag(seconds=1.0)
    exact = EpisodeDataset(index_bags(path, toy, tmp_path / 'exact'))
    small = EpisodeDataset(index_bags(path, toy, tmp_path / 'small', IndexOptions(store='model')))
    assert small[3].images['scene'].shape == (32, 32, 3)
    difference = np.abs(small[3].images['scene'].astype(int) - exact[3].images['scene'])
    assert difference.mean() < 4.0


def test_data_that_cannot_be_decoded_at_all_stops_with_a_sentence(
    make_bag: MakeBag, toy: Contract, tmp_path: Path
) -> None:
    index = index_bags(make_bag(seconds=4.0), toy, tmp_path / 'index')
    file: Any = index.entries[0].folder / 'scene.images'
    file.chmod(0o644)
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(TrainingError, match='ki data check --deep'):
        EpisodeDataset(index)[0]


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(bool, st.integers(0, 40)), st.integers(1, 4), st.none() | st.integers(1, 40), st.booleans(), st.data()
)
def test_starts_chosen_from_stretches_are_those_of_a_look_at_every_step(
    usable: np.ndarray, stride: int, most: int | None, human: bool, data: st.DataObject
) -> None:
    drove = data.draw(hnp.arrays(bool, len(usable)))
    about = EpisodeInfo('', len(usable), 0, 'success', (), runs_of(usable), runs_of(drove))
    assert about.usable == usable.sum()
    chosen = [
        [number, step]
        for number in (3, 7)
        for step in range(len(usable))
        if usable[step] and (drove[step] or not human) and step % stride == 0 and step < (most or len(usable))
    ]
    episodes = [(3, about), (7, about)]
    assert starts_of(episodes, stride, most, human).tolist() == chosen
    begin, end = sorted(data.draw(st.tuples(st.integers(0, 41), st.integers(0, 41))))
    expected = [
        [7, step]
        for step in range(begin, min(end, len(usable)))
        if usable[step] and (drove[step] or not human) and step % stride == 0 and step < begin + (most or len(usable))
    ]
    assert starts_of(episodes, stride, most, human, {7: (begin, end)}).tolist() == expected


def test_a_data_set_larger_than_its_memory_gives_the_same_samples(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('a', 'b', 'c'):
        make_bag(name, seconds=0.5, task=name)
    index = index_bags(tmp_path / 'bags', toy, tmp_path / 'index')
    roomy, tight = EpisodeDataset(index), EpisodeDataset(index)
    one = sum(each.nbytes for each in roomy.arrays(0).values())
    monkeypatch.setattr('training.samples.dataset.MEMORY', one)
    for position in (*range(len(roomy)), 0):
        a, b = roomy[position], tight[position]
        assert (a.instruction, a.episode, a.step) == (b.instruction, b.episode, b.step)
        np.testing.assert_array_equal(a.actions_HN, b.actions_HN)
        assert sum(array.nbytes for arrays in tight._arrays.values() for array in arrays.values()) <= one
    assert [(number, steps.tolist()) for number, steps in tight.starts_by_episode()] == [
        (number, [step for other, step in tight.starts().tolist() if other == number]) for number in (0, 1, 2)
    ]
