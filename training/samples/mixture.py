"""Weighted sources of samples in one reproducible order, and a loader that works ahead of the trainer.

The order is a function of the seed alone: draw number p is the same on one process and on eight, so a sampler's state
is its seed and its position. Rank r of W takes the draws p with p % W == r.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ki_bags.problems import Problem, Problems
from ki_common.memory import keep_freed_memory
from training.errors import TrainingError

BLOCK = 4096  # draws whose sources are decided at once
GRACE_S = 60  # of a worker process, after the first SIGTERM


class SampleSource(Protocol):
    """Anything with a length and positions."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Any: ...


@dataclass(frozen=True)
class Part:
    """One source of a mixture; a draw takes it with probability weight / sum of weights."""

    name: str
    source: SampleSource
    weight: float = 1.0


@dataclass(frozen=True)
class Draw:
    """One sample and where it came from; `number` counts draws, so that what is random about a sample can follow it."""

    part: str
    position: int
    sample: Any
    number: int = -1


class Mixture:
    """Endless draws from weighted parts; each part is gone through in a new random order every time it is used up.

    Args:
        parts: The sources; weights above 0.
        seed: Decides the whole order.

    Raises:
        TrainingError: No part, an empty one, a weight that is not above 0, or a name twice.
    """

    def __init__(self, parts: Sequence[Part], seed: int = 0) -> None:
        if not parts:
            raise TrainingError('a mixture needs at least one source.')
        for part in parts:
            if not (np.isfinite(part.weight) and part.weight > 0):
                raise TrainingError(f'source {part.name!r} has weight {part.weight}; write a number above 0.')
            if not len(part.source):
                raise TrainingError(f'source {part.name!r} is empty; leave it out, or give it data.')
        if len({part.name for part in parts}) != len(parts):
            raise TrainingError(f'two sources share a name: {", ".join(part.name for part in parts)}.')
        self.parts = tuple(parts)
        self.seed = int(seed)
        weights = np.array([part.weight for part in parts], dtype=np.float64)
        self._edges = np.cumsum(weights / weights.sum())
        self._block = -1
        self._before = np.zeros(len(parts), dtype=np.int64)  # draws of each part before the block
        self._chosen = np.zeros(0, dtype=np.int64)
        self._nth = np.zeros(0, dtype=np.int64)
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def where(self, draw: int) -> tuple[int, int]:
        """Which part, and which position of it, draw number `draw` takes."""
        block, inside = divmod(draw, BLOCK)
        if block != self._block:
            self._enter(block)
        part = int(self._chosen[inside])
        size = len(self.parts[part].source)
        epoch, rank = divmod(int(self._nth[inside]), size)
        known = self._orders.get(part)
        if known is None or known[0] != epoch:
            known = (epoch, np.random.default_rng([self.seed, 1, part, epoch]).permutation(size))
            self._orders[part] = known
        return part, int(known[1][rank])

    def get(self, draw: int) -> Draw:
        """Reads the sample of one draw."""
        part, position = self.where(draw)
        return self.read(part, position, draw)

    def read(self, part: int, position: int, number: int = -1) -> Draw:
        """Reads one position of one part, for draw `number`."""
        return Draw(self.parts[part].name, position, self.parts[part].source[position], number)

    def _enter(self, block: int) -> None:
        if block < self._block or self._block < 0:
            self._before[:] = 0
            first = 0
        else:
            self._before += np.bincount(self._chosen, minlength=len(self.parts))
            first = self._block + 1
        for earlier in range(first, block):
            self._before += np.bincount(self._choices(earlier), minlength=len(self.parts))
        self._block, self._chosen = block, self._choices(block)
        self._nth = np.empty(BLOCK, dtype=np.int64)
        for part in range(len(self.parts)):
            taken = self._chosen == part
            self._nth[taken] = self._before[part] + np.arange(int(taken.sum()))

    def _choices(self, block: int) -> NDArray[np.int64]:
        uniform = np.random.default_rng([self.seed, 0, block]).random(BLOCK)
        return np.minimum(np.searchsorted(self._edges, uniform, side='right'), len(self.parts) - 1)


