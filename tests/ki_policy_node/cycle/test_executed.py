"""A policy that continues its chunks, and the real executor, which is disabled, holds or refuses: the policy goes on
from what is executed, and from where the robot stands when nothing is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_policy_node.cycle.continuation import Planned, Planner, Timing
from ki_policy_node.cycle.executed import Executed, Followed
from ki_policy_node.executor.chunk_follower import Follower
from ki_policy_node.executor.safety import Kind, Rules, State
from ki_robot.actions.chunk import ActionChunk, Matrix
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import Observation
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.serving import Serving

MS = 1_000_000
TICK = 10 * MS
STEP = 5 * TICK
BEGIN = 10**12
HORIZON = 30
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
            COLUMN | {'representation': 'absolute', 'limits': {'lower': -99.0, 'upper': 99.0, 'velocity': 1.0}}
        ],
        'outputs': [{'name': 'arm', 'kind': 'joint_trajectory', 'topic': 'arm', 'columns': ['joint1/position']}],
    }
)


class Steady:
    """Moves up from where the robot is, or from the chunk that it is told to continue, as a trained policy does."""

    policy_id, backend, contract = 'steady@1', 'test', CONTRACT
    serving = Serving.for_horizon(HORIZON, max_delay=12)

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass

    def infer(self, observation: Observation, prefix_KN: Matrix | None, delay_steps: int, epoch: int) -> Inferred:
        free = observation.state[0] + SPEED * np.arange(HORIZON)
        if prefix_KN is not None and delay_steps:
            given = prefix_KN[:delay_steps, 0]
            free = np.append(given, given[-1] + SPEED * np.arange(1, HORIZON - delay_steps + 1))
        return Inferred(free[:, None])


@dataclass
class World:
    """Planner, executor and a joint that tracks its setpoint; the executor's word takes some ticks."""

    mode: str
    latency: int  # of an inference, in ticks
    word_takes: int | None = 2  # None: it says nothing
    place: float = 0.1
    tick: int = 0
    speeds: list[float] = field(default_factory=list)
    sent: list[Planned] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    jumps: list[float] = field(default_factory=list)  # from where the robot is to where its chunk is, at every start

    def __post_init__(self) -> None:
        self.planner = Planner(Steady(), Timing(self.mode, 10))
        self.follower = Follower(CONTRACT, [each.limits for each in CONTRACT.actions], Rules(status_timeout_ns=0), TICK)
        self.busy: tuple[int, Planned] | None = None
        self.words: list[tuple[int, Followed]] = []

    @property
    def now(self) -> int:
        return BEGIN + self.tick * TICK

    def step(self, enabled: bool, deaf: bool = False) -> None:
        follower, planner, now = self.follower, self.planner, self.now
        follower.on_state('joint_states', {'joint1/position': self.place}, now, now)
        if enabled is (follower.state is State.DISABLED):
            follower.enable(enabled, now)
        if self.busy is not None and now >= self.busy[0]:
            planned, self.busy = self.busy[1], None
            planner.commit(planned)
            self.sent.append(planned)
            if not deaf:
                follower.on_chunk(planned.chunk, now, now)
        if planner.current is not None and now >= planner.current.end_ns:
            planner.reset()
        if self.busy is None and (planner.current is None or now >= planner.current.start_ns + 10 * STEP):
            seen = Observation(now, {}, {}, np.array([self.place]), now, 'go', 'go')
            ready = now + self.latency * TICK
            self.busy = ready, planner.plan(seen, 0, lambda: ready)
        ran = follower.followed is not None
        follower.tick(now, now)
        if not ran and (begun := follower.followed) is not None:
            at = (now - begun.start_ns) / STEP
            self.jumps.append(abs(float(np.interp(at, np.arange(HORIZON), begun.data_HN[:, 0])) - self.place))
        before = self.place
        if follower.setpoint_N is not None and not follower.silent:
            self.place = float(follower.setpoint_N[0])
        self.speeds.append((self.place - before) / 0.01)
        self.refused += [event.message for event in follower.events if event.kind is Kind.START_JUMP]
        follower.events.clear()
        chunk = follower.followed
        says = Followed(now) if chunk is None else Followed(now, chunk.policy_id, chunk.chunk_id, chunk.start_ns)
        if self.word_takes is not None:
            self.words.append((self.tick + self.word_takes, says))
        while self.words and self.words[0][0] <= self.tick:
            planner.on_followed(self.words.pop(0)[1])
        self.tick += 1


