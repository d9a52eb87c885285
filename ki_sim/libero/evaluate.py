"""Many episodes of LIBERO in several processes: kept as they end, gone on with after an interruption, counted."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from ki_common.files import write_text
from ki_sim.errors import SimError
from ki_sim.evaluate.closed_loop import rate
from ki_sim.libero.rollout import Act, LiberoEpisode, RolloutSettings, work
from ki_sim.libero.suites import LiberoTask

SETTINGS, EPISODES_FILE, REPORT = 'settings.json', 'episodes.jsonl', 'report.json'
Job = tuple[LiberoTask, int]


@dataclass
class LiberoReport:
    """Outcomes and their rates, each with a 95 % Wilson interval."""

    settings: dict[str, Any]
    episodes: list[LiberoEpisode] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Success over all episodes and by task."""
        tasks: dict[int, list[LiberoEpisode]] = {}
        for each in self.episodes:
            tasks.setdefault(each.task, []).append(each)
        by_task = [
            {'task': number, 'instruction': done[0].instruction, **_success(done)}
            for number, done in sorted(tasks.items())
        ]
        return {'episodes': len(self.episodes), **_success(self.episodes), 'tasks': by_task}


def evaluate_libero(
    act: Act,
    jobs: Sequence[Job],
    settings: RolloutSettings,
    out: Path,
    about: dict[str, Any],
    workers: int = 1,
    on_done: Callable[[LiberoEpisode], object] = lambda _: None,
) -> LiberoReport:
    """Plays episodes, several at a time; the policy is asked in this process, one question after the other.

    Args:
        act: The policy.
        jobs: Tasks and which of their initial states.
        settings: How episodes are played.
        out: Folder of the results. What is there of the same evaluation is not played again.
        about: What makes this evaluation another one than that of `out`: policy, suite, steps.
        workers: Processes.
        on_done: Told of every episode that has ended.

    Raises:
        SimError: `out` holds another evaluation, or a worker failed.
    """
    report = LiberoReport(about, _begun(out, about))
    known = {(each.task, each.episode) for each in report.episodes}
    left = [job for job in jobs if (job[0].number, job[1]) not in known]
    with (out / EPISODES_FILE).open('a', encoding='utf-8') as file:
        for each in _played(act, left, settings, min(workers, len(left))):
            file.write(json.dumps(each.to_dict()) + '\n')
            file.flush()
            report.episodes.append(each)
            on_done(each)
    report.episodes.sort(key=lambda each: (each.task, each.episode))
    write_text(out / REPORT, json.dumps({'settings': about, 'summary': report.summary()}, indent=1) + '\n')
    return report


def _played(act: Act, jobs: Sequence[Job], settings: RolloutSettings, workers: int) -> Iterator[LiberoEpisode]:
    """Outcomes as they come; tasks are dealt out whole where there are enough of them."""
    waiting = sorted(jobs, key=lambda job: (job[0].number, job[1]))
    pipes: dict[Connection, SpawnProcess] = {}
    context = multiprocessing.get_context('spawn')
    try:
        for place in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, settings), name=f'libero-{place}', daemon=True)
            process.start()
            theirs.close()
            pipes[ours] = process
        tasks = {pipe: _next_job(pipe, waiting, None) for pipe in pipes}
        while any(job is not None for job in tasks.values()):
            for ready in wait([pipe for pipe, job in tasks.items() if job is not None]):
                assert isinstance(ready, Connection)
                job = tasks[ready]
                assert job is not None
                where = f'task {job[0].number}, episode {job[1]}'
                try:
                    kind, said = ready.recv()
                except EOFError as error:
                    raise SimError(
                        f'the process that played {where} ended without a word; is memory used up?'
                    ) from error
                if kind == 'ask':
                    ready.send(act(said))
                elif kind == 'failed':
                    raise SimError(f'{where} cannot be played: {said}')
                else:
                    yield said
                    tasks[ready] = _next_job(ready, waiting, job)
    finally:
        for pipe, process in pipes.items():
            pipe.close()
            process.join(5)
            if process.is_alive():
                process.terminate()
                process.join()


def _next_job(pipe: Connection, waiting: list[Job], last: Job | None) -> Job | None:
    """Sends a worker its next job: of the task whose scene it has, else of the one with most left to play."""
    if not waiting:
        return None
    same = [job for job in waiting if last is not None and job[0].number == last[0].number]
    counts: dict[int, int] = {}
    for task, _ in waiting:
        counts[task.number] = counts.get(task.number, 0) + 1
    most = max(counts, key=lambda number: counts[number])
    job = same[0] if same else next(job for job in waiting if job[0].number == most)
    waiting.remove(job)
    pipe.send(job)
    return job


def _begun(out: Path, about: dict[str, Any]) -> list[LiberoEpisode]:
    """Outcomes that are there already."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS
    if not path.is_file():
        write_text(path, json.dumps(about, indent=1, sort_keys=True) + '\n')
        return []
    there = json.loads(path.read_text(encoding='utf-8'))
    for name in sorted(set(there) | set(about)):
        if there.get(name) != about.get(name):
            raise SimError(
                f'{out}: holds an evaluation with {name} {there.get(name)!r}, and this one has {about.get(name)!r}; '
                'choose another folder with --out.'
            )
    lines = (out / EPISODES_FILE).read_text(encoding='utf-8').splitlines() if (out / EPISODES_FILE).is_file() else []
    return [LiberoEpisode(**json.loads(line)) for line in lines if line.endswith('}')]


def _success(episodes: Sequence[LiberoEpisode]) -> dict[str, Any]:
    return {'success': rate(sum(each.success for each in episodes), len(episodes))}
