"""The instruction changes while a chunk is being made: that chunk is dropped, the next one follows the new words."""

from __future__ import annotations

import pytest
from ki_msgs.msg import Instruction
from ki_msgs.srv import SetInstruction

pytestmark = pytest.mark.ros


def test_chunks_of_the_old_instruction_are_dropped(rig):
    rig.start_executor()
    rig.start_policy(latency=0.5, execute_steps=5, instruction='wave')
    rig.running()
    rig.until('a chunk for the first words', lambda: rig.chunks[-1][1].instruction_id == 'parameter')
    dropped = rig.status.chunks_dropped
    request = SetInstruction.Request(instruction=Instruction(id='second', text='put the cup down'))
    answer = rig.call(SetInstruction, 'policy_node/set_instruction', request)
    assert (answer.success, answer.instruction_id) == (True, 'second')
    changed = len(rig.chunks)
    rig.until('a chunk for the new words', lambda: rig.chunks[-1][1].instruction_id == 'second')
    assert all(message.instruction_id == 'second' for _, message in rig.chunks[changed:])
    assert rig.status.chunks_dropped > dropped
    assert rig.state == 'run'

    for text, why in (('   ', 'empty'), ('x' * 501, '501 characters'), ('a\x07b', 'no text')):
        request = SetInstruction.Request(instruction=Instruction(text=text))
        answer = rig.call(SetInstruction, 'policy_node/set_instruction', request)
        assert not answer.success
        assert why in answer.message
        assert answer.instruction_id == 'second'
