"""Settings of a node: what the docs and ROS 2 are told of each parameter."""

from __future__ import annotations

from typing import Literal

import pytest

from ki_common.errors import ConfigError
from ki_common.node_settings import Change, LifecycleSettings, NodeSettings, ParameterSpec, setting


class Settings(NodeSettings):
    rate: float = setting(10.0, unit='Hz', ge=0.5, le=1000.0)
    """How often."""
    words: tuple[str, ...] = setting(())
    """What to say."""
    mode: Literal['loud', 'quiet'] = setting('loud', change=Change.LIVE)
    """How to say it."""
    count: int = setting(3, ge=0)
    """How many times."""


class Lifecycle(LifecycleSettings):
    robot: str = setting('')
    """Which robot."""
    autostart: bool = setting(True, change=Change.READ_ONLY)
    """Begin at once."""


def test_a_parameter_tells_all_that_the_docs_say_of_it() -> None:
    specs = Settings.specs()
    assert list(specs) == ['rate', 'words', 'mode', 'count']
    assert specs['rate'] == ParameterSpec('rate', float, 10.0, 'How often.', 'Hz', 0.5, 1000.0)
    assert specs['mode'] == ParameterSpec(
        'mode', str, 'loud', 'How to say it.', choices=('loud', 'quiet'), change=Change.LIVE
    )
    assert [each.type_name for each in specs.values()] == ['double', 'string array', 'string', 'integer']
    assert [each.range for each in specs.values()] == ['0.5 to 1000', '', 'loud, quiet', 'at least 0']


def test_a_parameter_of_a_lifecycle_node_is_read_when_it_is_configured_unless_said_otherwise() -> None:
    assert {name: each.change for name, each in Lifecycle.specs().items()} == {
        'robot': Change.UNCONFIGURED,
        'autostart': Change.READ_ONLY,
    }


def test_a_whole_number_will_do_for_a_rate_and_a_word_will_not() -> None:
    values = Settings.parse({'rate': 30}, 'parameters')
    assert (values.rate, type(values.rate)) == (30.0, float)
    with pytest.raises(ConfigError, match=r"parameters: rate is 'fast'; write a number from 0.5 to 1000\."):
        Settings.parse({'rate': 'fast'}, 'parameters')
