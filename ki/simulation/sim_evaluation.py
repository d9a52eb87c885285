"""Evaluation of a bundle in the simulator, cell by cell: a task, and how its chunks are carried out.

A cell is a JSON file that is written after each episode; a second call plays what is missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ki_sim.evaluate.closed_loop import EvaluationReport, SceneOutcome
    from ki_vla.policy.serving import Decode

TOGETHER = 'all of them'
DEFAULT_SIZE = 96  # rows and columns of a camera


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
        run = load_bundle(folder, verify=False).provenance.get('run') or {}
        wanted = (run.get('simulate') or {}).get('tasks')
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
    tell: Callable[[EvaluationCell, SceneOutcome], None] | None = None,
) -> Iterator[tuple[EvaluationCell, EvaluationReport]]:
    """Plays cells one after the other; each is given when all of its episodes have been played.

    Args:
        plays: Which episodes.
        cells: From `cells_of`.
        out: Folder of their files, see `file_of`.
        films: A GIF of every failure.
        tell: Told of each episode, also of those that had been played before.

    Raises:
        KiError: the bundle cannot be opened, or a cell does not fit it.
    """
    from ki.simulation.sim_policy import open_sim_policy
    from ki_sim.evaluate.closed_loop import EvaluationSettings, evaluate, load_report

    settings = EvaluationSettings(plays.image_size, plays.split)
    scenes = range(plays.first_seed, plays.first_seed + plays.seeds)
    for _, alike in itertools.groupby(cells, key=lambda cell: (cell.mode, cell.execute_steps, cell.delay_steps)):
        group = list(alike)
        way = group[0]
        timing = (way.mode, way.execute_steps, way.delay_steps)
        policy = open_sim_policy(plays.bundle, plays.backend, plays.seed, *timing, decode=plays.decode)
        try:
            for cell in group:
                path = out / file_of(cell, cells, plays.split)
                about: dict[str, Any] = {
                    **asdict(settings),
                    'policy': policy.policy_id,
                    'backend': plays.backend,
                    'seed': plays.seed,
                    'paired': plays.paired,
                    'mode': policy.timing.mode,
                    'execute_steps': policy.timing.execute_steps,
                    'delay_steps': told_delay(cell.delay_steps),
                    **({'decode': plays.decode} if plays.decode else {}),
                }
                report = load_report(path, cell.task, about)
                report.outcomes = [each for each in report.outcomes if each.seed in scenes]
                if tell is not None:
                    for known in report.outcomes:
                        tell(cell, known)
                played = partial(_played, report, path, None if tell is None else partial(tell, cell))
                videos = out / 'films' if films else None
                evaluate(policy, cell.task, scenes, settings, videos, played, plays.paired, report)
                report.save(path)
                yield cell, report
        finally:
            policy.close()


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
