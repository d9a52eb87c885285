"""The report on recorded episodes: what is counted is what the bag holds, and the page stands alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_bags import message_builders
from ki_bags.writer import BagWriter
from ki_policy_node.errors import NodeError
from ki_policy_node.reports.episode_numbers import FILM_HZ, read_episode
from ki_policy_node.reports.episode_report import EpisodeOutcome, EpisodeReport
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.names import joint_of
from ki_robot.messages.arrays import from_chunk

START = 1_700_000_000 * 10**9
SECONDS, JUMP, DELAY_MS = 4.0, 0.02, 70


@pytest.fixture(scope='module')
def contract() -> Contract:
    return load_contract('bimanual_mobile')


def ns(seconds: float) -> int:
    """The time so long after the beginning."""
    return START + round(float(seconds) * 1e9)


def words(text: str) -> Any:
    """A String message."""
    made = message_builders.empty('std_msgs/msg/String')
    made.data = text
    return made


@pytest.fixture(scope='module')
def bag(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds in a namespace: cameras at 20 Hz, joints at 50 Hz, a chunk a second, one clamp, one hold."""
    path = tmp_path_factory.mktemp('bags') / 'episode_0000'
    names = [name for name in contract.action_names if name.endswith('/position')]
    with BagWriter(path) as writer:

        def put(topic: str, value: object, at_s: float) -> None:
            message_builders.put(writer, f'robot/{topic}', ns(at_s), value)

        for at in np.arange(0.0, SECONDS, 1 / 20):
            for index, camera in enumerate(contract.cameras):
                pixels = np.full((48, 48, 3), (40 * index, 200, int(60 * at)), np.uint8)
                put(camera.topic, message_builders.picture(ns(at), pixels, camera.name), at)
        for at in np.arange(0.0, SECONDS, 1 / 50):
            values = [math.sin(at)] * len(names)
            put('joint_states', message_builders.joint_state(ns(at), [joint_of(name) for name in names], values), at)
            put('chunk_executor/applied_command', message_builders.joint_state(ns(at), names, values), at)
        for index in range(4):
            data = np.full((50, len(contract.action_names)), index * JUMP)
            chunk = ActionChunk(ns(index), contract.step_ns, contract.action_names, data, ns(index), index + 1)
            made = from_chunk(chunk, message_builders.empty('ki_msgs/msg/ActionChunk'))
            put('policy_node/action_chunk', made, index + DELAY_MS / 1000)
        for at, text in ((0.1, 'hold: not yet'), (0.2, 'run'), (2.5, 'hold: joint_states is stale'), (3.0, 'run')):
            put('chunk_executor/state', words(text), at)
        event = message_builders.empty('ki_msgs/msg/SafetyEvent')
        event.kind = 1
        put('chunk_executor/safety_event', event, 2.0)
    return path


def test_what_the_bag_holds_is_what_is_counted(bag: Path, contract: Contract) -> None:
    episode = read_episode(bag, contract)
    assert episode.seconds == pytest.approx(SECONDS, abs=0.1)
    assert episode.ages_ms == pytest.approx([DELAY_MS] * 4)
    assert episode.seams == pytest.approx([JUMP] * 3)
    assert episode.events == {'velocity limit': 1}
    assert episode.rates_hz['/robot/joint_states'] == pytest.approx(50, rel=0.01)
    assert episode.rates_hz['/robot/head_camera/image_raw/compressed'] == pytest.approx(20, rel=0.01)
    assert len(episode.frames) == pytest.approx(SECONDS * FILM_HZ, abs=1)
    assert all(set(images) == set(contract.camera_names) for _, images in episode.frames)
    times, values = episode.measured['left_joint1/position'].T
    assert np.allclose(values, np.sin(times), atol=0.03)
    assert np.array_equal(episode.commanded['left_joint1/position'][:, 1], values)


def test_messages_that_do_not_decode_are_counted_and_cost_no_report(tmp_path: Path, contract: Contract) -> None:
    with BagWriter(tmp_path / 'bag') as writer:
        for at in (0.0, 1.0):
            camera = contract.cameras[0]
            pixels = np.full((48, 48, 3), 90, np.uint8)
            message_builders.put(writer, f'/{camera.topic}', ns(at), message_builders.picture(ns(at), pixels, 'head'))
        writer.add_topic('/policy_node/status', 'ki_msgs/msg/PolicyStatus')
        writer.write('/policy_node/status', ns(0.5), b'\x00\x01\x00\x00\x07')
    outcome = EpisodeOutcome('look', tmp_path / 'bag', True, 1.0)
    report = EpisodeReport(contract, [outcome], {'k': 1, 'n': 1, 'rate': 1.0, 'low': 0.2, 'high': 1.0}, 'nobody')
    assert report.episodes[0].unread == 1
    assert 'messages that do not decode: 1' in report.html(b'GIF89a')


def test_a_hold_counts_once_the_robot_has_moved(bag: Path, contract: Contract) -> None:
    ((at, reason),) = read_episode(bag, contract).holds
    assert at == pytest.approx(2.5, abs=0.01)
    assert reason == 'joint_states is stale'


