"""Evaluate a trained bundle: on recordings, and in closed loop in the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from ki.support.options import RayAddress
from ki.support.progress import progress

if TYPE_CHECKING:
    from ki.simulation.sim_evaluation import EvaluationCell, Plays
    from ki_sim.evaluate.closed_loop import EvaluationReport

app = typer.Typer(help='Evaluate a trained bundle: on recordings, and in closed loop in the simulator.')


@app.callback()
def evaluate() -> None:
    """Evaluate a trained bundle."""


@app.command()
def data(
    policy: Annotated[Path, typer.Argument(help='A run of `ki train`, or a bundle.')],
    recordings: Annotated[Path | None, typer.Argument(help='Recordings or their index (bags, or arrays).')] = None,
    words: Annotated[
        list[Path] | None,
        typer.Option(help='Questions about pictures (JSONL, tar); repeat. Else those its run held out.'),
    ] = None,
    every: Annotated[bool, typer.Option('--all', help='All episodes, also those it was trained on.')] = False,
    samples: Annotated[int, typer.Option(min=1, help='Steps of episodes that are looked at.')] = 128,
    questions: Annotated[int, typer.Option(help='Questions that are asked.')] = 400,
    seed: Annotated[int, typer.Option(help='Of the noise.')] = 0,
    device: Annotated[str, typer.Option(help='cpu, cuda or auto.')] = 'cpu',
    out: Annotated[Path, typer.Option(help='Folder for data.json and data.png.')] = Path('out/eval'),
) -> None:
    """Losses, token accuracy, errors of actions by step and column, use of language, answers to questions."""
    from ki.support.eval_data import run, show
    from training.evaluate.held_out import HeldOutSettings

    settings = HeldOutSettings(samples=samples, questions=questions, seed=seed, device=device)
    show(run(policy, recordings, words or [], every, settings, out), out)


@app.command()
def libero(
    bundle: Annotated[Path, typer.Option(help='Folder of the policy bundle.')],
    suite: Annotated[str, typer.Option(help='spatial, object, goal, 10 or 90.')],
    perturb: Annotated[str, typer.Option(help='A perturbation of LIBERO-PRO, such as lan, object, swap or task.')] = '',
    task: Annotated[list[int] | None, typer.Option(min=0, help='Number of a task; repeat. Else all.')] = None,
    episodes: Annotated[int, typer.Option(min=1, max=50, help='Of each task.')] = 50,
    execute_steps: Annotated[int, typer.Option(min=1, help='Steps of a chunk before the next is asked for.')] = 10,
    workers: Annotated[int, typer.Option(min=1, help='Scenes at the same time.')] = 2,
    films: Annotated[bool, typer.Option(help='An MP4 of every episode.')] = True,
    backend: Annotated[str, typer.Option(help='auto, torch, onnx or tensorrt.')] = 'auto',
    seed: Annotated[int, typer.Option(help="Of the scenes; openpi's client has 7.")] = 7,
    out: Annotated[Path, typer.Option(help='Folder for the results; gone on with where it was cut off.')] = Path(
        'out/libero'
    ),
) -> None:
    """Success on the LIBERO benchmark, played as openpi's client plays it, with 95 % intervals.

    Needs the extra `libero`. Two pictures turned by 180 degrees, eight numbers of state, seven of action.
    """
    from ki.simulation.libero_policy import evaluate_bundle

    report = evaluate_bundle(
        bundle, suite, perturb, task or [], episodes, execute_steps, workers, films, backend, seed, out
    )  # fmt: skip
    for each in report['tasks']:
        print(f'{_shown(each["success"]):<28} {each["task"]:>2} {each["instruction"]}')
    print(f'{_shown(report["success"]):<28} all of {suite}{" " + perturb if perturb else ""}')


@app.command()
def sim(
    bundle: Annotated[
        Path | None, typer.Argument(help='Folder of the policy bundle, or of a run of `ki train`.')
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help='Task; several times for several; `suite`, `all`; else those that it was trained on.'),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help='Scenes of each task.')] = 50,
    first_seed: Annotated[int, typer.Option(help='First scene; no recording uses seeds this high.')] = 1_000_000,
    paired: Annotated[bool, typer.Option(help='Every scene with two instructions: language following.')] = False,
    heldout: Annotated[bool, typer.Option(help='Ask for objects that no action data shows.')] = False,
    execute_steps: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="Steps of a chunk after which the next is planned; several times for several; else the bundle's.",
        ),
    ] = None,
    delay_steps: Annotated[
        list[int] | None,
        typer.Option(min=0, help='Steps that an inference is thought to take; several times for several; else 0.'),
    ] = None,
    image_size: Annotated[
        int, typer.Option(min=0, help='Rows and columns of the cameras; 0: as many as the view of the policy needs.')
    ] = 0,
    backend: Annotated[
        str, typer.Option(help='auto, torch, onnx or tensorrt; through the node commissioning.')
    ] = 'auto',
    seed: Annotated[int, typer.Option(help='Of the noise.')] = 0,
    out: Annotated[
        Path,
        typer.Option(help='Folder for a JSON a task and way, and films of failures; what is there is gone on with.'),
    ] = Path('out/eval'),
    films: Annotated[bool, typer.Option(help='A GIF of every failure; not through the node.')] = True,
    through_node: Annotated[bool, typer.Option(help='Simulator, policy node and executor as processes.')] = False,
    plan: Annotated[bool, typer.Option(help="Through the node, the expert's rehearsed plan as the policy.")] = False,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="How chunks follow each other; several times for several; else auto, the bundle's own."),
    ] = None,
    speed: Annotated[float, typer.Option(help='Through the node: real-time factor; beyond 1 on /clock.')] = 1.0,
    decode: Annotated[
        str, typer.Option(help='Where actions come from: actions of the head, or tokens; else as the bundle says.')
    ] = '',
    denoise_steps: Annotated[
        int, typer.Option(min=0, help='Euler steps from noise to actions; 0: as many as the bundle says.')
    ] = 0,
    measured_delay: Annotated[
        bool, typer.Option('--measured-delay', help='An inference takes as long as it takes here.')
    ] = False,
    every: Annotated[
        int, typer.Option(min=0, help='Of a run: its checkpoints at multiples of so many steps, as a curve.')
    ] = 0,
    stage: Annotated[list[str] | None, typer.Option(help='Of a run: the last checkpoint of this stage.')] = None,
    workers: Annotated[
        int, typer.Option(min=0, help='Processes that share the scenes, one core each; 0: one per core.')
    ] = 1,
    ray: RayAddress = '',
) -> None:
    """Success, language following and time over many scenes, each rate with its 95 % interval.

    In this process time stands still while the policy thinks (see --delay-steps). With --through-node the whole stack
    runs on its own clock, as on a robot. A second call goes on where the first one stopped.
    """
    from ki.simulation.sim_evaluation import Plays, camera_size, cells_of, run_bundle, trained_tasks
    from ki.simulation.sim_policy import MEASURED
    from ki.stack.sim_stack import Stack, evaluate_live
    from ki_common.errors import KiError
    from ki_sim.tasks.tasks import task_names
    from ki_vla.policy.serving import Decode

    split = 'heldout' if heldout else 'train'
    if bundle is None and not (through_node and (plan or backend == 'commissioning')):
        raise KiError('BUNDLE is missing: give the folder of a policy bundle.')
    if decode not in ('', *get_args(Decode)):
        raise KiError(f'--decode is {decode}; write actions or tokens, or leave it out.')
    if measured_delay and delay_steps:
        raise KiError('--measured-delay and --delay-steps are both given; give one of the two.')
    if bundle is not None and not (every or stage):
        bundle = run_bundle(bundle)
    image_size = image_size or camera_size(bundle)
    names = task_names(task or trained_tasks(bundle))
    modes, steps, delays = mode or ['auto'], execute_steps or [0], delay_steps or [MEASURED if measured_delay else 0]
    how = PlayOptions(films, workers, ray)
    if through_node:
        if workers != 1 or ray:
            raise KiError('--through-node plays on one machine, by its clock: leave --workers and --ray out.')
        if len(modes) > 1 or len(steps) > 1 or delay_steps or denoise_steps:
            raise KiError(
                '--through-node has a clock and one way: give one --mode, one --execute-steps, no --delay-steps and no '
                '--denoise-steps.'
            )
        stack = Stack(bundle, backend, plan, modes[0], steps[0], speed, image_size, seed)
        scenes = range(first_seed, first_seed + seeds)
        for report in evaluate_live(stack, names, scenes, split, paired, out):
            print(_row(report.summary()))
        return
    assert bundle is not None
    plays = Plays(
        bundle, seeds, first_seed, paired, split, backend, seed, image_size, cast(Decode, decode), denoise_steps
    )
    cells = cells_of(names, modes, steps, delays)
    if every or stage:
        _curve(plays, cells, out, every, stage or [], replace(how, films=False))
        return
    _play(plays, cells, out, how)


@dataclass(frozen=True)
class PlayOptions:
    """Whether failures are filmed, and who plays: processes here, or a Ray cluster."""

    films: bool
    workers: int
    ray: str


def _curve(
    plays: Plays, cells: Sequence[EvaluationCell], out: Path, every: int, stages: Sequence[str], how: PlayOptions
) -> None:
    """Plays the cells with each checkpoint of a run, and writes OUT/curve.json: success by samples of training."""
    import json

    from ki_common.files import write_text
    from training.train.ship import bundles_of

    rows: list[dict[str, Any]] = []
    for moment in bundles_of(plays.bundle, every, stages):
        print(f'{moment.stage}, step {moment.step}, {moment.samples} samples')
        folder = out / f'{moment.stage}-{moment.step:08d}'
        for report in _play(replace(plays, bundle=moment.bundle), cells, folder, how):
            about = {'stage': moment.stage, 'step': moment.step, 'samples': moment.samples}
            rows.append(about | {'settings': report.settings, **report.summary()})
            write_text(out / 'curve.json', json.dumps(rows, indent=1) + '\n')
    print(f'{out / "curve.json"}: {len(rows)} rows')


def _play(plays: Plays, cells: Sequence[EvaluationCell], out: Path, how: PlayOptions) -> list[EvaluationReport]:
    """Plays the cells with a bar, and prints a line for each, and for each way one for its tasks together."""
    from ki.simulation.sim_evaluation import evaluate_cells, together, told_delay

    ways = {cell: (cell.mode, cell.execute_steps, cell.delay_steps) for cell in cells}
    played: dict[tuple[str, int, int], list[EvaluationReport]] = {}
    with progress('episodes', plays.episodes * len(cells)) as line:
        played_cells = evaluate_cells(plays, cells, out, how.films, lambda *_: line.advance(), how.workers, how.ray)
        for cell, report in played_cells:
            group = played.setdefault(ways[cell], [])
            group.append(report)
            way = ''
            if len(set(ways.values())) > 1:
                timing = report.settings
                way = f'{timing["mode"]}, {timing["execute_steps"]} steps, delay {told_delay(cell.delay_steps)}'
            print(_row(report.summary(), way))
            if len(group) > 1 and len(group) == sum(each == ways[cell] for each in ways.values()):
                print(_row(together(group), way))
    return [report for group in played.values() for report in group]


def _shown(rate: dict[str, Any]) -> str:
    if not rate['n']:
        return 'none'
    return f'{rate["k"]}/{rate["n"]} = {rate["rate"]:.0%} [{rate["low"]:.0%}, {rate["high"]:.0%}]'


def _row(summary: dict[str, Any], way: str = '') -> str:
    line = f'{summary["task"]:<11} {way:<30}' if way else f'{summary["task"]:<11}'
    line += f' success {_shown(summary["success"])}   words followed {_shown(summary["followed"])}'
    if summary['errors']:
        line += f'   {summary["errors"]} ended with an error (see the JSON)'
    pairs = summary['pairs_followed']
    return f'{line}   both instructions of a scene {_shown(pairs)}' if pairs['n'] else line
