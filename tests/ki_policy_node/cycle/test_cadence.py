"""When the next chunk is due, and how long its observation waits for the cameras."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from ki_policy_node.cycle.cadence import Cadence, due_after
from ki_policy_node.cycle.continuation import Timing
from ki_policy_node.cycle.hold_reasons import HoldReason
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract

STEP = 50_000_000
START = 1_000 * STEP
RUNNING = ActionChunk(START, STEP, ('joint',), np.zeros((50, 1)), frozen_prefix=2)


@pytest.fixture
def contract(rigs: ModuleType) -> Contract:
    return Contract.parse(rigs.small_robot())


@pytest.mark.parametrize('mode', ['latest', 'temporal_ensemble', 'rtc'])
def test_the_next_chunk_is_due_after_execute_steps(mode: str) -> None:
    assert due_after(RUNNING, Timing(mode, execute_steps=10), 3 * STEP) == START + 10 * STEP


def test_a_queue_plans_one_latency_before_its_steps_are_executed() -> None:
    assert due_after(RUNNING, Timing('queue', execute_steps=10), 3 * STEP) == START + (2 + 10 - 3) * STEP


@pytest.mark.parametrize('mode', ['latest', 'queue', 'temporal_ensemble', 'rtc', 'guided'])
def test_a_chunk_is_due_early_enough_that_the_one_before_does_not_run_out(mode: str) -> None:
    due_ns = due_after(RUNNING, Timing(mode, execute_steps=45), 12 * STEP, STEP)
    assert due_ns + STEP + 12 * STEP < RUNNING.end_ns
    assert due_ns >= START + (50 - 12 - 3) * STEP, 'and no earlier'


def test_an_observation_waits_for_a_fresh_frame_of_every_camera_but_not_for_ever(contract: Contract) -> None:
    cadence = Cadence(contract, Timing('latest', execute_steps=10), 40)
    due_ns = cadence.due_ns(RUNNING, 0)
    cadence.on_frame('scene', due_ns - 1)
    cadence.on_frame('wrist', due_ns)
    assert cadence.take_ns(due_ns) == due_ns + 40, 'frames from before it was due are old'
    assert cadence.fresh(due_ns) == ('wrist',)
    cadence.on_frame('scene', due_ns + 7)
    assert cadence.take_ns(due_ns) == due_ns


def test_what_is_asked_for_is_due_then_and_words_want_newer_frames(contract: Contract) -> None:
    cadence = Cadence(contract, Timing('latest', execute_steps=10), 40)
    cadence.ask(START + 5)
    cadence.ask(START + 9)
    assert cadence.due_ns(RUNNING, 0) == START + 5, 'asked once, due since then'
    cadence.hurry(START + 9)
    assert cadence.due_ns(RUNNING, 0) == START + 9
    cadence.taken()
    assert cadence.due_ns(RUNNING, 0) == START + 10 * STEP


def test_a_jump_of_the_clock_makes_every_frame_old(contract: Contract) -> None:
    cadence = Cadence(contract, Timing('latest', execute_steps=10), 40)
    for camera in ('scene', 'wrist'):
        cadence.on_frame(camera, START)
    cadence.on_clock_jump(START - 1000)
    assert cadence.due_ns(None, 0) == START - 1000
    assert cadence.take_ns(START - 1000) == START - 960


def test_inputs_out_of_step_are_forgiven_for_a_while_and_nothing_else(contract: Contract) -> None:
    cadence = Cadence(contract, Timing(), 40)
    assert cadence.forgives(HoldReason.UNSYNCHRONIZED, START, START + 299_000_000)
    assert not cadence.forgives(HoldReason.UNSYNCHRONIZED, START, START + 300_000_000)
    assert not cadence.forgives(HoldReason.STALE, START, START + 1)
