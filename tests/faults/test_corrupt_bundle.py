"""A bundle with one byte changed is not loaded; a running node keeps the policy it has."""

from __future__ import annotations

import shutil

import pytest
from ki_msgs.msg import PolicyStatus
from ki_msgs.srv import LoadPolicy
from std_srvs.srv import Trigger

from ki_vla.policy.untrained import write_untrained

pytestmark = pytest.mark.ros


def test_a_damaged_bundle_changes_nothing(rig):
    whole, damaged = rig.folder / 'whole', rig.folder / 'damaged'
    write_untrained(whole, rig.contract)
    shutil.copytree(whole, damaged)
    weights = damaged / 'model.safetensors'
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    given = {'backend': 'torch', 'bundle': whole, 'instruction': 'wave', 'run_on_activate': False, 'dry_run': True}
    rig.start_policy(**given, allow_untrained=True)
    rig.until('ready', lambda: rig.status.state == PolicyStatus.STATE_READY, 40.0)
    before = rig.status.policy_id
    answer = rig.call(LoadPolicy, 'policy_node/load_policy', LoadPolicy.Request(path=str(damaged)), 30.0)
    assert not answer.success
    assert 'model.safetensors' in answer.message
    assert 'sha256' in answer.message
    rig.until('ready', lambda: rig.status.state == PolicyStatus.STATE_READY)
    assert rig.status.policy_id == before
    assert rig.call(Trigger, 'policy_node/start').success
    rig.until('a chunk of the policy that was there', lambda: rig.dry_chunks, 20.0)
    assert rig.dry_chunks[-1][1].policy_id == before
