"""The policy cycle on made-up clocks: what holds for whatever latencies, words, gaps and modes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_policy_node.cycle.cadence import due_after
from ki_policy_node.cycle.continuation import Planned, Planner, Timing
from ki_policy_node.cycle.hold_reasons import HoldReason
from ki_policy_node.cycle.policy_cycle import FAILURE_LIMIT, Dropped, Held, Made, PolicyCycle, Ready, Wait, WakeOn
from ki_policy_node.cycle.policy_types import UnreachableError
from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import InputFault, NotReady, Observation, StreamProblem
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.serving import ASKED_MODES, Serving

MS = 1_000_000
TICK = 10 * MS
BEGIN = 10**12
HORIZON = 10
STEP = 50 * MS
CONTRACT = Contract.parse(
    {
        'name': 'one_joint',
        'rate_hz': 20.0,
        'horizon': HORIZON,
        'image_size': 32,
        'cameras': [{'name': 'scene', 'topic': 'scene', 'transport': 'raw', 'max_age_s': 0.5}],
        'state_streams': [{'name': 'joint_states', 'topic': 'joint_states', 'type': 'joint_state', 'max_age_s': 0.5}],
        'state': [{'name': 'joint1/position', 'unit': 'rad', 'source': 'joint_states'}],
        'actions': [
            {
                'name': 'joint1/position',
                'unit': 'rad',
                'representation': 'absolute',
                'limits': {'lower': -9.0, 'upper': 9.0, 'velocity': 2.0},
            }
        ],
        'outputs': [
            {'name': 'arm', 'kind': 'joint_trajectory', 'topic': 'arm', 'columns': ['joint1/position']},
        ],
    }
)


class Ramp:
    """A chunk rises from the measured state, or goes on from the prefix that it is given."""

    policy_id, backend, contract = 'ramp@1', 'test', CONTRACT
    serving = Serving.for_horizon(HORIZON, max_delay=3)

    def __init__(self) -> None:
        self.answer: Callable[[Observation], Matrix] | None = None

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass

    def infer(self, observation: Observation, prefix_KN: Matrix | None, delay_steps: int, epoch: int) -> Inferred:
        if self.answer is not None:
            return Inferred(self.answer(observation))
        begin = observation.state[0] if prefix_KN is None else prefix_KN[0, 0]
        return Inferred(begin + 0.01 * np.arange(HORIZON)[:, None])


class Scene:
    """Observations of a robot that stands: complete, except in the gaps."""

    def __init__(self, gaps: Iterable[tuple[int, int]] = ()) -> None:
        self.epoch, self.gaps, self.words = 0, tuple(gaps), ('', '')

    def problems(self, now_ns: int) -> tuple[StreamProblem, ...]:
        late = any(first <= now_ns < last for first, last in self.gaps)
        return (StreamProblem('scene', InputFault.STALE, 'scene: the newest message is old.'),) if late else ()

    def sample(self, now_ns: int) -> Observation | NotReady:
        if problems := self.problems(now_ns):
            return NotReady(problems)
        stamp = now_ns - 5 * MS
        return Observation(stamp - MS, {}, {}, np.array([0.1]), stamp, *self.words)

    def decode(self, names: Iterable[str]) -> None:
        pass

    def set_instruction(self, text: str, instruction_id: str = '') -> None:
        self.words = (text, instruction_id)

    def flush(self) -> None:
        self.epoch += 1


@dataclass
class Story:
    """What happens to a run: all times in ticks of 10 ms after its begin."""

    mode: str = 'latest'
    execute_steps: int = 5
    latencies: list[int] = field(default_factory=lambda: [3])  # of one inference after the other, repeated
    words: list[tuple[int, str]] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    frame_every: int = 5
    ticks: int = 400


@dataclass
class Told:
    """One thing that a run did."""

    now_ns: int
    what: object
    due_ns: int  # of the next chunk, before it
    words: str  # then in force
    changes: int  # of words, so far; back again within one tick is two


def play(story: Story) -> tuple[list[Told], PolicyCycle]:
    """A driver: everything that the cycle said, in order."""
    scene = Scene([(BEGIN + first * TICK, BEGIN + last * TICK) for first, last in story.gaps])
    cycle = PolicyCycle(CONTRACT, scene, Planner(Ramp(), Timing(story.mode, story.execute_steps)), 50 * MS)
    cycle.take_instruction('go', 'go', BEGIN)
    cycle.begin(BEGIN)
    told: list[Told] = []
    words, busy, count, changes = 'go', None, 0, 0

    def tell(now_ns: int, what: object) -> None:
        current = cycle.planner.current
        planner = cycle.planner
        due_ns = due_after(current, planner.timing, planner.latency.expected_ns, 50 * MS) if current else 0
        told.append(Told(now_ns, what, due_ns, words, changes))

    for tick in range(story.ticks):
        now_ns = BEGIN + tick * TICK
        for when, text in story.words:
            if when == tick:
                words = text
                changes += cycle.take_instruction(text, text, now_ns)
        if tick % story.frame_every == 0:
            cycle.on_frame('scene', now_ns)
        if held := cycle.watch(now_ns):
            tell(now_ns, held)
        if busy is not None and now_ns >= busy[0]:
            made: Made = busy[1]
            busy = None
            tell(now_ns, cycle.commit(made, now_ns))
        if busy is None:
            found = cycle.look(now_ns)
            tell(now_ns, found)
            if isinstance(found, Ready):
                arrival_ns = now_ns + TICK * story.latencies[count % len(story.latencies)]
                count += 1
                busy = (arrival_ns, cycle.plan(found, lambda at=arrival_ns: at))
    return told, cycle


stories = st.builds(
    Story,
    mode=st.sampled_from(ASKED_MODES),
    execute_steps=st.integers(1, HORIZON - 1),
    latencies=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    words=st.lists(st.tuples(st.integers(0, 399), st.sampled_from(['go', 'wave', 'bow'])), max_size=6),
    gaps=st.lists(st.integers(0, 380).flatmap(lambda a: st.tuples(st.just(a), st.integers(a, 400))), max_size=2),
    frame_every=st.integers(1, 20),
)


def key(what: object) -> object:
    """What of it must be the same a second time."""
    if isinstance(what, Planned):
        return (what.chunk.start_ns, what.chunk.frozen_prefix, what.chunk.data_HN.tobytes(), what.epoch, what.delay)
    if isinstance(what, Ready):
        return (what.observation.stamp_ns, what.observation.instruction, what.epoch)
    return what


@given(stories)
@settings(max_examples=60, deadline=None)
def test_the_same_story_gives_the_same_chunks(story: Story) -> None:
    one, other = ([(told.now_ns, key(told.what)) for told in play(story)[0]] for _ in range(2))
    assert one == other


@given(stories)
@settings(max_examples=60, deadline=None)
def test_no_observation_is_taken_before_its_chunk_is_due_but_for_new_words(story: Story) -> None:
    answered = 0
    for told in play(story)[0]:
        if isinstance(told.what, Ready):
            assert told.now_ns >= told.due_ns or told.changes > answered
            answered = told.changes


@given(stories)
@settings(max_examples=60, deadline=None)
def test_nothing_of_withdrawn_words_is_committed_after_the_change(story: Story) -> None:
    for each in play(story)[0]:
        if isinstance(each.what, Planned):
            assert each.what.chunk.instruction_id == each.words


@given(stories)
@settings(max_examples=60, deadline=None)
def test_new_words_are_planned_for_within_one_inference_and_one_wait_for_frames(story: Story) -> None:
    told = play(story)[0]
    changes = 0
    for index, each in enumerate(told):
        if each.changes == changes:
            continue
        changes = each.changes
        most_ns = each.now_ns + TICK * max(story.latencies) + 60 * MS
        seen = next((t for t in told[index:] if isinstance(t.what, Ready) and t.changes == changes), None)
        blocked = any(isinstance(t.what, Held) and t.now_ns <= most_ns for t in told[index:])
        changed = any(t.changes != changes and t.now_ns <= most_ns for t in told[index:])
        if not blocked and not changed and most_ns < told[-1].now_ns:
            assert seen is not None
            assert seen.now_ns <= most_ns


@given(stories)
@settings(max_examples=60, deadline=None)
def test_a_hold_ends_what_is_executed_and_the_next_chunk_joins_on_to_nothing(story: Story) -> None:
    held = alone = False
    for each in play(story)[0]:
        if isinstance(each.what, Held):
            held = True
        elif isinstance(each.what, Ready):
            held, alone = False, held
        elif isinstance(each.what, Planned):
            assert not alone or (each.what.seam, each.what.expected_delay) == (None, 0)
            held = False


# One at a time.


def cycle_of(policy: Ramp | None = None, mode: str = 'latest') -> tuple[PolicyCycle, Scene]:
    """A run that has just begun, with a frame of its camera."""
    scene = Scene()
    cycle = PolicyCycle(CONTRACT, scene, Planner(policy or Ramp(), Timing(mode, 5)), 50 * MS)
    cycle.take_instruction('go', 'a', BEGIN)
    cycle.begin(BEGIN)
    cycle.on_frame('scene', BEGIN)
    return cycle, scene


def made(cycle: PolicyCycle, now_ns: int, late_ns: int = 20 * MS) -> Made:
    found = cycle.look(now_ns)
    assert isinstance(found, Ready), found
    return cycle.plan(found, lambda: now_ns + late_ns)


def test_without_a_run_nothing_is_due() -> None:
    cycle, _ = cycle_of()
    cycle.end()
    found = cycle.look(BEGIN)
    assert isinstance(found, Wait)
    assert not found.ends_with(True, BEGIN + 10**12)


def test_a_due_chunk_waits_for_the_camera_and_says_what_ends_the_wait() -> None:
    cycle, _ = cycle_of()
    cycle.commit(made(cycle, BEGIN), BEGIN + 20 * MS)
    due_ns = BEGIN + 20 * MS + 5 * STEP
    assert cycle.look(BEGIN + 30 * MS) == Wait(due_ns)
    assert cycle.look(due_ns) == Wait(due_ns + 50 * MS, WakeOn.FRAME)
    cycle.on_frame('scene', due_ns + 7)
    assert isinstance(cycle.look(due_ns + 7), Ready)


def test_words_that_are_heard_again_count_once() -> None:
    cycle, scene = cycle_of()
    epoch = cycle.epoch
    assert not cycle.take_instruction('go', '', BEGIN)
    assert not cycle.take_instruction('go', 'a', BEGIN)
    assert not cycle.take_instruction('go', 'b', BEGIN), 'the same words under another name'
    assert (cycle.epoch, scene.words) == (epoch, ('go', 'b'))
    assert cycle.take_instruction('stop', 'c', BEGIN)


@pytest.mark.parametrize(
    'meanwhile',
    [
        lambda cycle, now: cycle.take_instruction('bow', 'b', now),
        lambda cycle, now: cycle.on_clock_jump(now - 10**9),
        lambda cycle, now: cycle.start_over(now),
        lambda cycle, now: cycle.end(),
        lambda cycle, now: (cycle.end(), cycle.begin(now)),
        lambda cycle, now: cycle.observations.flush(),
    ],
    ids=['words', 'clock', 'start over', 'end', 'another run', 'the buffer sees the clock jump'],
)
def test_a_chunk_of_the_world_before_is_dropped(meanwhile: Callable[[PolicyCycle, int], object]) -> None:
    cycle, _ = cycle_of()
    late = made(cycle, BEGIN)
    meanwhile(cycle, BEGIN + 10 * MS)
    assert isinstance(cycle.commit(late, BEGIN + 20 * MS), Dropped)
    assert cycle.planner.current is None


def test_a_stream_that_stops_holds_at_once_and_its_return_ends_it() -> None:
    cycle, scene = cycle_of()
    cycle.commit(made(cycle, BEGIN), BEGIN + 20 * MS)
    scene.gaps = ((BEGIN + 100 * MS, BEGIN + 200 * MS),)
    held = cycle.watch(BEGIN + 100 * MS)
    assert held == Held(HoldReason.STALE, 'scene: the newest message is old.')
    assert cycle.watch(BEGIN + 110 * MS) is None, 'told once'
    again = cycle.look(BEGIN + 190 * MS)
    assert isinstance(again, Held)
    assert not again.news
    late = made(cycle, BEGIN + 200 * MS)
    assert isinstance(cycle.commit(late, BEGIN + 220 * MS), Planned)
    scene.gaps = ((BEGIN + 250 * MS, BEGIN + 300 * MS),)
    assert cycle.watch(BEGIN + 260 * MS) is not None, 'another hold'


def test_a_chunk_that_runs_out_is_a_hold_and_the_late_one_still_counts() -> None:
    cycle, _ = cycle_of()
    cycle.commit(made(cycle, BEGIN), BEGIN + 20 * MS)
    due_ns = BEGIN + 20 * MS + 5 * STEP
    cycle.on_frame('scene', due_ns)
    late = made(cycle, due_ns, 6 * STEP)
    held = cycle.watch(BEGIN + 20 * MS + HORIZON * STEP)
    assert held is not None
    assert held.reason is HoldReason.INFERENCE_LATE
    assert isinstance(cycle.commit(late, due_ns + 6 * STEP), Planned)


def test_an_inference_longer_than_the_chunk_is_a_hold_and_no_fault() -> None:
    cycle, _ = cycle_of()
    for count in range(2 * FAILURE_LIMIT):
        now_ns = BEGIN + count * 10**9
        cycle.on_frame('scene', now_ns)
        held = cycle.commit(made(cycle, now_ns, HORIZON * STEP), now_ns + HORIZON * STEP)
        assert isinstance(held, Held)
        assert (held.reason, held.fault) == (HoldReason.INFERENCE_LATE, False)


@pytest.mark.parametrize(
    ('answer', 'why'),
    [
        (lambda _: np.full((HORIZON, 1), np.nan), 'nan in column joint1/position'),
        (lambda _: np.zeros((3, 1)), r'returned shape \(3, 1\)'),
        (lambda _: np.ones(1)[1], 'The inference failed: IndexError'),
    ],
)
def test_what_no_robot_may_execute_is_a_hold_and_in_a_row_a_fault(
    answer: Callable[[Observation], Matrix], why: str
) -> None:
    policy = Ramp()
    policy.answer = answer
    cycle, _ = cycle_of(policy)
    for count in range(FAILURE_LIMIT):
        held = cycle.commit(made(cycle, BEGIN + count * 100 * MS), BEGIN + count * 100 * MS)
        assert isinstance(held, Held)
        assert held.reason is HoldReason.INVALID_ACTION
        assert held.fault == (count == FAILURE_LIMIT - 1)
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(held.message)
    assert isinstance(cycle.look(BEGIN + 10**9), Wait)
    assert '3 times in a row' in cycle.fault
    policy.answer = None
    cycle.reset_fault(BEGIN + 10**9)
    cycle.on_frame('scene', BEGIN + 10**9)
    assert isinstance(cycle.commit(made(cycle, BEGIN + 10**9), BEGIN + 10**9 + MS), Planned)


def test_a_policy_that_cannot_be_asked_is_a_hold_however_long() -> None:
    def away(_: Observation) -> Matrix:
        raise UnreachableError('The server ws://gpu-box:8000 is gone.')

    policy = Ramp()
    policy.answer = away
    cycle, _ = cycle_of(policy)
    for count in range(2 * FAILURE_LIMIT):
        held = cycle.commit(made(cycle, BEGIN + count * 100 * MS), BEGIN + count * 100 * MS)
        assert isinstance(held, Held)
        assert (held.reason, held.fault, held.news) == (HoldReason.UNREACHABLE, False, count == 0)
        assert 'gpu-box' in held.message
    policy.answer = None
    assert isinstance(cycle.commit(made(cycle, BEGIN + 10**9), BEGIN + 10**9 + MS), Planned)


def test_inputs_out_of_step_are_waited_for_while_a_chunk_runs() -> None:
    cycle, scene = cycle_of()
    cycle.commit(made(cycle, BEGIN), BEGIN + 20 * MS)
    due_ns = BEGIN + 20 * MS + 5 * STEP
    problem = (StreamProblem('*', InputFault.UNSYNCHRONIZED, 'scene is behind.'),)
    scene.problems = lambda now_ns: problem  # type: ignore[method-assign]
    cycle.on_frame('scene', due_ns)
    assert cycle.watch(due_ns) is None
    assert cycle.look(due_ns) == Wait(due_ns + 10 * MS, WakeOn.FRAME)
    held = cycle.look(due_ns + 300 * MS)
    assert isinstance(held, Held)
    assert held.reason is HoldReason.UNSYNCHRONIZED


def test_every_reason_of_the_buffer_is_a_hold_reason() -> None:
    assert {reason.value for reason in InputFault} < {reason.value for reason in HoldReason}
