"""How `make test` gives files to workers: all of them, each once, and what keeps time to two workers first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip('xdist')

LIVE = ('tests/ros/test_a.py', 'tests/faults/test_b.py', 'tests/faults/test_c.py', 'tests/ki/commands/test_up.py')
PLAIN = tuple(f'tests/ki_robot/test_{number}.py' for number in range(12))
EXPORTS = ('tests/ki_vla/export/test_a.py', 'tests/ki_vla/engine/test_b.py')


class Worker:
    """A worker as xdist has them: it begins a test when it knows the one after it, or that there is none."""

    def __init__(self, number: int, collected: list[str]) -> None:
        self.gateway = SimpleNamespace(id=f'gw{number}')
        self.collected, self.queue, self.done = collected, deque[int](), list[str]()
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.queue.extend(indices)

    def shutdown(self) -> None:
        self.shutting_down = True

    def step(self) -> int | None:
        """Runs a test if it can; which."""
        if len(self.queue) < 2 and not (self.queue and self.shutting_down):
            return None
        index = self.queue.popleft()
        self.done.append(self.collected[index])
        return index


@pytest.fixture
def distribute(request: pytest.FixtureRequest, root: Path) -> Callable[..., list[Worker]]:
    """Runs files of some tests on workers, one test of each worker at a time, until nothing moves."""
    conftest = str(root / 'tests' / 'conftest.py')
    plugins: Any = request.config.pluginmanager.get_plugins()
    make = next(each for each in plugins if getattr(each, '__file__', None) == conftest).pytest_xdist_make_scheduler

    def run(number: int, files: tuple[str, ...], tests: Callable[[int], int] = lambda place: 1 + place % 4) -> Any:
        collected = [f'{file}::test_{n}' for place, file in enumerate(files) for n in range(tests(place))]
        workers = [Worker(each, collected) for each in range(number)]
        options = SimpleNamespace(loadscopereorder=True)
        scheduler = make(SimpleNamespace(option=options, getvalue=lambda name: ['popen'] * number), None)
        for worker in workers:
            scheduler.add_node(worker)
            scheduler.add_node_collection(worker, collected)
        scheduler.schedule()
        moved = True
        while moved:
            moved = False
            for worker in workers:
                if (index := worker.step()) is not None:
                    scheduler.mark_test_complete(worker, index)
                    moved = True
        assert sorted(test for worker in workers for test in worker.done) == sorted(collected)
        assert scheduler.tests_finished
        return workers

    return run


def files_of(worker: Worker) -> list[str]:
    return list(dict.fromkeys(test.partition('::')[0] for test in worker.done))


@pytest.mark.parametrize('number', [1, 2, 3, 8])
@pytest.mark.parametrize('files', [LIVE + PLAIN + EXPORTS, LIVE, PLAIN, LIVE[:1], PLAIN[:1], EXPORTS])
@pytest.mark.parametrize('tests', [1, 2, 7])
def test_every_test_runs_once(distribute: Callable[..., Any], number: int, files: tuple[str, ...], tests: int) -> None:
    distribute(number, files, lambda place: tests)


@pytest.mark.parametrize('number', [1, 2, 3, 8])
def test_a_file_and_all_exports_stay_on_one_worker(distribute: Callable[..., Any], number: int) -> None:
    workers = distribute(number, LIVE + PLAIN + EXPORTS)
    files = [file for worker in workers for file in files_of(worker)]
    assert len(files) == len(set(files))
    assert sum(any(file in EXPORTS for file in files_of(worker)) for worker in workers) == 1


@pytest.mark.parametrize('number', [3, 8])
def test_two_workers_take_what_keeps_time_first_and_the_others_none_of_it(
    distribute: Callable[..., Any], number: int
) -> None:
    workers = distribute(number, PLAIN + LIVE + EXPORTS)
    for worker in workers[:2]:
        kinds = [file in LIVE for file in files_of(worker)]
        assert kinds == sorted(kinds, reverse=True)
    assert {file for worker in workers[:2] for file in files_of(worker)} >= set(LIVE)
