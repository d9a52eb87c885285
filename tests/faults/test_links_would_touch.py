"""A chunk that would drive the arm into its own post is refused, and both links are named; the robot brakes before."""

from __future__ import annotations

import pytest
from ki_msgs.msg import SafetyEvent

from ki_robot.contract.space import Space
from ki_robot.space.checker import SpaceChecker

pytest.importorskip('pinocchio', reason='pin is not installed: collisions were NOT checked')
pytestmark = pytest.mark.ros
LINK = '<collision><origin xyz="0.2 0 0"/><geometry><box size="0.38 0.04 0.04"/></geometry></collision>'
JOINT = '<axis xyz="0 0 1"/><limit lower="-2" upper="2" velocity="2" effort="9"/>'
URDF = f"""<robot name="small">
  <link name="base"><collision><origin xyz="0.28 0.5 0"/>
    <geometry><cylinder radius="0.03" length="0.4"/></geometry></collision></link>
  <link name="upper_arm">{LINK}</link>
  <link name="forearm">{LINK}</link>
  <joint name="joint1" type="revolute"><parent link="base"/><child link="upper_arm"/>{JOINT}</joint>
  <joint name="joint2" type="revolute"><parent link="upper_arm"/><child link="forearm"/>
    <origin xyz="0.4 0 0"/>{JOINT}</joint>
</robot>"""


def test_a_chunk_into_the_own_post_is_refused_by_name(rigs, ros_domain, tmp_path):
    (tmp_path / 'small.urdf').write_text(URDF)
    robot = rigs.small_robot() | {'space': {'urdf': 'small.urdf', 'margin': 0.02}}
    with rigs.make(tmp_path, contract=robot) as rig:
        rig.start_executor()
        rig.start_policy(amplitude=0.9, period=24.0)  # the forearm swings round to the post
        kind = SafetyEvent.KIND_WORKSPACE
        event = rig.until('a refusal', lambda: [e for _, e in rig.events if e.kind == kind], 30.0)[0]
        assert event.severity == SafetyEvent.SEVERITY_REJECTED
        assert 'forearm' in event.message
        assert 'base' in event.message
        way = [point.positions for _, m in rig.commands['arm'] for point in m.points]
        assert way
        checker = SpaceChecker(Space(urdf='small.urdf'), rig.contract.action_names, tmp_path)
        assert min(checker.nearest([*positions, 0.0, 0.0]) for positions in way) > 0.0, 'nothing that was sent touches'
