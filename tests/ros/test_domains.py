"""Tests side by side do not hear each other: each holds a ROS domain by a port that Fast DDS leaves alone."""

from __future__ import annotations

import socket

import pytest

pytestmark = pytest.mark.ros


def is_taken(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(('127.0.0.1', port))
        except OSError:
            return True
    return False


def test_a_test_holds_its_domain_against_all_others(ros_domain: int, shared_domain: int) -> None:
    assert ros_domain != shared_domain
    assert all(is_taken(7400 + 250 * domain + 9) for domain in (ros_domain, shared_domain))


def test_the_first_participant_of_a_domain_takes_the_port_that_a_claim_looks_at(ros_domain: int) -> None:
    from ki_policy_node.common import ros

    assert not is_taken(7400 + 250 * ros_domain + 10)
    with ros.node('first'):
        assert is_taken(7400 + 250 * ros_domain + 10)
