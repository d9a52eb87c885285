"""Evaluation of a bundle in the simulator, cell by cell: a task, and how its chunks are carried out.

A cell is a JSON file that is written after each episode; a second call plays what is missing.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ki_common.parallel import run_all

if TYPE_CHECKING:
    from ki.simulation.sim_policy import ClosedLoopPolicy
    from ki_sim.evaluate.closed_loop import EvaluationReport, EvaluationSettings, SceneOutcome
    from ki_vla.policy.serving import Decode

Tell = Callable[['EvaluationCell', 'SceneOutcome'], None]
TOGETHER = 'all of them'
DEFAULT_SIZE = 96  # rows and columns of a camera
SCENES_A_JOB = 4  # that a process plays before they are written


@dataclass(frozen=True)
class EvaluationCell:
    """What is played and how; `execute_steps` 0, `mode` auto: the bundle's own; `delay_steps` may be `MEASURED`."""

    task: str
    mode: str = 'auto'
    execute_steps: int = 0
    delay_steps: int = 0


@dataclass(frozen=True)
class Plays:
    """Which episodes of every cell are played, and with what.

    Attributes:
        bundle: folder of the policy.
        seeds: scenes, from `first_seed` on.
        paired: every scene with two instructions.
        split: whose objects are asked for.
        backend, seed: of the engine, and of its noise.
        image_size: of the cameras.
        decode: where actions come from; '' is what the bundle recommends.
        denoise_steps: from noise to actions; 0 is what the bundle recommends.
    """

    bundle: Path
    seeds: int
    first_seed: int = 1_000_000
    paired: bool = False
    split: str = 'train'
    backend: str = 'auto'
    seed: int = 0
    image_size: int = 96
    decode: Decode | Literal[''] = ''
    denoise_steps: int = 0

    @property
    def scenes(self) -> range:
        """Of every cell."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def settings(self) -> EvaluationSettings:
        """How episodes are played."""
        from ki_sim.evaluate.closed_loop import EvaluationSettings

        return EvaluationSettings(self.image_size, self.split)

    @property
    def episodes(self) -> int:
        """Of one cell."""
        return self.seeds * (2 if self.paired else 1)


def run_bundle(folder: Path) -> Path:
    """The bundle in a folder: itself, or that of a run of `ki train`."""
    return folder if (folder / 'manifest.json').is_file() or not (folder / 'bundle').is_dir() else folder / 'bundle'


def camera_size(folder: Path | None) -> int:
    """Rows and columns of the simulator's cameras that fill the view of a bundle, or of a run, after its crop."""
    from ki_vla.policy.bundle import load_bundle, read_parts

    if folder is None:
        return DEFAULT_SIZE
    if (folder / 'manifest.json').is_file():
        processor = load_bundle(folder, verify=False).processor
    else:  # a run, whose checkpoints are played
        processor, _ = read_parts(folder / 'policy', False)
    view = processor.config.vision.image_size
    shares = [max(camera.crop[2:]) for camera in processor.contract.cameras if camera.crop is not None]
    return max(DEFAULT_SIZE, *(round(view / share) for share in (*shares, 1.0)))


def trained_tasks(folder: Path | None) -> list[str]:
    """The tasks of the simulator that a bundle, or a run, was trained on; `demo` where it says none, and for None."""
    from ki_sim.tasks.tasks import task_names
    from ki_vla.policy.bundle import load_bundle
    from training.train.config import load_run

    wanted: Sequence[str] | None = None
    if folder is not None and (folder / 'manifest.json').is_file():
        run = load_bundle(folder, verify=False).provenance.get('run')  # anything: it is free
        simulated_by = run.get('simulate') if isinstance(run, dict) else None
        wanted = simulated_by.get('tasks') if isinstance(simulated_by, dict) else None
    elif folder is not None and (folder / 'config.yaml').is_file():
        simulated = load_run(folder / 'config.yaml').simulate
        wanted = simulated.tasks if simulated is not None else None
    return task_names(wanted or ['demo'])


