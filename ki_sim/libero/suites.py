"""Suites of LIBERO: their tasks, how long each may take, and LIBERO-PRO's perturbations of them.

Limits and settling steps are those of openpi's client (examples/libero/main.py): the longest demonstration has 193,
254, 270, 505 and 373 steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ki_common.errors import shown
from ki_sim.errors import SimError

MAX_STEPS = {'spatial': 220, 'object': 280, 'goal': 300, '10': 520, '90': 400}
SETTLING_STEPS = 10  # objects are dropped into the scene, and come to rest meanwhile
EPISODES = 50  # of each task: as many initial states there are


@dataclass(frozen=True)
class LiberoTask:
    """One task of a suite.

    Attributes:
        number: its place in the suite.
        language: the instruction.
        bddl_file: its scene and goal.
    """

    number: int
    language: str
    bddl_file: Path


def suite_name(suite: str, perturbation: str = '') -> str:
    """LIBERO's name of a suite, perturbed or not.

    Raises:
        SimError: no such suite, or no such perturbation of it.
    """
    if suite not in MAX_STEPS:
        raise SimError(f'suite {shown(suite)} is unknown; write one of {", ".join(MAX_STEPS)}.')
    if not perturbation:
        return f'libero_{suite}'
    known = perturbations(suite)
    if perturbation not in known:
        raise SimError(f'suite {suite} has no perturbation {shown(perturbation)}; it has {", ".join(known) or "none"}.')
    return f'libero_{suite}_{perturbation}'


def perturbations(suite: str) -> tuple[str, ...]:
    """LIBERO-PRO's perturbations of a suite whose files are installed: lan, object, swap, task, with_mug and more."""
    before = f'libero_{suite}_'
    names = (name.removeprefix(before) for name in _benchmarks() if name.startswith(before))
    return tuple(sorted(name for name in names if (_path('bddl_files') / f'{before}{name}').is_dir()))


def tasks_of(name: str) -> tuple[LiberoTask, ...]:
    """The tasks of a suite, by LIBERO's name.

    Words are those of the file's name, which policies were trained on and openpi's client says. A perturbation may have
    changed them in the file alone: where a file has other words than its original, those are said.
    """
    suite, found = _suite(name), []
    plain = next(f'libero_{each}' for each in MAX_STEPS if f'{name}_'.startswith(f'libero_{each}_'))
    for number in range(suite.n_tasks):
        task = suite.get_task(number)
        file = _path('bddl_files') / task.problem_folder / task.bddl_file
        original = _path('bddl_files') / plain / task.bddl_file
        said = _words_in(file)
        unchanged = original.is_file() and said == _words_in(original)
        found.append(LiberoTask(number, task.language if unchanged else said, file))
    return tuple(found)


def initial_states(name: str, number: int) -> Any:
    """The states, a row each, that the episodes of a task begin from."""
    return _suite(name).get_task_init_states(number)


def _words_in(file: Path) -> str:
    from libero.libero.envs.bddl_utils import get_problem_info

    return str(get_problem_info(str(file))['language_instruction'])


@cache
def _suite(name: str) -> Any:
    return _benchmarks()[name]()


def _benchmarks() -> dict[str, Any]:
    from libero.libero import benchmark

    return dict(benchmark.get_benchmark_dict())


def _path(kind: str) -> Path:
    from libero.libero import get_libero_path

    return Path(get_libero_path(kind))
