"""Names that come from the network open no module that is not a message package; Ctrl-C leaves a node whole."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ki_policy_node.common.ros import message_class, security_arguments
from ki_policy_node.errors import NodeError

ROOT = Path(__file__).resolve().parents[3]


def test_a_type_is_found_by_its_name():
    assert message_class('std_msgs/msg/String').__name__ == 'String'
    assert message_class('ki_msgs/action/RunPolicy_Goal')().dry_run is False


@pytest.mark.parametrize(
    'name',
    [
        'this/msg/Zen',
        'antigravity/msg/X',
        'std_msgs/msg/Nonesuch',
        '../etc/msg/Passwd',
        'os/msg/system',
        'String',
        '/',
        'x' * 10**6,
    ],
)
def test_a_name_that_no_package_has_installed_imports_nothing(name):
    before = set(sys.modules)
    with pytest.raises(NodeError) as caught:
        message_class(name)
    assert set(sys.modules) <= before
    assert len(str(caught.value)) < 300


def test_a_node_finds_its_enclave_and_security_is_asked_for_in_one_word():
    on = {'KI_SECURITY': 'enforce', 'ROS_SECURITY_KEYSTORE': '/keys'}
    environment = dict(on)
    assert security_arguments('recorder', ['x', '-r', '__ns:=/robot1'], environment) == [
        '--ros-args', '--enclave', '/robot1/recorder',
    ]  # fmt: skip
    assert environment['ROS_SECURITY_ENABLE'] == 'true'
    assert environment['ROS_SECURITY_STRATEGY'] == 'Enforce'
    assert security_arguments('recorder', [], dict(on))[-1] == '/recorder'
    assert security_arguments('recorder', ['--enclave', '/mine'], dict(on)) == []
    assert security_arguments('recorder', [], {}) == []
    with pytest.raises(NodeError, match='write enforce'):
        security_arguments('recorder', [], {'KI_SECURITY': 'yes'})
    with pytest.raises(NodeError, match='ki security init'):
        security_arguments('recorder', [], {'KI_SECURITY': 'enforce'})


@pytest.mark.ros
@pytest.mark.parametrize('profile', ['loopback', 'lan'])
def test_errors_of_fast_dds_stand_beside_what_a_command_prints(profile: str, tmp_path: Path, ros_domain: int) -> None:
    broken = tmp_path / 'broken.xml'
    plain = (ROOT / f'config/dds/{profile}.xml').read_text()
    broken.write_text(plain.replace('<rtps>', '<rtps><unheard_of/>'))  # told by Fast DDS after it has read where to
    code = "import rclpy; rclpy.init(); rclpy.create_node('one').destroy_node(); rclpy.shutdown(); print('its own')"
    names = 'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'
    environment = os.environ | dict.fromkeys(names, str(broken))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (0, 'its own\n'), done.stderr
    assert 'unheard_of' in done.stderr


@pytest.mark.parametrize('room', ['ki', 'ki_policy_node', 'ki_sim', 'tests/ki_msgs', 'tests/ki', 'tests/ros'])
def test_no_program_leaves_its_end_to_the_signal_handler_of_rclpy(room: str) -> None:
    """While rclpy.spin waits, rclpy's handler now and then misses a SIGTERM: 3 of 310 processes never ended."""
    called: set[str] = set()
    for path in sorted((ROOT / room).rglob('*.py')):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and (name := ast.unparse(call.func)).startswith('rclpy.'):
                called.add(name)
                if name == 'rclpy.init':
                    given = {word.arg for word in call.keywords}
                    assert given & {'signal_handler_options', 'context'}, f'{path}:{call.lineno}: use ros.start()'
                assert name != 'rclpy.spin', f'{path}:{call.lineno}: use ros.spin_until_signal()'
    assert called


@pytest.mark.ros
def test_a_node_that_was_interrupted_while_it_took_a_message_still_hears(
    ros_domain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rclpy.executors import Executor
    from std_msgs.msg import String

    from ki_policy_node.common.ros import node, spin_once

    take, heard = Executor._take_subscription, []

    def interrupted(executor, subscription):
        taken = take(executor, subscription)
        if heard == ['0'] and not interruptions:
            interruptions.append(time.monotonic())
            signal.raise_signal(signal.SIGINT)
        return taken

    interruptions: list[float] = []
    monkeypatch.setattr(Executor, '_take_subscription', interrupted)
    stopped = 0
    with node('interrupted') as made:
        made.create_subscription(String, 'said', lambda message: heard.append(message.data), 10)
        publisher, end = made.create_publisher(String, 'said', 10), time.monotonic() + 20.0
        for number in range(4):
            publisher.publish(String(data=str(number)))
            while len(heard) <= number and time.monotonic() < end:
                try:
                    spin_once(made, 0.05)
                except KeyboardInterrupt:
                    stopped += 1
    assert heard == ['0', '1', '2', '3']
    assert stopped == len(interruptions) == 1
