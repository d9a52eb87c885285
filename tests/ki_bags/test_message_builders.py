"""Messages made without ROS are the ones that ROS would make, and reading gives back what was put in."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from ki_bags import message_builders
from ki_bags.errors import BagError
from ki_bags.reader import open_bag
from ki_bags.types import deserialise, serialise
from ki_bags.writer import BagWriter
from ki_common.errors import KiError
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.messages.arrays import decode_compressed, decode_image, joint_values, odometry_values, stamp_ns
from ki_robot.messages.commands import command_stamp_ns, read_command

NOW = 1_700_000_000 * 10**9 + 7
KINDS = (
    'sensor_msgs/msg/JointState',
    'sensor_msgs/msg/Image',
    'nav_msgs/msg/Odometry',
    'trajectory_msgs/msg/JointTrajectory',
    'std_msgs/msg/Float64MultiArray',
    'geometry_msgs/msg/TwistStamped',
    'ki_msgs/msg/EpisodeMarker',
    'ki_msgs/msg/ActionChunk',
)


@pytest.fixture(scope='module')
def robot() -> Contract:
    return load_contract('bimanual_mobile')


@pytest.mark.ros
@pytest.mark.parametrize('kind', KINDS)
def test_an_empty_message_is_the_one_that_ros_makes(kind: str) -> None:
    serialization = importlib.import_module('rclpy.serialization')
    package, _, name = kind.split('/')
    theirs = getattr(importlib.import_module(f'{package}.msg'), name)()
    again = serialization.deserialize_message(serialise(message_builders.empty(kind), kind), type(theirs))
    assert again == theirs


def test_empty_messages_share_nothing() -> None:
    one, other = message_builders.empty('sensor_msgs/JointState'), message_builders.empty('sensor_msgs/JointState')
    one.name.append('joint')
    one.header.frame_id = 'base'
    assert other.name == []
    assert other.header.frame_id == ''


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(BagError, match='other_msgs/msg/Thing'):
        message_builders.empty('other_msgs/msg/Thing')


def test_states_come_back_by_column(robot: Contract) -> None:
    values = {name: 0.01 * place for place, name in enumerate(robot.state_names)}
    for stream in robot.state_streams:
        columns = [column.name for column in robot.state if column.source == stream.name]
        made = message_builders.state(robot, stream, NOW, values)
        found = odometry_values(made, columns) if stream.type == 'odometry' else joint_values(made, columns)
        assert found.tolist() == [values[column] for column in columns]
        assert stamp_ns(made.header) == NOW


def test_an_odometry_has_a_pose() -> None:
    turn = message_builders.odometry(NOW, (), (), (1.0, -2.0, np.pi / 2)).pose.pose
    assert (turn.position.x, turn.position.y) == (1.0, -2.0)
    assert (turn.orientation.z, turn.orientation.w) == pytest.approx((np.sqrt(0.5), np.sqrt(0.5)))


def test_commands_come_back_through_the_wire(robot: Contract) -> None:
    for output in robot.outputs:
        values = np.arange(len(output.columns)) / 7
        made = message_builders.command(output, NOW, values, reach_ns=50_000_000)
        kind = message_builders.COMMAND_TYPES[output.kind]
        found = deserialise(serialise(made, kind), kind)
        command = read_command(found, output.columns)
        assert command.values.tolist() == [values.tolist()]
        assert command.times_ns.tolist() == [50_000_000 if output.kind == 'joint_trajectory' else 0]
        assert command_stamp_ns(found) == (NOW if hasattr(found, 'header') else None)


def test_pictures_come_back() -> None:
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:, 16:] = (200, 100, 50)
    assert np.array_equal(decode_image(message_builders.raw(NOW, pixels, 'eye')), pixels)
    made = message_builders.picture(NOW, pixels, 'eye', quality=95)
    again = message_builders.compressed(NOW, made.data.tobytes(), 'eye')
    assert made.header.frame_id == again.header.frame_id == 'eye'
    assert np.array_equal(decode_compressed(made), decode_compressed(again))
    assert np.abs(decode_compressed(made).astype(int) - pixels).mean() < 3


def test_a_picture_too_large_for_jpeg_is_refused() -> None:
    with pytest.raises(KiError, match=r'(?i)cannot be written as jpeg'):
        message_builders.picture(NOW, np.zeros((1, 70_000, 3), np.uint8))


def test_what_is_put_stands_in_the_recording_under_an_absolute_name(tmp_path: Path) -> None:
    with BagWriter(tmp_path / 'bag') as bag:
        message_builders.put(bag, 'episode', NOW, message_builders.marker(NOW, 1, 3, 'lift', 1, 'expert'))
        message_builders.put(bag, '/subtask', NOW, message_builders.instruction(NOW, 'reach', 'a'))
    opened = open_bag(tmp_path / 'bag')
    episode, subtask = (opened.decode(message) for message in opened.messages())
    assert {name: topic.type for name, topic in opened.topics.items()} == {
        '/episode': message_builders.MARKER,
        '/subtask': message_builders.INSTRUCTION,
    }
    assert (episode.phase, episode.episode_index, episode.task, episode.outcome) == (1, 3, 'lift', 1)
    assert (episode.policy_id, subtask.id, subtask.text) == ('expert', 'a', 'reach')