def test_the_page_tells_every_outcome_and_needs_nothing_from_outside(
    bag: Path, contract: Contract, without_plotly: Callable[[str], str]
) -> None:
    told = [
        EpisodeOutcome('put <it> away', bag, True, 3.5, 'demo'),
        EpisodeOutcome('wave', bag, False, 4.0, 'demo', 'the ball rolled off'),
        EpisodeOutcome('stay', bag, None, 1.0),
    ]
    rate = {'k': 1, 'n': 2, 'rate': 0.5, 'low': 0.09, 'high': 0.91}
    report = EpisodeReport(contract, told, rate, 'the policy P', ['Nobody may miss this.'])
    page = without_plotly(report.html(b'GIF89a'))
    assert 'drove it through ROS 2, in real time.' in page
    assert 'put &lt;it&gt; away' in page
    assert '<it>' not in page
    assert [page.count(f'>{word}</span>') for word in ('success', 'failure', 'interrupted')] == [1, 1, 1]
    assert '1 of 2' in page
    assert '9% to 91%' in page
    assert 'Nobody may miss this.' in page
    assert 'the ball rolled off' in page
    assert 'held at 2.5 s: joint_states is stale' in page
    assert page.count('src="data:image/') == 1 + 2 * len(told)
    assert page.count('Plotly.newPlot(') == len(told)
    assert 'src="http' not in page
    numbers = report.numbers()
    assert [each['outcome'] for each in numbers['episodes']] == ['success', 'failure', 'interrupted']
    assert numbers['episodes'][0]['seam_jump']['max'] == pytest.approx(JUMP)


def test_the_film_shows_all_episodes_to_their_end(bag: Path, contract: Contract) -> None:
    told = [EpisodeOutcome('one', bag, True, 4.0), EpisodeOutcome('two', bag, False, 4.0)]
    film = EpisodeReport(contract, told, {'k': 1, 'n': 2, 'rate': 0.5, 'low': 0.0, 'high': 1.0}, 'nobody').film()
    assert len({frame.shape for frame in film}) == 1
    assert len(film) / FILM_HZ == pytest.approx(SECONDS + 2.0, abs=0.5)
    last = film[-1]
    left, right = last[60, 2], last[60, last.shape[1] // 2 + 2]
    assert left[1] > left[0]  # a green frame for success, a red one for failure
    assert right[0] > right[1]


def test_a_bag_without_pictures_is_one_sentence(tmp_path: Path, contract: Contract) -> None:
    with BagWriter(tmp_path / 'blind') as writer:
        message_builders.put(writer, 'words', START, words('dark'))
    with pytest.raises(NodeError, match='No recording holds a picture'):
        EpisodeReport(contract, [EpisodeOutcome('look', tmp_path / 'blind', True, 1.0)], {}, 'nobody')


def test_the_page_says_first_whether_it_worked_how_sure_and_what_limited_it(bag: Path, contract: Contract) -> None:
    outcomes = [
        EpisodeOutcome('wave', bag, False, 4.0, 'demo', 'the ball rolled off'),
        EpisodeOutcome('stay', bag, None, 1.0),
    ]
    rate = {'k': 0, 'n': 1, 'rate': 0.0, 'low': 0.0, 'high': 0.79}
    page = EpisodeReport(contract, outcomes, rate, 'the policy P', pace='at 0.25 of real time').html(b'GIF89a')
    top = page[page.index('Did it work?') : page.index('What was running')]
    for sentence in (
        '0 of 1 instructions were carried out, driven by the policy P.',
        'between 0% and 79% (95 % interval)',
        'Failed: “wave” (the ball rolled off).',
        '1 episode was interrupted before the end.',
        'Held 2 times: joint_states is stale.',
        'Limited or refused 2 times: velocity limit.',
        'This machine, which is too slow for real time: at 0.25 of real time.',
        '<a href="#episode-1">Episode 1, which did not succeed</a>',
        '<a href="#next">What to do with the recordings</a>',
    ):
        assert sentence in top
    assert all(page.count(f'id="{place}"') == 1 for place in ('episode-1', 'episode-2', 'next'))
    assert 'in real time' not in page


def test_no_word_of_a_bag_can_add_anything_to_the_page(bag: Path, contract: Contract) -> None:
    bad = '<script>alert(1)</script><!--real-->"\'&'
    rate = {'k': 0, 'n': 1, 'rate': 0.0, 'low': 0.0, 'high': 1.0}
    plain = EpisodeReport(contract, [EpisodeOutcome('x', bag, None, 3.0)], rate, 'x', ['x']).html(b'GIF89a')
    report = EpisodeReport(contract, [EpisodeOutcome(bad, bag, None, 3.0, bad, bad)], rate, bad, [bad])
    episode = report.episodes[0]
    episode.events[bad], episode.rates_hz[bad] = 3, 3.0
    episode.holds.append((1.0, bad))
    page = report.html(b'GIF89a')
    assert 'alert(1)' in page
    for tag in ('<script', '</script', '<!--real-->'):
        assert page.count(tag) == plain.count(tag)
