"""Two policy nodes command one robot: the executor holds and says so."""

from __future__ import annotations

import pytest
from ki_msgs.msg import SafetyEvent

pytestmark = pytest.mark.ros


def test_two_policies_in_turn_hold_the_robot(rig):
    rig.start_executor()
    first = rig.start_policy(period=2.0)
    rig.running()
    rig.folder = rig.folder / 'second'
    rig.folder.mkdir()
    rig.start_policy(period=1.1, amplitude=0.3)
    rig.until('a hold', lambda: 'Several policies send chunks in turn' in rig.state, 20.0)
    kind = SafetyEvent.KIND_FOREIGN_PUBLISHER
    rig.until('an event', lambda: [event for _, event in rig.events if event.kind == kind])
    first.end()
    rig.until('running again, after one', lambda: rig.state == 'run', 20.0)
