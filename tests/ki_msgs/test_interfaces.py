"""ki_msgs is what its files say, on the wire byte for byte, and the same to every reader."""

from __future__ import annotations

import array
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NAMES = {
    'ActionChunk', 'ControlSource', 'EpisodeMarker', 'ExecutorStatus', 'Instruction', 'PolicyStatus', 'SafetyEvent',
    'StreamHealth',
    'LoadPolicy', 'SetInstruction', 'StartRecording', 'StopRecording', 'RecordEpisode', 'RunPolicy',
}  # fmt: skip


def test_the_build_lists_every_interface_file(root: Path) -> None:
    listed = re.findall(r'^\s+((?:msg|srv|action)/\w+\.\w+)$', (root / 'ki_msgs/CMakeLists.txt').read_text(), re.M)
    present = [str(path.relative_to(root / 'ki_msgs')) for path in (root / 'ki_msgs').glob('*/*.*')]
    assert sorted(listed) == sorted(present)
    assert {Path(name).stem for name in listed} == NAMES


@pytest.mark.ros
def test_the_bytes_are_those_agreed_upon(interface: str, golden: Path, fill: Callable[[Any], Any], store: Any) -> None:
    """A changed field changes the bytes, and with them every bag and every robot out there.

    ROS 2 leaves what happened to be in memory where it pads; written again by `rosbags`, padding is zero.
    """
    from rclpy.serialization import deserialize_message, serialize_message

    from ki_policy_node.common.ros import message_class

    cls = message_class(interface)
    agreed = (golden / f'{interface.split("/")[-1]}.cdr').read_bytes()
    data = serialize_message(fill(cls()))
    assert store.serialize_cdr(store.deserialize_cdr(data, interface), interface) == agreed
    assert 0 <= len(data) - len(agreed) < 4
    assert deserialize_message(agreed, cls) == fill(cls())


def test_a_reader_without_ros_reads_and_writes_the_same_bytes(interface: str, golden: Path, store: Any) -> None:
    agreed = (golden / f'{interface.split("/")[-1]}.cdr').read_bytes()
    message = store.deserialize_cdr(agreed, interface)
    assert store.serialize_cdr(message, interface) == agreed
    names = [name for name, _ in store.fielddefs[interface][1]]
    values = {name: getattr(message, name) for name in names}
    assert all(value > 0 for value in values.values() if isinstance(value, (int, float)))
    assert all(re.fullmatch(r'text \d+ äß', value) for value in values.values() if isinstance(value, str))


@pytest.mark.ros
def test_messages_survive_the_way_to_another_process_and_back(
    definitions: dict[str, str], fill: Callable[[Any], Any]
) -> None:
    from ki_policy_node.common import ros

    interfaces = [name for name in definitions if '/msg/' in name]
    peer = subprocess.Popen([sys.executable, Path(__file__).with_name('peer.py'), *interfaces])
    try:
        with ros.node('near') as node:
            got: dict[str, Any] = {}
            publishers = {}
            for number, name in enumerate(interfaces):
                cls = ros.message_class(name)
                publishers[name] = node.create_publisher(cls, f'there_{number}', 10)
                node.create_subscription(
                    cls, f'back_{number}', lambda message, name=name: got.update({name: message}), 10
                )
            ready = ros.spin_until(
                node,
                lambda: (
                    all(publisher.get_subscription_count() for publisher in publishers.values())
                    and all(node.count_publishers(f'back_{number}') for number in range(len(interfaces)))
                ),
                20.0,
            )
            assert ready, 'the second process did not appear'
            for name, publisher in publishers.items():
                publisher.publish(fill(ros.message_class(name)()))
            assert ros.spin_until(node, lambda: len(got) == len(interfaces), 5.0), sorted(set(interfaces) - set(got))
            assert got == {name: fill(ros.message_class(name)()) for name in interfaces}
    finally:
        peer.terminate()
        peer.wait(10)


@pytest.mark.ros
def test_a_chunk_is_written_and_read_without_a_loop_in_python() -> None:
    from ki_msgs.msg import ActionChunk
    from rclpy.serialization import deserialize_message, serialize_message

    data_HN = np.linspace(-1, 1, 50 * 14).reshape(50, 14)
    chunk = ActionChunk(horizon=50, data=array.array('d', data_HN.tobytes()))
    back = deserialize_message(serialize_message(chunk), ActionChunk)
    np.testing.assert_array_equal(np.frombuffer(back.data).reshape(50, 14), data_HN)


@pytest.mark.ros
def test_a_constant_means_the_same_in_source_and_build(definitions: dict[str, str]) -> None:
    from ki_policy_node.common.ros import message_class

    checked = 0
    for name, text in definitions.items():
        for constant, value in re.findall(r'^uint8 ([A-Z_]+) = (\d+)', text, re.M):
            assert getattr(message_class(name), constant) == int(value)
            checked += 1
    assert checked > 40
