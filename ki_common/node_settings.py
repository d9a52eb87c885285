"""The parameters of a ROS 2 node as one model: type, default, bounds, unit, description, and when each may change.

Knows no ROS: nodes declare their parameters from these models (ki_policy_node.common.parameters), and launch files,
`ki up`, the reference docs and tests read them.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from pydantic import Field

from ki_common.configuration.model import Config

Value = bool | int | float | str | tuple[str, ...]
# Declared by rclpy itself on every node, as are those that begin with `qos_overrides`.
BUILT_IN = ('use_sim_time', 'start_type_description_service')


class Change(str, Enum):
    """When a parameter may be set."""

    LIVE = 'live'  # at any time
    UNCONFIGURED = 'unconfigured'  # while the lifecycle node is unconfigured; read when it is configured
    READ_ONLY = 'read-only'  # at the start of the process alone


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a node, as the docs and `ros2 param describe` show it."""

    name: str
    kind: type  # bool, int, float, str, or tuple: a list of words
    default: Value
    description: str
    unit: str = ''  # of a number; empty when it has none
    low: float | None = None  # the smallest value of a number; None without one
    high: float | None = None
    choices: tuple[str, ...] = ()  # of a word; empty when any will do
    change: Change = Change.READ_ONLY

    @property
    def type_name(self) -> str:
        """The type as ROS 2 names it: bool, integer, double, string, string array."""
        return _TYPE_NAMES[self.kind]

    @property
    def range(self) -> str:
        """The values that will do: `1 to 1000`, `at least 0`, `hold, sine`; empty when every one of the type does."""
        if self.choices:
            return ', '.join(self.choices)
        if self.low is None:
            return '' if self.high is None else f'at most {self.high:.10g}'
        return f'at least {self.low:.10g}' if self.high is None else f'{self.low:.10g} to {self.high:.10g}'


_TYPE_NAMES = {bool: 'bool', int: 'integer', float: 'double', str: 'string', tuple: 'string array'}


def setting(
    default: Value,
    *,
    ge: float | None = None,
    le: float | None = None,
    unit: str = '',
    change: Change | None = None,
) -> Any:
    """The field of one parameter; the string below it is its description.

    Args:
        default: Its value where none is given.
        ge: The smallest value of a number.
        le: The largest value of a number.
        unit: Of a number.
        change: When it may be set; None: as `default_change` of the model says.
    """
    return Field(default, ge=ge, le=le, json_schema_extra={'unit': unit, 'change': change.value if change else ''})


def is_built_in(name: str) -> bool:
    """Whether a parameter is rclpy's and not the node's."""
    return name in BUILT_IN or name.partition('.')[0] == 'qos_overrides'


class NodeSettings(Config):
    """Base of the parameters of a node: every field is made by `setting`."""

    default_change: ClassVar[Change] = Change.READ_ONLY

    @classmethod
    def specs(cls) -> dict[str, ParameterSpec]:
        """Every parameter by name, in the order of declaration."""
        types = typing.get_type_hints(cls)
        schemas = cls.model_json_schema()['properties']
        return {name: cls._spec(name, types[name], schemas[name]) for name in cls.model_fields}

    @classmethod
    def _spec(cls, name: str, annotation: Any, schema: dict[str, Any]) -> ParameterSpec:
        choices = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
        return ParameterSpec(
            name,
            str if choices else typing.get_origin(annotation) or annotation,
            cls.model_fields[name].default,
            ' '.join(schema['description'].split()),
            schema['unit'],
            schema.get('minimum'),
            schema.get('maximum'),
            choices,
            Change(schema['change']) if schema['change'] else cls.default_change,
        )


class LifecycleSettings(NodeSettings):
    """Base of the parameters of a lifecycle node: what is not said to be otherwise is read when it is configured."""

    default_change: ClassVar[Change] = Change.UNCONFIGURED
