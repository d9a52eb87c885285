"""One function over many recordings: in this process, over processes, or over a Ray cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from training.errors import TrainingError
from training.samples.memory import keep_freed_memory

Job = dict[str, Any]
Work = Callable[[Job], Any]


def run_all(work: Work, jobs: Sequence[Job], workers: int = 1, ray: bool = False) -> Iterator[tuple[int, Any]]:
    """Yields (number of the job, result) as results come; a result that is an Exception is what the job died of.

    Args:
        work: A module-level function from plain data to plain data; it must not raise for what is wrong with data.
        jobs: Plain data, as JSON holds it.
        workers: Processes; 1 works in this one.
        ray: Over the Ray cluster that RAY_ADDRESS names, or a local one.

    Raises:
        TrainingError: Ray is asked for and not installed.
    """
    if ray:
        yield from _over_ray(work, jobs)
    elif workers <= 1 or len(jobs) <= 1:
        for number, job in enumerate(jobs):
            yield number, work(job)
    else:
        yield from _over_processes(work, jobs, workers)


def _begin() -> None:
    """A worker is one core, and if a forged size makes it allocate without end, it gets MemoryError."""
    import resource

    import cv2

    cv2.setNumThreads(1)  # as many threads as cores in each of as many processes wait for each other
    keep_freed_memory()
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    resource.setrlimit(resource.RLIMIT_AS, (total, total))


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


def _over_ray(work: Work, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise TrainingError("ray is not installed; run `pip install 'ray[data]'`, or leave --ray away.") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)

    def row(numbered: dict[str, Any]) -> dict[str, Any]:
        return {'number': numbered['number'], 'result': json.dumps(work(json.loads(numbered['job'])))}

    # As text: what travels between machines is made of columns, and a job is a tree.
    table = ray.data.from_items([{'number': number, 'job': json.dumps(job)} for number, job in enumerate(jobs)])
    for found in table.repartition(len(jobs)).map(row).iter_rows():
        yield found['number'], json.loads(found['result'])
