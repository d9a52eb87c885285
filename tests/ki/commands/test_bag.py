"""`ki bag`: what is recorded from one process is played into another, unchanged and in time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

Ki = Callable[..., subprocess.CompletedProcess[str]]
HELLO = b'\x00\x01\x00\x00\x06\x00\x00\x00hello\x00'


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    """Eleven words, 20 ms apart."""
    from ki_bags.writer import BagWriter

    with BagWriter(tmp_path / 'words') as writer:
        writer.add_topic('/words', 'std_msgs/msg/String')
        for number in range(11):
            writer.write('/words', 1_000_000_000 + number * 20_000_000, HELLO)
    return tmp_path / 'words'


@pytest.fixture
def player(bag: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`player(*arguments)` plays the bag in a process, which does not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, '-m', 'ki.main', 'bag', 'play', str(bag), *arguments]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def listen(node: Any, topic: str, kind: Any) -> list[tuple[float, Any]]:
    """Collects (arrival, message)."""
    heard: list[tuple[float, Any]] = []
    node.create_subscription(kind, topic, lambda message: heard.append((time.monotonic(), message)), 100)
    return heard


@pytest.mark.ros
def test_a_recorded_bag_tells_its_topics_and_is_sound(ki: Ki, talker: object, tmp_path: Path) -> None:
    from ki_bags.reader import open_bag

    done = ki('bag', 'record', '-o', 'out', '--seconds', 2.0, '--task', 'say words')
    assert done.returncode == 0, done.stderr
    told = ki('bag', 'info', 'out')
    assert told.returncode == 0, told.stdout
    rows = {line.split()[0]: line.split()[1:] for line in told.stdout.splitlines() if line.startswith((' /', '/'))}
    assert rows['/episode'][:2] == ['ki_msgs/msg/EpisodeMarker', '2']
    recorded = open_bag(tmp_path / 'out')
    words = [recorded.decode(message).data.split() for message in recorded.messages(['/words'])]
    ticks, times = [int(tick) for _, tick, _ in words], [int(time_ns) for *_, time_ns in words]
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks))), 'nothing is lost'
    # 50 Hz, unless the talker had to wait for this machine.
    rate = (len(times) - 1) / (times[-1] - times[0]) * 1e9
    for topic, kind in (('/words', 'std_msgs/msg/String'), ('/joint_states', 'sensor_msgs/msg/JointState')):
        assert rows[topic][0] == kind
        assert float(rows[topic][2]) == pytest.approx(rate, rel=0.05)


@pytest.mark.ros
def test_a_listed_topic_that_says_nothing_is_named_and_status_1(tmp_path: Path) -> None:
    from ki.commands.bag import app

    recorded = ['record', '/episode', '/joint_stats', '--seconds', '0.2', '-o', str(tmp_path / 'out')]
    done = CliRunner().invoke(app, recorded)
    assert done.exit_code == 1, done.output
    assert 'Nothing was heard of /joint_stats;' in done.output
    assert (tmp_path / 'out').is_dir()


@pytest.mark.ros
def test_playing_keeps_pace_and_rate_and_remaps(player: Callable[..., subprocess.Popen[bytes]]) -> None:
    from rosgraph_msgs.msg import Clock
    from std_msgs.msg import String

    from ki_policy_node.common import ros

    with ros.node('listener') as node:
        heard, ticks = listen(node, 'loud', String), listen(node, '/clock', Clock)
        process = player('--rate', '0.5', '--clock', '50', '--remap', '/words:=/loud', '--wait', '1')
        assert ros.spin_until(node, lambda: len(heard) == 11, 15.0), len(heard)
        assert process.wait(10) == 0
    assert {message.data for _, message in heard} == {'hello'}
    assert heard[-1][0] - heard[0][0] == pytest.approx(0.4, abs=0.06)
    times = [message.clock.sec * 10**9 + message.clock.nanosec for _, message in ticks]
    assert times == sorted(times)
    assert 1_000_000_000 <= times[0] < times[-1] <= 1_200_000_000
    assert times[-1] - times[-2] == pytest.approx(0.5 * 10**9 / 50, rel=1e-6)


@pytest.mark.ros
def test_a_loop_plays_until_it_is_stopped(player: Callable[..., subprocess.Popen[bytes]]) -> None:
    from std_msgs.msg import String

    from ki_policy_node.common import ros

    with ros.node('listener') as node:
        heard = listen(node, 'words', String)
        process = player('--loop', '--wait', '1')
        assert ros.spin_until(node, lambda: len(heard) > 25, 15.0), len(heard)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_a_damaged_bag_is_named_and_status_1(ki: Ki, bag: Path) -> None:
    [file] = bag.glob('*.mcap')
    content = bytearray(file.read_bytes())
    content[content.index(b'hello') + 2] ^= 0xFF
    file.write_bytes(content)
    done = ki('bag', 'info', bag)
    assert done.returncode == 1
    assert 'words_0.mcap' in done.stdout


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (['--rate', '0'], 'rate is 0.0; it must be greater than 0.'),
        (['--topic', '/nothing'], 'has no topic /nothing; it has /words.'),
        (['--remap', '/words'], "--remap '/words' must read FROM:=TO."),
    ],
)
@pytest.mark.ros
def test_what_cannot_be_played_is_one_sentence(ki: Ki, bag: Path, arguments: list[str], told: str) -> None:
    done = ki('bag', 'play', bag, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert 'Traceback' not in done.stderr
