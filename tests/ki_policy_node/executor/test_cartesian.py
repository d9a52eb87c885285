"""A Cartesian controller: poses in, poses out, within the limits of their columns, through every seam of rotations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ki_bags import message_builders
from ki_policy_node.executor.chunk_follower import Follower
from ki_policy_node.executor.hand_chunks import HandChunks
from ki_policy_node.executor.safety import PolicyHealth, Rules, State
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract
from ki_robot.errors import RobotError
from ki_robot.messages.commands import read_command
from ki_robot.messages.poses import fill_pose

MS, POSE = 1_000_000, 'geometry_msgs/msg/PoseStamped'
AXES = ('x', 'y', 'z', 'rx', 'ry', 'rz')
TURN_SPEED = 1.5  # rad/s


def contract(**output: object) -> Contract:
    """A tool whose pose a driver measures and takes, in axis-angle to the policy."""
    units = dict(zip(AXES, ['m'] * 3 + ['rad'] * 3, strict=True))
    box = {'lower': -1.0, 'upper': 1.0, 'velocity': 0.5, 'acceleration': 4.0}
    turn = {'velocity': TURN_SPEED, 'acceleration': 10.0}
    columns = [f'tool/{axis}/position' for axis in AXES]
    return Contract.parse(
        {
            'name': 'tool_robot', 'rate_hz': 20.0, 'horizon': 50,
            'cameras': [{'name': 'eye', 'topic': 'eye', 'transport': 'raw', 'max_age_s': 1.0}],
            'state_streams': [{'name': 'tool', 'topic': 'pose', 'type': 'pose', 'frame': 'base', 'max_age_s': 0.5}],
            'state': [{'name': f'tool/{axis}/position', 'unit': units[axis], 'source': 'tool'} for axis in AXES],
            'actions': [
                {'name': f'tool/{axis}/position', 'unit': units[axis], 'representation': 'absolute',
                 'limits': box if axis in 'xyz' else turn}
                for axis in AXES
            ],
            'outputs': [
                {'name': 'tool', 'kind': 'pose_stamped', 'topic': 'target_pose', 'columns': columns,
                 'frame_id': 'base'} | output
            ],
        }
    )  # fmt: skip


def test_a_pose_is_followed_through_the_seam_of_axis_angles() -> None:
    told = contract()
    robot = told.robot
    assert len(robot.actions) == len(robot.state) == 9
    hands, rules = HandChunks(told, Rules().guard), Rules()
    follower = Follower(robot, [column.limits for column in robot.actions], rules, 10 * MS)
    # A gripper that points down and turns on through half a turn, where the numbers of axis-angles jump.
    angles = np.pi + np.linspace(-0.4, 0.4, 50)
    turns = Rotation.from_rotvec(angles[:, None] * [1.0, 0.0, 0.0])
    rows = np.concatenate([np.linspace([0.1, 0, 0.3], [0.3, 0.1, 0.3], 50), turns.as_rotvec()], axis=1)
    assert np.abs(np.diff(rows, axis=0)).max() > 5.0
    pose, now = np.concatenate([rows[0, :3], turns[0].as_matrix()[:, :2].T.reshape(-1)]), 10**12
    follower.enable(True, now)
    sent = []
    for tick in range(280):
        now += 10 * MS
        values = dict(zip(robot.action_names, pose.tolist(), strict=True))
        follower.on_state('tool', values, now, now)
        follower.on_policy_health(PolicyHealth(True, False, '', now))
        if tick == 20:
            chunk = ActionChunk(now, told.step_ns, told.action_names, rows, now, 1)
            solved = hands.solve(chunk, now, follower.where_N, {})
            assert solved.chunk is not None
            follower.on_chunk(solved.chunk, now, now)
        command = follower.tick(now, now)
        if command is not None:
            pose = command.setpoint_N.copy()
            sent.append(pose)
    assert follower.state is not State.FAULT
    assert not follower.events or all('run out' in event.message for event in follower.events)
    messages = [fill_pose(message_builders.empty(POSE), robot.action_names, each, now, 'base') for each in sent]
    way = Rotation.from_quat([[getattr(m.pose.orientation, axis) for axis in 'xyzw'] for m in messages])
    assert (way[:-1].inv() * way[1:]).magnitude().max() <= TURN_SPEED * 0.01 * 1.01
    assert (way[-1].inv() * turns[-1]).magnitude() < 0.05
    np.testing.assert_allclose(sent[-1][:3], rows[-1, :3], atol=0.01)
    # What was sent reads back as what was meant: recordings of such a robot are labels.
    back = read_command(messages[-1], robot.outputs[0].columns).values[0]
    np.testing.assert_allclose(back[:3], sent[-1][:3])


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'columns': [f'tool/{axis}/position' for axis in 'xyz']}, 'without a rotation of tool'),
        ({'kind': 'forward_command'}, 'part of a pose; a forward_command takes none, use pose_stamped'),
        ({'columns': ['arm/position']}, "has 'arm/position'; a pose takes columns such as"),
    ],
)
def test_an_output_that_is_no_whole_pose_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(RobotError, match=said):
        contract(**change)
