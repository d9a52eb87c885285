"""Draws are the same whoever makes them, and resume where they stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_bags.problems import Problems
from training.errors import TrainingError
from training.samples.mixture import BLOCK, GRACE_S, Draw, Loader, Mixture, Part, Sampler, _begin


class Numbers:
    def __init__(self, size: int, offset: int = 0) -> None:
        self.size, self.offset = size, offset

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self.size:
            raise IndexError(position)
        return self.offset + position


def collate(draws: list[Draw]) -> list[Any]:
    return [draw.sample for draw in draws]


def slow_collate(draws: list[Draw]) -> list[Any]:
    time.sleep(0.02)
    return collate(draws)


def make(seed: int = 0) -> Mixture:
    return Mixture([Part('a', Numbers(7), 3.0), Part('b', Numbers(5, 100), 1.0)], seed)


def test_weights_hold_and_every_sample_is_used_before_any_repeats() -> None:
    mixture = make()
    draws = [mixture.get(position) for position in range(2 * BLOCK)]
    share = Counter(draw.part for draw in draws)['a'] / len(draws)
    assert abs(share - 0.75) < 0.02
    first = [draw.sample for draw in draws if draw.part == 'a']
    for epoch in range(len(first) // 7):
        assert sorted(first[epoch * 7 : epoch * 7 + 7]) == list(range(7))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3 * BLOCK), st.integers(1, 5), st.integers(0, 9))
def test_a_draw_does_not_depend_on_the_way_there(position: int, world: int, seed: int) -> None:
    straight = make(seed)
    there = straight.where(position)
    wandering = make(seed)
    wandering.where(position + 2 * BLOCK)
    wandering.where(0)
    assert wandering.where(position) == there
    ranks = [Sampler(make(seed), rank, world) for rank in range(world)]
    taken = [rank.take(3) for rank in ranks]
    assert sorted(draw for each in taken for draw in each) == list(range(3 * world))


@pytest.mark.parametrize(('workers', 'processes'), [(0, False), (2, False), (2, True)])
def test_batches_are_the_same_whoever_makes_them(workers: int, processes: bool) -> None:
    expected = [[make().get(batch * 4 + index).sample for index in range(4)] for batch in range(6)]
    loader = Loader(Sampler(make()), 4, collate, workers=workers, processes=processes, steps=6)
    assert list(loader) == expected


@pytest.mark.parametrize('workers', [0, 2])
def test_stopping_and_resuming_changes_no_batch(workers: int) -> None:
    whole = list(Loader(Sampler(make()), 4, collate, workers=workers, steps=6))
    loader = Loader(Sampler(make()), 4, collate, workers=workers)
    stream = iter(loader)
    first = [next(stream) for _ in range(3)]
    state = loader.state_dict()
    stream.close()
    assert state == {'seed': 0, 'position': 12}
    sampler = Sampler(make())
    sampler.load_state_dict(state)
    assert first + list(Loader(sampler, 4, collate, workers=workers, steps=3)) == whole


def test_two_ranks_resume_as_one() -> None:
    ranks = [Sampler(make(), rank, 2) for rank in range(2)]
    for rank in ranks:
        rank.take(5)
    alone = Sampler(make())
    alone.load_state_dict(ranks[0].state_dict())
    assert alone.take(1) == [10]


def test_another_seed_is_another_run() -> None:
    sampler = Sampler(make(1))
    with pytest.raises(TrainingError, match='seed 0, this run has seed 1'):
        sampler.load_state_dict({'seed': 0, 'position': 3})
    orders = [[make(seed).where(position) for position in range(50)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_a_loader_works_ahead() -> None:
    made: list[Any] = []
    batches = iter(Loader(Sampler(make()), 4, lambda draws: made.append(draws), workers=2, ahead=4, steps=10))
    for taken in range(1, 4):
        next(batches)
        end = time.monotonic() + 20.0
        while len(made) < taken + 3:  # one is taken, and three of the four in preparation were begun before
            assert time.monotonic() < end, made
            time.sleep(0.002)


def test_an_error_in_a_worker_reaches_the_trainer() -> None:
    def broken(draws: list[Draw]) -> Any:
        raise TrainingError('this sample is bad')

    with pytest.raises(TrainingError, match='this sample is bad'):
        next(iter(Loader(Sampler(make()), 4, broken, workers=2)))


def test_impossible_mixtures_are_refused() -> None:
    for parts, match in (
        ([], 'at least one source'),
        ([Part('a', Numbers(3), 0.0)], 'weight 0.0'),
        ([Part('a', Numbers(0))], 'is empty'),
        ([Part('a', Numbers(3)), Part('a', Numbers(3))], 'share a name'),
        ([Part('a', Numbers(3), float(np.nan))], 'weight nan'),
    ):
        with pytest.raises(TrainingError, match=match):
            Mixture(parts)


class Doubtful(Numbers):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.problems = Problems()
        self.problems.add('a', '', 'odd', 'known before')

    def __getitem__(self, position: int) -> int:
        if position % 2:
            self.problems.add('a', '', 'odd', 'found while drawing')
        return super().__getitem__(position)


def test_what_workers_find_wrong_with_samples_is_counted_by_the_trainer() -> None:
    source = Doubtful(8)
    assert len(list(Loader(Sampler(Mixture([Part('a', source)])), 4, collate, workers=1, processes=True, steps=4))) == 4
    [problem] = source.problems
    assert problem.count == 1 + 8


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_every_process_leaves_the_samples_of_the_step_in_hand(number: int) -> None:
    loader = Loader(Sampler(make()), 4, slow_collate, workers=1, processes=True, steps=6)
    batches = iter(loader)
    got = [next(batches)]
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, number)
    got += list(batches)
    assert got == list(Loader(Sampler(make()), 4, collate, workers=0, steps=6))


def test_a_worker_that_outlives_its_trainer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('training.samples.mixture.keep_freed_memory', lambda: None)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        _begin(make(), collate)
        os.kill(os.getpid(), signal.SIGTERM)
        assert 0 < signal.alarm(0) <= GRACE_S
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
