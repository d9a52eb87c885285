"""The paper's comparisons: run what is missing of them, and show what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ki.support.options import RayAddress
from ki.support.progress import progress

app = typer.Typer(help="The paper's comparisons: run what is missing of them, and show what came out.")

MatrixFile = Annotated[Path, typer.Option(help='The matrix; its cells lie beside it.')]
PageFile = Annotated[Path, typer.Option(help='The page that is written from the cells.')]
MATRIX, PAGE = Path('benchmarks/evidence/matrix.yaml'), Path('docs/evidence.md')


@app.callback()
def evidence() -> None:
    """The paper's comparisons."""


@app.command()
def run(
    matrix: MatrixFile = MATRIX,
    out: Annotated[Path, typer.Option(help='Folder of the runs.')] = Path('out/evidence'),
    page: PageFile = PAGE,
    workers: Annotated[int, typer.Option(min=0, help='Jobs at a time; 0: one per core, or one on a GPU.')] = 0,
    ray: RayAddress = '',
) -> None:
    """Train and judge every recipe and seed that has no cell yet, and write the page.

    Ctrl-C saves what trains; the same command goes on.
    """
    import os

    from ki.commands.train import simulate
    from ki.evidence import page as pages
    from ki.evidence.matrix import load_plan
    from ki.evidence.runner import run as work

    plan = load_plan(matrix)
    if plan.base.simulate is not None:
        simulate(plan.base)
    # One thread each: jobs fill the cores.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    try:
        cells = work(matrix, out, workers or _jobs_at_a_time(), ray)
    except KeyboardInterrupt:
        print(f'Stopped; what trained is saved in {out}, and the same command goes on.')
        raise typer.Exit(130) from None
    pages.write_page(matrix, page)
    print(f'{len(cells)} cells in {plan.folder / "cells"}; {page}: written')


@app.command()
def show(matrix: MatrixFile = MATRIX, page: PageFile = PAGE) -> None:
    """Write the page from the cells that are there, and print it."""
    from ki.evidence.page import write_page

    print(write_page(matrix, page))


@app.command()
def modes(
    bundle: Annotated[Path, typer.Argument(help='A policy.')],
    rtc: Annotated[Path | None, typer.Option(help='The same, trained with delays: for the mode rtc.')] = None,
    task: Annotated[
        list[str] | None, typer.Option(help='Task; several times for several; else those that it was trained on.')
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help='Scenes of each task.')] = 10,
    delay_steps: Annotated[list[int] | None, typer.Option(min=0, help='Delays; else 0, 2, 4 and 8 steps.')] = None,
    execute_steps: Annotated[int, typer.Option(min=1, help='Steps of a chunk that are carried out.')] = 8,
    matrix: MatrixFile = MATRIX,
    out: Annotated[Path, typer.Option(help='Folder of the episodes; gone on with.')] = Path('out/modes'),
    page: PageFile = PAGE,
) -> None:
    """Success, seam and time of every way in which chunks may follow each other, against the delay of an inference."""
    from ki.evidence.modes import DELAYS, MODES, TRAINED_MODES, measure, save
    from ki.evidence.page import write_page
    from ki.simulation.sim_evaluation import Plays, camera_size, trained_tasks
    from ki_sim.tasks.tasks import task_names

    names, delays = task_names(task or trained_tasks(bundle)), delay_steps or list(DELAYS)
    count = seeds * len(names) * len(delays) * (len(MODES) + (len(TRAINED_MODES) if rtc is not None else 0))
    plays = Plays(bundle, seeds, backend='torch', image_size=camera_size(bundle))
    with progress('episodes', count) as line:
        rows = measure(plays, rtc, names, delays, execute_steps, out, line.advance)
    path = save(rows, matrix.parent)
    write_page(matrix, page)
    for row in rows:
        rate = row['success']
        who = f'{row["policy"].partition("@")[0]:<12} {row["mode"]:<18}'
        print(f'{who} delay {row["delay_steps"]}  {rate["k"]}/{rate["n"]}  seam {row["seam"]:.2f}')
    print(f'{path}, {page}: written')


def _jobs_at_a_time() -> int:
    import os

    import torch

    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
