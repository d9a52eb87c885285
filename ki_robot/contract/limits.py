"""Limits from the robot's own files: a URDF or a ros2_control joint_limits YAML, beside the contract; tightest wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from pydantic import ConfigDict, model_validator
from typing_extensions import Self

from ki_common.configuration.yaml_reader import read_text, read_yaml
from ki_common.errors import shown
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import ContractPart, Limits
from ki_robot.contract.robot_xml import robot_element
from ki_robot.errors import RobotError


@dataclass(frozen=True)
class Locked:
    """A joint that cannot move, such as a tool's lock with lower = upper = 0; `why` is the sentence."""

    why: str


JointLimits = Mapping[str, Limits | Locked]  # by joint name: those of its position


def limits_from_urdf(text: str, where: str = 'URDF') -> JointLimits:
    """Position, velocity bounds of every joint with a `limit`, from URDF text (rad or m, and per second).

    A continuous joint has no position bounds; fixed joints and mimics are left out (they take no commands). A velocity
    of 0, which exporters write for "unknown", counts as not given. Soft limits of a `safety_controller` tighten the
    bounds. A joint that cannot move matters only to a contract that commands it.

    Raises:
        RobotError: Not XML, with a document type (entities can blow up), or a limit that is no number.
    """
    root = robot_element(text, where)
    found: dict[str, Limits | Locked] = {}
    for joint in _moved(root):
        name, kind, limit = joint.get('name', ''), joint.get('type', ''), joint.find('limit')
        if limit is None:
            continue
        bounds = {} if kind == 'continuous' else {'lower': 0.0, 'upper': 0.0}  # the URDF's defaults
        for key in ('lower', 'upper', 'velocity'):
            value = limit.get(key)
            if value is not None and not (kind == 'continuous' and key != 'velocity'):
                bounds[key] = _number(value, f'{where}: joint {name!r} limit {key}')
        bounds = _softened(joint, bounds, where) if kind != 'continuous' else bounds
        if bounds.get('velocity') == 0.0:
            del bounds['velocity']
        here = f'{where}: joint {name!r}'
        if kind != 'continuous' and bounds['lower'] == bounds['upper']:
            found[name] = Locked(f'{here} cannot move: its limits are both {bounds["lower"]}; correct them there.')
        else:
            found[name] = Limits.parse(bounds, here)
    return found


def joint_kinds(text: str, where: str = 'URDF') -> dict[str, str]:
    """The type of every joint that takes commands, in the order of the URDF: neither fixed nor a mimic.

    Raises:
        RobotError: As `limits_from_urdf`.
    """
    return {joint.get('name', ''): joint.get('type', '') for joint in _moved(robot_element(text, where))}


def _moved(root: ElementTree.Element) -> list[ElementTree.Element]:
    joints = root.findall('joint')
    return [each for each in joints if each.get('type', '') != 'fixed' and each.find('mimic') is None]


def _softened(joint: ElementTree.Element, bounds: dict[str, float], where: str) -> dict[str, float]:
    """Bounds within the soft limits of a `safety_controller`, where it has both; some have gains alone."""
    safety = joint.find('safety_controller')
    soft = {} if safety is None else {key: safety.get(f'soft_{key}_limit') for key in ('lower', 'upper')}
    if safety is None or None in soft.values():
        return bounds
    here = f'{where}: joint {joint.get("name", "")!r} safety_controller'
    lower, upper = (_number(str(soft[key]), f'{here} soft_{key}_limit') for key in ('lower', 'upper'))
    if not lower < upper:
        return bounds
    return {**bounds, 'lower': max(bounds['lower'], lower), 'upper': min(bounds['upper'], upper)}


def limits_from_yaml(data: object, where: str = 'joint_limits') -> JointLimits:
    """Bounds from the plain data of a joint_limits YAML: `joint_limits: {NAME: {has_position_limits: true, ...}}`.

    A bound counts only where its `has_..._limits` is true, as in ros2_control; keys of other purposes are let pass. The
    whole may be wrapped in `ros__parameters`, as in a controller's parameter file.
    """
    top = data
    while isinstance(top, Mapping) and 'joint_limits' not in top and len(top) == 1:
        top = next(iter(top.values()))
    if not isinstance(top, Mapping) or not isinstance(top.get('joint_limits'), Mapping):
        raise RobotError(f'{where} has no mapping joint_limits; write joint_limits: {{joint1: {{...}}}}.')
    found: dict[str, Limits | Locked] = {}
    for name, entry in top['joint_limits'].items():
        here = f'{where}: joint_limits.{shown(name)}'
        found[str(name)] = Limits.parse(_JointEntry.parse(entry, here).counted(), here)
    return found


