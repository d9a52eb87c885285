"""Joint states, odometry, trajectories and chunks: by name, both libraries, every refusal named and counted."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ki_robot.actions.chunk import ActionChunk
from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.arrays import (
    fill_image,
    fill_joint_columns,
    fill_joint_state,
    fill_multi_array,
    fill_trajectory,
    fill_twist,
    from_chunk,
    joint_positions,
    joint_values,
    odometry_values,
    set_time,
    stamp_ns,
    time_ns,
    to_chunk,
)

JOINTS = ['left_joint1', 'left_joint2', 'left_gripper']
COLUMNS = [f'{joint}/position' for joint in JOINTS]


def joint_state(make: Any, names: list[str] = JOINTS, values: Any = (0.1, -0.2, 0.03)) -> Any:
    return fill_joint_state(make('sensor_msgs/JointState'), names, values, 1_700_000_000_000_000_001)


def test_stamps_are_exact_nanoseconds(make: Any) -> None:
    msg = make.through_the_wire(joint_state(make))
    assert stamp_ns(msg.header) == 1_700_000_000_000_000_001
    set_time(msg.header.stamp, 999_999_999)
    assert (msg.header.stamp.sec, msg.header.stamp.nanosec, time_ns(msg.header.stamp)) == (0, 999_999_999, 999_999_999)


def test_positions_are_matched_by_name(make: Any) -> None:
    np.testing.assert_array_equal(joint_positions(make.through_the_wire(joint_state(make)), JOINTS), [0.1, -0.2, 0.03])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(3)))
def test_a_permuted_joint_state_gives_the_identical_result(make: Any, order: list[int]) -> None:
    values = np.array([0.1, -0.2, 0.03])
    msg = joint_state(make, [JOINTS[i] for i in order], values[order])
    np.testing.assert_array_equal(joint_values(msg, COLUMNS, extra_joints='refuse'), values)


def test_interfaces_are_picked_from_their_fields(make: Any) -> None:
    msg = fill_joint_state(
        make('sensor_msgs/JointState'), JOINTS, [1, 2, 3], 1, velocities=[4, 5, 6], efforts=[7, 8, 9]
    )
    columns = ['left_joint2/effort', 'left_joint1/velocity', 'left_joint2/position']
    np.testing.assert_array_equal(joint_values(msg, columns), [8.0, 4.0, 2.0])


def test_columns_are_written_as_they_are_read_however_many_are_of_one_joint(make: Any) -> None:
    columns = ['left_gripper/effort', 'left_joint1/position', 'left_gripper/position']
    values = {'left_gripper/effort': -30.0, 'left_gripper/position': 0.05}
    msg = fill_joint_columns(make('sensor_msgs/JointState'), values, columns, 1, prefix='left_')
    assert list(msg.name) == ['gripper', 'joint1']
    read = joint_values(make.through_the_wire(msg), columns, prefix='left_', extra_joints='refuse')
    np.testing.assert_array_equal(read, [-30.0, 0.0, 0.05])


def test_a_prefix_tells_two_arms_apart(make: Any) -> None:
    msg = joint_state(make, ['joint1', 'joint2', 'gripper'])
    np.testing.assert_array_equal(joint_values(msg, COLUMNS, prefix='left_', extra_joints='refuse'), [0.1, -0.2, 0.03])


REFUSED = [
    (JOINTS[:2], [1, 2], Reason.MISSING_NAME, 'left_gripper'),
    ([*JOINTS, 'wheel'], [1, 2, 3, 4], Reason.EXTRA_NAME, 'wheel'),
    ([*JOINTS, 'left_joint1'], [1, 2, 3, 4], Reason.DUPLICATE_NAME, 'left_joint1'),
    (JOINTS, [1, np.nan, 3], Reason.NON_FINITE, 'left_joint2'),
    (JOINTS, [1, 2, np.inf], Reason.NON_FINITE, 'left_gripper'),
    (JOINTS, [], Reason.BAD_LAYOUT, '0 values of position for 3 names'),
    ([], [], Reason.MISSING_NAME, 'left_joint1'),
    ([f'j{i}' for i in range(5000)], np.zeros(5000), Reason.TOO_LARGE, '5000 names'),
]


@pytest.mark.parametrize(('names', 'values', 'reason', 'said'), REFUSED)
def test_a_broken_joint_state_is_refused_by_name(make: Any, names: Any, values: Any, reason: Reason, said: str) -> None:
    with pytest.raises(Rejected, match=said) as caught:
        joint_values(joint_state(make, names, values), COLUMNS, extra_joints='refuse')
    assert caught.value.reason is reason


def test_extra_joints_pass_where_the_stream_allows_them(make: Any) -> None:
    msg = joint_state(make, ['wheel', *JOINTS], [9, 1, 2, 3])
    np.testing.assert_array_equal(joint_values(msg, COLUMNS, extra_joints='allow'), [1, 2, 3])


def test_a_column_that_is_no_joint_interface_is_a_mistake_of_the_caller(make: Any) -> None:
    with pytest.raises(RobotError, match='no joint interface'):
        joint_values(joint_state(make), ['left_joint1/colour'])


def test_odometry_gives_the_twist_by_axis(make: Any) -> None:
    msg = make('nav_msgs/Odometry')
    columns = ['base/linear/x/velocity', 'base/linear/y/velocity', 'base/angular/z/velocity']
    fill_twist(msg.twist.twist, columns, [0.5, -0.1, 0.25])
    assert msg.twist.twist.linear.z == 0.0
    np.testing.assert_array_equal(odometry_values(make.through_the_wire(msg), columns[::-1]), [0.25, -0.1, 0.5])
    msg.twist.twist.linear.x = float('nan')
    with pytest.raises(Rejected, match='base/linear/x/velocity') as caught:
        odometry_values(msg, columns)
    assert caught.value.reason is Reason.NON_FINITE


def test_a_trajectory_is_filled_point_by_point(make: Any) -> None:
    positions, velocities = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    msg = fill_trajectory(
        make('trajectory_msgs/JointTrajectory'),
        lambda: make('trajectory_msgs/JointTrajectoryPoint'),
        JOINTS,
        [50_000_000, 1_100_000_000],
        positions,
        velocities,
    )
    msg = make.through_the_wire(msg)
    assert (stamp_ns(msg.header), list(msg.joint_names), len(msg.points)) == (0, JOINTS, 2)
    np.testing.assert_array_equal(msg.points[1].positions, positions[1])
    np.testing.assert_array_equal(msg.points[0].velocities, velocities[0])
    assert [time_ns(point.time_from_start) for point in msg.points] == [50_000_000, 1_100_000_000]


def test_a_trajectory_with_falling_times_or_wrong_shape_is_refused(make: Any) -> None:
    def fill(times: list[int], positions: np.ndarray) -> None:
        new = lambda: make('trajectory_msgs/JointTrajectoryPoint')  # noqa: E731
        fill_trajectory(make('trajectory_msgs/JointTrajectory'), new, JOINTS, times, positions)

    with pytest.raises(RobotError, match='do not rise'):
        fill([5, 5], np.zeros((2, 3)))
    with pytest.raises(RobotError, match='2 times and 3 joints'):
        fill([5, 6], np.zeros((2, 2)))


def test_a_command_array_is_written_as_given(make: Any) -> None:
    msg = make.through_the_wire(fill_multi_array(make('std_msgs/Float64MultiArray'), [0.5, -1.0]))
    np.testing.assert_array_equal(msg.data, [0.5, -1.0])


@pytest.mark.ros
def test_rclpy_arrays_are_written_from_array_array(scene: np.ndarray) -> None:
    from sensor_msgs.msg import Image

    msg = fill_image(Image(), scene, 1)
    assert isinstance(msg.data, array.array)
    assert msg.data.typecode == 'B'


def chunk(**changes: Any) -> ActionChunk:
    given_values = {
        'start_ns': 5_000_000_007, 'step_ns': 50_000_000, 'names': ('a/position', 'b/position'),
        'data_HN': np.arange(100.0).reshape(50, 2) / 7, 'observation_ns': 4_900_000_000, 'chunk_id': 3,
        'frozen_prefix': 2, 'policy_id': 'mini@12', 'instruction_id': 'i1',
    }  # fmt: skip
    return ActionChunk(**{**given_values, **changes})


def test_a_chunk_survives_the_wire_bit_for_bit(make: Any) -> None:
    sent = chunk()
    got = to_chunk(make.through_the_wire(from_chunk(sent, make('ki_msgs/ActionChunk'))))
    np.testing.assert_array_equal(got.data_HN, sent.data_HN)
    for name in (
        'start_ns',
        'step_ns',
        'names',
        'observation_ns',
        'chunk_id',
        'frozen_prefix',
        'policy_id',
        'instruction_id',
    ):
        assert getattr(got, name) == getattr(sent, name)


def put(field: str, value: Any) -> Any:
    def change(msg: Any) -> None:
        if field == 'data':
            value_array = np.asarray(value, dtype=np.float64)
            msg.data = value_array if isinstance(msg.data, np.ndarray) else array.array('d', value_array.tolist())
        elif field in ('stamp', 'step_dt'):
            set_time(msg.header.stamp if field == 'stamp' else msg.step_dt, value)
        else:
            setattr(msg, field, value)

    return change


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (put('horizon', 49), Reason.BAD_LAYOUT),
        (put('horizon', 0), Reason.BAD_LAYOUT),
        (put('horizon', 2**32 - 1), Reason.TOO_LARGE),
        (put('interface_names', []), Reason.BAD_LAYOUT),
        (put('interface_names', ['a/position', 'a/position']), Reason.BAD_LAYOUT),
        (put('data', np.full(100, np.nan)), Reason.NON_FINITE),
        (put('stamp', 0), Reason.ZERO_STAMP),
        (put('step_dt', 0), Reason.BAD_LAYOUT),
        (put('frozen_prefix', 51), Reason.BAD_LAYOUT),
    ],
)
def test_a_broken_chunk_is_refused(make: Any, change: Any, reason: Reason) -> None:
    msg = from_chunk(chunk(), make('ki_msgs/ActionChunk'))
    change(msg)
    with pytest.raises(Rejected) as caught:
        to_chunk(msg)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    'changes', [{'data_HN': np.full((50, 2), np.inf)}, {'names': ('a/position',)}, {'step_ns': 0}, {'start_ns': 0}]
)
def test_a_broken_chunk_cannot_be_built(changes: Any) -> None:
    with pytest.raises(RobotError, match='chunk 3'):
        chunk(**changes)
