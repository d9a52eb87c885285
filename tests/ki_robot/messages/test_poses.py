"""Poses from messages: a PoseStamped in its frame, and two frames of tf however many transforms lie between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ki_bags import message_builders
from ki_robot.contract.contract import Contract
from ki_robot.contract.robot_columns import ROBOT_AXES
from ki_robot.errors import Reason, Rejected
from ki_robot.messages.poses import FrameTree, fill_pose, pose_values
from ki_robot.messages.states import StateReader, static_topic
from ki_robot.observation.buffer import ObservationBuffer

COLUMNS = [f'tool/{axis}/position' for axis in ROBOT_AXES]
NS = 10**9


def pose(place: Any, turn: Rotation, stamp_ns: int = NS, frame: str = 'base') -> Any:
    message = message_builders.empty('geometry_msgs/msg/PoseStamped')
    values = [*place, *turn.as_matrix()[:, :2].T.reshape(-1)]
    return fill_pose(message, COLUMNS, values, stamp_ns, frame)


def moved(parent: str, child: str, place: Any, turn: Rotation, stamp_ns: int = NS) -> Any:
    message = message_builders.empty('geometry_msgs/msg/TransformStamped')
    posed = pose(place, turn, stamp_ns, parent)
    message.header, message.child_frame_id = posed.header, child
    for axis, value in zip('xyz', place, strict=True):
        setattr(message.transform.translation, axis, float(value))
    message.transform.rotation = posed.pose.orientation
    return message


def tf(*transforms: Any) -> Any:
    message = message_builders.empty('tf2_msgs/msg/TFMessage')
    message.transforms = list(transforms)
    return message


TURN = Rotation.from_rotvec([0.3, -0.2, 1.1])


def test_a_pose_is_there_and_back() -> None:
    values = pose_values(pose([0.1, 0.2, 0.3], TURN), COLUMNS, 'base')
    np.testing.assert_allclose(values[:3], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(values[3:].reshape(2, 3).T, TURN.as_matrix()[:, :2], atol=1e-12)


def _spoilt(change: Any) -> Any:
    message = pose([0.1, 0.2, 0.3], TURN)
    change(message)
    return message


@pytest.mark.parametrize(
    ('change', 'reason', 'said'),
    [
        (
            lambda m: setattr(m.header, 'frame_id', 'world'),
            Reason.BAD_LAYOUT,
            "in frame 'world'; the contract has 'base'",
        ),
        (lambda m: setattr(m.header, 'frame_id', ''), Reason.BAD_LAYOUT, "in frame ''"),
        (lambda m: setattr(m.pose.position, 'x', float('nan')), Reason.NON_FINITE, 'not finite'),
        (lambda m: setattr(m.pose.orientation, 'w', float('inf')), Reason.NON_FINITE, 'not finite'),
        (lambda m: setattr(m.pose, 'orientation', message_builders.empty('geometry_msgs/msg/Vector3')), None, ''),
    ],
)
def test_a_pose_that_cannot_be_used_is_refused(change: Any, reason: Reason | None, said: str) -> None:
    if reason is None:
        message = pose([0, 0, 0], TURN)
        for axis in 'xyzw':
            setattr(message.pose.orientation, axis, 0.0)
        with pytest.raises(Rejected, match='quaternion of norm 0; it is no rotation'):
            pose_values(message, COLUMNS, 'base')
        return
    with pytest.raises(Rejected, match=said) as caught:
        pose_values(_spoilt(change), COLUMNS, 'base')
    assert caught.value.reason is reason


def test_the_pose_between_two_frames_is_put_together_from_tf_and_tf_static() -> None:
    tree = FrameTree('base_link', 'tcp')
    lift, flange, tool = Rotation.from_euler('z', 0.4), TURN, Rotation.from_euler('y', 0.2)
    assert not tree.take(tf(moved('world', 'table', [1, 2, 3], TURN)), static=False)
    assert tree.take(tf(moved('flange', 'tcp', [0, 0, 0.2], tool)), static=True)
    assert tree.values(COLUMNS) is None
    tree.take(tf(moved('base_link', 'lift', [0, 0, 0.5], lift, 3 * NS)), static=False)
    assert tree.take(tf(moved('lift', 'flange', [0.4, 0.1, 0], flange, 2 * NS)), static=False)
    found = tree.values(COLUMNS)
    assert found is not None
    assert found[0] == 2 * NS, 'as old as the oldest transform on the way'
    place = np.array([0, 0, 0.5]) + lift.apply(np.array([0.4, 0.1, 0]) + flange.apply([0, 0, 0.2]))
    np.testing.assert_allclose(found[1][:3], place, atol=1e-12)
    wanted = (lift * flange * tool).as_matrix()
    np.testing.assert_allclose(found[1][3:].reshape(2, 3).T, wanted[:, :2], atol=1e-12)


def test_frames_on_two_branches_meet_where_they_part() -> None:
    tree = FrameTree('camera', 'tcp')
    tree.take(tf(moved('torso', 'camera', [0, 0, 1], TURN)), static=True)
    tree.take(tf(moved('torso', 'tcp', [0.5, 0, 0], Rotation.identity(), NS)), static=False)
    found = tree.values(COLUMNS)
    assert found is not None
    np.testing.assert_allclose(found[1][:3], TURN.inv().apply([0.5, 0, -1]), atol=1e-12)


def test_frames_in_a_circle_end_no_search() -> None:
    tree = FrameTree('base', 'tcp')
    tree.take(tf(moved('b', 'tcp', [0, 0, 0], TURN), moved('tcp', 'b', [0, 0, 0], TURN)), static=False)
    assert tree.values(COLUMNS) is None


def test_a_clock_that_jumps_leaves_what_is_static() -> None:
    tree = FrameTree('base', 'tcp')
    tree.take(tf(moved('flange', 'tcp', [0, 0, 0.2], TURN)), static=True)
    tree.take(tf(moved('base', 'flange', [0, 0, 1], TURN)), static=False)
    tree.clear()
    assert tree.values(COLUMNS) is None
    tree.take(tf(moved('base', 'flange', [0, 0, 1], TURN)), static=False)
    assert tree.values(COLUMNS) is not None


def robot(kind: str) -> Contract:
    stream = {
        'name': 'tool',
        'topic': 'tf' if kind == 'tf' else 'pose',
        'type': kind,
        'frame': 'base',
        'max_age_s': 0.1,
    }
    state = [
        *({'name': f'tool/{axis}/position', 'unit': 'm', 'source': 'tool'} for axis in 'xyz'),
        *({'name': f'tool/{axis}/position', 'unit': 'rad', 'source': 'tool'} for axis in ('rx', 'ry', 'rz')),
    ]
    return Contract.parse(
        {
            'name': 'tool_robot', 'rate_hz': 10.0, 'horizon': 5,
            'cameras': [{'name': 'eye', 'topic': 'eye', 'transport': 'raw', 'max_age_s': 1.0}],
            'state_streams': [stream | ({'child': 'tcp'} if kind == 'tf' else {})],
            'state': state,
            'actions': [{'name': e['name'], 'unit': e['unit'], 'representation': 'delta'} for e in state],
        }
    )  # fmt: skip


@pytest.mark.parametrize('kind', ['pose', 'tf'])
def test_the_buffer_shows_the_pose_as_the_columns_say_it(kind: str) -> None:
    contract = robot(kind)
    buffer, now = ObservationBuffer(contract), 1_700_000_000 * NS
    if kind == 'pose':
        assert buffer.push('tool', pose([0.1, 0.2, 0.3], TURN, now), now)
    else:
        buffer.push_static('tool', tf(moved('flange', 'tcp', [0, 0, 0], Rotation.identity())))
        assert not buffer.push('tool', tf(moved('map', 'odom', [0, 0, 0], TURN, now)), now), 'of other frames'
        assert buffer.health(now)[1].received == 0
        assert buffer.push('tool', tf(moved('base', 'flange', [0.1, 0.2, 0.3], TURN, now)), now)
    state = buffer.state(now)
    assert state is not None
    np.testing.assert_allclose(state, [0.1, 0.2, 0.3, *TURN.as_rotvec()], atol=1e-12)
    assert buffer.state(now + NS) is None, 'too old'


def test_the_builders_write_what_is_read() -> None:
    for kind in ('pose', 'tf'):
        [stream] = robot(kind).state_streams
        values = dict(zip(COLUMNS, [0.1, 0.2, 0.3, *TURN.as_matrix()[:, :2].T.reshape(-1)], strict=True))
        message = message_builders.state(robot(kind), stream, 5 * NS, values)
        found = StateReader(stream, COLUMNS).read(message)
        assert found is not None
        assert found[0] == 5 * NS
        np.testing.assert_allclose(found[1], list(values.values()), atol=1e-12)
        assert static_topic(stream) == ('tf_static' if kind == 'tf' else '')
