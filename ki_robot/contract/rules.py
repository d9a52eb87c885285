"""What must hold between the fields of a contract; each broken rule is one sentence with field, value and mend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ki_common.errors import shown
from ki_robot.contract.names import (
    INTERFACE_UNITS,
    OPTION_CHOICES,
    OUTPUT_KINDS,
    TWIST_AXES,
    interface_of,
    twist_axis_of,
)
from ki_robot.errors import RobotError

if TYPE_CHECKING:
    from ki_robot.contract.contract import ActionColumn, Contract, Limits, Output, StateColumn

MAX_RATE_HZ = 1000.0
MAX_AGE_S = 10.0
MAX_WINDOW_S = 0.3  # a trajectory that outlives its policy must not run longer than this
MAX_ENTRIES = 512

# What a trained policy depends on; the rest of a contract is the robot's own affair.
MODEL_FIELDS: dict[str, Callable[[Contract], object]] = {
    'rate_hz': lambda contract: contract.rate_hz,
    'horizon': lambda contract: contract.horizon,
    'image_size': lambda contract: contract.image_size,
    'cameras (name, in order)': lambda contract: contract.camera_names,
    'cameras (kind)': lambda contract: tuple(camera.kind for camera in contract.cameras),
    'state (name, in order)': lambda contract: contract.state_names,
    'state (unit)': lambda contract: tuple(column.unit for column in contract.state),
    'actions (name, in order)': lambda contract: contract.action_names,
    'actions (unit)': lambda contract: tuple(column.unit for column in contract.actions),
    'actions (representation)': lambda contract: tuple(column.representation for column in contract.actions),
}


def check_contract(contract: Contract) -> None:
    """Raises RobotError for the first rule that `contract` breaks."""
    for complaint in _complaints(contract):
        raise RobotError(complaint)


def duplicates(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, in order of their second occurrence."""
    seen: set[str] = set()
    found = []
    for name in names:
        if name in seen:
            found.append(name)
        seen.add(name)
    return found


def _complaints(contract: Contract) -> Iterator[str]:
    if not 0.0 < contract.rate_hz <= MAX_RATE_HZ:
        yield f'rate_hz is {contract.rate_hz}; write the steps per second, above 0 and at most {MAX_RATE_HZ:g}.'
    if not 0.0 < contract.sync_tolerance_s <= MAX_AGE_S:
        yield f'sync_tolerance_s is {contract.sync_tolerance_s}; write seconds, above 0 and at most {MAX_AGE_S:g}.'
    yield from _lists(contract)
    for index, camera in enumerate(contract.cameras):
        yield from _age(f'cameras[{index}]', camera.max_age_s)
        if (camera.width is None) != (camera.height is None):
            yield f'cameras[{index}] gives only one of width and height; give both or neither.'
    for index, stream in enumerate(contract.state_streams):
        yield from _age(f'state_streams[{index}]', stream.max_age_s)
        if all(column.source != stream.name for column in contract.state):
            yield f'state_streams[{index}] ({stream.name}) feeds no state column; drop it or name it as a source.'
    for index, column in enumerate(contract.state):
        yield from _state_column(f'state[{index}]', column, contract)
    for index, action in enumerate(contract.actions):
        yield from _action_column(f'actions[{index}]', action, contract)
    yield from _outputs(contract)


def _lists(contract: Contract) -> Iterator[str]:
    named: dict[str, list[str]] = {
        'cameras': [camera.name for camera in contract.cameras],
        'state_streams': [stream.name for stream in contract.state_streams],
        'state': [column.name for column in contract.state],
        'actions': [column.name for column in contract.actions],
        'outputs': [output.name for output in contract.outputs],
    }
    for label, names in named.items():
        if not names and label != 'outputs':
            yield f'{label} is empty; a policy needs at least one.'
        if len(names) > MAX_ENTRIES:
            yield f'{label} has {len(names)} entries; at most {MAX_ENTRIES} make sense.'
        for name in duplicates(names):
            yield f'{label} names {name!r} twice; names are unique, rename or drop one.'
    for name in duplicates(named['cameras'] + named['state_streams']):
        yield f'{name!r} names both a camera and a state stream; rename one.'
    topics = [camera.topic for camera in contract.cameras] + [stream.topic for stream in contract.state_streams]
    for topic in duplicates(topics):
        yield f'the topic {topic!r} feeds two streams; give each camera and state stream a topic of its own.'
    for topic in duplicates(output.topic for output in contract.outputs):
        yield f'the topic {topic!r} belongs to two outputs; a controller takes commands from one.'
    if contract.cameras and not any(camera.required for camera in contract.cameras):
        yield 'cameras has no required one; a policy that may see nothing must not move, set required: true on one.'


def _age(where: str, max_age_s: float) -> Iterator[str]:
    if not 0.0 < max_age_s <= MAX_AGE_S:
        yield f'{where}.max_age_s is {max_age_s}; write seconds, above 0 and at most {MAX_AGE_S:g}.'


def _unit(where: str, name: str, unit: str) -> Iterator[str]:
    interface = interface_of(name)
    if interface not in INTERFACE_UNITS:
        yield (
            f'{where}.name is {name!r}, whose interface {interface!r} is unknown; '
            f'end it in {", ".join(INTERFACE_UNITS)}.'
        )
    elif unit not in INTERFACE_UNITS[interface]:
        yield f'{where}.unit is {unit!r}; a {interface} is in {" or ".join(INTERFACE_UNITS[interface])}.'


