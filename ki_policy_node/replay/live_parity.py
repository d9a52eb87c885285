"""Live against bag: do the chunks that a running node made of a played bag equal those made of the bag itself?

A chunk of mode `latest` depends on its observation, its instruction and the seed alone, and the noise is drawn from the
seed and the stamp of the state. So the same stamps must give the same steps, however late a node was and whichever
observations it took. A chunk begins at the stamp of its state, or later by as long as the robot stood meanwhile.
H steps, N columns.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ki_bags.reader import open_bag
from ki_policy_node.cycle.continuation import Planner
from ki_policy_node.cycle.policy_types import Policy
from ki_policy_node.errors import NodeError
from ki_policy_node.replay.bag_clock import BagClock
from ki_policy_node.replay.bag_topics import match_topics
from ki_policy_node.replay.replay import Replay
from ki_robot.actions.chunk import ActionChunk, Matrix
from ki_robot.contract.parts import Camera, StateStream
from ki_robot.errors import Rejected
from ki_robot.messages.video import VIDEO_MESSAGES
from ki_robot.observation.buffer import ObservationBuffer
from ki_robot.observation.observation import Observation, build_observation, decode_camera
from ki_robot.space.robot_space import RobotSpace

MODE = 'latest'  # every other mode carries the chunk before, and how late it was, into the next one
TOLERANCE = 1e-4  # rad, m or their rates: engines in two processes may add in another order
STAMPS_SHOWN = 20
OVERTAKING = 3  # messages of one stream that may have been the newest when one of another came
Key = tuple[int, int, str]  # the stamp of the oldest input, that of the first step, and the instruction's id


@dataclass(frozen=True)
class LiveRun:
    """What a running node published while a bag was played to it.

    `words` are the instructions it was given, by id; `last_word` is what its status said at the end.
    """

    chunks: tuple[ActionChunk, ...]
    words: Mapping[str, str] = field(default_factory=dict)
    last_word: str = ''


@dataclass(frozen=True, eq=False)
class Parity:
    """Chunks by the stamps of their observation: in both, and in one only (there the oldest stamp [ns])."""

    names: tuple[str, ...]
    pairs: tuple[tuple[ActionChunk, ActionChunk], ...]
    only_live: tuple[int, ...]
    only_replay: tuple[int, ...]

    @property
    def differences_MN(self) -> Matrix:
        """The largest absolute difference of each pair, by column."""
        return np.array([np.abs(live.data_HN - made.data_HN).max(axis=0) for live, made in self.pairs])

    @property
    def differing(self) -> int:
        """How many pairs differ by more than the tolerance."""
        return int((self.differences_MN.max(axis=1) > TOLERANCE).sum())


def compare(found: Replay, heard: LiveRun, policy: Policy) -> Parity:
    """Makes, from the bag, the chunk of every observation that the live node took, and lays the two side by side.

    Args:
        found: The replay of the same bag, at its own cadence: what it took and the node did not is told apart.
        heard: What the node published.
        policy: The one of the replay; warm.

    Raises:
        NodeError: the node ran another policy or published nothing, or no observation of its can be found in the bag.
    """
    if not heard.chunks:
        why = f' It says: {heard.last_word}' if heard.last_word else ''
        raise NodeError(f'The node published not one chunk while {found.bag} was played to it.{why}')
    other = next((chunk for chunk in heard.chunks if chunk.policy_id != policy.policy_id), None)
    if other is not None:
        raise NodeError(f'The node runs policy {other.policy_id}, the replay {policy.policy_id}; name the same bundle.')
    made = _retrace(found, heard, policy)
    pairs = tuple((live, made[key_of(live)]) for live in heard.chunks if key_of(live) in made)
    if not pairs:
        raise NodeError(
            f'Of the {len(heard.chunks)} chunks that the node published, not one rests on an observation that can be '
            f'formed from {found.bag}, so nothing could be compared. Play it slower (--rate 0.5); streams with stamp: '
            'receive carry the time of their arrival, and never agree.'
        )
    taken = {key_of(chunk)[:2] for chunk in made.values()}
    own = [made.planned.raw for made in found.chunks]
    return Parity(
        found.contract.action_names,
        pairs,
        tuple(chunk.observation_ns for chunk in heard.chunks if key_of(chunk) not in made),
        tuple(chunk.observation_ns for chunk in own if key_of(chunk)[:2] not in taken),
    )


def key_of(chunk: ActionChunk) -> Key:
    """What a chunk says of the observation that it rests on."""
    return chunk.observation_ns, chunk.start_ns, chunk.instruction_id


def _retrace(found: Replay, heard: LiveRun, policy: Policy) -> dict[Key, ActionChunk]:
    """The chunks of the bag, as the policy makes them, at the stamps of the live ones.

    Two stamps do not settle what every stream showed. First come the views that the bag gives in its own order; for a
    live chunk that none of them explains, those where messages overtook each other by a few places on the way. Both
    first as if the robot moved all the time, then as if it had stood.
    """
    made: dict[Key, ActionChunk] = {}
    lasts_ns = found.contract.horizon * found.contract.step_ns
    for depth, stood_ns in itertools.product((1, OVERTAKING), (0, lasts_ns)):
        wanted: dict[int, list[ActionChunk]] = defaultdict(list)
        for chunk in heard.chunks:
            before = made.get(key_of(chunk))
            if chunk.instruction_id in heard.words and (before is None or _distance(chunk, before) > TOLERANCE):
                wanted[chunk.observation_ns].append(chunk)
        for view in views(found, wanted, depth, stood_ns, policy.picture_size) if wanted else ():
            for live in wanted[view.stamp_ns]:
                if 0 <= live.start_ns - view.state_stamp_ns <= stood_ns:
                    _try(view, live, heard.words, Planner(policy, found.options.timing), made)
    return made


def views(
    found: Replay,
    wanted: Mapping[int, Sequence[ActionChunk]],
    depth: int,
    stood_ns: int = 0,
    picture_size: int | None = None,
) -> Iterator[Observation]:
    """Every observation that some chunk may rest on, made of the `depth` newest messages of each stream.

    Args:
        found: The replay of the bag.
        wanted: The chunks, by the stamp of their oldest input.
        depth: How many messages of a stream may be the newest.
        stood_ns: How long at most the robot stood while a chunk was made.
        picture_size: As the policy's.
    """
    bag, contract = open_bag(found.bag), found.contract
    topics = match_topics(bag, contract, found.options.remap)
    specs = {spec.name: spec for spec in contract.streams}
    states = {spec.name for spec in contract.state_streams}
    optional = {camera.name for camera in contract.cameras if not camera.required}
    recent: dict[str, deque[_Message]] = {name: deque(maxlen=depth) for name in specs}
    buffer, space = ObservationBuffer(contract), RobotSpace(contract)  # the buffer refuses what the node refuses
    seen: set[tuple[int, ...]] = set()
    clock = BagClock(bag, contract, topics.streams)
    for message in bag.messages([*topics.streams, *topics.still]):
        try:
            decoded = bag.decode(message)
        except Exception:  # damaged CDR raises nearly anything; the replay has counted it
            continue
        for name in topics.still.get(message.topic, ()):
            buffer.push_static(name, decoded)
        names = topics.streams.get(message.topic, ())
        clock.see(message.topic, decoded, message.log_ns)
        now_ns = clock.now(message.log_ns)
        taken = [name for name in names if buffer.push(name, decoded, now_ns)]
        for name in taken:
            recent[name].append(_Message(specs[name], *buffer.newest(name), picture_size))
        held = {each.stamp_ns for messages in recent.values() for each in messages}
        if not taken or wanted.keys().isdisjoint(held):
            continue
        choices = [[*reversed(recent[name]), *([None] if name in optional else [])] for name in specs]
        for chosen in itertools.product(*choices):
            used = {name: each for name, each in zip(specs, chosen, strict=True) if each is not None}
            mark = tuple(0 if each is None else each.stamp_ns for each in chosen)
            state_ns = min(used[name].stamp_ns for name in states)
            chunks = wanted.get(min(each.stamp_ns for each in used.values()), ())
            if mark not in seen and any(0 <= chunk.start_ns - state_ns <= stood_ns for chunk in chunks):
                seen.add(mark)
                with contextlib.suppress(Rejected):  # a picture that does not decode: the node dropped it, too
                    yield _observation(space, used, states)


def _observation(space: RobotSpace, used: Mapping[str, _Message], states: set[str]) -> Observation:
    cameras = [name for name in used if name not in states]
    return build_observation(
        space.contract,
        {name: used[name].value for name in cameras},
        {name: used[name].stamp_ns for name in cameras},
        {name: used[name].value for name in states},
        {name: used[name].stamp_ns for name in states},
        space=space,
    )


class _Message:
    """A message that the buffer took; a picture is decoded when it is asked for, once."""

    def __init__(self, spec: Camera | StateStream, stamp_ns: int, kept: Any, picture_size: int | None) -> None:
        self.stamp_ns = stamp_ns
        self._spec, self._kept, self._picture_size = spec, kept, picture_size

    @functools.cached_property
    def value(self) -> Any:
        """An image, or the values of a state stream."""
        if isinstance(self._spec, Camera) and self._spec.transport not in VIDEO_MESSAGES:
            return decode_camera(self._spec, self._kept, size=self._picture_size)
        return self._kept


def _try(
    view: Observation, live: ActionChunk, words: Mapping[str, str], planner: Planner, made: dict[Key, ActionChunk]
) -> None:
    """The chunk of one view of the bag, kept if it is nearer to the live one than what was found before."""
    told = replace(view, instruction=words[live.instruction_id], instruction_id=live.instruction_id)
    chunk = planner.plan(told, 0, lambda: view.state_stamp_ns).raw
    before = made.get(key_of(live))
    if before is None or _distance(live, chunk) < _distance(live, before):
        made[key_of(live)] = chunk


def _distance(one: ActionChunk, other: ActionChunk) -> float:
    return float(np.abs(one.data_HN - other.data_HN).max())


def summary(parity: Parity) -> dict[str, Any]:
    """The comparison as plain data; stamps in ns, differences in SI units."""
    largest_N = parity.differences_MN.max(axis=0)
    return {
        'both': len(parity.pairs),
        'only_live': list(parity.only_live),
        'only_replay': list(parity.only_replay),
        'tolerance': TOLERANCE,
        'differing': parity.differing,
        'largest_difference': float(largest_N.max()),
        'largest_difference_by_column': dict(zip(parity.names, largest_N.tolist(), strict=True)),
    }


def failure(numbers: Mapping[str, Any]) -> str:
    """Why live and bag do not agree; empty when they do."""
    if not numbers['differing']:
        return ''
    return (
        f'{numbers["differing"]} of {numbers["both"]} chunks differ between the live node and the replay, by '
        f'{numbers["largest_difference"]:.3g} at most'
    )


def page_values(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What the report of a replay says of the comparison: the values of `live` in its template.

    Args:
        numbers: Of `summary`.
    """
    both, tolerance = numbers['both'], numbers['tolerance']
    return {
        'said': failure(numbers) or f'all {both} chunks with the same stamps are equal within {tolerance:g}',
        'counts': [
            ('both', both),
            ('only live', len(numbers['only_live'])),
            ('only replay', len(numbers['only_replay'])),
        ],
        'only_live': [f'{stamp / 1e9:.3f}' for stamp in numbers['only_live'][:STAMPS_SHOWN]],
        'differences': [(name, f'{value:.3g}') for name, value in numbers['largest_difference_by_column'].items()],
    }