class Sampler:
    """A position in the draws of a mixture, for one rank.

    Args:
        mixture: What to draw from.
        rank: Of this process.
        world: Number of processes.
    """

    def __init__(self, mixture: Mixture, rank: int = 0, world: int = 1) -> None:
        self.mixture = mixture
        self.rank, self.world = rank, world
        self.position = 0  # draws handed out to all ranks together

    def take(self, count: int) -> list[int]:
        """The next `count` draws of this rank."""
        first = self.position
        self.position += count * self.world
        return [first + self.rank + index * self.world for index in range(count)]

    def state_dict(self) -> dict[str, int]:
        """Seed and position: all there is."""
        return {'seed': self.mixture.seed, 'position': self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on where another sampler stopped, on any number of processes.

        Raises:
            TrainingError: That one drew in another order.
        """
        if state['seed'] != self.mixture.seed:
            raise TrainingError(
                f'the checkpoint drew samples with seed {state["seed"]}, this run has seed {self.mixture.seed}; '
                'resume with the same seed.'
            )
        self.position = int(state['position'])


class Loader:
    """Batches in the order of a sampler, prepared ahead by threads or processes.

    Decoding and resizing leave Python's lock, so threads serve most machines; processes pay when `collate` is heavy
    Python, and cost a copy of every batch.

    Args:
        sampler: Which draws.
        batch_size: Draws in a batch.
        collate: list of Draw -> batch; runs in the worker.
        workers: Threads or processes; 0 prepares each batch when it is asked for.
        ahead: Batches in preparation.
        processes: Processes instead of threads; mixture and `collate` must then be picklable.
        steps: Batches to give; None: endless.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        collate: Callable[[list[Draw]], Any],
        workers: int = 2,
        ahead: int = 4,
        processes: bool = False,
        steps: int | None = None,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.collate = collate
        self.workers, self.ahead, self.processes, self.steps = workers, ahead, processes, steps
        self.wait_s = 0.0  # time the consumer has waited, all batches but the first
        self._consumed = sampler.position

    def __iter__(self) -> Generator[Any, None, None]:
        """Gives batches; `state_dict` always tells the position after the last one given, not the last prepared."""
        import cv2

        keep_freed_memory()
        cv2.setNumThreads(1)  # pictures are shared out among workers whole, and the trainer wants cores too
        self._consumed = self.sampler.position
        if self.workers <= 0:
            while self.steps is None or self.steps > 0:
                started = time.perf_counter()
                batch = _make(self.sampler.mixture, self._plan(), self.collate)
                self.wait_s += time.perf_counter() - started
                self._give()
                yield batch
            return
        with self._executor() as pool:
            coming: deque[Future[Any]] = deque()
            try:
                yield from self._stream(pool, coming)
            finally:
                for future in coming:
                    future.cancel()
                self.sampler.position = self._consumed  # what was prepared and not given is drawn again

    def _stream(self, pool: Executor, coming: deque[Future[Any]]) -> Iterator[Any]:
        first = True
        planned = 0
        total = self.steps
        while True:
            while len(coming) < max(self.ahead, 1) and (total is None or planned < total):
                plan = self._plan()
                if self.processes:
                    coming.append(pool.submit(_make_in_worker, plan))
                else:
                    coming.append(pool.submit(_make, self.sampler.mixture, plan, self.collate))
                planned += 1
            if not coming:
                return
            started = time.perf_counter()
            batch = coming.popleft().result()
            if self.processes:
                batch, found = batch
                for part, problems in zip(self.sampler.mixture.parts, found, strict=True):
                    if problems:  # only a source with `problems` has found some
                        part.source.problems.extend(problems)  # type: ignore[attr-defined]
            if not first:
                self.wait_s += time.perf_counter() - started
            first = False
            self._give()
            yield batch

    def _plan(self) -> list[tuple[int, int, int]]:
        # Decided here and in order: the bookkeeping of a mixture is not for several threads.
        return [(*self.sampler.mixture.where(draw), draw) for draw in self.sampler.take(self.batch_size)]

    def _give(self) -> None:
        self._consumed += self.batch_size * self.sampler.world
        if self.steps is not None:
            self.steps -= 1

    def _executor(self) -> Executor:
        if not self.processes:
            return ThreadPoolExecutor(self.workers, thread_name_prefix='loader')
        context = multiprocessing.get_context('spawn')
        return ProcessPoolExecutor(self.workers, context, _begin, (self.sampler.mixture, self.collate))

    def state_dict(self) -> dict[str, int]:
        """Seed, and the position after the last batch that was given out."""
        return {**self.sampler.state_dict(), 'position': self._consumed}


def _make(mixture: Mixture, plan: list[tuple[int, int, int]], collate: Callable[[list[Draw]], Any]) -> Any:
    return collate([mixture.read(part, position, number) for part, position, number in plan])


_work: dict[str, Any] = {}  # of a worker process


def _begin(mixture: Mixture, collate: Callable[[list[Draw]], Any]) -> None:
    import cv2

    # A terminal and a job manager tell every process of a run, but the trainer alone decides: it still wants the
    # samples of the step in hand, then it saves and closes the pool. A pool that lost a worker ends the others with
    # SIGTERM and waits for them, so that one ends them, later.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_S))
    cv2.setNumThreads(1)
    keep_freed_memory()
    _work.update(mixture=mixture, collate=collate)
    _found(mixture)


def _make_in_worker(plan: list[tuple[int, int, int]]) -> tuple[Any, list[list[Problem]]]:
    """A batch, and what was wrong with the samples of each part: the sources that count are those of the trainer."""
    return _make(_work['mixture'], plan, _work['collate']), _found(_work['mixture'])


def _found(mixture: Mixture) -> list[list[Problem]]:
    """What the sources have counted since they were last asked."""
    found = []
    for part in mixture.parts:
        found.append(list(getattr(part.source, 'problems', ())))
        if found[-1]:  # so it has the attribute, which a plain sequence need not have
            part.source.problems = Problems()  # type: ignore[attr-defined]
    return found
