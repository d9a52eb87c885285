"""Calls that no operator makes: each is answered, in a short sentence, and the run goes on."""

from __future__ import annotations

import json
import time

import pytest
from ki_msgs.msg import Instruction
from ki_msgs.srv import LoadPolicy, SetInstruction

pytestmark = pytest.mark.ros


def test_every_call_is_answered_and_changes_nothing(rig):
    deep = rig.folder / 'bundles/deep'
    deep.mkdir(parents=True)
    (deep / 'manifest.json').write_text('[' * 200_000 + ']' * 200_000)
    wide = rig.folder / 'bundles/wide'
    wide.mkdir()
    (wide / 'manifest.json').write_text(json.dumps({'format': 1, 'name': 'x' * 10**6, 'files': {}}))
    rig.start_policy(run_on_activate=False, backend='commissioning', bundle_root=rig.folder / 'bundles')
    rig.until('ready', lambda: rig.status.policy_id)
    before = rig.status.policy_id
    for path in ('/' + 'x' * 10**6, '/x' * 10**5, str(deep / '../../..'), '/proc/self/mem', '/etc'):
        begin = time.monotonic()
        answer = rig.call(LoadPolicy, 'policy_node/load_policy', LoadPolicy.Request(path=path, validate_only=True))
        assert time.monotonic() - begin < 3.0
        assert not answer.success, path[:40]
        assert 0 < len(answer.message) < 500
    for text, name in (('wave', 'x' * 10**6), ('wave', 'a\nb'), ('x' * 10**6, ''), ('', '')):
        request = SetInstruction.Request(instruction=Instruction(text=text, id=name))
        answer = rig.call(SetInstruction, 'policy_node/set_instruction', request)
        assert not answer.success
        assert 0 < len(answer.message) < 500
    rig.until('still there', lambda: rig.status.policy_id == before)
    assert rig.processes[-1].popen.poll() is None
