"""What must hold between the parts of a contract; each broken rule is one sentence with field, value and fix."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ki_common.errors import shown
from ki_robot.contract.kinematics import Kinematics
from ki_robot.contract.names import PLACE_AXES, TWIST_AXES, duplicates, hand_of, pose_axis_of, twist_axis_of
from ki_robot.contract.parts import (
    ActionColumn,
    Camera,
    JointColumn,
    Limits,
    Output,
    StateColumn,
    StateStream,
    missing_limit,
)
from ki_robot.contract.poses import POSE_STREAMS, HandSpec, hand_specs, pose_flaw


@dataclass(frozen=True)
class Parts:
    """The parts of a contract that rules hold between."""

    cameras: Sequence[Camera]
    streams: Sequence[StateStream]
    state: Sequence[StateColumn]
    actions: Sequence[ActionColumn]
    outputs: Sequence[Output] = ()
    joints: Sequence[JointColumn] = ()
    kinematics: Kinematics | None = None


def broken_rules(parts: Parts) -> Iterator[str]:
    """A sentence for every rule that these parts break together; none where they make a contract."""
    yield from _names(parts)
    if parts.cameras and not any(camera.required for camera in parts.cameras):
        yield 'cameras has no required one; a policy that may see nothing must not move, set required: true on one'
    sources = {column.source for column in parts.state} | {joint.source for joint in parts.joints}
    for index, stream in enumerate(parts.streams):
        if stream.name not in sources:
            yield f'state_streams[{index}] ({stream.name}) feeds no state column; drop it or name it as a source'
    hands = {hand.name for hand in parts.kinematics.hands} if parts.kinematics else set()
    streams = {stream.name: stream for stream in parts.streams}
    for index, column in enumerate(parts.state):
        yield from _source(f'state[{index}]', column, streams, hands)
    for index, joint in enumerate(parts.joints):
        yield from _source(f'joints[{index}]', joint, streams, set())
    yield from _poses(parts)
    measured = {column.name: column for column in parts.state}
    for index, action in enumerate(parts.actions):
        if action.representation == 'delta':
            yield from _delta(f'actions[{index}]', action, measured)
    if parts.outputs:
        yield from _commanded(parts)


def _names(parts: Parts) -> Iterator[str]:
    cameras, streams = parts.cameras, parts.streams
    lists: dict[str, Sequence[Camera | StateStream | StateColumn | ActionColumn | JointColumn | Output]] = {
        'cameras': cameras,
        'state_streams': streams,
        'state': parts.state,
        'actions': parts.actions,
        'joints': parts.joints,
        'outputs': parts.outputs,
    }
    for label, entries in lists.items():
        for name in duplicates(entry.name for entry in entries):
            yield f'{label} names {name!r} twice; names are unique, rename or drop one'
    for name in duplicates([entry.name for entry in cameras] + [entry.name for entry in streams]):
        yield f'{name!r} names both a camera and a state stream; rename one'
    shared = {(entry.topic, entry.type) for entry in streams if entry.type in ('joint_state', 'tf')}
    others = [entry.topic for entry in cameras]
    others += [entry.topic for entry in streams if (entry.topic, entry.type) not in shared]
    for topic in duplicates([*(topic for topic, _ in shared), *others]):
        yield f'the topic {topic!r} feeds two streams; give each a topic of its own (joint states and tf may share one)'
    for topic in duplicates(output.topic for output in parts.outputs):
        yield f'the topic {topic!r} belongs to two outputs; a controller takes commands from one'


def _source(
    where: str, column: StateColumn | JointColumn, streams: Mapping[str, StateStream], hands: Collection[str]
) -> Iterator[str]:
    if column.source in hands:
        if hand_of(column.name) != column.source or pose_axis_of(column.name) is None:
            wanted = f'{column.source}/x/position'
            yield f'{where}.name is {column.name!r}; columns of the hand {column.source} are named like {wanted}'
        return
    stream = streams.get(column.source)
    if stream is None:
        known = ', '.join([*streams, *sorted(hands)])
        yield f'{where}.source is {column.source!r}; name one of the state_streams or hands ({known})'
        return
    if stream.type == 'odometry' and twist_axis_of(column.name) is None:
        yield f'{where}.name is {column.name!r}; an odometry stream gives columns that end in {", ".join(TWIST_AXES)}'
    if stream.type in POSE_STREAMS and pose_axis_of(column.name) is None:
        yield f'{where}.name is {column.name!r}; a {stream.type} stream gives columns such as hand/x/position'
    if stream.prefix and not column.name.startswith(stream.prefix):
        yield f'{where}.name is {column.name!r}; columns of {stream.name} begin with its prefix {stream.prefix!r}'


def _delta(where: str, action: ActionColumn, measured: Mapping[str, StateColumn]) -> Iterator[str]:
    state = measured.get(action.name)
    if state is None:
        yield f'{where} ({action.name}) is a delta, but no state column has that name; add it or make it absolute'
    elif state.unit != action.unit:
        yield f'{where}.unit is {action.unit!r}, but the state column {action.name} is in {state.unit!r}'
    elif state.mapping != action.mapping:
        yield (
            f'{where} ({action.name}) is a delta with another sign, scale, offset or map than its state column; '
            'a difference of the two means nothing, give both the same'
        )


def _poses(parts: Parts) -> Iterator[str]:
    """What hands ask for: whole poses, one hand a stream, and every joint that carries them measured."""
    for stream in parts.streams:
        named = sorted({hand_of(column.name) for column in parts.state if column.source == stream.name})
        if stream.type in POSE_STREAMS and len(named) > 1:
            yield f'state_streams ({stream.name}) gives columns of {", ".join(named)}; one stream measures one hand'
    hands = hand_specs(parts.kinematics, parts.streams, parts.state)
    for column in parts.state:
        name = hand_of(column.name)
        if _of(column.name, hands) and not hands[name].stream and column.source != name:
            yield f'state of {name} is read from {column.source!r}; a hand of kinematics is its own source'
    columns: Mapping[str, Sequence[StateColumn | ActionColumn]] = {'state': parts.state, 'actions': parts.actions}
    for label, listed in columns.items():
        for hand in hands:
            own = [column for column in listed if _of(column.name, (hand,))]
            flaw = pose_flaw(hand, own)
            if flaw:
                yield f'{label} of {flaw}'
            mapped = [column.name for column in own if column.is_mapped]
            if mapped and any(action.representation == 'delta' for action in parts.actions if action.name in mapped):
                yield f'{mapped[0]} is part of a pose that is a delta; leave sign, scale, offset and map out'
    for hand in hands:
        kinds = {
            (axis in PLACE_AXES, action.representation)
            for action in parts.actions
            if hand_of(action.name) == hand and (axis := pose_axis_of(action.name)) is not None
        }
        if len(kinds) > len({place for place, _ in kinds}):
            yield f'actions of {hand} are delta and absolute; the three of its place agree, and those of its rotation'
    yield from _carried(parts)


def _carried(parts: Parts) -> Iterator[str]:
    """The joints below the hands of `kinematics`."""
    own = {action.name for action in parts.actions}
    for index, joint in enumerate(parts.joints):
        if joint.name in own:
            yield f'joints[{index}] ({joint.name}) is an action column, too; leave it out of joints'
    if parts.kinematics is None:
        if parts.joints:
            yield 'joints are those below the hands of kinematics, and there is none; make them state and actions'
        return
    measured = {column.name for column in (*parts.joints, *parts.state)}
    for hand in parts.kinematics.hands:
        for name in parts.kinematics.joints_of(hand):
            if f'{name}/position' not in measured:
                yield f'joints lacks {name}/position, which carries the hand {hand.name}; add it'


def _commanded(parts: Parts) -> Iterator[str]:
    hands = hand_specs(parts.kinematics, parts.streams, parts.state)
    solved = {name for name, hand in hands.items() if not hand.stream}
    known = [action.name for action in parts.actions if not _of(action.name, solved)]
    joints = {joint.name: joint for joint in parts.joints}
    limits = {action.name: action.limits for action in parts.actions}
    limits |= {joint.name: joint.limits for joint in parts.joints}
    used = [column for output in parts.outputs for column in output.columns]
    for index, output in enumerate(parts.outputs):
        for column in output.columns:
            where = f'outputs[{index}].columns ({output.name}) names {shown(column)}'
            if column not in known and column not in joints:
                fix = 'its joints' if _of(column, solved) else 'one of actions' + ' or joints' * bool(joints)
                yield f'{where}, which is no action column that a controller takes; name {fix}'
            elif _of(column, hands) and output.kind != 'pose_stamped':
                yield f'{where}, part of a pose; a {output.kind} takes none, use pose_stamped'
            elif _of(column, hands):
                yield from _pose_output(where, column, limits[column], hands, used)
            elif missing_limit(column, limits[column]):
                yield f'{where}: {missing_limit(column, limits[column])}'
    for column in duplicates(used):
        yield f'the column {column!r} goes to two outputs; one controller commands it'
    for column in known:
        if column not in used:
            yield f'the action column {column!r} goes to no output; add it to one, or drop all outputs to replay only'
    for name in sorted({hand_of(action.name) for action in parts.actions if _of(action.name, solved)}):
        assert parts.kinematics is not None
        hand = next(each for each in parts.kinematics.hands if each.name == name)
        carried = parts.kinematics.joints_of(hand)
        if carried and not any(f'{joint}/position' in used for joint in carried):
            yield f'the hand {name!r} is commanded, and none of its joints goes to an output; add {", ".join(carried)}'


def _of(column: str, hands: Collection[str]) -> bool:
    return pose_axis_of(column) is not None and hand_of(column) in hands


def _pose_output(
    where: str, column: str, limits: Limits, hands: Mapping[str, HandSpec], used: Sequence[str]
) -> Iterator[str]:
    """A pose that goes to a Cartesian controller is whole and has limits."""
    hand = hands[hand_of(column)]
    flaw = '' if pose_axis_of(column) not in PLACE_AXES else missing_limit(column, limits)
    if pose_axis_of(column) not in PLACE_AXES and limits.velocity is None:
        flaw = f'limits ({column}) has no velocity; a rotation command needs it'
    if flaw:
        yield f'{where}: {flaw}'
    if not any(_of(other, (hand.name,)) and pose_axis_of(other) not in PLACE_AXES for other in used):
        yield f'{where} without a rotation of {hand.name}; a pose_stamped takes place and rotation'
