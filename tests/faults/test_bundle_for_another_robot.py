"""A bundle that was trained for another robot: refused by field, in the terminal, the status and /diagnostics."""

from __future__ import annotations

import pytest
from ki_msgs.msg import PolicyStatus
from ki_msgs.srv import LoadPolicy

from ki_robot.contract.contract import Contract
from ki_vla.policy.untrained import write_untrained

pytestmark = pytest.mark.ros


def test_another_robots_bundle_is_refused_and_the_robot_stays_still(rig, rigs):
    plain = rigs.small_robot()
    plain['actions'][0], plain['actions'][1] = plain['actions'][1], plain['actions'][0]
    plain['name'] = 'swapped'
    write_untrained(rig.folder / 'swapped', Contract.parse(plain))
    write_untrained(rig.folder / 'fits', rig.contract)
    rig.start_executor()
    given = {'backend': 'torch', 'bundle': rig.folder / 'swapped', 'instruction': 'wave'}
    process = rig.start_policy(**given, allow_untrained=True)
    rig.until('a refusal', lambda: 'does not fit' in rig.status.message, 30.0)
    assert 'actions (name, in order)' in rig.status.message
    assert rig.status.state == PolicyStatus.STATE_UNCONFIGURED
    rig.until('a diagnostic', lambda: any('does not fit' in s.message for _, m in rig.diagnostics for s in m.status))
    assert 'does not fit' in process.text()
    assert 'Traceback' not in process.text()
    assert not rig.commands['arm']

    request = LoadPolicy.Request(path=str(rig.folder / 'fits'), validate_only=True)
    answer = rig.call(LoadPolicy, 'policy_node/load_policy', request, 30.0)
    assert answer.success
    assert answer.policy_id.startswith('untrained@')
