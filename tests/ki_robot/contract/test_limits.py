"""Limits from URDF and joint_limits files, merged with the contract's."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_robot.contract.contract import load_contract
from ki_robot.contract.limits import (
    JointLimits,
    action_limits,
    limits_from_urdf,
    limits_from_yaml,
    read_limits,
    tightest,
)
from ki_robot.contract.parts import Limits
from ki_robot.errors import RobotError

URDF = """<?xml version="1.0"?>
<robot name="arm">
  <joint name="joint1" type="revolute"><limit lower="-1.5" upper="1.0" effort="10" velocity="9.0"/></joint>
  <joint name="joint2" type="continuous"><limit effort="10" velocity="1.0"/></joint>
  <joint name="joint3" type="prismatic"><limit upper="0.3" velocity="0"/></joint>
  <joint name="fixed" type="fixed"/>
  <joint name="finger2" type="prismatic"><mimic joint="gripper"/><limit lower="0" upper="0.04" velocity="1"/></joint>
</robot>
"""
YAML = """
joint_limits:
  joint1: {has_position_limits: true, min_position: -2.0, max_position: 0.5, has_velocity_limits: true,
           max_velocity: 1.0, has_acceleration_limits: false, max_acceleration: 0.001, max_jerk: 3.0}
  joint2: {has_acceleration_limits: true, max_acceleration: 4.0}
