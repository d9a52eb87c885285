"""Which contracts the simulator serves, which parameters it takes, and how it counts what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ki_robot.contract.contract import Contract, load_contract
from ki_sim.errors import SimError
from ki_sim.node.settings import KINDS_OF_REFUSAL, PARAMETERS, Refusals, check, servable, typed
from ki_sim.record.sim_bags import ROBOT


def test_the_contract_of_the_simulated_robot_is_served() -> None:
    contract = load_contract(ROBOT)
    assert servable(contract) is contract


def changed(path: tuple[Any, ...], value: Any) -> Contract:
    plain = copy.deepcopy(load_contract(ROBOT).to_dict())
    part = plain
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return Contract.parse(plain)


def test_topics_may_be_named_otherwise() -> None:
    assert servable(changed(('cameras', 0, 'topic'), 'front/image/compressed'))


def test_a_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(SimError, match="there is no camera 'chest', only head, left_wrist, right_wrist"):
        servable(changed(('cameras', 0, 'name'), 'chest'))


@pytest.mark.parametrize('robot', ['arm_single'])
def test_another_robot_is_refused_by_what_is_missing(robot: str) -> None:
    with pytest.raises(SimError, match=f'robot {robot} cannot be simulated: there is no'):
        servable(load_contract(robot))


def test_the_defaults_of_all_parameters_may_be() -> None:
    for name, (value, description) in PARAMETERS.items():
        check(name, value)
        assert description.endswith('.')


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('task', 'juggle', 'use one of demo, put_in_bin'),
        ('split', 'test', 'use train or heldout'),
        ('seed', -1, 'seeds count from 0'),
        ('quality', 0, 'give 1 to 100'),
        ('operator', 'me', 'use one of none, expert, plan'),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(SimError, match=words):
        check(name, value)


def test_a_whole_number_will_do_for_a_rate_and_a_word_will_not() -> None:
    assert typed('camera_rate', 30) == 30.0
    assert type(typed('camera_rate', 30)) is float
    assert typed('use_sim_time', True) is True
    with pytest.raises(SimError, match=r"camera_rate is 'fast': write a number"):
        check('camera_rate', 'fast')


def test_refusals_are_one_kind_whatever_their_numbers() -> None:
    refusals = Refusals()
    assert refusals.add('arm', 'joint = 9.0 is outside [-1, 1]')
    assert not refusals.add('arm', 'joint = -7.25e3 is outside [-1, 1]')
    assert not refusals.add('arm', 'joint = nan is outside [-1, 1]')
    assert refusals.add('arm', 'another joint = 9.0 is outside [-1, 1]')
    assert refusals.add('hand', 'joint = 9.0 is outside [-1, 1]')
    assert [count for _, count in refusals.counts()] == [3, 1, 1]


def test_a_sender_of_ever_new_nonsense_does_not_fill_the_memory() -> None:
    refusals = Refusals()
    told = sum(refusals.add('arm', f'no joint {"x" * i}') for i in range(1000))
    assert told == KINDS_OF_REFUSAL + 1
    assert len(refusals.counts()) == KINDS_OF_REFUSAL + 1
    assert sum(count for _, count in refusals.counts()) == 1000
