"""Many recordings at once: same results, and one that kills its process costs only itself."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from training.errors import TrainingError
from training.index.parallel import run_all


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
    found = dict(run_all(double, [*jobs, {'number': 4, 'hog': True}], 2))
    assert found[0] == {'twice': 0}
    assert found[2] == {'twice': 4}
    assert type(found[1]).__name__ == 'BrokenProcessPool'
    assert isinstance(found[3], ValueError)
    assert isinstance(found[4], MemoryError)


@pytest.mark.skipif(importlib.util.find_spec('ray') is not None, reason='ray is installed')
def test_a_missing_ray_is_told_with_the_fix() -> None:
    with pytest.raises(TrainingError, match=r"pip install 'ray\[data\]'"):
        list(run_all(double, [{'number': 0}], ray=True))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('ray') is None, reason='ray is not installed: pip install "ray[data]"')
def test_ray_gives_the_same() -> None:
    jobs = [{'number': number} for number in range(3)]
    assert dict(run_all(double, jobs, ray=True)) == {number: {'twice': 2 * number} for number in range(3)}


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
