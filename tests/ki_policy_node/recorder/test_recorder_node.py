"""Episodes end up in bags, whole, as they came, and marked; the recorder is its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ros
SHARED = ('/tf', '/clock', '/diagnostics')  # the last is said by the recorder, too


@pytest.fixture
def start_recorder(tmp_path: Path, ros_domain: int) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the recorder with parameters; at the end of the test it must end cleanly."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**parameters: object) -> subprocess.Popen[bytes]:
        parameters = {'folder': str(tmp_path / 'bags'), **parameters}
        arguments = [part for name, value in parameters.items() for part in ('-p', f'{name}:={value}')]
        started.append(
            subprocess.Popen([sys.executable, '-m', 'ki_policy_node.recorder.recorder_node', '--ros-args', *arguments])
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        assert process.returncode in (0, -signal.SIGKILL), 'it has ended by itself, or the test has killed it'


@pytest.fixture
def node() -> Iterator[Any]:
    from ki_policy_node.common import ros

    with ros.node('robot') as made:
        yield made


def call(node: Any, kind: Any, name: str, **fields: Any) -> Any:
    """Calls a service of the recorder."""
    import rclpy

    from ki_policy_node.common.service_calls import ServiceCalls

    if 'request_id' in kind.Request.get_fields_and_field_types():
        fields = {'request_id': uuid.uuid4().hex} | fields
    calls = vars(node).setdefault('calls', ServiceCalls(node, lambda: rclpy.spin_once(node, timeout_sec=0.02)))
    return calls.call(kind, f'recorder/{name}', kind.Request(**fields), 30.0)


def test_a_repeated_request_gets_the_same_answer_and_does_nothing(node: Any, start_recorder: Any) -> None:
    from ki_msgs.srv import StartRecording, StopRecording

    start_recorder()
    first = call(node, StartRecording, 'start_recording', task='wave', request_id='a')
    again = call(node, StartRecording, 'start_recording', task='wave', request_id='a')
    assert first.success
    assert again == first
    assert not call(node, StartRecording, 'start_recording', task='wave', request_id='b').success
    ended = call(node, StopRecording, 'stop_recording', request_id='c')
    assert ended.success
    assert call(node, StopRecording, 'stop_recording', request_id='c') == ended
    assert not call(node, StopRecording, 'stop_recording', request_id='d').success


def talk(node: Any, publisher: Any, messages: list[Any]) -> None:
    """Publishes once the recorder listens."""
    from ki_policy_node.common import ros

    assert ros.spin_until(node, publisher.get_subscription_count, 10.0), 'the recorder does not listen'
    for message in messages:
        publisher.publish(message)
        time.sleep(0.002)
    time.sleep(0.2)


def read(folder: str) -> dict[str, list[Any]]:
    """All messages of a bag by topic; the bag must be without a fault."""
    from ki_bags.reader import open_bag

    assert not list(open_bag(folder).problems), list(open_bag(folder).problems)
    return messages_of(folder)


def messages_of(folder: str | Path) -> dict[str, list[Any]]:
    from ki_bags.reader import open_bag

    found: dict[str, list[Any]] = {}
    for message in open_bag(folder).messages():
        found.setdefault(message.topic, []).append(message)
    return found


def joint_states(count: int) -> list[Any]:
    from sensor_msgs.msg import JointState

    messages = [JointState(name=['a', 'b'], position=[float(number), -1.0]) for number in range(count)]
    for number, message in enumerate(messages):
        message.header.stamp.sec = number
    return messages


def test_an_episode_holds_every_message_byte_for_byte_between_its_markers(
    node: Any, start_recorder: Callable[..., Any], tmp_path: Path
) -> None:
    from ki_msgs.msg import EpisodeMarker
    from ki_msgs.srv import StartRecording, StopRecording
    from rclpy.qos import QoSProfile, qos_profile_sensor_data
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import JointState
    from std_msgs.msg import String

    fast = node.create_publisher(JointState, 'joint_states', qos_profile_sensor_data)
    latched = node.create_publisher(String, 'robot_description', QoSProfile(depth=1, durability=1))
    latched.publish(String(data='a robot'))
    start_recorder()
    talk(node, fast, joint_states(3))  # before the episode: not in it

    started = call(node, StartRecording, 'start_recording', task='put the cup away', policy_id='p@1')
    assert started.success, started.message
    assert not call(node, StartRecording, 'start_recording').success, 'a second episode at once'
    talk(node, fast, joint_states(200))
    stopped = call(node, StopRecording, 'stop_recording', outcome=EpisodeMarker.OUTCOME_SUCCESS)
    assert stopped.success, stopped.message
    assert stopped.uri == started.uri == str(tmp_path / 'bags' / 'episode_0000')

    found = read(stopped.uri)
    states = [deserialize_message(message.data, JointState) for message in found['/joint_states']]
    assert states == joint_states(200)
    [description] = found['/robot_description']
    assert deserialize_message(description.data, String).data == 'a robot'
    first, last = [deserialize_message(message.data, EpisodeMarker) for message in found['/episode']]
    assert (first.phase, first.task, first.policy_id) == (EpisodeMarker.PHASE_START, 'put the cup away', 'p@1')
    assert (last.phase, last.outcome) == (EpisodeMarker.PHASE_END, EpisodeMarker.OUTCOME_SUCCESS)
    times = [message.log_ns for message in found['/joint_states']]
    assert times == sorted(times)
    assert found['/episode'][0].log_ns <= times[0] <= times[-1] <= found['/episode'][1].log_ns


def test_what_waited_for_a_recorder_that_stalled_keeps_the_time_it_arrived_at(tmp_path: Path) -> None:
    from std_msgs.msg import String

    from ki_policy_node.common import ros
    from ki_policy_node.recorder.recorder_node import Recorder

    with ros.node('talker') as node:
        publisher = node.create_publisher(String, 'words', 10)
        recorder = Recorder()
        try:
            assert ros.spin_until(recorder, publisher.get_subscription_count, 10.0), 'the recorder does not listen'
            recorder.start('listen', path=tmp_path / 'bag')
            for number in range(5):
                publisher.publish(String(data=str(number)))
                time.sleep(0.05)
            assert ros.spin_until(recorder, lambda: recorder.streams['/words'].received == 5, 10.0)
            recorder.stop()
        finally:
            recorder.destroy_node()
    times = [message.log_ns for message in read(tmp_path / 'bag')['/words']]
    assert times[-1] - times[0] > 0.1e9, 'sent over 0.2 s'


def test_what_waited_for_a_recorder_that_stalled_before_the_episode_is_not_of_it_unless_latched(tmp_path: Path) -> None:
    from rclpy.qos import QoSProfile
    from std_msgs.msg import String

    from ki_policy_node.common import ros
    from ki_policy_node.recorder.recorder_node import Recorder

    with ros.node('talker') as node:
        publisher = node.create_publisher(String, 'words', 10)
        latched = node.create_publisher(String, 'robot_description', QoSProfile(depth=1, durability=1))
        recorder = Recorder()
        try:
            for each in (publisher, latched):
                assert ros.spin_until(recorder, each.get_subscription_count, 10.0), 'the recorder does not listen'
            publisher.publish(String(data='before'))
            latched.publish(String(data='a robot'))
            time.sleep(0.1)  # they have arrived, and nobody has looked
            episode = recorder.start('listen', path=tmp_path / 'bag')
            publisher.publish(String(data='in it'))
            assert ros.spin_until(recorder, lambda: recorder.streams['/words'].received == 2, 10.0)
            recorder.stop()
            publisher.publish(String(data='between two parts of a long episode'))
            time.sleep(0.1)
            recorder.start('listen', path=tmp_path / 'next', since_ns=episode.since_ns)
            assert ros.spin_until(recorder, lambda: recorder.streams['/words'].received == 1, 10.0)
            recorder.stop()
        finally:
            recorder.destroy_node()
    first, second = (read(tmp_path / name) for name in ('bag', 'next'))
    assert [text_of(message) for message in first['/words']] == ['in it']
    assert [text_of(message) for message in second['/words']] == ['between two parts of a long episode']
    for part in (first, second):
        assert {text_of(message) for message in part['/robot_description']} == {'a robot'}
    assert first['/robot_description'][0].log_ns == episode.start_ns


@pytest.mark.parametrize('ends', ['stop', 'close', 'discard'])
def test_an_episode_keeps_what_had_arrived_when_it_ended_and_waited_for_a_recorder_that_stalled(
    tmp_path: Path, ends: str
) -> None:
    from ki_msgs.msg import EpisodeMarker
    from std_msgs.msg import String

    from ki_policy_node.common import ros
    from ki_policy_node.recorder.recorder_node import Recorder

    with ros.node('talker') as node:
        publisher = node.create_publisher(String, 'words', 100)
        recorder = Recorder()
        try:
            assert ros.spin_until(recorder, publisher.get_subscription_count, 10.0), 'the recorder does not listen'
            recorder.start('listen', path=tmp_path / 'bag')
            for number in range(50):
                publisher.publish(String(data=str(number)))
            time.sleep(0.2)  # they have arrived, and nobody has looked
            if ends == 'close':
                recorder.close()
            else:
                recorder.stop(EpisodeMarker.OUTCOME_DISCARD if ends == 'discard' else EpisodeMarker.OUTCOME_SUCCESS)
            taken = recorder.streams['/words'].received
            publisher.publish(String(data='after it'))
            assert ros.spin_until(recorder, lambda: recorder.streams['/words'].received == 51, 10.0)
        finally:
            recorder.destroy_node()
    if ends == 'discard':
        assert not (tmp_path / 'bag').exists()
        assert taken == 0, 'nothing is worth waiting for'
        return
    found = read(tmp_path / 'bag')
    assert [text_of(message) for message in found['/words']] == [str(number) for number in range(50)]
    assert found['/words'][-1].log_ns <= found['/episode'][-1].log_ns, 'the mark of the end is the last'


def text_of(message: Any) -> str:
    from rclpy.serialization import deserialize_message
    from std_msgs.msg import String

    return str(deserialize_message(message.data, String).data)


@pytest.mark.parametrize(
    ('namespace', 'given', 'recorded'),
    [
        ('robot1', {}, {'/robot1/words', '/robot1/arm/words', *SHARED}),
        ('', {}, {'/robot1/words', '/robot1/arm/words', '/robot10/words', '/robot2/words', '/words', *SHARED}),
        ('robot1', {'topics': ['words', '/words']}, {'/robot1/words', '/words'}),
        (
            'robot1',
            {'extra_topics': ['/robot2/words', '_hidden']},
            {'/robot1/words', '/robot1/arm/words', '/robot1/_hidden', '/robot2/words', *SHARED},
        ),
    ],
)
def test_a_recorder_in_a_namespace_records_its_robot_and_no_other(
    namespace: str, given: dict[str, list[str]], recorded: set[str]
) -> None:
    from rclpy.parameter import Parameter
    from std_msgs.msg import String

    from ki_policy_node.common import ros
    from ki_policy_node.recorder.recorder_node import Recorder

    spoken = ['/robot1/words', '/robot1/arm/words', '/robot1/_hidden', '/robot10/words', '/robot2/words', '/words']
    with ros.node('talker', start_parameter_services=False, enable_rosout=False) as node:
        for name in (*spoken, '/tf', '/clock'):
            node.create_publisher(String, name, 10)
        overrides = [Parameter(name, value=topics) for name, topics in given.items()]
        recorder = Recorder(namespace=namespace, parameter_overrides=overrides)
        own = f'/{namespace}/recorder/'.replace('//', '/')
        try:
            ros.spin_until(recorder, lambda: set(recorder.streams) >= recorded, 10.0)
            assert {name for name in recorder.streams if not name.startswith(own)} == recorded
        finally:
            recorder.destroy_node()


@pytest.mark.parametrize('signals', [1, 2], ids=['once', 'twice, as ros2 launch does'])
def test_an_episode_that_is_open_when_the_recorder_is_stopped_is_finished(
    node: Any, start_recorder: Callable[..., Any], tmp_path: Path, signals: int
) -> None:
    from ki_msgs.msg import EpisodeMarker
    from ki_msgs.srv import StartRecording
    from rclpy.serialization import deserialize_message

    recorder = start_recorder()
    started = call(node, StartRecording, 'start_recording', task='t')
    assert started.success, started.message
    for _ in range(signals):
        recorder.send_signal(signal.SIGINT)
    assert recorder.wait(10) == 0
    assert [path.name for path in (tmp_path / 'bags').iterdir()] == ['episode_0000']
    last = deserialize_message(read(started.uri)['/episode'][-1].data, EpisodeMarker)
    assert (last.phase, last.outcome) == (EpisodeMarker.PHASE_END, EpisodeMarker.OUTCOME_UNLABELED)


def test_an_episode_that_a_killed_recorder_left_is_finished_by_the_next(
    node: Any, start_recorder: Callable[..., Any], tmp_path: Path
) -> None:
    from ki_msgs.srv import StartRecording

    recorder = start_recorder()
    started = call(node, StartRecording, 'start_recording', task='t')
    assert started.success, started.message
    partial = tmp_path / 'bags' / 'episode_0000.partial'
    end = time.monotonic() + 20.0
    # It writes every second. Until then there is no file, or one that holds nothing.
    while not list(partial.glob('*.mcap')) or '/episode' not in messages_of(partial):
        assert time.monotonic() < end
        time.sleep(0.1)
    recorder.kill()
    recorder.wait(10)
    for path in (*partial.iterdir(), partial):
        os.utime(path, (1.0, 1.0))  # nobody writes there any more
    start_recorder()
    end = time.monotonic() + 20.0
    while not Path(started.uri).exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert len(read(started.uri)['/episode']) == 1
    assert (Path(started.uri) / 'metadata.yaml').is_file()


def test_another_reader_accepts_the_bag(node: Any, start_recorder: Callable[..., Any]) -> None:
    """`rosbags` reads it with metadata, definitions and QoS, as rosbag2 would."""
    from ki_msgs.srv import StartRecording, StopRecording
    from rclpy.qos import qos_profile_sensor_data
    from rosbags.highlevel import AnyReader
    from sensor_msgs.msg import JointState

    publisher = node.create_publisher(JointState, 'joint_states', qos_profile_sensor_data)
    start_recorder(compression='zstd')
    call(node, StartRecording, 'start_recording', task='t')
    talk(node, publisher, joint_states(20))
    stopped = call(node, StopRecording, 'stop_recording')
    with AnyReader([Path(stopped.uri)]) as reader:
        [connection] = [each for each in reader.connections if each.topic == '/joint_states']
        positions = [
            reader.deserialize(data, connection.msgtype).position[0] for _, _, data in reader.messages([connection])
        ]
        [offer] = connection.ext.offered_qos_profiles
    assert positions == list(range(20))
    assert offer.reliability.name == 'BEST_EFFORT'


def test_discarded_episodes_leave_nothing_and_numbers_go_on(
    node: Any, start_recorder: Callable[..., Any], tmp_path: Path
) -> None:
    from ki_msgs.srv import StartRecording, StopRecording
    from std_srvs.srv import Trigger

    start_recorder()
    for number in range(2):
        assert call(node, StartRecording, 'start_recording').episode_index == number
        assert call(node, StopRecording, 'stop_recording').success
    assert call(node, StartRecording, 'start_recording').episode_index == 2
    assert call(node, Trigger, 'discard_episode').success
    assert sorted(path.name for path in (tmp_path / 'bags').iterdir()) == ['episode_0000', 'episode_0001']
    refused = call(node, StopRecording, 'stop_recording')
    assert not refused.success
    assert 'start one first' in refused.message


def test_the_action_records_until_its_time_is_over_or_it_is_cancelled(
    node: Any, start_recorder: Callable[..., Any]
) -> None:
    import rclpy
    from action_msgs.msg import GoalStatus
    from ki_msgs.action import RecordEpisode
    from rclpy.action import ActionClient
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import JointState

    from ki_policy_node.common import ros

    publisher = node.create_publisher(JointState, 'joint_states', qos_profile_sensor_data)
    start_recorder(topics='[joint_states]')
    client = ActionClient(node, RecordEpisode, 'recorder/record')
    assert client.wait_for_server(15.0)
    feedback: list[Any] = []

    def record(seconds: int, cancel: bool) -> Any:
        goal = RecordEpisode.Goal(task='t')
        goal.max_duration.sec = seconds
        sent = client.send_goal_async(goal, feedback_callback=lambda message: feedback.append(message.feedback))
        rclpy.spin_until_future_complete(node, sent, timeout_sec=5.0)
        result = sent.result().get_result_async()
        talk(node, publisher, joint_states(10))
        if cancel:
            sent.result().cancel_goal_async()
        rclpy.spin_until_future_complete(node, result, timeout_sec=5.0)
        return result.result()

    timed = record(1, cancel=False)
    assert timed.status == GoalStatus.STATUS_SUCCEEDED
    cancelled = record(0, cancel=True)
    assert cancelled.status == GoalStatus.STATUS_CANCELED
    for outcome in (timed.result, cancelled.result):
        assert outcome.success
        assert outcome.messages == 12
        assert len(read(outcome.uri)['/joint_states']) == 10
    assert ros.spin_until(node, lambda: feedback, 1.0)
    assert [stream.topic for stream in feedback[-1].streams] == ['/joint_states']


def test_a_signal_keeps_the_open_episode(node: Any, start_recorder: Callable[..., Any]) -> None:
    from ki_msgs.msg import EpisodeMarker
    from ki_msgs.srv import StartRecording

    process = start_recorder()
    started = call(node, StartRecording, 'start_recording', task='t')
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    phases = [message.data for message in read(started.uri)['/episode']]
    assert len(phases) == 2 == EpisodeMarker.PHASE_END + 1


def test_a_folder_that_cannot_be_made_is_an_answer_and_not_a_crash(
    node: Any, start_recorder: Callable[..., Any], tmp_path: Path
) -> None:
    from ki_msgs.srv import StartRecording

    (tmp_path / 'file').write_text('in the way')
    start_recorder(folder=tmp_path / 'file')
    for _ in range(2):
        refused = call(node, StartRecording, 'start_recording')
        assert not refused.success
        assert 'file' in refused.message


@pytest.mark.parametrize(
    ('parameters', 'told'),
    [
        ('{foldr: bags}', 'Unknown parameter foldr; did you mean folder?'),
        ('{compression: zip}', "compression is 'zip'; write one of none, lz4, zstd"),
        ('{cache_mib: 0}', 'cache_mib is 0; write a whole number from 1'),
        ('{topics: []}', 'A parameter is given without a value'),
    ],
)
def test_a_parameter_that_cannot_be_is_one_sentence_and_status_2(tmp_path: Path, parameters: str, told: str) -> None:
    file = tmp_path / 'parameters.yaml'
    file.write_text(f'recorder: {{ros__parameters: {parameters}}}')
    command = [sys.executable, '-m', 'ki_policy_node.recorder.recorder_node', '--ros-args', '--params-file', str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('recorder: ')
    assert told in done.stderr
    assert 'Traceback' not in done.stderr
