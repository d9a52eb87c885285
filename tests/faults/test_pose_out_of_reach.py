"""A policy asks a hand where its arm cannot reach: the arm follows as far as it goes, holds there, and says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ki_msgs.msg import SafetyEvent

from ki_robot.contract.contract import load_contract
from ki_robot.space.robot_space import RobotSpace

pytest.importorskip('pinocchio', reason='pin is not installed: hand poses were NOT followed')
pytestmark = pytest.mark.ros
LINKS = ''.join(f'<link name="{name}"/>' for name in ('base', 'upper_arm', 'forearm', 'tip'))
JOINT = '<axis xyz="0 0 1"/><limit lower="-2" upper="2" velocity="2" effort="9"/>'
URDF = f"""<robot name="small">{LINKS}
  <joint name="joint1" type="revolute"><parent link="base"/><child link="upper_arm"/>{JOINT}</joint>
  <joint name="joint2" type="revolute"><parent link="upper_arm"/><child link="forearm"/>
    <origin xyz="0.4 0 0"/>{JOINT}</joint>
  <joint name="tool" type="fixed"><parent link="forearm"/><child link="tip"/><origin xyz="0.4 0 0"/></joint>
</robot>"""


def with_a_hand(robot: dict[str, Any]) -> dict[str, Any]:
    """The small robot, told where its tip is to be; its two joints reach 0.8 m in the plane."""
    limits = {'velocity': 2.0, 'acceleration': 20.0, 'upper': 2.0}
    ranges = {'joint1/position': limits | {'lower': -2.0}, 'joint2/position': limits | {'lower': 0.2}}
    flat = {'z': {'lower': -0.001, 'upper': 0.001}}
    hand = [{'name': f'hand/{axis}/position', 'unit': 'm'} for axis in 'xyz']
    return robot | {
        'kinematics': {'urdf': 'small.urdf', 'hands': [{'name': 'hand', 'base': 'base', 'tip': 'tip'}]},
        'joints': [
            {'name': name, 'unit': 'rad', 'source': 'joint_states', 'limits': each} for name, each in ranges.items()
        ],
        'state': [*({**each, 'source': 'hand'} for each in hand), robot['state'][2]],
        'actions': [
            *({**each, 'representation': 'delta', 'limits': flat.get(each['name'][5], {})} for each in hand),
            *(each for each in robot['actions'] if not each['name'].startswith('joint')),
        ],
    }  # fmt: skip


def test_the_arm_holds_where_its_hand_cannot_go_on(rigs, ros_domain, tmp_path):
    (tmp_path / 'small.urdf').write_text(URDF)
    with rigs.make(tmp_path, contract=with_a_hand(rigs.small_robot())) as rig:
        rig.start_executor()
        rig.start_policy(amplitude=0.3, period=6.0)
        rig.running()
        kind = SafetyEvent.KIND_WORKSPACE
        event = rig.until('a pose out of reach', lambda: [e for _, e in rig.events if e.kind == kind], 30.0)[0]
        assert event.severity == SafetyEvent.SEVERITY_CLAMPED
        assert 'hand holds at step' in event.message
        assert event.interface_name in ('hand/x/position', 'hand/y/position')
        assert event.value > 0.005
        assert rig.state.startswith('run'), 'no reason to stop'
        way = np.array([point.positions for _, m in rig.commands['arm'] for point in m.points])
        contract = load_contract(rig.contract_file)
        names = list(contract.robot.action_names)
        rows = np.zeros((len(way), len(names)))
        rows[:, [names.index('joint1/position'), names.index('joint2/position')]] = way
        places = RobotSpace(contract).actions(rows)[:, :3]
        assert np.ptp(places, axis=0)[:2].max() > 0.02, 'it followed'
        assert np.linalg.norm(places, axis=1).max() <= 0.8
        assert (way[:, 1] >= 0.2 - 1e-6).all()