def _limits(where: str, limits: Limits) -> Iterator[str]:
    for name in ('lower', 'upper', 'velocity', 'acceleration'):
        value = getattr(limits, name)
        if value is not None and not math.isfinite(value):
            yield f'{where}.limits.{name} is {value}; write a finite number, or leave it out for unlimited.'
    for name in ('velocity', 'acceleration'):
        value = getattr(limits, name)
        if value is not None and value <= 0.0:
            yield f'{where}.limits.{name} is {value}; write a number above 0, or leave it out for unlimited.'
    if limits.lower is not None and limits.upper is not None and limits.lower >= limits.upper:
        yield f'{where}.limits.lower is {limits.lower}, not below upper {limits.upper}; swap or correct them.'


def _state_column(where: str, column: StateColumn, contract: Contract) -> Iterator[str]:
    yield from _unit(where, column.name, column.unit)
    yield from _limits(where, column.limits)
    streams = {stream.name: stream for stream in contract.state_streams}
    if column.source not in streams:
        yield f'{where}.source is {column.source!r}; name one of the state_streams ({", ".join(streams)}).'
        return
    stream = streams[column.source]
    if stream.type == 'odometry' and twist_axis_of(column.name) is None:
        yield f'{where}.name is {column.name!r}; an odometry stream gives columns that end in {", ".join(TWIST_AXES)}.'
    if stream.prefix and not column.name.startswith(stream.prefix):
        yield f'{where}.name is {column.name!r}; columns of {stream.name} begin with its prefix {stream.prefix!r}.'


def _action_column(where: str, column: ActionColumn, contract: Contract) -> Iterator[str]:
    yield from _unit(where, column.name, column.unit)
    yield from _limits(where, column.limits)
    interface = interface_of(column.name)
    needed = {'position': ('lower', 'upper', 'velocity'), 'velocity': ('velocity',), 'effort': ('lower', 'upper')}
    for name in needed.get(interface, ()):
        if getattr(column.limits, name) is None:
            wanted = ', '.join(needed[interface])
            yield f'{where}.limits ({column.name}) has no {name}; a {interface} command needs {wanted}.'
    if column.representation == 'delta':
        state = {each.name: each.unit for each in contract.state}
        if column.name not in state:
            yield f'{where} ({column.name}) is a delta, but no state column has that name; add it or make it absolute.'
        elif state[column.name] != column.unit:
            yield f'{where}.unit is {column.unit!r}, but the state column {column.name} is in {state[column.name]!r}.'


def _outputs(contract: Contract) -> Iterator[str]:
    known = set(contract.action_names)
    used: list[str] = []
    for index, output in enumerate(contract.outputs):
        where = f'outputs[{index}] ({output.name})'
        if not output.columns:
            yield f'{where}.columns is empty; name the action columns it commands.'
        for column in output.columns:
            if column not in known:
                yield f'{where}.columns names {shown(column)}, which is no action column; name one of actions.'
        yield from _output_kind(where, output)
        yield from _options(where, output)
        used += output.columns
    for column in duplicates(used):
        yield f'the column {column!r} goes to two outputs; one controller commands it.'
    for column in contract.action_names:
        if contract.outputs and column not in used:
            yield f'the action column {column!r} goes to no output; add it to one, or drop all outputs to replay only.'


def _output_kind(where: str, output: Output) -> Iterator[str]:
    interfaces = {interface_of(column) for column in output.columns}
    if output.kind == 'joint_trajectory' and interfaces != {'position'}:
        yield f'{where} is a joint_trajectory of {", ".join(sorted(interfaces))}; it takes position columns only.'
    if output.kind == 'forward_command':
        if len(interfaces) > 1:
            yield f'{where} mixes {", ".join(sorted(interfaces))}; a forward_command has one interface.'
        if interfaces - {'position'} and output.options.get('allow_without_timeout') is not True:
            yield (
                f'{where} sends {", ".join(sorted(interfaces))} to a controller without a timeout, which would run on '
                'if the sender died; use a twist or trajectory controller, or set options.allow_without_timeout: true.'
            )
    if output.kind in ('twist', 'twist_stamped'):
        axes = [twist_axis_of(column) for column in output.columns]
        if None in axes:
            yield f'{where} has the column {output.columns[axes.index(None)]!r}; a twist takes {", ".join(TWIST_AXES)}.'
        for axis in duplicates(axis for axis in axes if axis):
            yield f'{where} has two columns for {axis}; keep one.'
    if output.kind == 'gripper' and (len(output.columns) != 1 or interfaces != {'position'}):
        yield f'{where} has {len(output.columns)} columns; a gripper output takes one position column.'


def _options(where: str, output: Output) -> Iterator[str]:
    known = OUTPUT_KINDS.get(output.kind)
    if known is None:
        yield f'{where}.kind is {output.kind!r}; write one of {", ".join(OUTPUT_KINDS)}.'
        return
    for name, value in output.options.items():
        if name not in known:
            yield f'{where}.options.{shown(name)} is unknown; {output.kind} knows {", ".join(known) or "no option"}.'
        elif type(value) is not known[name]:
            yield f'{where}.options.{name} is {shown(value)}; write a {_type_word(known[name])}.'
        elif name in OPTION_CHOICES and value not in OPTION_CHOICES[name]:
            yield f'{where}.options.{name} is {shown(value)}; write one of {", ".join(OPTION_CHOICES[name])}.'
        elif isinstance(value, float) and not value > 0.0:
            yield f'{where}.options.{name} is {value}; write a number above 0.'
    window: Any = output.options.get('window_s', MAX_WINDOW_S)
    if isinstance(window, float) and window > MAX_WINDOW_S:
        yield f'{where}.options.window_s is {window}; at most {MAX_WINDOW_S} may run on without the policy.'


def _type_word(kind: type) -> str:
    return {bool: 'true or false', float: 'number', str: 'word'}[kind]
