"""Continuation: how chunks join, how delay is measured, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from ki_policy_node.cycle.continuation import Planner, Timing, resolved
from ki_policy_node.cycle.policy_types import InvalidActionError, TooLateError
from ki_policy_node.errors import NodeError
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import Observation
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.serving import Serving

STEP = 50_000_000
START = 1_000 * STEP


class Ramp:
    """A policy whose chunk is a ramp from `level` on; it remembers what it was given."""

    policy_id, backend = 'ramp@1', 'test'
    serving = Serving.for_horizon(50, max_delay=6)

    def __init__(self, contract: Contract) -> None:
        self.contract, self.level, self.given = contract, 0.0, []

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass

    def infer(self, observation, prefix_KN, delay_steps, epoch):
        self.given.append((prefix_KN, delay_steps, epoch))
        ramp = self.level + 0.01 * np.arange(50)[:, None]
        return Inferred(np.repeat(ramp, 4, axis=1), inference_ns=1)


@pytest.fixture
def contract(rigs) -> Contract:
    return Contract.parse(rigs.small_robot())


def seen(step: int, instruction_id: str = 'a') -> Observation:
    stamp = START + step * STEP
    return Observation(stamp - 10_000_000, {}, {}, np.zeros(3), stamp, 'go', instruction_id)


def plan(planner: Planner, step: int, late_steps: float, epoch: int = 0):
    planned = planner.plan(seen(step), epoch, lambda: START + round((step + late_steps) * STEP))
    planner.commit(planned)
    return planned


def test_a_chunk_starts_at_the_state_and_says_which_observation_it_saw(contract):
    planner = Planner(Ramp(contract), Timing('latest'))
    assert plan(planner, 0, 1.0).seam is None
    chunk = plan(planner, 20, 1.0).chunk
    assert (chunk.start_ns, chunk.observation_ns) == (START + 20 * STEP, START + 20 * STEP - 10_000_000)
    assert (chunk.horizon, chunk.chunk_id, chunk.policy_id, chunk.instruction_id) == (50, 2, 'ramp@1', 'a')


def test_the_first_inference_is_cold_and_does_not_count_for_the_delay(contract):
    planner = Planner(Ramp(contract), Timing('rtc'))
    plan(planner, 0, 30.0)
    assert planner.expected_delay() == 0
    plan(planner, 25, 2.5)
    assert planner.latency.expected_ns == round(2.5 * STEP)
    assert planner.expected_delay() == 3
    planner.reset()
    assert planner.expected_delay() == 0, 'nothing is executed, so nothing is bridged'
    assert planner.latency.expected_ns == round(2.5 * STEP)


def test_latest_takes_over_at_once(contract):
    policy = Ramp(contract)
    planner = Planner(policy, Timing('latest'))
    plan(planner, 0, 1.0)
    policy.level = 1.0
    planned = plan(planner, 25, 2.0)
    assert planned.chunk.frozen_prefix == 0
    assert planned.chunk.data_HN[0, 0] == 1.0
    assert planned.seam.position_jump_N[0] == pytest.approx(1.0 - 0.24)
    assert planned.seam.velocity_jump_N[0] == pytest.approx(0.0, abs=1e-9)


def test_rtc_hands_over_the_rest_of_the_old_chunk_and_keeps_what_is_executed_meanwhile(contract):
    policy = Ramp(contract)
    planner = Planner(policy, Timing('rtc'))
    plan(planner, 0, 1.0)
    plan(planner, 20, 3.0)
    policy.level = 1.0
    planned = plan(planner, 40, 3.0)
    prefix_KN, delay, _ = policy.given[-1]
    assert delay == 3
    assert len(prefix_KN) == 30
    assert prefix_KN[0, 0] == pytest.approx(0.2)
    assert planned.chunk.frozen_prefix == 3
    assert planned.chunk.data_HN[:3, 0] == pytest.approx([0.20, 0.21, 0.22])
    assert planned.chunk.data_HN[3, 0] == pytest.approx(1.03)


def test_a_new_instruction_is_not_pulled_by_the_old_chunk(contract):
    policy = Ramp(contract)
    planner = Planner(policy, Timing('rtc'))
    plan(planner, 0, 1.0, epoch=1)
    plan(planner, 20, 3.0, epoch=1)
    plan(planner, 40, 3.0, epoch=2)
    prefix_KN, delay, epoch = policy.given[-1]
    assert (len(prefix_KN), delay, epoch) == (3, 3, 2)


def test_a_robot_that_stood_begins_with_the_first_step_and_makes_up_for_nothing(contract):
    for mode in ('latest', 'queue', 'temporal_ensemble', 'rtc', 'guided'):
        planner = Planner(Ramp(contract), Timing(mode))
        first = plan(planner, 0, 7.2)
        assert (first.chunk.start_ns, first.delay) == (START + round(7.2 * STEP), 8)
        assert first.chunk.data_HN.tolist() == first.raw.data_HN.tolist(), 'every step of the policy, to the bit'
        # It rests on the last step of the chunk before, at 7.2 + 49: of a chunk for step 45, 11.2 steps are executed.
        planned = planner.plan(seen(45), 0, lambda: START + round(64.5 * STEP))
        assert (planned.chunk.start_ns, planned.delay) == (START + round((64.5 - 11.2) * STEP), 20), mode
        assert planned.chunk.data_HN.tolist() == planned.raw.data_HN.tolist()


def test_queue_executes_its_steps_and_then_goes_on_with_the_step_that_is_due(contract):
    policy = Ramp(contract)
    planner = Planner(policy, Timing('queue', execute_steps=10))
    for step in (0, 8, 17):
        last = plan(planner, step, 2.0)
    assert last.chunk.frozen_prefix == 2
    policy.level = 1.0
    early = plan(planner, 27, 0.5).chunk
    assert early.horizon == 50
    assert early.frozen_prefix == 2, 'steps 27 and 28 of the chunk before are still to come'
    assert early.data_HN[2:4, 0] == pytest.approx([1.02, 1.03])


def test_new_words_do_not_queue_behind_the_old(contract):
    policy = Ramp(contract)
    planner = Planner(policy, Timing('queue', execute_steps=25))
    plan(planner, 0, 2.0)
    for count, words in enumerate('bcd'):
        assert plan(planner, 6 * count + 6, 2.0, epoch=ord(words)).chunk.frozen_prefix == 2


def test_an_ensemble_never_holds_chunks_for_other_words(contract):
    policy = Ramp(contract)
    planner = Planner(policy, Timing('temporal_ensemble', execute_steps=10))
    plan(planner, 0, 1.0)
    policy.level = 1.0
    assert plan(planner, 10, 1.0, epoch=1).chunk.data_HN[1:, 0] == pytest.approx(1.0 + 0.01 * np.arange(1, 50))
    assert plan(planner, 20, 1.0, epoch=1).chunk.data_HN[1:30, 0].min() > 1.0


def test_temporal_ensemble_weighs_the_oldest_chunk_most(contract):
    policy = Ramp(contract)
    planner = Planner(policy, Timing('temporal_ensemble', execute_steps=10, ensemble_coefficient=0.5))
    plan(planner, 0, 1.0)
    policy.level = 1.0
    planned = plan(planner, 10, 1.0)
    weights = np.exp([0.0, -0.5])
    assert planned.chunk.data_HN[5, 0] == pytest.approx((weights @ [0.14, 1.05]) / weights.sum())
    assert planned.chunk.data_HN[45, 0] == pytest.approx(1.45), 'only the new chunk reaches there'


def test_chunks_count_from_one_in_every_run(contract):
    planner = Planner(Ramp(contract), Timing('latest'))
    assert [plan(planner, step, 1.0).chunk.chunk_id for step in (0, 25)] == [1, 2]
    planner.restart()
    assert plan(planner, 50, 1.0).chunk.chunk_id == 1


def test_what_is_not_committed_does_not_count(contract):
    planner = Planner(Ramp(contract), Timing('latest'))
    kept = plan(planner, 0, 1.0)
    planner.plan(seen(25), 0, lambda: START + 26 * STEP)
    assert planner.current is kept.chunk
    assert plan(planner, 26, 1.0).chunk.chunk_id == 2


@pytest.mark.parametrize(
    ('data', 'why'),
    [
        (np.zeros((49, 4)), r'shape \(49, 4\)'),
        (np.full((50, 4), np.nan), 'nan in column joint1/position'),
        (np.full((50, 4), np.inf), 'inf in column joint1/position'),
    ],
)
def test_an_unusable_result_is_refused_as_a_whole(contract, data, why):
    policy = Ramp(contract)
    policy.infer = lambda *_: Inferred(data)
    planner = Planner(policy, Timing('latest'))
    with pytest.raises(InvalidActionError, match=why):
        planner.plan(seen(0), 0, lambda: START)
    assert planner.current is None


def test_a_chunk_that_is_past_when_it_is_ready_is_refused(contract):
    planner = Planner(Ramp(contract), Timing('latest'))
    with pytest.raises(TooLateError, match='longer than the chunk'):
        planner.plan(seen(0), 0, lambda: START + 50 * STEP)


@pytest.mark.parametrize(
    ('serving', 'asked', 'mode', 'steps', 'note'),
    [
        (Serving(mode='rtc', execute_steps=20, max_delay=6), Timing(), 'rtc', 20, ''),
        (Serving(mode='rtc', execute_steps=20, max_delay=6), Timing('latest', 10), 'latest', 10, ''),
        (Serving(mode='rtc', execute_steps=20, max_delay=0), Timing(), 'latest', 20, 'was not trained to continue'),
        (Serving(mode='latest', execute_steps=25), Timing(), 'latest', 25, 'ramp@1 was not trained to continue'),
        (Serving(mode='latest', execute_steps=25), Timing('guided'), 'guided', 25, ''),
        (Serving(mode='queue', execute_steps=25), Timing(), 'queue', 25, 'recommended by ramp@1'),
    ],
)
def test_auto_is_what_the_bundle_was_made_for_and_says_why_not_rtc(contract, serving, asked, mode, steps, note):
    policy = Ramp(contract)
    policy.serving = serving
    timing = resolved(asked, policy)
    assert (timing.mode, timing.execute_steps) == (mode, steps)
    assert note in timing.note
    assert bool(note) == bool(timing.note)
    assert resolved(timing, policy) == timing
    assert plan(Planner(policy, asked), 0, 1.0).note == timing.note


def test_rtc_for_a_policy_that_was_not_trained_for_it_is_refused(contract):
    policy = Ramp(contract)
    policy.serving = Serving.for_horizon(50)
    with pytest.raises(NodeError, match=r'mode is rtc, and ramp@1 was not trained .* write auto, latest or guided'):
        Planner(policy, Timing('rtc'))


def test_a_delay_beyond_the_trained_range_is_spliced_and_says_so_until_it_is_within_it_again(contract, caplog):
    policy = Ramp(contract)
    planner = Planner(policy, Timing())
    notes, over = [], []
    for count, late in enumerate([1.0] + 3 * [5.0] + 12 * [9.0] + 12 * [5.0]):
        notes.append(plan(planner, 25 * count, late).note)
        over.append(policy.given[-1][1])
    assert over[3] == 5
    assert over[14] == 0
    assert over[-1] == 5
    assert notes[3] == notes[-1] == ''
    assert notes[14].startswith('mode latest: the delay of 9 steps is beyond the 6 that ramp@1 was trained')
    assert [record.getMessage().split(':')[0] for record in caplog.records] == ['mode latest', 'mode rtc']


def test_execute_steps_must_leave_room_in_the_horizon(contract):
    with pytest.raises(NodeError, match='execute_steps is 50'):
        Planner(Ramp(contract), Timing('rtc', execute_steps=50))
