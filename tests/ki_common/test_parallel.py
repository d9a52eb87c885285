"""Many jobs at once: same results, and one that kills its process costs only itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ki_common.parallel import ClusterError, results_of, run_all


def double(job: dict[str, Any]) -> dict[str, Any]:
    if job.get('die'):
        os._exit(9)
    if job.get('fail'):
        raise ValueError('odd')
    if job.get('hog'):
        bytearray(1 << 44)
    return {'twice': 2 * job['number']}


@pytest.mark.parametrize('workers', [1, 2])
def test_results_carry_the_number_of_their_job(workers: int) -> None:
    jobs = [{'number': number} for number in range(5)]
    assert dict(run_all(double, jobs, workers)) == {number: {'twice': 2 * number} for number in range(5)}


def test_a_job_that_kills_its_process_costs_only_itself() -> None:
    jobs = [{'number': 0}, {'number': 1, 'die': True}, {'number': 2}, {'number': 3, 'fail': True}]
    found = dict(run_all(double, [*jobs, {'number': 4, 'hog': True}], 2, capped=True))
    assert found[0] == {'twice': 0}
    assert found[2] == {'twice': 4}
    assert type(found[1]).__name__ == 'BrokenProcessPool'
    assert isinstance(found[3], ValueError)
    assert isinstance(found[4], MemoryError)


@pytest.mark.parametrize('workers', [1, 2])
def test_where_every_result_is_needed_a_job_that_fails_ends_them(workers: int) -> None:
    jobs = [{'number': 0}, {'number': 1, 'fail': True}, {'number': 2}]
    with pytest.raises(ValueError, match='odd'):
        list(results_of(double, jobs, workers))


def test_a_missing_ray_is_told_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ClusterError, match=r"pip install 'ki_policy_node\[ray\]'"):
        list(run_all(double, [{'number': 0}], ray='auto'))


@pytest.mark.slow
def test_two_workers_of_ray_give_what_one_process_gives() -> None:
    """Also where a job fails or kills its worker."""
    ray = pytest.importorskip('ray')
    ray.init(address='local', num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        jobs = [{'number': 0}, {'number': 1, 'die': True}, {'number': 2}, {'number': 3, 'fail': True}]
        found = dict(run_all(double, jobs, ray='local'))
    finally:
        ray.shutdown()
    assert (found[0], found[2]) == ({'twice': 0}, {'twice': 4})
    assert isinstance(found[1], ray.exceptions.WorkerCrashedError)
    assert isinstance(found[3], ValueError)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told_by_its_address() -> None:
    pytest.importorskip('ray')
    with pytest.raises(ClusterError, match='no cluster answers there'):
        list(run_all(double, [{'number': 0}], ray='auto'))


def slow(job: dict[str, Any]) -> dict[str, Any]:
    import time

    time.sleep(0.2)
    with open(job['done'], 'a', encoding='utf-8') as file:
        file.write('x')
    return {}


def test_who_stops_does_not_wait_for_jobs_not_yet_begun(tmp_path: Path) -> None:
    jobs = [{'done': str(tmp_path / 'done')} for _ in range(40)]
    results = run_all(slow, jobs, 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len((tmp_path / 'done').read_text()) < 12
