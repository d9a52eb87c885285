"""Commands read back: whatever their type, in the order of the contract, and in force from when to when."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.arrays import fill_joint_state, fill_multi_array, fill_trajectory, fill_twist, set_time
from ki_robot.messages.commands import Command, command_stamp_ns, read_command, values_in_force

NS = 10**9
ARM = ('left/position', 'right/position')
BASE = ('base/linear/x/velocity', 'base/angular/z/velocity')
Make = Callable[[str], Any]


def trajectory(make: Make, points: list[list[float]], times_ns: list[int], joints: tuple[str, ...]) -> Any:
    empty = make('trajectory_msgs/JointTrajectory')
    return fill_trajectory(empty, lambda: make('trajectory_msgs/JointTrajectoryPoint'), list(joints), times_ns, points)


def refusal(message: Any, columns: tuple[str, ...]) -> Reason:
    with pytest.raises(Rejected) as caught:
        read_command(message, columns)
    return caught.value.reason


def test_a_trajectory_is_read_by_name_with_its_times(make: Make) -> None:
    message = trajectory(make, [[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]], [NS // 2, NS], ('right', 'left', 'other'))
    command = read_command(message, ARM)
    assert command.times_ns.tolist() == [NS // 2, NS]
    assert command.values.tolist() == [[2.0, 1.0], [4.0, 3.0]]


def test_an_array_is_read_by_place(make: Make) -> None:
    message = fill_multi_array(make('std_msgs/Float64MultiArray'), [0.25, -1.0])
    command = read_command(message, ARM)
    assert command.times_ns.tolist() == [0]
    assert command.values.tolist() == [[0.25, -1.0]]
    assert refusal(message, ARM[:1]) is Reason.BAD_LAYOUT


def test_a_joint_state_is_read_by_name_and_one_of_other_joints_is_not_for_this_output(make: Make) -> None:
    message = fill_joint_state(make('sensor_msgs/JointState'), ['other', 'right', 'left'], [9.0, 2.0, 1.0], NS)
    command = read_command(message, ARM)
    assert command.times_ns.tolist() == [0]
    assert command.values.tolist() == [[1.0, 2.0]]
    assert command_stamp_ns(message) == NS
    assert refusal(message, ('third/position',)) is Reason.OTHER_JOINTS
    assert refusal(message, ('left/position', 'third/position')) is Reason.MISSING_NAME


def test_one_value_comes_as_a_number_or_as_the_position_of_a_gripper(make: Make) -> None:
    message = make('std_msgs/Float64')
    message.data = 0.25
    assert read_command(message, ARM[:1]).values.tolist() == [[0.25]]
    assert refusal(message, ARM) is Reason.BAD_LAYOUT
    goal = SimpleNamespace(position=0.04, max_effort=10.0)  # control_msgs/GripperCommand
    assert read_command(goal, ('hand/position',)).values.tolist() == [[0.04]]


@pytest.mark.parametrize('kind', ['Twist', 'TwistStamped'])
def test_a_twist_is_read_with_and_without_a_header(make: Make, kind: str) -> None:
    message = make(f'geometry_msgs/{kind}')
    fill_twist(getattr(message, 'twist', message), BASE, [0.5, -0.2])
    assert read_command(message, BASE).values.tolist() == [[0.5, -0.2]]
    with pytest.raises(RobotError, match='not part of a twist'):
        read_command(message, ARM)


def test_a_command_begins_at_its_stamp_or_on_arrival(make: Make) -> None:
    message = make('geometry_msgs/TwistStamped')
    assert command_stamp_ns(message) is None, 'stamp 0 means at once to a controller'
    set_time(message.header.stamp, 12 * NS + 3)
    assert command_stamp_ns(message) == 12 * NS + 3
    assert command_stamp_ns(make('geometry_msgs/Twist')) is None


def test_unusable_commands_are_refused_with_their_reason(make: Make) -> None:
    point = [[1.0, 2.0]]
    assert refusal(trajectory(make, point, [0], ('left', 'middle')), ARM) is Reason.MISSING_NAME
    empty = make('trajectory_msgs/JointTrajectory')
    empty.joint_names = ['left', 'right']
    assert refusal(empty, ARM) is Reason.BAD_LAYOUT
    short = trajectory(make, point, [0], ('left', 'right'))
    short.joint_names = ['left', 'right', 'other']
    assert refusal(short, ARM) is Reason.BAD_LAYOUT
    back = trajectory(make, [[1.0, 2.0]] * 2, [0, 1], ('left', 'right'))
    set_time(back.points[1].time_from_start, 0)
    assert refusal(back, ARM) is Reason.BAD_LAYOUT
    array = fill_multi_array(make('std_msgs/Float64MultiArray'), [0.0, np.nan])
    assert refusal(array, ARM) is Reason.NON_FINITE


def command(times_ns: list[int], values: list[float]) -> Command:
    return Command(np.array(times_ns, dtype=np.int64), np.array(values)[:, None])


def test_a_setpoint_is_in_force_until_the_next_and_nothing_before_the_first() -> None:
    starts = np.array([10, 20])
    values, known = values_in_force(starts, [command([0], [1.0]), command([0], [2.0])], np.array([9, 10, 19, 20, 99]))
    assert known.tolist() == [False, True, True, True, True]
    assert values[1:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]


def test_between_the_points_of_a_trajectory_is_a_line_and_beyond_them_the_last(make: Make) -> None:
    begin = 1_700_000_000 * NS  # nanoseconds since 1970 do not fit a float64
    one = command([10, 20], [1.0, 3.0])
    values, _ = values_in_force(np.array([begin]), [one], begin + np.array([0, 10, 15, 20, 1000]))
    assert values[:, 0].tolist() == [1.0, 1.0, 2.0, 3.0, 3.0]


def test_what_times_out_becomes_zero_and_is_known() -> None:
    values, known = values_in_force(np.array([10]), [command([0], [1.0])], np.array([5, 10, 15, 16]), timeout_ns=5)
    assert known.all()
    assert values[:, 0].tolist() == [0.0, 1.0, 1.0, 0.0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=20, unique=True).map(sorted),
    st.lists(st.integers(0, 1100), min_size=1, max_size=20),
)
def test_the_command_in_force_is_the_newest_one_begun(starts: list[int], times: list[int]) -> None:
    commands = [command([0], [float(start)]) for start in starts]
    values, known = values_in_force(np.array(starts), commands, np.array(times))
    for time, value, is_known in zip(times, values[:, 0], known, strict=True):
        begun = [start for start in starts if start <= time]
        assert is_known == bool(begun)
        if begun:
            assert value == begun[-1]


def test_a_short_look_at_a_long_recording_reads_only_the_commands_of_its_time() -> None:
    class Watched(list[Command]):
        looked = 0

        def __getitem__(self, place: Any) -> Any:
            self.looked += 1
            return super().__getitem__(place)

        def __iter__(self) -> Any:
            raise AssertionError('every command was read')

    commands = Watched(command([0, 5], [row, row + 1]) for row in range(10_000))
    values, known = values_in_force(np.arange(10_000) * 10, commands, np.array([5002, 5009, 5010]), max_age_ns=4)
    np.testing.assert_allclose(values[:, 0], [500.4, 501.0, 501.0])
    assert known.all()
    assert commands.looked < 5


def test_no_times_ask_for_no_values() -> None:
    values, known = values_in_force(np.array([10]), [command([0], [1.0])], np.zeros(0, dtype=np.int64), max_age_ns=5)
    assert (values.shape, known.shape) == ((0, 1), (0,))