class _JointEntry(ContractPart):
    """One joint of a joint_limits YAML."""

    model_config = ConfigDict(extra='ignore')

    has_position_limits: bool = False
    """Whether the two bounds count."""
    min_position: float | None = None
    """rad or m."""
    max_position: float | None = None
    """rad or m."""
    has_soft_limits: bool = False
    """Whether the next two count: the bounds within which ros2_control brakes."""
    soft_lower_limit: float | None = None
    """rad or m."""
    soft_upper_limit: float | None = None
    """rad or m."""
    has_velocity_limits: bool = False
    """Whether the bound counts."""
    max_velocity: float | None = None
    """rad/s or m/s."""
    has_acceleration_limits: bool = False
    """Whether the bound counts."""
    max_acceleration: float | None = None
    """rad/s^2 or m/s^2."""
    has_jerk_limits: bool = False
    """Whether the bound counts."""
    max_jerk: float | None = None
    """rad/s^3 or m/s^3."""

    @model_validator(mode='after')
    def _has_what_it_says(self) -> Self:
        bounds = {'position': ('min_position', 'max_position'), 'soft': ('soft_lower_limit', 'soft_upper_limit')}
        for what in ('position', 'soft', 'velocity', 'acceleration', 'jerk'):
            for name in bounds.get(what, (f'max_{what}',)):
                if getattr(self, f'has_{what}_limits') and getattr(self, name) is None:
                    raise ValueError(f'has_{what}_limits is True, but there is no field {name!r}; add it as a number')
        return self

    def counted(self) -> dict[str, float | None]:
        """The fields of `Limits`; a bound that does not count is None."""
        return {
            'lower': self._bound(max, self.min_position, self.soft_lower_limit),
            'upper': self._bound(min, self.max_position, self.soft_upper_limit),
            'velocity': self.max_velocity if self.has_velocity_limits else None,
            'acceleration': self.max_acceleration if self.has_acceleration_limits else None,
            'jerk': self.max_jerk if self.has_jerk_limits else None,
        }

    def _bound(self, tighter: Callable[[list[float]], float], hard: float | None, soft: float | None) -> float | None:
        told = [(self.has_position_limits, hard), (self.has_soft_limits, soft)]
        values = [value for counts, value in told if counts and value is not None]
        return tighter(values) if values else None


def read_limits(path: Path) -> JointLimits:
    """Limits from a file: .urdf or .xml is a URDF, anything else a joint_limits YAML."""
    if path.suffix in ('.urdf', '.xml'):
        return limits_from_urdf(read_text(path, RobotError), str(path))
    return limits_from_yaml(read_yaml(path, RobotError), str(path))


def tightest(first: Limits, second: Limits, where: str = '') -> Limits:
    """Bounds that keep both.

    Raises:
        RobotError: nothing lies between lower and upper; `where` names the limits.
    """

    def pick(name: str, choose: Callable[[list[float]], float]) -> float | None:
        values = [value for value in (getattr(first, name), getattr(second, name)) if value is not None]
        return choose(values) if values else None

    chosen = {'lower': max, 'upper': min, 'velocity': min, 'acceleration': min, 'jerk': min}
    return Limits.parse({name: pick(name, choose) for name, choose in chosen.items()}, where)


def action_limits(contract: Contract, *sources: JointLimits) -> tuple[Limits, ...]:
    """The limits of every action column, in order: the contract's, tightened by files of the robot.

    A file's position bounds hold for `NAME/position`; for `NAME/velocity` its velocity and acceleration do.

    Raises:
        RobotError: A file and the contract leave no room between lower and upper, or share no joint.
    """
    _require_shared_joint(contract, sources)
    found = []
    for column in contract.actions:
        joint, _, interface = column.name.rpartition('/')
        limits = column.limits
        for source in sources:
            if joint not in source or interface not in ('position', 'velocity'):
                continue
            other = source[joint]
            if isinstance(other, Locked):
                raise RobotError(other.why)
            if interface == 'velocity':
                other = Limits(velocity=other.velocity, acceleration=other.acceleration)
            limits = tightest(limits, other, f'{contract.name}: {column.name} together with the file')
        found.append(limits)
    return tuple(found)


def _require_shared_joint(contract: Contract, sources: tuple[JointLimits, ...]) -> None:
    """A file of another robot, or under other names, would change nothing and leave its reader believing it holds."""
    named = [column.name.rpartition('/') for column in contract.actions]
    commanded = {joint: None for joint, _, interface in named if interface in ('position', 'velocity')}
    for source in sources:
        if commanded.keys().isdisjoint(source):
            raise RobotError(
                f'The limits file names the joints {_some(source)}; contract {contract.name} commands '
                f'{_some(commanded)}: not one is in both, so the file would limit nothing. Write the joint names of '
                'the contract into it, or give no limits file.'
            )


def _some(names: Iterable[str], at_most: int = 8) -> str:
    """The first few names, for a sentence."""
    found = [shown(name) for name in names]
    rest = f' and {len(found) - at_most} more' if len(found) > at_most else ''
    return (', '.join(found[:at_most]) or 'none') + rest


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RobotError(f'{where} is {shown(text)}; write a finite number.')
    return value
