"""One function over many recordings: in this process, over processes, or over a Ray cluster."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ki_common.memory import keep_freed_memory
from training.errors import TrainingError

Job = dict[str, Any]
Work = Callable[[Job], Any]
AHEAD = 4  # jobs that a Ray cluster holds for each of its cores
RAY_EXTRA = "run `pip install 'ki_policy_node[ray]'`"
RAY_START = 'start one with `ray start --head`, or write --ray local'


def run_all(work: Work, jobs: Sequence[Job], workers: int = 1, ray: str = '') -> Iterator[tuple[int, Any]]:
    """Yields (number of the job, result) as results come; a result that is an Exception is what the job died of.

    Args:
        work: A module-level function from plain data to plain data; it must not raise for what is wrong with data.
        jobs: Plain data, as JSON holds it.
        workers: Processes; 1 works in this one.
        ray: Address of a Ray cluster: HOST:PORT, `auto` for the one that this machine is part of, `local` for one that
            lives as long as this process. Its machines need the same paths and the same packages. Empty: none.

    Raises:
        TrainingError: Ray is asked for and not installed, or no cluster is there.
    """
    if ray:
        yield from _over_ray(work, jobs, ray)
    elif workers <= 1 or len(jobs) <= 1:
        for number, job in enumerate(jobs):
            yield number, work(job)
    else:
        yield from _over_processes(work, jobs, workers)


def _begin() -> None:
    """A worker is one core, and if a forged size makes it allocate without end, it gets MemoryError."""
    import resource

    _use_one_core()
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    resource.setrlimit(resource.RLIMIT_AS, (total, total))


def _use_one_core() -> None:
    import cv2

    cv2.setNumThreads(1)  # as many threads as cores in each of as many processes wait for each other
    keep_freed_memory()


def _over_processes(work: Work, jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Any]]:
    left = dict(enumerate(jobs))
    context = multiprocessing.get_context('spawn')  # fork would copy locks that other threads hold
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_begin)
    try:
        futures: dict[Future[Any], int] = {pool.submit(work, job): number for number, job in left.items()}
        for future in as_completed(futures):
            try:
                result = future.result()
            except BrokenProcessPool:
                continue  # one worker was killed, and takes the futures of all others along
            except Exception as error:
                result = error
            left.pop(futures[future])
            yield futures[future], result
    finally:
        pool.shutdown(cancel_futures=True)  # who stops, by Ctrl-C or otherwise, does not wait for jobs not yet begun
    # Who killed the pool is not known: each job that is left gets a process of its own.
    for number, job in left.items():
        with ProcessPoolExecutor(1, context, initializer=_begin) as pool:
            try:
                yield number, pool.submit(work, job).result()
            except BrokenProcessPool as error:
                yield number, error
            except Exception as error:
                yield number, error


def _over_ray(work: Work, jobs: Sequence[Job], address: str) -> Iterator[tuple[int, Any]]:
    try:
        import ray
    except ImportError as error:
        raise TrainingError(f'ray is not installed; {RAY_EXTRA}, or leave --ray out.') from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise TrainingError(f'--ray {address}: no cluster answers there ({error}); {RAY_START}.') from error
    task = ray.remote(max_retries=1)(_on_one_core)  # a machine may be lost, and its jobs begin again on another
    waiting = iter(enumerate(jobs))
    ahead = AHEAD * max(1, int(ray.cluster_resources().get('CPU', 1)))
    numbers = {task.remote(work, job): number for number, job in itertools.islice(waiting, ahead)}
    try:
        while numbers:
            [done], _ = ray.wait(list(numbers), num_returns=1)
            number = numbers.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                result = error.cause
            except ray.exceptions.RayError as error:
                result = error
            for following, job in itertools.islice(waiting, 1):
                numbers[task.remote(work, job)] = following
            yield number, result
    finally:
        for left in numbers:  # who stops does not leave a cluster at work
            ray.cancel(left)


def _on_one_core(work: Work, job: Job) -> Any:
    _use_one_core()
    return work(job)
