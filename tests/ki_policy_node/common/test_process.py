"""What both nodes owe to the process around them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy')

from ki_policy_node.common import process

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[3]
# The clock knows a jump callback by its address alone. One that was dropped and not unregistered makes configuring
# fail as soon as the memory is used again, within some hundred rounds; and a jump would call into freed memory.
ROUNDS = """
import rclpy
from rclpy.lifecycle import TransitionCallbackReturn as Done
from {module} import {node} as Node
rclpy.init(args='--ros-args -p robot:=bimanual_mobile -p autostart:=false {more}'.split())
node = Node()
for count in range({rounds}):
    assert node.trigger_configure() == Done.SUCCESS, f'round {{count}}'
    assert node.trigger_cleanup() == Done.SUCCESS, f'round {{count}}'
print('all rounds')
node.close()
node.destroy_node()
rclpy.shutdown()
"""


@pytest.mark.parametrize(
    ('module', 'arguments', 'environment', 'says'),
    [
        (
            'ki_policy_node.policy.policy_node',
            '--params-file nowhere.yaml',
            {},
            'policy_node: The node cannot be started: .*nowhere',
        ),
        ('ki_policy_node.executor.executor_node', '-p raet:=100.0', {}, 'chunk_executor: Unknown parameter raet'),
        (
            'ki_policy_node.recorder.recorder_node',
            '-p folder:=/dev/null/bags -p task:=wave',
            {},
            'recorder: .*/dev/null/bags',
        ),
        (
            'ki_policy_node.recorder.recorder_node',
            '-r :=:=',
            {'KI_DDS': 'wlan'},
            "recorder: Unknown DDS profile 'wlan'",
        ),
        ('ki_sim.node.sim_node', '--params-file nowhere.yaml', {}, 'sim_robot: The node cannot be started: .*nowhere'),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(ros_domain, module, arguments, environment, says):
    plain = {name: value for name, value in os.environ.items() if 'DEFAULT_PROFILES' not in name}
    command = [sys.executable, '-m', module, '--ros-args', *arguments.split()]
    found = subprocess.run(command, cwd=ROOT, env=plain | environment, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2, found.stderr
    assert re.search(f'^{says}', found.stderr, re.MULTILINE | re.DOTALL), found.stderr
    assert 'Traceback' not in found.stderr


@pytest.mark.parametrize(
    ('module', 'node', 'more', 'rounds'),
    [
        # The policy node failed in round 103 to 130, the executor, which makes more, in round 8.
        ('ki_policy_node.policy.policy_node', 'PolicyNode', '-p backend:=commissioning', 200),
        ('ki_policy_node.executor.executor_node', 'ChunkExecutor', '', 60),
    ],
    ids=['policy_node', 'chunk_executor'],
)
def test_a_node_can_be_configured_and_cleaned_up_for_ever(ros_domain, module, node, more, rounds):
    code = ROUNDS.format(module=module, node=node, more=more, rounds=rounds)
    found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert 'all rounds' in found.stdout, found.stdout + found.stderr


def test_a_service_answers_whatever_happens_in_it(ros_domain):
    import rclpy
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from rclpy.lifecycle import LifecycleNode
    from std_srvs.srv import Trigger

    from ki_policy_node.common.process import answer_always
    from ki_policy_node.errors import NodeError

    def refused(request, response):
        raise NodeError('Write another number.')

    def broken(request, response):
        raise OSError(36, 'File name too long')

    def fine(request, response):
        response.success = True
        return response

    rclpy.init()
    try:
        node = LifecycleNode('answers')
        services = [node.create_service(Trigger, f'~/{serve.__name__}', serve) for serve in (fine, refused, broken)]
        answer_always(node)
        answers = [service.callback(Trigger.Request(), Trigger.Response(success=True)) for service in services]
        assert [(each.success, each.message) for each in answers] == [
            (True, ''),
            (False, 'Write another number.'),
            (False, 'OSError: [Errno 36] File name too long'),
        ]
        [change] = [service for service in node.services if service.srv_type is ChangeState]
        request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_ACTIVATE))
        assert not change.callback(request, ChangeState.Response(success=True)).success, 'not from unconfigured'
        node.destroy_node()
    finally:
        rclpy.shutdown()


def test_an_answer_that_is_lost_is_told_in_the_log_and_other_warnings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    logged: list[str] = []
    monkeypatch.setattr(warnings, 'showwarning', lambda message, *_, **__: shown.append(str(message)))
    process.tell_lost_answers(SimpleNamespace(warning=logged.append))
    for text in ('failed to send response (timeout): client will not receive response', 'something else'):
        warnings.warn_explicit(text, RuntimeWarning, 'service.py', 1)
    assert shown == ['something else']
    assert ['ask again' in text for text in logged] == [True]
