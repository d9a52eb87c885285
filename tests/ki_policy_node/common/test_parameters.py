"""ROS parameters from a settings model: described, checked at the start and at every change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from ki_common.errors import ConfigError
from ki_common.node_settings import Change, LifecycleSettings, setting

pytestmark = pytest.mark.ros


class Settings(LifecycleSettings):
    rate: float = setting(10.0, unit='Hz', ge=1.0, le=1000.0)
    """How often."""
    mode: Literal['loud', 'quiet'] = setting('loud', change=Change.LIVE)
    """How to say it."""
    count: int = setting(3, ge=0, change=Change.LIVE)
    """How many times."""
    gain: float = setting(1.0, ge=0.0, change=Change.LIVE)
    """How much."""
    topics: tuple[str, ...] = setting((), change=Change.READ_ONLY)
    """What to listen to."""
    autostart: bool = setting(True, change=Change.READ_ONLY)
    """Begin at once."""


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Makes a node from the words of a command line: the node, and its parameters."""
    import rclpy
    from rclpy.context import Context
    from rclpy.node import Node

    from ki_policy_node.common.parameters import Parameters

    made: list[tuple[Any, Any]] = []

    def node(*words: str, configured: bool = False) -> tuple[Any, Any]:
        context = Context()
        rclpy.init(args=['--ros-args', *(part for word in words for part in ('-p', word))], context=context)
        node = Node('speaker', context=context, automatically_declare_parameters_from_overrides=True)
        made.append((node, context))
        return node, Parameters(node, Settings, lambda: configured)

    yield node
    for each, context in made:
        each.destroy_node()
        context.try_shutdown()


def change(node: Any, name: str, value: Any) -> str:
    """Why a change is refused; empty when it is not."""
    from rclpy.parameter import Parameter

    result = node.set_parameters([Parameter(name, value=value)])[0]
    assert result.successful == (not result.reason)
    return str(result.reason)


def test_what_is_not_given_has_its_default_and_what_is_given_its_type(make: Callable[..., Any]) -> None:
    _, parameters = make('rate:=50', 'topics:=[a, b]', 'use_sim_time:=true')
    values = parameters.values
    assert (values.rate, type(values.rate)) == (50.0, float)
    assert values.topics == ('a', 'b')
    assert (values.mode, values.count, values.autostart) == ('loud', 3, True)


def test_a_whole_number_is_taken_for_a_double_by_ros2_param_set(make: Callable[..., Any]) -> None:
    node, parameters = make()
    assert change(node, 'rate', 50) == ''
    assert (parameters.values.rate, type(parameters.values.rate)) == (50.0, float)
    assert change(node, 'rate', 2.5) == ''
    assert parameters.values.rate == 2.5


@pytest.mark.parametrize(
    ('word', 'told'),
    [
        ('rate:=fast', r"parameters: rate is 'fast'; write a number from 1 to 1000\."),
        ('rate:=0', r'parameters: rate is 0; write a number from 1 to 1000\.'),
        ('rate:=true', 'parameters: rate is True; write a number'),
        ('mode:=lout', "parameters: mode is 'lout'; write one of loud, quiet"),
        ('count:=1.5', 'parameters: count is 1.5; write a whole number'),
        ('autostart:=1', 'parameters: autostart is 1; write true or false'),
        ('topics:=[1, 2]', r'parameters: topics\[0\] is 1; write a word'),
        ('ratte:=5', r'Unknown parameter ratte; did you mean rate\? speaker knows rate, mode, count'),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence_at_the_start(make: Callable[..., Any], word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make(word)


@pytest.mark.parametrize(
    ('name', 'value', 'told'),
    [
        ('rate', 'fast', "parameters: rate is 'fast'; write a number from 1 to 1000."),
        ('rate', 0, 'parameters: rate is 0; write a number from 1 to 1000.'),
        ('mode', 'lout', "parameters: mode is 'lout'; write one of loud, quiet."),
        ('gain', True, 'parameters: gain is True; write a number of at least 0.'),
        ('count', 'many', "parameters: count is 'many'; write a whole number of at least 0."),
        ('rate', 1001.0, 'Parameter rate out of range Min: 1.0, Max: 1000.0, value: 1001.0'),  # rclpy's own sentence
    ],
)
def test_a_change_that_cannot_be_is_refused_with_the_same_sentence(
    make: Callable[..., Any], name: str, value: Any, told: str
) -> None:
    node, parameters = make()
    before = parameters.values
    assert change(node, name, value) == told
    assert parameters.values == before


def test_what_may_change_depends_on_the_parameter_and_on_the_state(make: Callable[..., Any]) -> None:
    node, parameters = make(configured=True)
    assert change(node, 'mode', 'quiet') == ''
    assert parameters.values.mode == 'quiet'
    assert change(node, 'rate', 5.0) == 'Parameter rate is read when the node is configured; clean it up first.'
    assert 'read-only' in change(node, 'autostart', False)
    assert 'read-only' in change(node, 'topics', ['c'])


def test_parameters_are_described_with_unit_range_choices_and_when_they_may_change(make: Callable[..., Any]) -> None:
    node, _ = make()
    rate, mode, count, autostart = node.describe_parameters(['rate', 'mode', 'count', 'autostart'])
    assert rate.description == 'How often [Hz].'
    assert (rate.floating_point_range[0].from_value, rate.floating_point_range[0].to_value) == (1.0, 1000.0)
    assert rate.additional_constraints == 'read when the node is configured'
    assert mode.additional_constraints == 'one of loud, quiet'
    assert (count.integer_range[0].from_value, count.integer_range[0].to_value) == (0, 2**63 - 1)
    assert [each.read_only for each in (rate, mode, count, autostart)] == [False, False, False, True]


def test_an_empty_list_is_still_a_list_of_words(make: Callable[..., Any]) -> None:
    from rclpy.parameter import Parameter

    node, parameters = make()
    assert parameters.values.topics == ()
    assert node.get_parameter('topics').type_ == Parameter.Type.STRING_ARRAY
    assert node.describe_parameter('topics').read_only
    assert list(node.get_parameter('topics').value) == []
