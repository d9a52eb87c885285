"""One function over many jobs, such as recordings or scenes: here, over processes, or over a Ray cluster."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait
from typing import Any

from ki_common.errors import KiError
from ki_common.memory import keep_freed_memory

Work = Callable[[Any], Any]
AHEAD = 4  # jobs that a Ray cluster holds for each of its cores
RAY_EXTRA = "run `pip install 'ki_policy_node[ray]'`"
RAY_START = 'start one with `ray start --head`, or write --ray local'
_orphaned = threading.Event()  # in a worker: the process that it works for is gone
_interrupted = threading.Event()  # in a worker: a job of it was asked to stop


class ClusterError(KiError):
    """Jobs cannot be sent to a Ray cluster."""


def run_all(
    work: Work, jobs: Sequence[Any], workers: int = 1, ray: str = '', capped: bool = False
) -> Generator[tuple[int, Any], None, None]:
    """Yields (number of the job, result) as results come; a result that is an Exception is what the job died of.

    A job that raises KeyboardInterrupt ends them all: those that are at work end, no other begins.

    Args:
        work: A module-level function of one job. Jobs and results are pickled.
        jobs: The jobs.
        workers: Processes; 1 works in this one, where what a job raises is raised; 0: one per core.
        ray: Address of a Ray cluster: HOST:PORT, `auto` for the one that this machine is part of, `local` for one that
            lives as long as this process. Its machines need the same paths and the same packages. Empty: none.
        capped: A process gets MemoryError where it asks for more memory than the machine has, because a forged file
            wants it to. Not for work on a GPU, which maps more than that.

    Raises:
        ClusterError: Ray is asked for and not installed, or no cluster is there.
        KeyboardInterrupt: a job or this process was asked to stop.
    """
    workers = workers or os.cpu_count() or 1
    if ray:
        yield from _over_ray(work, jobs, ray)
    elif workers <= 1 or len(jobs) <= 1:
        for number, job in enumerate(jobs):
            yield number, work(job)
    else:
        yield from _over_processes(work, jobs, workers, capped)


def results_of(work: Work, jobs: Sequence[Any], workers: int = 1, ray: str = '', capped: bool = False) -> Iterator[Any]:
    """Yields the results as they come, see `run_all`; what a job died of is raised, and the jobs not begun are left."""
    with contextlib.closing(run_all(work, jobs, workers, ray, capped)) as results:
        for _, result in results:
            if isinstance(result, Exception):
                raise result
            yield result


def _begin(capped: bool) -> None:
    """A worker is one core, and ends when the process does that it works for."""
    _use_one_core()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if capped:
        import resource

        total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        resource.setrlimit(resource.RLIMIT_AS, (total, total))


def _end_with_parent() -> None:
    """A killed parent cannot say so: its workers would go on with jobs of hours, beside those of the next call.

    SIGTERM, so that what trains writes a checkpoint first.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        _orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)


def _one_job(work: Work, job: Any) -> Any:
    """A job in a worker; the pool keeps one ready for it, which does not begin once it was asked to stop."""
    if _interrupted.is_set():
        raise KeyboardInterrupt
    try:
        return work(job)
    except KeyboardInterrupt:
        _interrupted.set()
        raise
    finally:
        if _orphaned.is_set():  # it may have taken the SIGTERM for its own; there would be a next job
            os._exit(128 + signal.SIGTERM)


def _use_one_core() -> None:
    """As many threads as cores in each of as many processes would wait for each other."""
    os.environ.setdefault('LP_NUM_THREADS', '0')  # of Mesa's software renderer: none but the caller
    with contextlib.suppress(ImportError):
        importlib.import_module('cv2').setNumThreads(1)
    keep_freed_memory()


def _over_processes(work: Work, jobs: Sequence[Any], workers: int, capped: bool) -> Iterator[tuple[int, Any]]:
    left = dict(enumerate(jobs))
    context = multiprocessing.get_context('spawn')  # fork would copy locks that other threads hold
    begin = partial(_begin, capped)
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=begin)
    try:
        futures: dict[Future[Any], int] = {pool.submit(_one_job, work, job): number for number, job in left.items()}
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
        with ProcessPoolExecutor(1, context, initializer=begin) as pool:
            try:
                yield number, pool.submit(_one_job, work, job).result()
            except BrokenProcessPool as error:
                yield number, error
            except Exception as error:
                yield number, error


def _over_ray(work: Work, jobs: Sequence[Any], address: str) -> Iterator[tuple[int, Any]]:
    try:
        import ray
    except ImportError as error:
        raise ClusterError(f'ray is not installed; {RAY_EXTRA}, or leave --ray out.') from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(f'--ray {address}: no cluster answers there ({error}); {RAY_START}.') from error
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


def _on_one_core(work: Work, job: Any) -> Any:
    _use_one_core()
    return work(job)
