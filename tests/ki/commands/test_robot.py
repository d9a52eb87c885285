"""`ki robot`: a contract from a robot's own files, and what speaks against one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ki.commands.robot import app
from ki_common.errors import KiError
from ki_robot.contract.contract import load_contract

URDF = """<robot name="Lab Arm-2">
  <joint name="joint1" type="revolute"><limit lower="-2.4" upper="2.3" velocity="2.0" effort="9"/></joint>
  <joint name="joint2" type="continuous"><limit velocity="1.5" effort="9"/></joint>
</robot>"""
CONTROLLERS = """
controller_manager: {ros__parameters: {arm_controller: {type: joint_trajectory_controller/JointTrajectoryController}}}
arm_controller: {ros__parameters: {joints: [joint1, joint2]}}
"""
SOFT = 'joint_limits: {joint1: {has_soft_limits: true, soft_lower_limit: -1.0, soft_upper_limit: 1.0}}'


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / 'arm.urdf').write_text(URDF)
    (tmp_path / 'controllers.yaml').write_text(CONTROLLERS)
    (tmp_path / 'soft.yaml').write_text(SOFT)
    return tmp_path


def test_a_draft_is_written_once_and_holds(files: Path) -> None:
    ask = ('new', '--urdf', files / 'arm.urdf', '--controllers', files / 'controllers.yaml', '--out', files / 'r.yaml')
    done = run(*ask)
    assert done.exit_code == 0, done.output
    assert '2 lines to look at' in done.output
    assert load_contract(files / 'r.yaml').name == 'lab_arm_2'
    assert run(*ask).exit_code != 0, 'nothing is written over'
    done = run('check', files / 'r.yaml', '--urdf', files / 'arm.urdf')
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, 'Nothing against it.')


def test_limits_beyond_those_of_the_robot_are_named(files: Path) -> None:
    run('new', '--urdf', files / 'arm.urdf', '--out', files / 'r.yaml')
    done = run('check', files / 'r.yaml', '--joint-limits', files / 'soft.yaml')
    assert done.exit_code == 0
    assert 'joint1/position: lower is -2.4 here and -1' in done.output
    (files / 'other.yaml').write_text('joint_limits: {arm_joint1: {has_velocity_limits: true, max_velocity: 0.5}}')
    other = run('check', files / 'r.yaml', '--joint-limits', files / 'other.yaml')
    assert isinstance(other.exception, KiError)
    assert 'not one is in both' in str(other.exception)


def test_a_xacro_needs_xacro(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program stands in for xacro: what it prints is the URDF, and its error is passed on."""
    (files / 'arm.urdf.xacro').write_text('<robot/>')
    (files / 'bin').mkdir()
    monkeypatch.setenv('PATH', str(files / 'bin'))
    ask = ('new', '--urdf', files / 'arm.urdf.xacro', '--out', files / 'r.yaml', '--arg', 'side:=left')
    done = run(*ask)
    assert 'which is not installed' in str(done.exception)
    program = files / 'bin' / 'xacro'
    monkeypatch.setenv('PATH', f'{files / "bin"}{os.pathsep}/usr/bin:/bin')
    program.write_text('#!/bin/sh\necho "no argument size" >&2\nexit 2\n')
    program.chmod(0o755)
    assert 'no argument size' in str(run(*ask).exception)
    program.write_text(f'#!/bin/sh\ntest "$2" = side:=left && cat {files / "arm.urdf"}\n')
    assert run(*ask).exit_code == 0
    assert load_contract(files / 'r.yaml').name == 'lab_arm_2'


@pytest.mark.ros
def test_a_live_robot_is_held_to_its_contract(rig: Any) -> None:
    from ki.doctor.doctor_data import LiveSource
    from ki.support.robot_files import findings_of

    rig.robot.positions['joint1/position'] = 57.3
    rig.robot.silent.add('wrist')
    found = findings_of(rig.contract, [], LiveSource(seconds=1.0, wait_s=20.0, namespace='', sim_time=False))
    kinds = {(each.field, each.kind) for each in found}
    assert {('joint1/position', 'degrees'), ('wrist', 'never_received')} <= kinds
    assert not [each for each in found if each.kind == 'no_controller'], 'the rig has a controller for each output'
