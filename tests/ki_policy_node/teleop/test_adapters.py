"""Joystick and leader arm as setpoints, without ROS."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy')

from ki_policy_node.errors import NodeError
from ki_policy_node.teleop.joy_teleop import Jog
from ki_policy_node.teleop.leader_teleop import leader_values
from ki_policy_node.teleop.mapping import Link, links_of
from ki_robot.contract.contract import Contract


@pytest.fixture
def contract(rigs) -> Contract:
    return Contract.parse(rigs.small_robot())


@pytest.mark.parametrize(
    ('text', 'link'),
    [
        ('j1:=joint1/position', Link('j1', 'joint1/position')),
        ('j1:=joint1/position*-1', Link('j1', 'joint1/position', -1.0)),
        (' j1 :=joint1/position*-0.5+0.25', Link('j1', 'joint1/position', -0.5, 0.25)),
        ('j1:=joint1/position-3.14', Link('j1', 'joint1/position', 1.0, -3.14)),
        ('1:=base/linear/x/velocity*3e-1', Link('1', 'base/linear/x/velocity', 0.3)),
    ],
)
def test_a_link_is_a_source_a_column_a_scale_and_an_offset(contract, text, link):
    assert links_of([text], contract, 'joints') == (link,)


@pytest.mark.parametrize(
    ('texts', 'said'),
    [
        (['j1=joint1/position'], "has 'j1=joint1/position'; write SOURCE:=COLUMN"),
        (['j1:=joint1/position*fast'], 'write SOURCE:=COLUMN'),
        (['j1:=joint9/position'], "names the column 'joint9/position'; small has joint1/position, "),
        (['j1:=joint1/position', 'j2:=joint1/position*2'], 'commands joint1/position twice'),
    ],
)
def test_a_link_that_cannot_be_is_refused_by_name(contract, texts, said):
    with pytest.raises(NodeError, match=said.replace('*', r'\*')):
        links_of(texts, contract, 'joints')


def test_a_leader_is_read_by_name_and_an_incomplete_one_is_refused():
    links = (Link('a', 'joint1/position', -1.0), Link('b', 'joint2/position', 1.0, 0.5))
    state = SimpleNamespace(name=['b', 'x', 'a'], position=[0.1, 9.0, 0.2])
    assert leader_values(state, links) == {'joint1/position': -0.2, 'joint2/position': 0.6}
    for broken in (
        SimpleNamespace(name=['a'], position=[0.2]),
        SimpleNamespace(name=['a', 'b'], position=[0.2]),
        SimpleNamespace(name=['a', 'b'], position=[0.2, float('nan')]),
    ):
        with pytest.raises(NodeError, match='no position of b'):
            leader_values(broken, links)


def test_a_joystick_jogs_from_where_the_robot_is_and_begins_anew_after_a_release():
    jog = Jog(
        (Link('0', 'joint1/position', 0.5), Link('1', 'base/linear/x/velocity', 0.3), Link('7', 'joint2/position'))
    )
    here = {'joint1/position': 1.0}
    assert jog.step([1.0, -1.0], here, 0.1) == {'joint1/position': 1.05, 'base/linear/x/velocity': -0.3}
    made = jog.step([1.0, 0.0], {'joint1/position': 1.02}, 0.1)
    np.testing.assert_allclose(made['joint1/position'], 1.1, err_msg='on from the last target, not what lags behind it')
    jog.release()
    assert jog.step([0.0, 0.0], {'joint1/position': 1.02}, 0.1)['joint1/position'] == 1.02
