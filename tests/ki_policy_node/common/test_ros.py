"""Names that come from the network open no module that is not a message package."""

from __future__ import annotations

import sys

import pytest

from ki_policy_node.common.ros import message_class
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
