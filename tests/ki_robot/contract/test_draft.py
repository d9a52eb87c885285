"""A robot's own files become a contract that loads; what they do not say is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ki_robot.contract.contract import Contract
from ki_robot.contract.draft import controllers_of, draft
from ki_robot.contract.limits import limits_from_yaml
from ki_robot.contract.parts import Limits
from ki_robot.errors import RobotError

ROOT = Path(__file__).resolve().parents[3]
URDF = """<robot name="Lab Arm-2">
  <joint name="world" type="fixed"/>
  <joint name="joint1" type="revolute"><limit lower="-2.5" upper="2.5" velocity="2.0" effort="9"/>
    <safety_controller k_velocity="10" k_position="15" soft_lower_limit="-2.4" soft_upper_limit="2.3"/></joint>
  <joint name="joint2" type="continuous"><limit velocity="1.5" effort="9"/><safety_controller k_velocity="10"/></joint>
  <joint name="lock" type="revolute"><limit lower="0" upper="0" velocity="1"/></joint>
  <joint name="finger" type="prismatic"><limit lower="0" upper="0.04" velocity="0"/></joint>
  <joint name="finger2" type="prismatic"><mimic joint="finger"/><limit lower="0" upper="0.04" velocity="1"/></joint>
  <joint name="wheel" type="continuous"/>
</robot>"""
CONTROLLERS = """
/**:
  controller_manager:
    ros__parameters:
      update_rate: 25
      joint_state_broadcaster: {type: joint_state_broadcaster/JointStateBroadcaster}
      forward: {type: forward_command_controller/ForwardCommandController}
      arm_controller: {type: joint_trajectory_controller/JointTrajectoryController}
      hand_controller: {type: position_controllers/GripperActionController}
      torque: {type: effort_controllers/JointGroupEffortController}
      base_controller: {type: diff_drive_controller/DiffDriveController}
  arm_controller: {ros__parameters: {joints: [joint2, joint1], command_interfaces: [position]}}
  forward: {ros__parameters: {joints: [joint1, joint2], interface_name: position}}
  hand_controller: {ros__parameters: {joint: finger}}
  base_controller: {ros__parameters: {linear: {x: {max_velocity: 0.7}}, base_frame_id: base}}
"""


def drafted(controllers: str = CONTROLLERS, urdf: str = URDF, limits: str = '') -> tuple[str, Contract]:
    found, rate = controllers_of(yaml.safe_load(controllers)) if controllers else ([], None)
    text = draft(urdf, 'arm.urdf', found, rate, limits_from_yaml(yaml.safe_load(limits)) if limits else None)
    return text, Contract.parse(yaml.safe_load(text))


def test_joints_limits_controllers_and_rates_are_taken_from_the_files() -> None:
    text, made = drafted()
    assert made.name == 'lab_arm_2'
    assert made.action_names == (
        'joint2/position', 'joint1/position', 'finger/position', 'base/linear/x/velocity', 'base/angular/z/velocity',
    )  # fmt: skip
    assert made.actions[1].limits == Limits(lower=-2.4, upper=2.3, velocity=2.0), 'soft limits count'
    assert made.actions[2].unit == 'm'
    assert made.actions[3].limits.velocity == 0.7
    assert [(each.name, each.kind, each.topic) for each in made.outputs] == [
        ('arm_controller', 'joint_trajectory', 'arm_controller/joint_trajectory'),
        ('hand_controller', 'gripper', 'hand_controller/gripper_cmd'),
        ('base_controller', 'twist_stamped', 'base_controller/cmd_vel'),
    ]
    assert made.state_streams[0].max_age_s == pytest.approx(0.2), 'five periods at 25 Hz'
    asked = [line for line in text.splitlines() if '# CHECK: ' in line]
    assert [
        next(word for word in ('cameras', 'joint2', 'finger', 'angular', 'picture') if word in line) for line in asked
    ]
    assert len(asked) == 4, 'cameras, the bounds of joint2, the speeds of finger and of the turning base'
    for left in ('controller forward', 'controller torque', 'lock: it cannot move', 'wheel: no controller'):
        assert f'#   {left}' in text
    assert 'finger2' not in text
    assert 'world' not in text


def test_a_mecanum_base_has_topics_of_its_own_and_a_remapped_one_those_it_is_told() -> None:
    base = 'controller_manager: {ros__parameters: {base: {type: mecanum_drive_controller/MecanumDriveController%s}}}'
    _, made = drafted(base % '')
    assert (made.outputs[0].topic, made.state_streams[0].topic) == ('base/reference', 'base/odometry')
    assert 'base/linear/y/velocity' in made.action_names
    remaps = ', node_options_args: ["-r", "~/reference:=base/cmd_vel", "-r", "~/odometry:=odom"]'
    _, made = drafted(base % remaps)
    assert (made.outputs[0].topic, made.state_streams[0].topic) == ('base/cmd_vel', 'odom')


def test_without_controllers_it_is_for_training_and_replay() -> None:
    _, made = drafted(controllers='')
    assert made.outputs == ()
    assert made.state_names == ('joint1/position', 'joint2/position', 'finger/position', 'wheel/position')


def test_a_limits_file_tightens_and_must_share_a_joint() -> None:
    limits = 'joint_limits: {joint1: {has_velocity_limits: true, max_velocity: 1.0, has_acceleration_limits: true, '
    _, made = drafted(limits=limits + 'max_acceleration: 4.0}}')
    assert made.actions[1].limits == Limits(lower=-2.4, upper=2.3, velocity=1.0, acceleration=4.0)
    with pytest.raises(RobotError, match='not one is in both'):
        drafted(limits='joint_limits: {arm_joint1: {has_velocity_limits: true, max_velocity: 0.5}}')


@pytest.mark.parametrize(
    ('urdf', 'controllers', 'match'),
    [
        ('<robot name="x"/>', '', 'command no joint'),
        ('<html/>', '', 'begins with the element'),
        (
            '<robot name="x"><joint name="a b" type="revolute"><limit lower="0" upper="1"/></joint></robot>',
            '',
            'rename',
        ),
        (URDF, 'controllers: {}', 'no controller_manager'),
        (URDF, 'controller_manager: {ros__parameters: {a: {type: x/Unknown}}}', 'command no joint'),
        (URDF, CONTROLLERS.replace('base_frame_id: base', 'base_frame_id: "a} b"'), 'draft'),
    ],
)
def test_files_that_describe_no_robot_are_refused_in_a_sentence(urdf: str, controllers: str, match: str) -> None:
    with pytest.raises(RobotError, match=match):
        drafted(controllers, urdf)


def test_the_robot_of_this_tree_is_drafted_whole() -> None:
    urdf = (ROOT / 'config/robots/bimanual_mobile.urdf').read_text()
    made = Contract.parse(yaml.safe_load(draft(urdf)))
    assert len(made.actions) == 12
