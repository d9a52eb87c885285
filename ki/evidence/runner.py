"""Runs the matrix: trains each recipe and seed, judges it at every point, and writes its cells.

What is done is not done again: training goes on from its checkpoint, an evaluation from its last episode, and a cell
that is there stays. So the same command goes on after a stop, on as many cores as it finds, over Ray, or on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ki.evidence.cells import START, EvidenceCell, PlayedEpisode, episodes_of, load_cell, load_cells
from ki.evidence.matrix import EvidenceError, MatrixPlan, load_plan
from ki.simulation.sim_evaluation import EvaluationCell, Plays, camera_size, evaluate_cells
from ki.simulation.simulated_data import load_triton_before_mesa
from ki_common.errors import KiError
from ki_common.files import read_json, write_text
from ki_common.parallel import run_all

Tell = Callable[[str], None]
Job = dict[str, Any]
DONE = 'done'
TIMES = 'train_s.json'


def jobs_of(plan: MatrixPlan, matrix: Path, out: Path) -> list[Job]:
    """What is left to do, in the order of the matrix: seed by seed, so that every recipe has a first cell soon."""
    found: list[Job] = [{'recipe': START, 'seed': 0}] if not _has(plan, START, 0, 0) and plan.matrix.questions else []
    for seed in plan.matrix.seeds:
        for recipe in plan.matrix.recipes:
            if not all(_has(plan, recipe, seed, samples) for samples in plan.matrix.samples):
                found.append({'recipe': recipe, 'seed': seed})
    return [{**job, 'matrix': str(matrix), 'out': str(out)} for job in found]


def run(matrix: Path, out: Path, workers: int, ray: str = '', tell: Tell = print) -> list[EvidenceCell]:
    """Makes every cell that is missing.

    Args:
        matrix: YAML, with `cells/` beside it.
        out: Folder of the runs; may be removed when all cells are there.
        workers: Processes, a job each.
        ray: Address of a Ray cluster, as `ki_common.parallel.run_all` takes it; empty: processes here.
        tell: Told of every job that ends.

    Raises:
        EvidenceError: the matrix, or data that its run makes first.
        KeyboardInterrupt: Ctrl-C, or SIGTERM while it trains; what trained has written its checkpoint.
    """
    plan = load_plan(matrix)
    jobs = jobs_of(plan, matrix.resolve(), out.resolve())
    for number, result in run_all(work, jobs, workers, ray):
        job = jobs[number]
        said = f'{type(result).__name__}: {result}' if isinstance(result, Exception) else result
        tell(f'{job["recipe"]}, seed {job["seed"]}: {said}')
    return load_cells(plan.folder / 'cells', plan.digest)


def work(job: Job) -> str:
    """One recipe and seed, in a process of its own: what is said of it."""
    import torch

    load_triton_before_mesa()
    torch.set_num_threads(1)
    plan = load_plan(Path(job['matrix']))
    if job['recipe'] == START:
        _judge_start(plan)
        return DONE
    try:
        return _train_and_judge(plan, job['recipe'], job['seed'], Path(job['out']))
    except KiError as error:  # of this recipe: its cells say so, and the others go on
        for samples in plan.matrix.samples:
            if not _has(plan, job['recipe'], job['seed'], samples):
                EvidenceCell(job['recipe'], job['seed'], samples, plan.digest, error=str(error)).save(
                    plan.folder / 'cells'
                )
        return f'not played: {error}'


def _has(plan: MatrixPlan, recipe: str, seed: int, samples: int) -> bool:
    """Whether a cell of this plan is there; one with an error is tried again."""
    path = plan.folder / 'cells' / f'{EvidenceCell(recipe, seed, samples, "").name}.json'
    if not path.exists():
        return False
    found = load_cell(path)
    return found.plan == plan.digest and not found.error


def _train_and_judge(plan: MatrixPlan, recipe: str, seed: int, out: Path) -> str:
    from training.train.run import train

    folder = out / f'{recipe}-{seed}'
    wanted = plan.run_of(recipe, seed, folder)
    began = time.monotonic()
    bundle = train(wanted)
    spent = _add_time(folder, time.monotonic() - began)
    if bundle is None:  # asked to stop, and so are the jobs that wait
        raise KeyboardInterrupt
    last = plan.matrix.samples[-1]
    for samples in plan.matrix.samples:
        if _has(plan, recipe, seed, samples):
            continue
        point = folder / 'points' / str(samples)
        ship_at(bundle, plan.steps_at(samples), point)
        cell = EvidenceCell(recipe, seed, samples, plan.digest, train_s=round(spent * samples / last, 1))
        _judged(plan, cell, point, folder / 'played' / str(samples)).save(plan.folder / 'cells')
    return DONE


def _add_time(folder: Path, spent_s: float) -> float:
    """Wall time of the training so far, over all calls."""
    path = folder / TIMES
    before = read_json(path, EvidenceError, 'remove it')['train_s'] if path.exists() else 0.0
    write_text(path, f'{{"train_s": {before + spent_s:.1f}}}\n')
    return float(before) + spent_s


def ship_at(bundle: Path, step: int, place: Path) -> None:
    """The policy of a finished run as it was at a step, as a bundle; one that is there stays."""
    from ki_vla.policy.bundle import load_bundle
    from training.train.config import Run
    from training.train.ship import Shipment

    if (place / 'manifest.json').is_file():
        return
    there = load_bundle(bundle)
    about = {key: value for key, value in there.provenance.items() if key not in ('steps', 'trained', 'run')}
    trained = Run.parse(there.provenance['run'])
    Shipment(trained, trained.stages[-1], there.processor, about, step=step).write(place)


def _judged(plan: MatrixPlan, cell: EvidenceCell, bundle: Path, out: Path) -> EvidenceCell:
    """The cell with its episodes, and at the last point with held-out objects and questions."""
    matrix, final = plan.matrix, cell.samples == plan.matrix.samples[-1]
    played = list(_played(plan, bundle, out, matrix.scenes if final else matrix.curve_scenes, True, 'train'))
    heldout = list(_played(plan, bundle, out, matrix.heldout_scenes if final else 0, False, 'heldout'))
    questions = _questions(plan, bundle) if final else {}
    return replace(cell, episodes=tuple(played), heldout=tuple(heldout), questions=questions)


def _played(plan: MatrixPlan, bundle: Path, out: Path, count: int, paired: bool, split: str) -> Iterator[PlayedEpisode]:
    matrix = plan.matrix
    size = matrix.image_size or camera_size(bundle)
    for task in matrix.task_names:
        scenes = matrix.scenes_of(task, count)
        if not scenes:
            continue
        plays = Plays(bundle, len(scenes), scenes.start, paired, split, 'torch', 0, size)
        way = EvaluationCell(task, 'latest', matrix.execute_steps, matrix.delay_steps)
        for _, report in evaluate_cells(plays, [way], out):
            yield from episodes_of(task, report.outcomes)


def _questions(plan: MatrixPlan, bundle: Path) -> dict[str, Any]:
    """Held-out questions of the kinds that the run teaches; none where it names no files of them."""
    from training.evaluate.held_out import HeldOutSettings, evaluate, open_policy
    from training.samples.vlm_data import VlmDataset

    held, taught = plan.base.data.vlm_held, plan.base.stages[0].kinds
    if not held or not plan.matrix.questions:
        return {}
    words = VlmDataset(held).only(taught) if taught else VlmDataset(held)
    report = evaluate(open_policy(bundle), None, words, HeldOutSettings(questions=plan.matrix.questions))
    found: dict[str, Any] = report['questions']
    return {key: found[key] for key in ('accuracy', 'asked', 'kinds')}


def _judge_start(plan: MatrixPlan) -> None:
    """What the bundle that all start from answers: the knowledge before any action."""
    start = plan.base.start
    questions = _questions(plan, Path(start)) if start is not None else {}
    EvidenceCell(START, 0, 0, plan.digest, questions=questions).save(plan.folder / 'cells')
