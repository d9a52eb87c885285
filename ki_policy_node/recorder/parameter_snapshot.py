"""The parameters of other nodes, as they were when something went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python


class ParameterSnapshot:
    """Asks nodes for all their parameters; the answers come while the node spins.

    Args:
        node: Who asks.
        names: Of the nodes, in its namespace.
    """

    def __init__(self, node: Node, names: Sequence[str]) -> None:
        self.values: dict[str, dict[str, Any]] = {}
        self._lists = {name: node.create_client(ListParameters, f'{name}/list_parameters') for name in names}
        self._gets = {name: node.create_client(GetParameters, f'{name}/get_parameters') for name in names}

    def ask(self) -> None:
        """Asks anew; a node that is not there is left out."""
        self.values = {}
        for name, client in self._lists.items():
            if client.service_is_ready() and self._gets[name].service_is_ready():
                client.call_async(ListParameters.Request()).add_done_callback(
                    lambda future, name=name: self._get(name, list(future.result().result.names))
                )

    def _get(self, name: str, parameters: list[str]) -> None:
        def keep(future: Any) -> None:
            values = map(parameter_value_to_python, future.result().values)
            self.values[name] = dict(zip(parameters, values, strict=True))

        self._gets[name].call_async(GetParameters.Request(names=parameters)).add_done_callback(keep)