def cells_of(
    tasks: Sequence[str], modes: Sequence[str], execute_steps: Sequence[int], delay_steps: Sequence[int]
) -> list[EvaluationCell]:
    """Every task in every way, with those together that open the same policy."""
    ways = itertools.product(modes, execute_steps, delay_steps)
    return [EvaluationCell(task, *way) for way in ways for task in tasks]


def evaluate_cells(
    plays: Plays,
    cells: Sequence[EvaluationCell],
    out: Path,
    films: bool = False,
    tell: Tell | None = None,
    workers: int = 1,
    ray: str = '',
) -> Iterator[tuple[EvaluationCell, EvaluationReport]]:
    """Plays cells one after the other; each is given when all of its episodes have been played.

    Args:
        plays: Which episodes.
        cells: From `cells_of`.
        out: Folder of their files, see `file_of`.
        films: A GIF of every failure.
        tell: Told of each episode, also of those that had been played before.
        workers: Processes that share the scenes of cells; 1 plays in this one, 0: one per core.
        ray: Address of a Ray cluster in place of processes, see `ki_common.parallel.run_all`.

    Raises:
        KiError: the bundle cannot be opened, a cell does not fit it, or no episode of a cell could be played.
    """
    from ki_sim.evaluate.closed_loop import evaluate

    settings, scenes = plays.settings, plays.scenes
    for _, alike in itertools.groupby(cells, key=lambda cell: (cell.mode, cell.execute_steps, cell.delay_steps)):
        group = list(alike)
        policy = _opened(plays, group[0])
        try:
            begun = [
                (cell, out / file_of(cell, cells, plays.split), _begun(plays, cell, cells, out, policy))
                for cell in group
            ]
            for cell, _, report in begun:
                _tell(tell, cell, report.outcomes)
            videos = out / 'films' if films else None
            if workers != 1 or ray:
                policy.close()
                for cell, report in _shared(plays, begun, videos, tell, workers, ray):
                    report.refuse_broken()
                    yield cell, report
                continue
            for cell, path, report in begun:
                played = partial(_played, report, path, None if tell is None else partial(tell, cell))
                evaluate(policy, cell.task, scenes, settings, videos, played, plays.paired, report)
                report.save(path)
                report.refuse_broken()
                yield cell, report
        finally:
            policy.close()


def _tell(tell: Tell | None, cell: EvaluationCell, outcomes: Sequence[SceneOutcome]) -> None:
    if tell is not None:
        for outcome in outcomes:
            tell(cell, outcome)


def _opened(plays: Plays, way: EvaluationCell) -> ClosedLoopPolicy:
    from ki.simulation.sim_policy import open_sim_policy

    timing = (way.mode, way.execute_steps, way.delay_steps)
    return open_sim_policy(
        plays.bundle, plays.backend, plays.seed, *timing, decode=plays.decode, denoise_steps=plays.denoise_steps
    )


def _begun(
    plays: Plays, cell: EvaluationCell, cells: Sequence[EvaluationCell], out: Path, policy: ClosedLoopPolicy
) -> EvaluationReport:
    """What is there of a cell already, if it was played in the same way; what ended with an error is played again."""
    from ki_sim.evaluate.closed_loop import load_report

    about: dict[str, Any] = {
        **asdict(plays.settings),
        'policy': policy.policy_id,
        'backend': plays.backend,
        'seed': plays.seed,
        'paired': plays.paired,
        'mode': policy.timing.mode,
        'execute_steps': policy.timing.execute_steps,
        'delay_steps': told_delay(cell.delay_steps),
        **({'decode': plays.decode} if plays.decode else {}),
        **({'denoise_steps': plays.denoise_steps} if plays.denoise_steps else {}),
    }
    report = load_report(out / file_of(cell, cells, plays.split), cell.task, about)
    report.outcomes = [each for each in report.outcomes if each.seed in plays.scenes and not each.error]
    return report