"""


def test_a_urdf_gives_the_limits_of_its_moving_joints() -> None:
    assert limits_from_urdf(URDF) == {
        'joint1': Limits(lower=-1.5, upper=1.0, velocity=9.0),
        'joint2': Limits(velocity=1.0),
        'joint3': Limits(lower=0.0, upper=0.3),
    }


def test_soft_limits_tighten_where_there_are_any() -> None:
    def softened(safety: str) -> object:
        joint = '<joint name="a" type="revolute"><limit lower="-2" upper="2" velocity="1"/>'
        return limits_from_urdf(f'<robot name="r">{joint}<safety_controller {safety}/></joint></robot>')['a']

    assert softened('k_velocity="9" soft_lower_limit="-1" soft_upper_limit="3"') == Limits(
        lower=-1, upper=2, velocity=1
    )
    for gains in ('k_velocity="9"', 'k_velocity="9" soft_lower_limit="0" soft_upper_limit="0"'):
        assert softened(gains) == Limits(lower=-2, upper=2, velocity=1)
    with pytest.raises(RobotError, match='safety_controller soft_upper_limit'):
        softened('soft_lower_limit="-1" soft_upper_limit="x"')
    entry = {'has_position_limits': True, 'min_position': -2.0, 'max_position': 2.0, 'soft_lower_limit': -1.0}
    assert limits_from_yaml({'joint_limits': {'a': entry}})['a'] == Limits(lower=-2.0, upper=2.0)
    soft = {**entry, 'has_soft_limits': True, 'soft_upper_limit': 3.0}
    assert limits_from_yaml({'joint_limits': {'a': soft}})['a'] == Limits(lower=-1.0, upper=2.0)
    with pytest.raises(RobotError, match='soft_upper_limit'):
        limits_from_yaml({'joint_limits': {'a': {**entry, 'has_soft_limits': True}}})


def test_a_joint_limits_file_counts_only_what_it_says_it_has(tmp_path: Path) -> None:
    file = tmp_path / 'joint_limits.yaml'
    file.write_text(YAML)
    assert read_limits(file) == {
        'joint1': Limits(lower=-2.0, upper=0.5, velocity=1.0),
        'joint2': Limits(acceleration=4.0),
    }
    (tmp_path / 'arm.urdf').write_text(URDF)
    assert read_limits(tmp_path / 'arm.urdf') == limits_from_urdf(URDF)
    wrapped = {'move_group': {'ros__parameters': {'joint_limits': {'joint1': {}}}}}
    assert limits_from_yaml(wrapped) == {'joint1': Limits()}


def test_the_tightest_bound_wins() -> None:
    assert tightest(Limits(lower=-1, upper=2, velocity=3), Limits(lower=-2, upper=1, acceleration=5)) == Limits(
        lower=-1, upper=1, velocity=3, acceleration=5
    )
    contract = load_contract('arm_single')
    merged = action_limits(contract, limits_from_urdf(URDF), {'joint1': Limits(lower=-2.0, upper=0.5, velocity=1.0)})
    assert merged[0] == Limits(lower=-1.5, upper=0.5, velocity=1.0, acceleration=8.0)
    assert merged[1] == Limits(lower=-1.76, upper=1.76, velocity=1.0, acceleration=8.0)
    assert merged[3] == contract.actions[3].limits, 'a joint that no file names keeps the contract'


def test_a_velocity_column_takes_the_velocity_of_the_file_and_not_its_position() -> None:
    contract = load_contract('bimanual_mobile')
    merged = action_limits(
        contract, {'base/linear/x': Limits(lower=-0.001, upper=0.001, velocity=0.2, acceleration=0.5)}
    )
    assert merged[14] == Limits(lower=-0.6, upper=0.6, velocity=0.2, acceleration=0.5)


def joint(limit: str) -> str:
    return f'<robot><joint name="j" type="revolute"><limit {limit}/></joint></robot>'


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('', 'is not XML'),
        ('<robot>', 'is not XML'),
        ('<sdf/>', 'a URDF begins with <robot>'),
        ('<!DOCTYPE x [<!ENTITY a "b">]><robot/>', 'document type'),
        (joint('lower="pi" upper="1"'), "joint 'j' limit lower is 'pi'"),
        (joint('lower="nan" upper="1"'), 'finite number'),
        (joint('lower="2" upper="1"'), 'lower is 2.0, not below upper 1.0; swap or correct them'),
        (joint('lower="0" upper="1" velocity="-1"'), 'velocity is -1.0; write a number above 0'),
    ],
)
def test_a_broken_urdf_is_refused_by_joint(text: str, said: str) -> None:
    with pytest.raises(RobotError, match=said) as caught:
        limits_from_urdf(text, 'arm.urdf')
    assert str(caught.value).startswith('arm.urdf')


@pytest.mark.parametrize(
    ('data', 'said'),
    [
        (None, 'no mapping joint_limits'),
        ({'joint_limits': []}, 'no mapping joint_limits'),
        ({'joint_limits': {'j': 3}}, 'write a mapping'),
        ({'joint_limits': {'j': {'has_position_limits': 'yes'}}}, 'write true or false'),
        ({'joint_limits': {'j': {'has_position_limits': True, 'min_position': 0.0}}}, "no field 'max_position'"),
        (
            {'joint_limits': {'j': {'has_velocity_limits': True, 'max_velocity': 0.0}}},
            'velocity is 0.0; write',
        ),
    ],
)
def test_a_broken_joint_limits_file_is_refused_by_field(data: object, said: str) -> None:
    with pytest.raises(RobotError, match=said):
        limits_from_yaml(data)


def test_a_file_that_contradicts_the_contract_is_refused_by_column() -> None:
    with pytest.raises(RobotError, match='joint1/position together with the file'):
        action_limits(load_contract('arm_single'), {'joint1': Limits(lower=3.0, upper=4.0)})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(URDF) - 1), st.text(max_size=4))
def test_any_damage_to_a_urdf_gives_limits_or_a_robot_error(at: int, junk: str) -> None:
    with contextlib.suppress(RobotError):
        assert isinstance(limits_from_urdf(URDF[:at] + junk + URDF[at + len(junk) :]), dict)


@pytest.mark.parametrize(
    ('file', 'theirs'),
    [
        ({'arm_joint1': Limits(velocity=0.5)}, "'arm_joint1'"),
        ({}, 'none'),
        ({f'j{i}': Limits() for i in range(9)}, '1 more'),
    ],
)
def test_a_limits_file_that_shares_no_joint_with_the_contract_is_refused(file: JointLimits, theirs: str) -> None:
    contract = load_contract('arm_single')
    with pytest.raises(RobotError, match=f"names the joints .*{theirs}; contract arm_single commands 'joint1'.*Write"):
        action_limits(contract, limits_from_urdf(URDF), file)


def test_a_joint_that_cannot_move_matters_only_to_a_contract_that_commands_it() -> None:
    contract = load_contract('arm_single')
    locked = '<joint name="{}" type="revolute"><limit lower="0" upper="0" velocity="0"/></joint></robot>'
    with_tool = URDF.replace('</robot>', locked.format('tool_lock'))
    assert action_limits(contract, limits_from_urdf(with_tool)) == action_limits(contract, limits_from_urdf(URDF))
    with pytest.raises(RobotError, match=r"arm.urdf: joint 'joint1' cannot move: its limits are both 0.0"):
        action_limits(contract, limits_from_urdf(f'<robot>{locked.format("joint1")}', 'arm.urdf'))
