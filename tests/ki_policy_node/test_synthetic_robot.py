"""The robot made of topics: what is told to be silent is, and no command is kept."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed: `make setup` installs it')

import rclpy
from rclpy.parameter import Parameter
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ki_policy_node.errors import NodeError
from ki_policy_node.synthetic_robot import SyntheticRobot
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.messages.arrays import joint_values
from ki_robot.messages.states import measured_columns

pytestmark = pytest.mark.ros


@pytest.fixture
def make(ros_domain: int, rigs: ModuleType) -> Iterator[Any]:
    context = rclpy.Context()
    rclpy.init(context=context)
    made: list[SyntheticRobot] = []

    def robot(*parameters: Parameter, contract: Contract | None = None) -> SyntheticRobot:
        small = [Parameter('width', value=32), Parameter('height', value=24), *parameters]
        contract = contract or Contract.parse(rigs.small_robot())
        made.append(SyntheticRobot(contract, context=context, parameter_overrides=small))
        return made[-1]

    yield robot
    for each in made:
        each.close()
        each.destroy_node()
    rclpy.shutdown(context=context)


def silent(*names: str) -> Parameter:
    return Parameter('silent', Parameter.Type.STRING_ARRAY, list(names))


def sent(robot: SyntheticRobot) -> set[str]:
    """The streams that send something when all are due."""
    found: set[str] = set()
    for name, publisher in robot._sensors.items():
        publisher.publish = lambda message, name=name: found.add(name)  # type: ignore[method-assign]
    robot.send_cameras()
    robot.send_states()
    return found


def test_what_is_told_to_be_silent_is_until_it_is_told_otherwise(make: Any) -> None:
    robot = make(silent('wrist'))
    assert sent(robot) == {'scene', 'joint_states'}
    [done] = robot.set_parameters([silent('scene', 'joint_states')])
    assert done.successful
    assert sent(robot) == {'wrist'}
    robot.set_parameters([silent()])
    assert sent(robot) == {'scene', 'wrist', 'joint_states'}


def test_an_effort_beside_a_position_is_of_the_same_joint(make: Any) -> None:
    contract = load_contract('bimanual_demo')
    robot = make(contract=contract)
    [stream] = contract.robot.state_streams
    columns = measured_columns(contract.robot, stream)
    assert {'left_gripper/position', 'left_gripper/effort'} <= set(columns)
    values = joint_values(robot._measure(stream, 1), columns, extra_joints='refuse')
    assert dict(zip(columns, values, strict=True))['left_gripper/effort'] == 0


def test_a_stream_that_there_is_not_cannot_be_silent(make: Any) -> None:
    robot = make()
    [done] = robot.set_parameters([silent('scen')])
    assert done.reason == "silent: small has no stream 'scen'; write some of joint_states, scene, wrist."
    assert sent(robot) == {'scene', 'wrist', 'joint_states'}
    with pytest.raises(NodeError, match="no stream 'scen'"):
        make(silent('scen'))


def test_commands_are_heard_and_not_kept(make: Any) -> None:
    robot = make()
    heard: list[str] = []
    robot.heard = lambda output, steady_ns, message: heard.append(output)
    [arm] = [output for output in robot.contract.outputs if output.name == 'arm']
    receive = robot._receive(arm)

    def kept() -> int:
        gc.collect()
        return sum(isinstance(each, JointTrajectory) for each in gc.get_objects())

    before = kept()
    for _ in range(100):
        message = JointTrajectory(joint_names=['joint1', 'joint2'])
        message.points = [JointTrajectoryPoint(positions=[0.1, 0.2], velocities=[0.0, 0.0])]
        receive(message)
    del message
    assert heard == ['arm'] * 100
    assert kept() == before