@dataclass(frozen=True)
class SceneJob:
    """Some scenes of a cell, for another process; what was played of them is `known`."""

    plays: Plays
    cell: EvaluationCell
    scenes: range
    known: tuple[SceneOutcome, ...]
    videos: Path | None


def play_scenes(job: SceneJob) -> list[SceneOutcome]:
    """What came of the episodes that had not been played, in a process of its own."""
    import torch

    from ki.simulation.simulated_data import load_triton_before_mesa
    from ki_sim.evaluate.closed_loop import EvaluationReport, evaluate

    load_triton_before_mesa()
    torch.set_num_threads(1)
    policy = _opened_here(job.plays, replace(job.cell, task=''))
    report = EvaluationReport(job.cell.task, {}, list(job.known))
    evaluate(policy, job.cell.task, job.scenes, job.plays.settings, job.videos, None, job.plays.paired, report)
    return report.outcomes[len(job.known) :]


@lru_cache(maxsize=1)
def _opened_here(plays: Plays, way: EvaluationCell) -> ClosedLoopPolicy:
    """The policy of a process that plays for another, opened once for all of its scenes."""
    return _opened(plays, way)


def _shared(
    plays: Plays,
    begun: Sequence[tuple[EvaluationCell, Path, EvaluationReport]],
    videos: Path | None,
    tell: Tell | None,
    workers: int,
    ray: str,
) -> Iterator[tuple[EvaluationCell, EvaluationReport]]:
    """The cells of one way, their scenes shared out; each is written after some of its scenes."""
    jobs, places = [], []
    for place, (cell, _, report) in enumerate(begun):
        for first in range(plays.scenes.start, plays.scenes.stop, SCENES_A_JOB):
            scenes = range(first, min(first + SCENES_A_JOB, plays.scenes.stop))
            known = tuple(each for each in report.outcomes if each.seed in scenes)
            jobs.append(SceneJob(plays, cell, scenes, known, videos))
            places.append(place)
    left = [places.count(place) for place in range(len(begun))]
    with contextlib.closing(run_all(play_scenes, jobs, workers, ray)) as results:
        for number, result in results:
            if isinstance(result, Exception):
                raise result
            cell, path, report = begun[places[number]]
            report.outcomes += result
            report.outcomes.sort(key=lambda outcome: outcome.seed)  # the two of a pair stay in order
            report.save(path)
            _tell(tell, cell, result)
            left[places[number]] -= 1
            if not left[places[number]]:
                yield cell, report


def _played(
    report: EvaluationReport, path: Path, tell: Callable[[SceneOutcome], None] | None, outcome: SceneOutcome
) -> None:
    report.save(path)
    if tell is not None:
        tell(outcome)


def file_of(cell: EvaluationCell, cells: Sequence[EvaluationCell], split: str = 'train') -> str:
    """Name of a cell's file: its task, and what of its way differs among the cells."""
    name = cell.task if split == 'train' else f'{cell.task}-{split}'
    for field, text in (('mode', ''), ('execute_steps', 'steps'), ('delay_steps', 'delay')):
        if len({getattr(each, field) for each in cells}) > 1:
            value = getattr(cell, field)
            name += f'-{text}{told_delay(value) if text == "delay" else value}'
    return f'{name}.json'


def told_delay(steps: int) -> int | str:
    """Steps of delay for people and files."""
    from ki.simulation.sim_policy import MEASURED

    return 'measured' if steps == MEASURED else steps


def together(reports: Sequence[EvaluationReport]) -> dict[str, Any]:
    """The summary of several tasks as one; a scene is one of a task."""
    from ki_sim.evaluate.closed_loop import EvaluationReport, rate

    summary = EvaluationReport(TOGETHER, {}, [each for report in reports for each in report.outcomes]).summary()
    pairs = [report.summary()['pairs_followed'] for report in reports]
    summary['pairs_followed'] = rate(sum(each['k'] for each in pairs), sum(each['n'] for each in pairs))
    return summary
