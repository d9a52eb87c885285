"""Live against bag: do the chunks that a running node made of a played bag equal those made of the bag itself?

A chunk of mode `latest` depends on its observation, its instruction and the seed alone, and the noise is drawn from the
seed and the stamp of the state. So the same stamps must give the same chunk, however late a node was and whichever
observations it took. H steps, N columns.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ki_bags.reader import open_bag
from ki_policy_node.bag_topics import match_topics
from ki_policy_node.errors import NodeError
from ki_policy_node.inference import Planner, Policy
from ki_policy_node.replay import Replay
from ki_policy_node.web_page import table
from ki_robot.buffer import ObservationBuffer
from ki_robot.chunk import ActionChunk, Matrix
from ki_robot.messages import stamp_ns
from ki_robot.observation import Observation

MODE = 'latest'  # every other mode carries the chunk before, and how late it was, into the next one
TOLERANCE = 1e-4  # rad, m or their rates: engines in two processes may add in another order
STAMPS_SHOWN = 20
Key = tuple[int, int, str]  # stamps of the oldest input and of the state, and the instruction's id


@dataclass(frozen=True)
class Heard:
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


def compare(found: Replay, heard: Heard, policy: Policy) -> Parity:
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
    taken = {key_of(chunk)[:2] for chunk in heard.chunks}
    own = [cycle.planned.raw for cycle in found.cycles]
    return Parity(
        found.contract.action_names,
        pairs,
        tuple(chunk.observation_ns for chunk in heard.chunks if key_of(chunk) not in made),
        tuple(chunk.observation_ns for chunk in own if key_of(chunk)[:2] not in taken),
    )


def key_of(chunk: ActionChunk) -> Key:
    """What a chunk says of the observation that it rests on."""
    return chunk.observation_ns, chunk.start_ns, chunk.instruction_id


def _retrace(found: Replay, heard: Heard, policy: Policy) -> dict[Key, ActionChunk]:
    """The chunks of the bag at the stamps of the live ones.

    Two stamps need not settle which frame every camera showed: where the bag has several views that carry them, the
    one whose chunk is nearest counts.
    """
    bag, options = open_bag(found.bag), found.options
    streams = match_topics(bag, found.contract, options.remap).streams
    wanted: dict[tuple[int, int], list[ActionChunk]] = defaultdict(list)
    for chunk in heard.chunks:
        wanted[key_of(chunk)[:2]].append(chunk)
    starts = {start_ns for _, start_ns in wanted}
    buffer = ObservationBuffer(found.contract)
    buffer.set_instruction('any', 'any')  # each candidate gets the words of its own chunk
    stamps_ns = dict.fromkeys((stream.name for stream in found.contract.state_streams), 0)
    made: dict[Key, ActionChunk] = {}
    seen: set[tuple[Any, ...]] = set()
    for message in bag.messages(list(streams)):
        try:
            decoded = bag.decode(message)
        except Exception:  # damaged CDR raises nearly anything; the replay has counted it
            continue
        name = streams[message.topic]
        if buffer.push(name, decoded, message.log_ns) and name in stamps_ns:
            stamps_ns[name] = stamp_ns(decoded.header)
        if min(stamps_ns.values()) not in starts:  # an observation decodes its images: only those that may be asked for
            continue
        view = buffer.sample(message.log_ns)
        if not isinstance(view, Observation) or (view.stamp_ns, view.state_stamp_ns) not in wanted:
            continue
        mark = (view.state_stamp_ns, *view.image_stamps_ns.items())
        if mark not in seen:
            seen.add(mark)
            for live in wanted[view.stamp_ns, view.state_stamp_ns]:
                _try(view, live, heard.words, Planner(policy, options.timing), made)
    return made


def _try(
    view: Observation, live: ActionChunk, words: Mapping[str, str], planner: Planner, made: dict[Key, ActionChunk]
) -> None:
    """The chunk of one view of the bag, kept if it is nearer to the live one than what was found before."""
    if live.instruction_id not in words:
        return
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


def section(numbers: Mapping[str, Any]) -> list[str]:
    """The part of the report, as HTML.

    Args:
        numbers: Of `summary`.
    """
    both, tolerance = numbers['both'], numbers['tolerance']
    said = failure(numbers) or f'all {both} chunks with the same stamps are equal within {tolerance:g}'
    rows = [(name, f'{value:.3g}') for name, value in numbers['largest_difference_by_column'].items()]
    counts = [('both', both), ('only live', len(numbers['only_live'])), ('only replay', len(numbers['only_replay']))]
    return [
        '<h2>Live node and bag</h2>',
        f'<p>The bag was played over DDS to a running policy node: {html.escape(said)}.</p>',
        table(('chunks, by the stamps of their observation', ''), counts),
        '<p><small>Only live: the view that the node took cannot be formed in the order of the bag. Only replay: an '
        'observation that the replay took at its own pace, and the node did not.</small></p>',
        _stamps(numbers['only_live']),
        table(('largest difference', ''), rows),
    ]


def _stamps(only_live: Sequence[int]) -> str:
    if not only_live:
        return ''
    shown = ', '.join(f'{stamp / 1e9:.3f}' for stamp in only_live[:STAMPS_SHOWN])
    return f'<p><small>Oldest stamps of the chunks that are only live [s]: {shown}.</small></p>'
