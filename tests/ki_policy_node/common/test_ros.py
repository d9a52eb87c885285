"""Names that come from the network open no module that is not a message package."""

from __future__ import annotations

import sys

import pytest

from ki_policy_node.common.ros import message_class, security_arguments
from ki_policy_node.errors import NodeError


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
