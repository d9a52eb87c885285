"""Many jobs at once: same results, and one that kills its process costs only itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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


@contextlib.contextmanager
def parent_of_jobs(
    folder: Path, program: str, jobs: str, *arguments: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process over jobs, and the folder in which they say that they began; none of them outlives the test."""
    (folder / 'tests_of_parallel.py').write_text(jobs)
    (folder / 'program.py').write_text(program)
    begun = folder / 'begun'
    begun.mkdir()
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(folder), os.environ.get('PYTHONPATH', '')])}
    command = [sys.executable, str(folder / 'program.py'), str(begun), *arguments]
    parent = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        yield parent, begun
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


PARENT = """
import sys
from ki_common.parallel import run_all
from tests_of_parallel import stubborn
if __name__ == '__main__':
    for _ in run_all(stubborn, [sys.argv[1]] * 6, 2):
        pass
"""
STUBBORN = """
import os, signal, time
from pathlib import Path


def stubborn(folder):
    asked = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    Path(folder, f'{os.getpid()}-{time.monotonic_ns()}').touch()
    while not asked:
        time.sleep(0.05)
    Path(folder, f'{os.getpid()}.saved').touch()  # as training writes its checkpoint
    signal.signal(signal.SIGTERM, before)
"""


ASKED = """
import sys
from ki_common.parallel import run_all
from tests_of_parallel import asked
if __name__ == '__main__':
    try:
        for _ in run_all(asked, [sys.argv[1]] * 12, int(sys.argv[2])):
            pass
    except KeyboardInterrupt:
        sys.exit(130)
"""
STOPS = """
import os, signal, time
from pathlib import Path


def asked(folder):
    stop = []
    before = signal.signal(signal.SIGINT, lambda number, frame: stop.append(number))
    Path(folder, f'{os.getpid()}-{time.monotonic_ns()}').touch()
    while not stop:
        time.sleep(0.05)
    signal.signal(signal.SIGINT, before)
    raise KeyboardInterrupt  # as a training does that has written its checkpoint
"""


@pytest.mark.parametrize('workers', [1, 2])
def test_ctrl_c_ends_the_jobs_at_work_and_begins_no_other(tmp_path: Path, workers: int) -> None:
    """A terminal sends SIGINT to all processes of a command."""
    with parent_of_jobs(tmp_path, ASKED, STOPS, str(workers)) as (parent, begun):
        end_s = time.monotonic() + 60.0
        while len(list(begun.iterdir())) < workers:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.wait(30) == 130
        assert len(list(begun.iterdir())) == workers


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_workers_of_a_killed_process_finish_what_they_hold_and_begin_nothing_more(
    tmp_path: Path, number: signal.Signals
) -> None:
    with parent_of_jobs(tmp_path, PARENT, STUBBORN) as (parent, begun):
        end_s = time.monotonic() + 60.0
        while len(workers := {path.name.split('-')[0] for path in begun.iterdir()}) < 2:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        parent.send_signal(number)
        assert parent.wait(30) == -number
        while any(Path('/proc', worker).exists() for worker in workers):
            assert time.monotonic() < end_s
            time.sleep(0.05)
        assert {path.name for path in begun.glob('*.saved')} == {f'{worker}.saved' for worker in workers}
        assert len(list(begun.iterdir())) == 4
