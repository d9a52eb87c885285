"""Episodes of a random recording are those of an oracle that looks at every message for every step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_bags.problems import Problems
from ki_robot.contract.contract import Contract
from ki_robot.messages.commands import Command
from ki_robot.messages.states import measured_columns
from training.index.episodes import UNKNOWN_DRIVER, IndexOptions, episodes_of
from training.index.streams import Collected, Marker, Track

START_NS = 1_700_000_000_000_000_000
SECONDS, EPISODES = 24, 5


def random_recording(contract: Contract, seed: int) -> Collected:
    """Streams of uneven rates with gaps, late arrivals, setpoints mixed with trajectories, and words in between."""
    rng, found = np.random.default_rng(seed), Collected()

    def fill(hz: float, row: Any) -> Track:
        track = Track()
        stamps = START_NS + np.sort(rng.choice(SECONDS * 10_000, int(SECONDS * hz), replace=False)) * 100_000
        for stamp, delay in zip(
            stamps.tolist(), rng.integers(1_000_000, 20_000_000, len(stamps)).tolist(), strict=True
        ):
            track.add(stamp, stamp + delay, row())
        return track

    def state(width: int) -> Callable[[], Any]:
        return lambda: rng.normal(size=width)

    def command(width: int) -> Command:
        if rng.random() < 0.5:
            return Command(np.zeros(1, dtype=np.int64), rng.normal(size=(1, width)))
        return Command(np.array([0, 30_000_000, 90_000_000]), rng.normal(size=(3, width)))

    for camera in contract.cameras:
        found.cameras[camera.name] = fill(60, lambda: (int(rng.integers(10**6)), int(rng.integers(1, 10**4)), 0))
    for stream in contract.state_streams:
        columns = found.state_columns[stream.name] = measured_columns(contract, stream)
        found.states[stream.name] = fill(100, state(len(columns)))
    for output in contract.robot.outputs:
        found.commands[output.name] = fill(40, partial(command, len(output.columns)))
    found.instructions, found.subtasks = (fill(1, lambda: f'word {rng.integers(5)}') for _ in range(2))
    found.drivers = fill(1, lambda: int(rng.integers(3)))
    for episode in range(EPISODES):
        for phase, at_s in ((True, 0.2), (False, 0.8)):
            stamp = START_NS + round((episode + at_s) * SECONDS / EPISODES * 1e9)
            found.markers.add(stamp, stamp, Marker(phase, f'task {episode}' if episode % 2 else '', 1, episode))
    return found


def newest(track: Track, time_ns: int) -> int:
    """Row of the newest message at a time by a look at each; -1 before the first."""
    return max((row for row, stamp in enumerate(track.stamps) if stamp <= time_ns), default=-1)


def told(track: Track, time_ns: int) -> np.ndarray:
    """What a controller was told at a time."""
    row = newest(track, time_ns)
    command = track.rows[row]
    return np.array([np.interp(time_ns - track.stamps[row], command.times_ns, each) for each in command.values.T])


@pytest.mark.parametrize('rule', ['hold', 'linear'])
def test_episodes_are_those_of_a_look_at_every_message(toy: Contract, rule: str) -> None:
    found = random_recording(toy, seed=1)
    episodes = episodes_of(found, toy, IndexOptions(state=rule, task='else'), {}, Path('bag'), Problems())
    assert len(episodes) == EPISODES
    for episode in episodes:
        number = (episode.start_ns - START_NS) * EPISODES // (SECONDS * 10**9)
        task = found.markers.rows[2 * number].task or 'else'
        begin_ns = found.markers.stamps[2 * number]
        for step, time_ns in enumerate(episode.arrays['stamps'].tolist()):
            here = {name: values[step] for name, values in episode.arrays.items()}
            for stream in toy.state_streams:
                track = found.states[stream.name]
                places = [toy.state_names.index(name) for name in found.state_columns[stream.name]]
                row = newest(track, time_ns)
                expected = track.rows[row]
                if rule == 'linear':
                    share = (time_ns - track.stamps[row]) / (track.stamps[row + 1] - track.stamps[row])
                    expected = expected + share * (track.rows[row + 1] - expected)
                np.testing.assert_allclose(here['state'][places], expected, rtol=0, atol=0 if rule == 'hold' else 1e-12)
            for camera in toy.cameras:
                picture = found.cameras[camera.name]
                row = newest(picture, time_ns)
                assert here[f'{camera.name}.stamp'] == picture.stamps[row]
                assert (here[f'{camera.name}.offset'], here[f'{camera.name}.length']) == picture.rows[row][:2]
            for output in toy.outputs:
                places = [toy.action_names.index(name) for name in output.columns]
                np.testing.assert_array_equal(here['actions'][places], told(found.commands[output.name], time_ns))
            row = newest(found.instructions, time_ns)
            heard = row >= 0 and found.instructions.stamps[row] > begin_ns
            assert episode.texts[here['text']] == (found.instructions.rows[row] if heard else task)
            row = newest(found.subtasks, time_ns)
            assert episode.texts[here['subtask']] == (found.subtasks.rows[row] if row >= 0 else '')
            row = newest(found.drivers, time_ns)
            assert here['driver'] == (found.drivers.rows[row] if row >= 0 else UNKNOWN_DRIVER)


def test_an_episode_holds_the_words_of_its_own_time_only(toy: Contract) -> None:
    found = random_recording(toy, seed=2)
    for episode in episodes_of(found, toy, IndexOptions(), {}, Path('bag'), Problems()):
        assert len(episode.texts) <= 2 + 2 * SECONDS // EPISODES


def test_a_time_that_no_clock_tells_is_refused_and_leaves_a_track_whole() -> None:
    track = Track()
    track.add(5, 6, 'row')
    with pytest.raises(OverflowError):
        track.add(7, 2**63, 'other')
    assert (list(track.stamps), list(track.logs), track.rows) == ([5], [6], ['row'])
