"""Lifecycle, enabling, runs and resets in random order: every call is answered, and nothing moves that may not."""

from __future__ import annotations

import random
import time

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from std_srvs.srv import SetBool, Trigger

pytestmark = pytest.mark.ros
NODES = ('policy_node', 'chunk_executor')
TRANSITIONS = (
    Transition.TRANSITION_CONFIGURE,
    Transition.TRANSITION_ACTIVATE,
    Transition.TRANSITION_DEACTIVATE,
    Transition.TRANSITION_CLEANUP,
)


def test_no_order_of_calls_moves_a_robot_that_is_not_enabled_and_active(rig):
    rig.start_policy(run_on_activate=False, autostart=False)
    rig.start_executor(enabled=False, autostart=False)
    rig.until('both are there', lambda: rig.state == 'unconfigured' and rig.statuses, 30.0)
    rng = random.Random(0)

    def change(name: str, which: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=which))
        return rig.call(ChangeState, f'{name}/change_state', request).success

    def label(name: str) -> str:
        return rig.call(GetState, f'{name}/get_state').current_state.label

    def call() -> None:
        what = rng.randrange(4)
        if what < 2:
            change(rng.choice(NODES), rng.choice(TRANSITIONS))
        elif what == 2:
            rig.call(SetBool, 'chunk_executor/enable', SetBool.Request(data=rng.random() < 0.6))
        else:
            name = rng.choice(['policy_node/start', 'policy_node/stop', 'policy_node/reset_fault'])
            rig.call(Trigger, rng.choice([name, 'chunk_executor/reset_fault']))

    for _ in range(30):
        call()
        if label('chunk_executor') != 'active' or rig.state.startswith('disabled'):
            # What moved has braked by now; from here on there is silence.
            time.sleep(0.15)
            count = len(rig.commands['arm'])
            time.sleep(0.05)
            assert len(rig.commands['arm']) == count, rig.state
    assert all(process.popen.poll() is None for process in rig.processes)

    # After all that, the right order works as ever.
    for name in NODES:
        for which in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP, *TRANSITIONS[:2]):
            change(name, which)
        assert label(name) == 'active'
    rig.call(Trigger, 'policy_node/stop')
    assert rig.call(SetBool, 'chunk_executor/enable', SetBool.Request(data=True)).success
    assert rig.call(Trigger, 'policy_node/start').success
    rig.running()
