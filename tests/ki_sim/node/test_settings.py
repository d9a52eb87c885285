"""Which contracts the simulator serves, which parameters it takes, and how it counts what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ki_common.node_settings import Change
from ki_robot.contract.contract import Contract, load_contract
from ki_sim.errors import SimError
from ki_sim.node.settings import KINDS_OF_REFUSAL, Refusals, SimRobotSettings, servable
from ki_sim.record.sim_bags import HANDS_ROBOT, ROBOT
from ki_sim.tasks.tasks import SPLITS, TASKS
from ki_sim.world.render import MAX_SIZE


def test_the_contract_of_the_simulated_robot_is_served() -> None:
    contract = load_contract(ROBOT)
    assert servable(contract) is contract


def test_the_same_robot_is_served_by_the_poses_of_its_hands() -> None:
    contract = load_contract(HANDS_ROBOT)
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
    with pytest.raises(SimError, match="there is no camera 'chest', only head, left_wrist, right_wrist, front"):
        servable(changed(('cameras', 0, 'name'), 'chest'))


@pytest.mark.parametrize('robot', ['arm_single'])
def test_another_robot_is_refused_by_what_is_missing(robot: str) -> None:
    with pytest.raises(SimError, match=f'robot {robot} cannot be simulated: there is no'):
        servable(load_contract(robot))


def test_the_parameters_offer_the_tasks_splits_and_cameras_that_there_are() -> None:
    specs = SimRobotSettings.specs()
    assert specs['task'].choices == tuple(TASKS)
    assert specs['split'].choices == SPLITS
    assert specs['width'].high == specs['height'].high == MAX_SIZE


def test_the_episode_of_the_next_reset_is_the_only_thing_that_changes_while_it_runs() -> None:
    live = [spec.name for spec in SimRobotSettings.specs().values() if spec.change is not Change.READ_ONLY]
    assert live == ['task', 'seed', 'goal', 'split']
    assert SimRobotSettings(task='stack', seed=3).episode == ('stack', 3, None, 'train')
    assert SimRobotSettings(goal=0).episode == ('demo', 0, 0, 'train')


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('task', 'juggle', "task is 'juggle'; write one of demo, touch"),
        ('split', 'test', "split is 'test'; write one of train, heldout"),
        ('seed', -1, 'seed is -1; write a whole number of at least 0'),
        ('goal', -2, 'goal is -2; write a whole number of at least -1'),
        ('quality', 0, 'quality is 0; write a whole number from 1 to 100'),
        ('camera_rate', 'fast', "camera_rate is 'fast'; write a number from 1 to 100"),
        ('operator', 'me', "operator is 'me'; write one of none, expert, plan"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(SimError, match=words):
        SimRobotSettings.parse({name: value}, 'parameters')


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
