"""A robot that follows the cycle's chunks, for a policy that moves at one speed: what it is never made to do.

Random latencies, words, holds, steps and modes. The policy is perfect, so whatever differs from its speed comes from
how chunks are joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ki_policy_node.cycle.continuation import Planned, Planner, Timing
from ki_policy_node.cycle.hold_reasons import HoldReason
from ki_policy_node.cycle.policy_cycle import Held, Made, PolicyCycle, Ready
from ki_robot.actions.chunk import ActionChunk, Matrix, rows_at
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import InputFault, NotReady, Observation, StreamProblem
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.serving import ASKED_MODES, Serving

MS = 1_000_000
TICK = 10 * MS
STEP = 5 * TICK
BEGIN = 10**12
HORIZON = 20
SPEED = 0.02  # of the policy, each step
COLUMN = {'name': 'joint1/position', 'unit': 'rad'}
CONTRACT = Contract.parse(
    {
        'name': 'one_joint',
        'rate_hz': 20.0,
        'horizon': HORIZON,
        'image_size': 32,
        'cameras': [{'name': 'scene', 'topic': 'scene', 'transport': 'raw', 'max_age_s': 0.5}],
        'state_streams': [{'name': 'joint_states', 'topic': 'joint_states', 'type': 'joint_state', 'max_age_s': 0.5}],
        'state': [COLUMN | {'source': 'joint_states'}],
        'actions': [
            COLUMN | {'representation': 'absolute', 'limits': {'lower': -99.0, 'upper': 99.0, 'velocity': 2.0}}
        ],
        'outputs': [{'name': 'arm', 'kind': 'joint_trajectory', 'topic': 'arm', 'columns': ['joint1/position']}],
    }
)


class Steady:
    """Moves on from where the robot is, or from the chunk that it continues: up, or down when the words are `down`."""

    policy_id, backend, contract = 'steady@1', 'test', CONTRACT
    serving = Serving.for_horizon(HORIZON, max_delay=4)

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass

    def infer(self, observation: Observation, prefix_KN: Matrix | None, delay_steps: int, epoch: int) -> Inferred:
        speed = -SPEED if observation.instruction == 'down' else SPEED
        free = observation.state[0] + speed * np.arange(HORIZON)
        if prefix_KN is not None and delay_steps:
            given = prefix_KN[:delay_steps, 0]
            free = np.append(given, given[-1] + speed * np.arange(1, HORIZON - delay_steps + 1))
        return Inferred(free[:, None])


class Robot:
    """Where the joint is, and whether its state stream is heard."""

    def __init__(self, gaps: list[tuple[int, int]]) -> None:
        self.epoch, self.words, self.place = 0, ('', ''), 0.1
        self.gaps = [(BEGIN + first * TICK, BEGIN + last * TICK) for first, last in gaps]

    def problems(self, now_ns: int) -> tuple[StreamProblem, ...]:
        late = any(first <= now_ns < last for first, last in self.gaps)
        return (StreamProblem('scene', InputFault.STALE, 'scene: the newest message is old.'),) if late else ()

    def sample(self, now_ns: int) -> Observation | NotReady:
        if problems := self.problems(now_ns):
            return NotReady(problems)
        return Observation(now_ns, {}, {}, np.array([self.place]), now_ns, *self.words)

    def decode(self, names: Iterable[str]) -> None:
        pass

    def set_instruction(self, text: str, instruction_id: str = '') -> None:
        self.words = (text, instruction_id)

    def flush(self) -> None:
        self.epoch += 1


@dataclass
class Story:
    """What happens: times in ticks of 10 ms."""

    mode: str
    execute_steps: int
    latencies: list[int]  # of one inference after the other, repeated
    words: list[tuple[int, str]] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Played:
    """What came of it, one entry a tick: where the robot was, the words, and which chunks went out."""

    places: list[float] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    chunks: list[tuple[int, Planned]] = field(default_factory=list)
    holds: list[HoldReason] = field(default_factory=list)


def play(story: Story, ticks: int = 500) -> Played:
    robot, found = Robot(story.gaps), Played()
    planner = Planner(Steady(), Timing(story.mode, story.execute_steps))
    cycle = PolicyCycle(CONTRACT, robot, planner, 0)
    cycle.take_instruction('up', 'up', BEGIN)
    cycle.begin(BEGIN)
    busy: tuple[int, Made] | None = None
    count = 0
    for tick in range(ticks):
        now_ns = BEGIN + tick * TICK
        current = planner.current
        if current is not None:
            at = min((now_ns - current.start_ns) / STEP, HORIZON - 1.0)
            robot.place = float(np.interp(at, np.arange(HORIZON), current.data_HN[:, 0]))
        for when, text in story.words:
            if when == tick:
                cycle.take_instruction(text, text, now_ns)
        if held := cycle.watch(now_ns):
            found.holds.append(held.reason)
        if busy is not None and now_ns >= busy[0]:
            end = cycle.commit(busy[1], now_ns)
            busy = None
            if isinstance(end, Planned):
                found.chunks.append((tick, end))
            elif isinstance(end, Held):
                found.holds.append(end.reason)
        if busy is None:
            look = cycle.look(now_ns)
            if isinstance(look, Ready):
                arrival_ns = now_ns + TICK * story.latencies[count % len(story.latencies)]
                count += 1
                busy = arrival_ns, cycle.plan(look, lambda at=arrival_ns: at)
        found.places.append(robot.place)
        found.words.append(robot.words[0])
    return found


modes = st.sampled_from(ASKED_MODES)
steps = st.integers(1, HORIZON - 1)
latencies = st.lists(st.integers(1, 60), min_size=1, max_size=6)
gaps = st.lists(st.integers(0, 450).flatmap(lambda a: st.tuples(st.just(a), st.integers(a, 480))), max_size=2)
said = st.lists(st.tuples(st.integers(0, 499), st.sampled_from(['up', 'down'])), max_size=6)


# Counted in whole steps, standing once put a seam off by up to one, and the next observation carried that on: in these
# up to 3.6 steps.
@example(Story('temporal_ensemble', 9, [1, 59, 41]))
@example(Story('temporal_ensemble', 3, [60, 50, 42, 33]))
@example(Story('latest', 1, [50, 46, 56, 40]))
@example(Story('queue', 6, [60, 40, 54, 45, 51, 18]))
@given(st.builds(Story, modes, steps, latencies, gaps=gaps))
@settings(max_examples=150, deadline=None)
def test_no_step_is_replayed_and_nothing_is_made_up_for(story: Story) -> None:
    moved = np.diff(play(story).places)
    assert moved.min() >= -1e-9
    assert moved.max() <= SPEED * TICK / STEP + 1e-9, (
        'whatever its chunks did, the robot never left the speed of its policy'
    )


@given(st.builds(Story, modes, steps, latencies))
@settings(max_examples=150, deadline=None)
def test_no_chunk_runs_out_where_inference_and_executed_steps_fit_the_horizon(story: Story) -> None:
    longest = max(story.latencies) * TICK
    if longest + max(story.execute_steps * STEP, longest) < HORIZON * STEP:
        assert HoldReason.INFERENCE_LATE not in play(story).holds


@given(st.builds(Story, modes, steps, st.lists(st.integers(1, 40), min_size=1, max_size=1)))
@settings(max_examples=100, deadline=None)
def test_a_chunk_that_is_asked_for_too_late_runs_out_only_until_the_latency_is_measured(story: Story) -> None:
    # Before it has measured one, the cycle knows no latency that it could plan ahead by.
    assert play(story).holds.count(HoldReason.INFERENCE_LATE) <= 2


def is_mean_of(chunk: ActionChunk, parts: list[ActionChunk], first: int) -> bool:
    """Whether every step of `chunk` from `first` on lies between the parts that reach it."""
    lowest_H, highest_H = np.full(HORIZON, np.inf), np.full(HORIZON, -np.inf)
    for part in parts:
        rows_K = rows_at(part, part.names, chunk.start_ns, STEP, HORIZON)[:, 0]
        lowest_H[: len(rows_K)] = np.minimum(lowest_H[: len(rows_K)], rows_K)
        highest_H[: len(rows_K)] = np.maximum(highest_H[: len(rows_K)], rows_K)
    inside_H = (lowest_H - 1e-9 <= chunk.data_HN[:, 0]) & (chunk.data_HN[:, 0] <= highest_H + 1e-9)
    return bool(inside_H[first:].all())


@example(Story('temporal_ensemble', 1, [1, 5], words=[(2, 'down')]))
@example(Story('temporal_ensemble', 5, [11, 37, 36, 23], words=[(54, 'down')]))
@given(st.builds(Story, modes, steps, latencies, words=said, gaps=gaps))
@settings(max_examples=150, deadline=None)
def test_nothing_of_withdrawn_words_comes_after_what_was_executed_when_their_successor_is_there(story: Story) -> None:
    found = play(story)
    since: list[ActionChunk] = []  # for the present words
    for tick, planned in found.chunks:
        words, chunk = found.words[tick], planned.chunk
        assert chunk.instruction_id == words
        since = [*(since if since and since[-1].instruction_id == words else []), planned.whole]
        # What is executed while the policy thinks is a fact that it goes on from, for as long as it is expected to.
        first = max(planned.delay, planned.expected_delay)
        rest = np.diff(chunk.data_HN[first:, 0])
        if chunk.frozen_prefix > planned.delay:
            continue
        if story.mode == 'temporal_ensemble':
            # Chunks for the same words may differ in where they have the robot: the one that was made while it still
            # went the old way, from the next. Where the older ends, their mean steps to the newer, be that up or down.
            assert is_mean_of(chunk, since, first)
        else:
            assert (rest <= 1e-9).all() if words == 'down' else (rest >= -1e-9).all()
    changes = [0, *(n for n in range(1, len(found.words)) if found.words[n] != found.words[n - 1])]
    for begin in changes:
        first_after = next((planned for tick, planned in found.chunks if tick >= begin), None)
        assert first_after is None or first_after.chunk.frozen_prefix <= first_after.delay, 'new words do not queue'
