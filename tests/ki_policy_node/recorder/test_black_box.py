"""The last seconds before trouble are on disk afterwards, with who drove and how the nodes were set."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip('rclpy')

from ki_bags.bag_metadata import read_metadata
from ki_bags.reader import open_bag
from ki_policy_node.recorder.black_box import KeptMessage, Ring, write_black_box
from ki_policy_node.recorder.episode_writer import RecordedTopic, definition_of

WORDS = RecordedTopic('/words', 'std_msgs/msg/String', '', *definition_of('std_msgs/msg/String'))
CDR = b'\x00\x01\x00\x00\x02\x00\x00\x00a\x00'


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 300)), min_size=1), st.integers(1, 1000))
def test_the_ring_keeps_the_newest_that_fit_and_nothing_older(steps: list[tuple[float, int]], max_bytes: int) -> None:
    ring, now_s, sent = Ring(5.0, max_bytes), 0.0, []
    for step_s, size in steps:
        now_s += step_s
        sent.append(KeptMessage(WORDS, int(now_s * 1e9), bytes(size), 0, now_s))
        ring.add(sent[-1])
    kept = ring.messages()
    assert ring.size == sum(len(each.data) for each in kept) <= max_bytes
    assert kept == sent[len(sent) - len(kept) :], 'the newest, in order'
    assert all(each.at_s >= now_s - 5.0 for each in kept)
    if sum(size for _, size in steps) <= max_bytes:
        assert len(kept) == sum(each.at_s >= now_s - 5.0 for each in sent), 'all that is young enough'


def test_a_black_box_is_a_bag_like_any_other(tmp_path: Any) -> None:
    messages = [KeptMessage(WORDS, 10**18 + n, CDR, 10**18 + n, 0.0) for n in range(5)]
    path = write_black_box(tmp_path / 'box', messages, {'ki_black_box': 'fault: for a test'}, 'none')
    bag = open_bag(path)
    assert [message.log_ns for message in bag.messages()] == [10**18 + n for n in range(5)]
    assert not list(bag.problems)
    assert read_metadata(path / 'metadata.yaml')['custom_data'] == {'ki_black_box': 'fault: for a test'}


@pytest.mark.ros
def test_a_fault_and_a_request_leave_the_seconds_before_with_the_parameters(tmp_path: Any, ros_domain: int) -> None:
    from ki_msgs.msg import PolicyStatus, SafetyEvent
    from rclpy.parameter import Parameter
    from std_msgs.msg import String
    from std_srvs.srv import Trigger

    from ki_policy_node.common import ros
    from ki_policy_node.recorder.recorder_node import Recorder

    folder = tmp_path / 'boxes'
    given = {'black_box': 2.0, 'black_box_folder': str(folder), 'black_box_keep': 1, 'folder': str(tmp_path)}
    with ros.node('policy_node') as node:
        node.declare_parameter('mode', 'latest')
        words = node.create_publisher(String, 'words', 10)
        events = node.create_publisher(SafetyEvent, 'chunk_executor/safety_event', 10)
        status = node.create_publisher(PolicyStatus, 'policy_node/status', 10)
        recorder = Recorder(parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])
        try:
            assert ros.spin_until(recorder, lambda: '/words' in recorder.streams, 10.0)
            ros.spin_until(recorder, words.get_subscription_count, 10.0)
            status.publish(PolicyStatus(policy_id='p@1'))

            def spin(seconds: float) -> None:
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    words.publish(String(data='a'))
                    ros.spin_until(recorder, lambda: False, 0.05)
                    ros.spin_until(node, lambda: False, 0.005)

            spin(0.3)
            events.publish(SafetyEvent(severity=SafetyEvent.SEVERITY_FAULT, message='a joint is gone'))
            spin(2.8)
            [box] = [each for each in folder.iterdir() if each.name.endswith('_fault')]
            about = read_metadata(box / 'metadata.yaml')['custom_data']
            assert about['ki_black_box'] == 'fault: a joint is gone'
            assert about['ki_policy_id'] == 'p@1'
            assert json.loads(about['ki_parameters'])['policy_node']['mode'] == 'latest'
            bag = open_bag(box)
            times = [message.log_ns for message in bag.messages() if message.topic == '/words']
            [fault] = [m.log_ns for m in bag.messages() if m.topic == '/chunk_executor/safety_event']
            assert not list(bag.problems)
            assert times[0] < fault < times[-1], 'before it and after it'

            answer = recorder._on_save_black_box(Trigger.Request(), Trigger.Response())
            assert answer.success
            spin(0.8)
        finally:
            recorder.close()
            recorder.destroy_node()
    assert [str(each) for each in folder.iterdir()] == [answer.message], 'the newest only, as asked for'


@pytest.mark.ros
def test_a_long_recording_goes_on_in_the_next_bag_and_too_little_space_ends_it(tmp_path: Any, ros_domain: int) -> None:
    from rclpy.parameter import Parameter

    from ki_policy_node.common import ros
    from ki_policy_node.errors import NodeError
    from ki_policy_node.recorder.recorder_node import Recorder

    given = {'rotate_s': 0.4, 'folder': str(tmp_path), 'black_box': 0.0}
    with ros.node('robot'):
        recorder = Recorder(parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])
        try:
            recorder.start('wave')
            ros.spin_until(recorder, lambda: recorder.episode.index == 2, 10.0)
            recorder.settings = recorder.settings.model_copy(update={'min_free_mib': 1 << 40})
            assert ros.spin_until(recorder, lambda: recorder.episode is None, 10.0)
            with pytest.raises(
                NodeError, match=r'Episode 2 ended by itself: Only \d+ MiB are free .* kept in .*episode_0002'
            ):
                recorder.stop()
            with pytest.raises(NodeError, match='lower min_free_mib'):
                recorder.start('wave')
        finally:
            recorder.close()
            recorder.destroy_node()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ['episode_0000', 'episode_0001', 'episode_0002']
    assert all(not list(open_bag(path).problems) for path in tmp_path.iterdir())
