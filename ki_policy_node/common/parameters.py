"""ROS parameters declared from a settings model, and checked by it at the start and at every change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from ki_common.configuration.refusal import nearest
from ki_common.errors import KiError
from ki_common.node_settings import Change, NodeSettings, ParameterSpec, is_built_in

S = TypeVar('S', bound=NodeSettings)
INT64 = 2**63 - 1
_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple: Parameter.Type.STRING_ARRAY,
}


class Parameters(Generic[S]):
    """The declared parameters of one node, always valid.

    The node must be made with `automatically_declare_parameters_from_overrides=True`: that is how an override
    that nobody declared becomes visible, and a misspelt safety limit is not silently ignored.

    Parameters that may change are declared with dynamic typing: rclpy would refuse the whole number of
    `ros2 param set NODE rate 50` where a double was declared. The model does the typing instead.

    Args:
        node: Whose parameters these are.
        model: All of them.
        configured: Whether the lifecycle node is configured, so that what was read then must not change.

    Raises:
        KiError: of the type that the model raises; an unknown parameter, or a value that does not fit.
    """

    def __init__(self, node: Node, model: type[S], configured: Callable[[], bool] = lambda: True) -> None:
        self._node, self._model, self._configured = node, model, configured
        self._specs = model.specs()
        self._changeable = [spec.name for spec in self._specs.values() if spec.change is not Change.READ_ONLY]
        given = {name: node.get_parameter(name).value for name in node.get_parameters_by_prefix('')}
        self._refuse_unknown(given)
        self._start = self._checked({name: value for name, value in given.items() if name in self._specs})
        for spec in self._specs.values():
            self._declare(spec)
        node.add_on_set_parameters_callback(self._check)

    @property
    def values(self) -> S:
        """What the parameters are now."""
        if not self._changeable:
            return self._start
        return self._start.replace(**{name: self._node.get_parameter(name).value for name in self._changeable})

    def _refuse_unknown(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in self._specs and not is_built_in(name):
                near = nearest(name, self._specs)
                hint = f'did you mean {near}? ' if near else ''
                known = f'{self._node.get_name()} knows {", ".join(self._specs)}'
                raise self._model.raises(f'Unknown parameter {name}; {hint}{known}.')

    def _checked(self, values: Mapping[str, Any]) -> S:
        return self._model.parse(values, 'parameters')

    def _declare(self, spec: ParameterSpec) -> None:
        value, words = getattr(self._start, spec.name), Parameter.Type.STRING_ARRAY
        if self._node.has_parameter(spec.name):
            self._node.undeclare_parameter(spec.name)
        if spec.kind is tuple:  # rclpy takes an empty list for one of bytes, unless it is told the type
            self._node.declare_parameter(spec.name, words, ignore_override=True)
            self._node.set_parameters([Parameter(spec.name, words, list(value))])
            self._node.set_descriptor(spec.name, descriptor(spec))
        else:
            self._node.declare_parameter(spec.name, value, descriptor(spec), ignore_override=True)

    def _check(self, changes: Sequence[Parameter]) -> SetParametersResult:
        ours = {change.name: change.value for change in changes if change.name in self._specs}
        try:
            if ours:
                now = self.values
                self._checked({name: getattr(now, name) for name in self._specs} | ours)
        except KiError as error:
            return SetParametersResult(successful=False, reason=str(error))
        for name in ours:
            if self._specs[name].change is Change.UNCONFIGURED and self._configured():
                reason = f'Parameter {name} is read when the node is configured; clean it up first.'
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)


def descriptor(spec: ParameterSpec) -> ParameterDescriptor:
    """What `ros2 param describe` shows of a parameter."""
    unit = f' [{spec.unit}]' if spec.unit else ''
    made = ParameterDescriptor(
        name=spec.name, type=_TYPES[spec.kind].value, description=f'{spec.description.rstrip(".")}{unit}.'
    )
    made.read_only = spec.change is Change.READ_ONLY
    made.dynamic_typing = not made.read_only
    constraints = ['one of ' + ', '.join(spec.choices)] if spec.choices else []
    constraints += ['read when the node is configured'] if spec.change is Change.UNCONFIGURED else []
    made.additional_constraints = '; '.join(constraints)
    if spec.low is None and spec.high is None:
        return made
    if spec.kind is float:
        low, high = (-math.inf if spec.low is None else spec.low), (math.inf if spec.high is None else spec.high)
        made.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    else:
        low, high = (-INT64 if spec.low is None else spec.low), (INT64 if spec.high is None else spec.high)
        made.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return made
