"""`SOURCE:=COLUMN*SCALE+OFFSET`: what of a device commands which column of the robot. No ROS."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ki_policy_node.errors import NodeError
from ki_robot.contract.contract import Contract

NUMBER = r'[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?'
FORM = re.compile(rf'(?P<source>[^:]+):=(?P<column>[^*+\s]+?)(?:\*(?P<scale>{NUMBER}))?(?P<offset>[+-]\d+(?:\.\d*)?)?')


@dataclass(frozen=True)
class Link:
    """One source and the column that it commands: `value * scale + offset`."""

    source: str
    column: str
    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, value: float) -> float:
        """The column's value, SI."""
        return value * self.scale + self.offset


def links_of(texts: Sequence[str], contract: Contract, parameter: str) -> tuple[Link, ...]:
    """The links that a parameter lists.

    Raises:
        NodeError: one that does not read, commands a column that the robot has not, or that another commands, too.
    """
    found: list[Link] = []
    for text in texts:
        match = FORM.fullmatch(text.strip())
        if match is None:
            raise NodeError(
                f'Parameter {parameter} has {text!r}; write SOURCE:=COLUMN*SCALE+OFFSET, the last two at will.'
            )
        column = match['column']
        if column not in contract.robot.action_names:
            known = ', '.join(contract.robot.action_names)
            raise NodeError(f'Parameter {parameter} names the column {column!r}; {contract.name} has {known}.')
        if any(column == each.column for each in found):
            raise NodeError(f'Parameter {parameter} commands {column} twice; leave one out.')
        found.append(Link(match['source'].strip(), column, float(match['scale'] or 1), float(match['offset'] or 0)))
    return tuple(found)
