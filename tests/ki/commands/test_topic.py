"""`ki topic` against a node in another process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ki.commands.topic import app, plain, rate_line
from ki_common.errors import KiError

Ki = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.ros
def test_echo_prints_messages_as_yaml_and_cuts_long_arrays(ki_process: Ki, talker: object) -> None:
    done = ki_process('topic', 'echo', 'joint_states', '-n', 2, '--wait', 15)
    assert done.returncode == 0, done.stderr
    first, second, rest = yaml.safe_load_all(done.stdout)
    assert first == second
    assert rest is None
    assert first['position'] == [0.5] * 12 + ['... 8 more']
    assert first['header'] == {'stamp': {'sec': 0, 'nanosec': 0}, 'frame_id': ''}


@pytest.mark.ros
def test_list_and_hz_tell_what_is_there_and_how_fast(ki: Ki, talker: object) -> None:
    done = ki('topic', 'hz', 'words', '--seconds', 2, '--wait', 15)
    assert done.returncode == 0, done.stderr
    assert 45.0 < float(done.stdout.splitlines()[-1].split()[0]) < 55.0
    # A busy machine may need longer than people wait.
    for wait in ((), ('--wait', 15)):
        done = ki('topic', 'list', *wait)
        listed = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
        if '/words' in listed:
            break
    assert listed['/words'] == ['std_msgs/msg/String', '1', '0']


@pytest.mark.ros
def test_a_topic_that_nobody_publishes_is_one_sentence_and_status_2(ki: Ki) -> None:
    done = ki('topic', 'echo', '/nothing', '--wait', 0.5)
    assert done.returncode == 2
    assert done.stderr.startswith('ki: Nobody published /nothing within 0.5 s.')
    assert 'Traceback' not in done.stderr


@pytest.mark.ros
@pytest.mark.parametrize(
    ('domain', 'topic', 'told'),
    [
        ('', 'bad topic', "Topic 'bad topic' is no name: topic name must not contain"),
        ('abc', 'words', "ROS_DOMAIN_ID is 'abc'; write a whole number from 0 to 232"),
        ('233', 'words', "ROS_DOMAIN_ID is '233'; write"),
    ],
)
def test_a_topic_or_domain_that_is_none_is_one_sentence(
    domain: str, topic: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if domain:
        monkeypatch.setenv('ROS_DOMAIN_ID', domain)
    done = CliRunner().invoke(app, ['echo', topic, '--wait', '0'])
    assert isinstance(done.exception, KiError)
    assert told in str(done.exception)


def test_the_rate_is_taken_over_the_gaps_and_the_bytes_between_them() -> None:
    line = rate_line([0.0, 0.1, 0.3], [10, 500_000, 500_000])
    assert line == '6.67 Hz   interval 100.0 to 200.0 ms   3.333 MB/s   3 messages'
    assert rate_line([1.0], [1]) == 'fewer than two messages'


def test_arrays_of_any_kind_become_lists_of_numbers() -> None:
    import array

    import numpy as np

    def same(value: Any) -> Any:
        return plain(value, 3)

    assert same(array.array('d', [1, 2])) == same(np.array([1.0, 2.0])) == [1.0, 2.0]
    assert same(b'\x01\x02\x03\x04') == [1, 2, 3, '... 1 more']
    assert yaml.safe_dump(same(np.arange(5, dtype=np.float32)))


def test_the_inputs_of_a_policy_are_named_in_the_namespace_of_the_robot() -> None:
    done = CliRunner().invoke(app, ['inputs', 'arm_single', '--namespace', 'robot1/'])
    assert done.exit_code == 0
    names = done.stdout.split()
    assert '/robot1/joint_states' in names
    assert names[-1] == '/robot1/instruction'
