"""The kinds of controllers: every one is complete, and a contract goes by the table."""

from __future__ import annotations

from typing import get_args

import pytest

from ki_robot.contract.controller_kinds import CONTROLLER_KINDS, ControllerKindName
from ki_robot.contract.parts import OutputOptions

ARM = ('joint1/position', 'joint2/position')
BASE = ('base/linear/x/velocity', 'base/angular/z/velocity')


def test_every_kind_has_its_entry_its_messages_and_options_that_exist() -> None:
    assert set(get_args(ControllerKindName)) == CONTROLLER_KINDS.keys()
    for kind in CONTROLLER_KINDS.values():
        assert kind.messages
        assert set(kind.options) <= OutputOptions.model_fields.keys()


@pytest.mark.parametrize(
    ('kind', 'columns', 'said'),
    [
        ('joint_trajectory', ARM, ''),
        ('joint_trajectory', BASE, 'position columns only'),
        ('forward_command', ARM, ''),
        ('forward_command', BASE, 'without a timeout'),
        ('forward_command', (*ARM, *BASE), 'one interface'),
        ('joint_state', ARM, ''),
        ('joint_state', BASE, 'position columns only'),
        ('twist', BASE, ''),
        ('twist_stamped', ARM, "has 'joint1/position'"),
        ('twist', (BASE[0], 'other/linear/x/velocity'), 'has two for linear/x/velocity'),
        ('gripper', ARM[:1], ''),
        ('gripper', ARM, 'one position column'),
    ],
)
def test_a_kind_takes_the_columns_that_its_controller_can_follow(
    kind: ControllerKindName, columns: tuple[str, ...], said: str
) -> None:
    refused = CONTROLLER_KINDS[kind].refuses(columns, False)
    assert said in refused
    assert bool(refused) == bool(said)


def test_velocities_go_to_a_forward_controller_where_the_contract_says_so() -> None:
    assert CONTROLLER_KINDS['forward_command'].refuses(BASE, True) == ''
