"""The robot's arms as URDF, from the same numbers as its MJCF: for kinematics outside the simulator.

`config/robots/bimanual_mobile.urdf` is what this writes; a test holds the two to each other.
"""

from __future__ import annotations

from ki_sim.world.robot import ARM_AXES, ARM_JOINTS, FOREARM, HAND, LIMITS, SHOULDER, SIDES, UPPER_ARM

WRIST = 0.15  # from the elbow to the forearm's roll


def robot_urdf() -> str:
    """Joints, links and limits of both arms, in m and rad; no shapes and no masses."""
    parts = [part for side in SIDES for part in _arm(side)]
    lines = '\n  '.join(parts)
    return f"""<?xml version="1.0"?>
<!-- Written by ki_sim.world.urdf from the numbers of ki_sim.world.robot; arms only. -->
<robot name="bimanual_mobile">
  <link name="base_link"/>
  {lines}
</robot>
"""


def _arm(side: str) -> list[str]:
    x, y, z = SHOULDER
    places = (
        (x, y if side == 'left' else -y, z),
        (0.0, 0.0, 0.0),
        (UPPER_ARM, 0.0, 0.0),
        (WRIST, 0.0, 0.0),
        (round(FOREARM - WRIST, 6), 0.0, 0.0),
        (0.0, 0.0, 0.0),
    )
    links = ('base_link', *(f'{side}_link{i}' for i in range(1, 6)), f'{side}_hand')
    found = []
    for index, (joint, place) in enumerate(zip(ARM_JOINTS[side], places, strict=True)):
        limit = LIMITS[joint]
        found += [
            f'<link name="{links[index + 1]}"/>',
            f'<joint name="{joint}" type="revolute">',
            f'  <parent link="{links[index]}"/><child link="{links[index + 1]}"/>',
            f'  <origin xyz="{place[0]} {place[1]} {place[2]}"/><axis xyz="{ARM_AXES[index]}"/>',
            f'  <limit lower="{limit.lower}" upper="{limit.upper}" '
            f'velocity="{limit.velocity}" effort="{limit.effort}"/>',
            '</joint>',
        ]
    return [
        *found,
        f'<link name="{side}_tcp"/>',
        f'<joint name="{side}_tcp_joint" type="fixed">',
        f'  <parent link="{side}_hand"/><child link="{side}_tcp"/><origin xyz="{HAND} 0 0"/>',
        '</joint>',
    ]
