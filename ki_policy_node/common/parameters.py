"""Parameters of a node: declared once with description, range and choices, checked at the start and at every change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from ki_policy_node.errors import NodeError

Value = bool | int | float | str
# Declared by rclpy itself on every node.
BUILT_IN = ('use_sim_time', 'start_type_description_service')


@dataclass(frozen=True)
class Setting:
    """One parameter.

    `low` and `high` bound a number, `choices` a word; `live` says that it may change while the node is configured,
    any other is read when the node is configured and refuses a change until it is cleaned up.
    """

    name: str
    default: Value
    description: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    live: bool = False

    def checked(self, value: Any) -> Value:
        """`value` as this parameter's type.

        Raises:
            NodeError: of another type, out of range, not a choice; the message says what to write.
        """
        kind = type(self.default)
        if kind is float and type(value) is int:  # YAML and the command line read `1` as a whole number
            value = float(value)
        if type(value) is not kind:
            raise NodeError(f'Parameter {self.name} is {value!r}; write {_WORDS[kind]}.')
        if kind in (int, float) and not self.low <= value <= self.high:  # refuses NaN, too
            raise NodeError(f'Parameter {self.name} is {value}; write a number from {self.low:g} to {self.high:g}.')
        if isinstance(value, str) and self.choices and value not in self.choices:
            raise NodeError(f'Parameter {self.name} is {value!r}; write one of {", ".join(self.choices)}.')
        return value  # type: ignore[no-any-return]

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows."""
        made = ParameterDescriptor(name=self.name, description=self.description)
        if self.choices:
            made.additional_constraints = 'one of ' + ', '.join(self.choices)
        elif not self.live:
            made.additional_constraints = 'read when the node is configured'
        if math.isfinite(self.low) and math.isfinite(self.high):
            if isinstance(self.default, float):
                made.floating_point_range = [FloatingPointRange(from_value=float(self.low), to_value=float(self.high))]
            elif isinstance(self.default, int) and not isinstance(self.default, bool):
                made.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)]
        return made


_WORDS = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a word'}


class Parameters:
    """The declared parameters of one node, typed and always valid.

    The node must be made with `automatically_declare_parameters_from_overrides=True`: that is how an override
    that nobody declared becomes visible, and a misspelt safety limit is not silently ignored.

    Args:
        node: Whose parameters these are.
        settings: All of them.
        frozen: Says whether the node is configured, so that only live parameters may change.

    Raises:
        NodeError: an unknown parameter, or a value that does not fit.
    """

    def __init__(self, node: Node, settings: Iterable[Setting], frozen: Callable[[], bool]) -> None:
        self._node = node
        self._settings = {setting.name: setting for setting in settings}
        self._frozen = frozen
        given = {name: each.value for name, each in node.get_parameters_by_prefix('').items()}
        for name in given:
            if name not in self._settings and name not in BUILT_IN and not name.startswith('qos_overrides.'):
                raise NodeError(f'Unknown parameter {name}; {node.get_name()} knows {", ".join(self._settings)}.')
        for setting in self._settings.values():
            value = setting.checked(given.get(setting.name, setting.default))
            if node.has_parameter(setting.name):
                node.undeclare_parameter(setting.name)
            node.declare_parameter(setting.name, value, setting.descriptor(), ignore_override=True)
        node.add_on_set_parameters_callback(self._check)

    def __getitem__(self, name: str) -> Any:
        return self._node.get_parameter(name).value

    def _check(self, changes: Sequence[Parameter]) -> SetParametersResult:
        for change in changes:
            setting = self._settings.get(change.name)
            if setting is None:
                continue
            try:
                setting.checked(change.value)
            except NodeError as error:
                return SetParametersResult(successful=False, reason=str(error))
            if self._frozen() and not setting.live:
                reason = f'Parameter {change.name} is read when the node is configured; clean it up first.'
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)
