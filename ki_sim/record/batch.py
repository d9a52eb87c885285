"""Many episodes over several processes, resumable; each file is complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ki_common.parallel import results_of
from ki_sim.errors import SimError
from ki_sim.record.job import RecordingJob, RecordingResult
from ki_sim.tasks.tasks import TASKS

FORMATS = ('bag', 'npz')


def jobs(
    tasks: Sequence[str],
    episodes: int,
    out: str | Path,
    first_seed: int = 0,
    format: str = 'bag',
    split: str = 'train',
    image_size: int = 96,
    quality: int = 92,
    keep_failures: bool = False,
) -> list[RecordingJob]:
    """The jobs of a recording: `episodes` seeds of every task, from `first_seed` on."""
    from ki_sim.world.render import check_size

    for task in tasks:
        if task not in TASKS:
            raise SimError(f"task '{task}' is not known: use one of {', '.join(TASKS)}")
    if format not in FORMATS:
        raise SimError(f"format '{format}' is not known: use bag or npz")
    if split == 'heldout' and not keep_failures:
        # Held-out pairs must not slip into training data by a wrong option.
        raise SimError('split heldout is for evaluation, not for action data: record split train')
    if episodes < 1:
        raise SimError(f'{episodes} episodes were asked for: ask for at least 1')
    check_size(image_size, image_size)
    if not 1 <= quality <= 100:
        raise SimError(f'quality {quality} is not one of JPEG: use 1 to 100')
    suffix = '' if format == 'bag' else '.npz'
    pairs = [(task, seed) for task in tasks for seed in range(first_seed, first_seed + episodes)]
    return [
        RecordingJob(
            task,
            seed,
            i,
            split,
            image_size,
            quality,
            str(Path(out) / f'{task}-{seed:06d}{suffix}'),
            format,
            keep_failures,
        )
        for i, (task, seed) in enumerate(pairs)
    ]


def record(
    work: Sequence[RecordingJob], workers: int = 0, progress: Callable[[RecordingResult], None] | None = None
) -> list[RecordingResult]:
    """Do all jobs; those whose file is there already are skipped. `workers` 0 means one per core, 1 this process.

    Raises:
        SimError: what is there has other pictures than what is asked for; see `existing_recordings.check`.
    """
    from ki_sim.record.existing_recordings import check

    check(work)
    results = []
    for result in results_of(record_one, work, workers):
        results.append(result)
        if progress is not None:
            progress(result)
    return results


def record_one(job: RecordingJob) -> RecordingResult:
    """Record one episode into its file."""
    from ki_sim.record.record import record_episode, save

    path = Path(job.path)
    if path.exists():
        return RecordingResult(job.task, job.seed, 'present')
    # The subtasks of bags are those that a robot says on a topic; only arrays, made for training, point at objects.
    recording = record_episode(
        job.task, job.seed, None, job.split, job.image_size, job.quality, _arms(), boxes=job.format == 'npz'
    )
    if not recording.success and not job.keep_failures:
        return RecordingResult(job.task, job.seed, 'failed', len(recording.frames))
    path.parent.mkdir(parents=True, exist_ok=True)
    if job.format == 'npz':
        save(recording, path)
    else:
        from ki_bags.reader import PARTIAL
        from ki_sim.record.sim_bags import write_bag

        leftover = path.with_name(path.name + PARTIAL)  # of a run that was stopped in the middle of this episode
        if leftover.is_dir():
            shutil.rmtree(leftover)
        write_bag(recording, path, job.index)
    return RecordingResult(job.task, job.seed, 'written', len(recording.frames))


_cache: list[Any] = []


def _arms() -> Any:
    """This process's kinematics, made once."""
    if not _cache:
        from ki_sim.world.kinematics import Arms

        _cache.append(Arms())
    return _cache[0]
