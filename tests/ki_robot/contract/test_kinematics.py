"""The kinematics part of a contract: what it takes out of a URDF, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ki_common.configuration.yaml_reader import read_yaml
from ki_robot.contract.contract import Contract, contract_file, load_contract
from ki_robot.errors import RobotError

FILE = contract_file('bimanual_hands')
URDF = (FILE.parent / 'bimanual_mobile.urdf').read_text()
Change = Callable[[dict[str, Any]], Any]


def load(folder: Path, change: Change = lambda told: None, urdf: str = URDF) -> Contract:
    """The shipped contract, changed, beside a URDF."""
    told = read_yaml(FILE)
    change(told)
    (folder / 'bimanual_mobile.urdf').write_text(urdf)
    (folder / 'robot.yaml').write_text(yaml.safe_dump(told))
    return load_contract(folder / 'robot.yaml')


def test_the_chain_of_the_hands_is_part_of_the_contract(tmp_path: Path) -> None:
    contract = load(tmp_path)
    assert contract.kinematics is not None
    assert contract.kinematics.joints_of(contract.kinematics.hands[0]) == tuple(f'left_joint{i}' for i in range(1, 7))
    longer = load(tmp_path, urdf=URDF.replace('xyz="0.33 0.0 0.0"', 'xyz="0.35 0.0 0.0"'))
    assert longer.hash != contract.hash, 'a longer arm means other poses'
    shaped = URDF.replace('<link name="left_hand"/>', '<link name="left_hand"><inertial/></link>')
    assert load(tmp_path, urdf=shaped).hash == contract.hash, 'masses mean nothing to a pose'


def test_where_the_file_lies_is_no_part_of_the_hash(tmp_path: Path) -> None:
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub/arm.urdf').write_text(URDF)
    moved = load(tmp_path, lambda told: told['kinematics'].update(urdf='sub/arm.urdf'))
    assert moved.hash == load(tmp_path).hash


def test_a_joint_that_turns_without_end_has_one_coordinate(tmp_path: Path) -> None:
    urdf = URDF.replace('name="left_joint6" type="revolute"', 'name="left_joint6" type="continuous"')
    assert load(tmp_path, urdf=urdf).hash == load(tmp_path).hash


@pytest.mark.parametrize(
    ('old', 'new', 'said'),
    [
        ('<robot', '<!DOCTYPE robot><robot', 'document type or entities'),
        ('</robot>', '', 'is not XML'),
        ('robot name="bimanual_mobile"', 'scene name="x"', 'begins with the element'),
        ('left_tcp"', 'left_tool"', "has no link 'left_tcp' .tip of hand left_hand.; it has base_link"),
        ('link="base_link"', 'link="torso"', "has no link 'base_link' .base of hand left_hand."),
        ('name="left_joint4" type="revolute"', 'name="left_joint4" type="planar"', "'left_joint4' is planar"),
        ('<child link="left_link2"/>', '<child link="left_link2"/><mimic joint="left_joint1"/>', 'mimic'),
        ('<child link="right_link1"/>', '<child link="left_link1"/>', "'left_link1' hangs on two joints"),
        ('type="revolute"', 'type="fixed"', 'no joint moves left_tcp against base_link'),
    ],
)
def test_a_urdf_that_carries_no_hand_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    urdf = URDF.replace(old, new).replace(
        '</robot>', '</robot>' if old != 'robot name="bimanual_mobile"' else '</scene>'
    )
    with pytest.raises(RobotError, match=said) as caught:
        load(tmp_path, urdf=urdf)
    assert 'bimanual_mobile.urdf' in str(caught.value)


def test_a_urdf_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RobotError, match=r'nowhere\.urdf'):
        load(tmp_path, lambda told: told['kinematics'].update(urdf='nowhere.urdf'))


def _drop(label: str, name: str) -> Change:
    return lambda told: told[label].remove(next(each for each in told[label] if each['name'] == name))


def _set(label: str, column: str, /, **changes: Any) -> Change:
    return lambda told: next(each for each in told[label] if each['name'] == column).update(changes)


def _without_left_joint3(told: dict[str, Any]) -> None:
    _drop('joints', 'left_joint3/position')(told)
    told['outputs'][0]['columns'].remove('left_joint3/position')


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (_without_left_joint3, r'joints lacks left_joint3/position, which carries the hand left_hand; add it'),
        (_drop('state', 'left_hand/y/position'), r'state of left_hand has x, z, yaw; a place is x, y, z'),
        (_drop('actions', 'left_hand/y/position'), r'actions of left_hand has x, z, yaw'),
        (_set('state', 'left_hand/yaw/position', name='left_hand/pitch/position'), r'pitch, which is no rotation'),
        (_set('state', 'left_hand/yaw/position', unit='m'), r"left_hand/yaw/position has the unit 'm'; write 'rad'"),
        (_set('state', 'left_hand/x/position', source='joint_states'), r"left_hand is read from 'joint_states'"),
        (_set('state', 'left_hand/x/position', source='right_hand'), r'columns of the hand right_hand are named like'),
        (_set('state', 'left_hand/x/position', source='camera'), r'name one of the state_streams or hands'),
        (_set('actions', 'left_hand/x/position', representation='absolute'), r'actions of left_hand are delta and abs'),
        (_set('joints', 'left_joint1/position', limits={}), r'left_joint1/position.* has no lower'),
        (lambda told: told.update(kinematics=None), r"name one of the state_streams or hands"),
        (lambda told: told['kinematics'].update(urdf=''), r'urdf is missing'),
        (lambda told: told['kinematics'].update(chain='<robot/>'), r"has no link 'base_link'"),
        (
            lambda told: told['kinematics']['hands'].append(told['kinematics']['hands'][0]),
            r"hands names 'left_hand' twice",
        ),
        (
            lambda told: told['outputs'][0].update(columns=['left_hand/x/position']),
            r'is no action column that a controller takes; name its joints',
        ),
        (lambda told: told['outputs'].pop(0), r"'left_hand' is commanded, and none of its joints goes to an output"),
    ],
)  # fmt: skip
def test_a_hand_that_does_not_fit_its_columns_is_refused(tmp_path: Path, change: Change, said: str) -> None:
    with pytest.raises(RobotError, match=said):
        load(tmp_path, change)


def test_a_policy_of_other_hands_does_not_fit(tmp_path: Path) -> None:
    contract = load(tmp_path)
    assert contract.mismatches(load(tmp_path)) == []
    turned = load(tmp_path, lambda told: told['kinematics']['hands'][0].update(down='z'))
    assert any(text.startswith('hands (down, delta)') for text in contract.mismatches(turned))
    other = load(tmp_path, lambda told: told['kinematics']['hands'][0].update(tip='left_hand'))
    assert any(text.startswith('hands (base, tip)') for text in contract.mismatches(other))