def play(mode: str, latency: int, begin: int, gone: int, deaf: bool, word_takes: int | None) -> World:
    """The executor is disabled, or hears no chunks, for `gone` ticks."""
    world = World(mode, latency, word_takes)
    for tick in range(begin + gone + 150):
        away = begin <= tick < begin + gone
        world.step(enabled=deaf or not away, deaf=deaf and away)
    return world


@given(
    mode=st.sampled_from(['rtc', 'latest', 'queue', 'guided', 'temporal_ensemble']),
    latency=st.integers(1, 50),
    begin=st.integers(60, 150),
    gone=st.integers(1, 250),
    deaf=st.booleans(),
    word_takes=st.integers(0, 8),
)
@settings(max_examples=12, deadline=None)
def test_what_was_not_executed_is_not_continued(
    mode: str, latency: int, begin: int, gone: int, deaf: bool, word_takes: int
) -> None:
    world = play(mode, latency, begin, gone, deaf, word_takes)
    assert world.refused == []
    # A chunk begins where the robot is, to within what it moves in an inference that was begun while it still moved.
    assert max(world.jumps) <= SPEED * (latency * TICK / STEP + 2) + 1e-9
    assert np.mean(world.speeds[-50:]) > 0.7 * SPEED / 0.05, 'and it goes on'


def test_an_executor_that_says_nothing_would_be_left_behind_by_a_policy_that_continues() -> None:
    silent, speaks = (play('rtc', 20, 100, 250, False, word_takes) for word_takes in (None, 2))
    assert silent.refused or max(silent.jumps) > 5 * SPEED, 'what this is about'
    assert not speaks.refused
    assert max(speaks.jumps[1:]) < 2 * SPEED


def test_without_a_word_of_an_executor_the_newest_chunk_counts() -> None:
    executed = Executed()
    assert executed.now(BEGIN) is None
    executed.send(chunk(1), BEGIN)
    executed.send(chunk(2), BEGIN + STEP)
    newest = executed.now(BEGIN + 2 * STEP)
    assert newest is not None
    assert newest.chunk_id == 2


@pytest.mark.parametrize(
    ('said', 'number'),
    [
        (Followed(BEGIN + 50 * MS), 2),  # too early to know of any
        (Followed(BEGIN + 150 * MS, 'p', 1, BEGIN), 2),  # the second is on its way
        (Followed(BEGIN + 350 * MS, 'p', 1, BEGIN), 1),  # the second was refused
        (Followed(BEGIN + 350 * MS, 'p', 2, BEGIN), 2),
        (Followed(BEGIN + 350 * MS, 'q', 2, BEGIN), None),  # somebody else's
        (Followed(BEGIN + 350 * MS, 'p', 2, BEGIN + 1), None),  # of an earlier run
        (Followed(BEGIN + 350 * MS), None),
        (Followed(BEGIN - 2000 * MS, 'p', 2, BEGIN), None),  # silent since
    ],
)
def test_the_executor_says_which_chunk_is_executed(said: Followed, number: int | None) -> None:
    executed = Executed()
    executed.send(chunk(1), BEGIN)
    executed.send(chunk(2), BEGIN + 200 * MS)
    executed.hear(said)
    found = executed.now(BEGIN + 400 * MS)
    assert (None if found is None else found.chunk_id) == number


def test_a_word_on_a_clock_that_is_no_more_says_nothing() -> None:
    executed = Executed()
    executed.hear(Followed(BEGIN + 10**12))
    executed.forget()
    executed.send(chunk(1), BEGIN)
    assert executed.now(BEGIN + 400 * MS) is not None


def chunk(number: int) -> ActionChunk:
    return ActionChunk(BEGIN, STEP, ('a',), np.zeros((4, 1)), BEGIN, chunk_id=number, policy_id='p')
