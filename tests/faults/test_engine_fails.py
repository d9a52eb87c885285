"""A model that gives no numbers: it is tried before it is chosen, and nothing of it reaches the robot."""

from __future__ import annotations

import pytest
import torch
from std_srvs.srv import Trigger

from ki_vla.policy.bundle import write_bundle
from ki_vla.policy.untrained import write_untrained

pytestmark = pytest.mark.ros


def test_weights_that_are_no_numbers_never_become_commands(rig):
    whole = write_untrained(rig.folder / 'whole', rig.contract)
    broken = {name: torch.full_like(value, torch.nan) for name, value in whole.model().state_dict().items()}
    write_bundle(rig.folder / 'broken', name='broken', weights=broken, processor=whole.processor)
    policy = rig.start_policy(backend='torch', bundle=rig.folder / 'broken', instruction='wave', threads=1)
    rig.until('it is said', lambda: 'actions that are not finite' in policy.text(), 60.0)
    answer = rig.call(Trigger, 'policy_node/start', seconds=20.0)
    assert not answer.success
    assert 'not finite' in answer.message
    assert not rig.chunks
