"""What must hold between the parts of a contract; each broken rule is one sentence with field, value and fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ki_common.errors import shown
from ki_robot.contract.names import TWIST_AXES, duplicates, twist_axis_of
from ki_robot.contract.parts import ActionColumn, Camera, Output, StateColumn, StateStream


def broken_rules(
    cameras: Sequence[Camera],
    streams: Sequence[StateStream],
    state: Sequence[StateColumn],
    actions: Sequence[ActionColumn],
    outputs: Sequence[Output],
) -> Iterator[str]:
    """A sentence for every rule that these parts break together; none where they make a contract."""
    yield from _names(cameras, streams, state, actions, outputs)
    if cameras and not any(camera.required for camera in cameras):
        yield 'cameras has no required one; a policy that may see nothing must not move, set required: true on one'
    for index, stream in enumerate(streams):
        if all(column.source != stream.name for column in state):
            yield f'state_streams[{index}] ({stream.name}) feeds no state column; drop it or name it as a source'
    for index, column in enumerate(state):
        yield from _source(f'state[{index}]', column, {stream.name: stream for stream in streams})
    units = {column.name: column.unit for column in state}
    for index, action in enumerate(actions):
        if action.representation == 'delta':
            yield from _delta(f'actions[{index}]', action, units)
    if outputs:
        yield from _commanded(actions, outputs)


def _names(
    cameras: Sequence[Camera],
    streams: Sequence[StateStream],
    state: Sequence[StateColumn],
    actions: Sequence[ActionColumn],
    outputs: Sequence[Output],
) -> Iterator[str]:
    parts: dict[str, Sequence[Camera | StateStream | StateColumn | ActionColumn | Output]] = {
        'cameras': cameras,
        'state_streams': streams,
        'state': state,
        'actions': actions,
        'outputs': outputs,
    }
    for label, entries in parts.items():
        for name in duplicates(entry.name for entry in entries):
            yield f'{label} names {name!r} twice; names are unique, rename or drop one'
    for name in duplicates([entry.name for entry in cameras] + [entry.name for entry in streams]):
        yield f'{name!r} names both a camera and a state stream; rename one'
    joints = {entry.topic for entry in streams if entry.type == 'joint_state'}
    others = [entry.topic for entry in cameras] + [entry.topic for entry in streams if entry.type != 'joint_state']
    for topic in duplicates([*joints, *others]):
        yield f'the topic {topic!r} feeds two streams; give each a topic of its own (only joint states may share one)'
    for topic in duplicates(output.topic for output in outputs):
        yield f'the topic {topic!r} belongs to two outputs; a controller takes commands from one'


def _source(where: str, column: StateColumn, streams: Mapping[str, StateStream]) -> Iterator[str]:
    stream = streams.get(column.source)
    if stream is None:
        yield f'{where}.source is {column.source!r}; name one of the state_streams ({", ".join(streams)})'
        return
    if stream.type == 'odometry' and twist_axis_of(column.name) is None:
        yield f'{where}.name is {column.name!r}; an odometry stream gives columns that end in {", ".join(TWIST_AXES)}'
    if stream.prefix and not column.name.startswith(stream.prefix):
        yield f'{where}.name is {column.name!r}; columns of {stream.name} begin with its prefix {stream.prefix!r}'


def _delta(where: str, action: ActionColumn, units: Mapping[str, str]) -> Iterator[str]:
    if action.name not in units:
        yield f'{where} ({action.name}) is a delta, but no state column has that name; add it or make it absolute'
    elif units[action.name] != action.unit:
        yield f'{where}.unit is {action.unit!r}, but the state column {action.name} is in {units[action.name]!r}'


def _commanded(actions: Sequence[ActionColumn], outputs: Sequence[Output]) -> Iterator[str]:
    known = [action.name for action in actions]
    used = [column for output in outputs for column in output.columns]
    for index, output in enumerate(outputs):
        for column in output.columns:
            if column not in known:
                yield (
                    f'outputs[{index}].columns ({output.name}) names {shown(column)}, which is no action column; '
                    'name one of actions'
                )
    for column in duplicates(used):
        yield f'the column {column!r} goes to two outputs; one controller commands it'
    for column in known:
        if column not in used:
            yield f'the action column {column!r} goes to no output; add it to one, or drop all outputs to replay only'
