"""What a controller manager says of its controllers, in the messages that ros2_control documents."""

from __future__ import annotations

from types import SimpleNamespace as Message

import pytest

pytest.importorskip('rclpy')

from ki_policy_node.executor.controllers import ActivityTable


def activity(**states: str) -> Message:
    """controller_manager_msgs/ControllerManagerActivity."""
    return Message(
        controllers=[Message(name=name, state=Message(id=3, label=label)) for name, label in states.items()],
        hardware_components=[],
    )


def listed(**states: str) -> Message:
    """The response of controller_manager_msgs/ListControllers."""
    return Message(controller=[Message(name=name, state=state) for name, state in states.items()])


def test_nothing_is_known_before_anything_is_said() -> None:
    assert ActivityTable().why_not_active('arm_controller') == ''


@pytest.mark.parametrize('say', ['activity', 'list'])
def test_a_controller_takes_commands_only_while_it_is_active(say: str) -> None:
    table = ActivityTable()
    take, message = (table.take_activity, activity) if say == 'activity' else (table.take_list, listed)
    take(message(arm_controller='active', joint_state_broadcaster='active'))
    assert table.why_not_active('arm_controller') == ''
    take(message(arm_controller='inactive', joint_state_broadcaster='active'))
    assert table.why_not_active('arm_controller') == (
        'The controller arm_controller is inactive; activate it: '
        'ros2 control switch_controllers --activate arm_controller.'
    )
    assert table.why_not_active('base_driver') == '', 'a node that listens itself, and is not of this manager'
