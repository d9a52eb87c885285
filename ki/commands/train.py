"""Train a policy from recordings, into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ki.support.progress import progress

if TYPE_CHECKING:
    from training.train.config import Run

app = typer.Typer(help='Train a policy from recordings, into a bundle.')


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help='YAML as in config/train/; or use the options.')] = None,
    bags: Annotated[
        Path | None, typer.Option(help='Folder of recordings, or an index; in place of those of CONFIG.')
    ] = None,
    robot: Annotated[str | None, typer.Option(help='Contract: a name of config/robots, or a YAML file.')] = None,
    preset: Annotated[str | None, typer.Option(help='tiny, mini or full.')] = None,
    recipe: Annotated[str | None, typer.Option(help='Of docs/recipes.md; for every stage.')] = None,
    steps: Annotated[int | None, typer.Option(help='Of every stage.')] = None,
    batch: Annotated[int | None, typer.Option(help='Samples of a step, of every stage.')] = None,
    seed: Annotated[int | None, typer.Option(help='Decides weights, draws and noise.')] = None,
    start: Annotated[Path | None, typer.Option(help='A bundle to start from.')] = None,
    task: Annotated[str, typer.Option(help='Instruction of recordings that carry none.')] = '',
    out: Annotated[Path | None, typer.Option(help='Folder of the run; one that is there is gone on with.')] = None,
    device: Annotated[str | None, typer.Option(help='cpu, cuda or auto.')] = None,
    workers: Annotated[int | None, typer.Option(help='Threads that prepare samples.')] = None,
    processes: Annotated[bool, typer.Option('--processes', help='Processes in place of threads: for a GPU.')] = False,
    data_only: Annotated[bool, typer.Option('--data-only', help='Make the data of `simulate`, and stop.')] = False,
) -> None:
    """Trains every stage and writes OUT/bundle. Ctrl-C or SIGTERM save; the same command goes on.

    Several GPUs or machines: torchrun --nproc-per-node N -m ki.main train CONFIG
    """
    import os

    from training.errors import TrainingError
    from training.train.config import Run, load_run

    if task and bags is None:
        raise TrainingError('--task: it is the instruction of recordings named with --bags; else write data.task.')
    given: dict[str, Any] = {'robot': robot, 'preset': preset, 'seed': seed, 'device': device, 'workers': workers}
    given |= {'start': start and str(start), 'out': out and str(out)}
    changes = {name: value for name, value in given.items() if value is not None}
    if processes:
        changes['loader_processes'] = True
    if config is not None:
        run = load_run(config, **changes)
        if bags is not None:  # all else that the configuration says of data still holds
            run = run.replace(data=run.data.replace(bags=str(bags), arrays=None, task=task or run.data.task))
    elif bags is not None:
        run = Run.parse(changes | {'data': {'bags': str(bags), 'task': task}})
    else:
        raise TrainingError('name a configuration (config/train/*.yaml), or recordings with --bags.')
    run = _with_stages(run, {'recipe': recipe, 'steps': steps, 'batch': batch})
    if data_only and run.simulate is None:
        raise TrainingError('--data-only: the configuration has no section simulate, so there are no data to make.')
    if run.simulate is not None:
        if int(os.environ.get('WORLD_SIZE', '1')) == 1:
            simulate(run)
        if data_only:
            return
    fit(run)


def _with_stages(run: Run, changes: dict[str, Any]) -> Run:
    """The run with some fields of every stage replaced; a warm-up never takes more than a tenth of the steps."""
    wanted = {name: value for name, value in changes.items() if value is not None}
    stages = tuple(stage.replace(**wanted) for stage in run.stages)
    if 'steps' in wanted:
        stages = tuple(stage.replace(warmup=min(stage.warmup, max(1, stage.steps // 10))) for stage in stages)
    return run.replace(stages=stages)


def simulate(run: Run) -> None:
    """Recordings and moments of the expert and pictures with words, as files and without ROS; what is there stays."""
    from ki.simulation.simulated_data import first_view, load_triton_before_mesa, moment_settings
    from ki_sim.moments.shards import write as write_moments
    from ki_sim.record.batch import jobs, record
    from ki_sim.tasks.tasks import task_names
    from ki_sim.vqa.vqa_data import write

    wanted = run.simulate
    assert wanted is not None
    load_triton_before_mesa()
    out, tasks, made = Path(wanted.out), task_names(wanted.tasks), []
    if wanted.episodes:
        work = jobs(tasks, wanted.episodes, out / 'arrays', wanted.first_seed, 'npz', image_size=wanted.image_size)
        with progress('episodes', len(work)) as line:
            made = record(work, wanted.workers, line.advance)
    failed = sum(result.status == 'failed' for result in made)
    if wanted.moments:
        with progress('moments', wanted.moments) as line:
            write_moments(out / 'moments', wanted.moments, moment_settings(run), wanted.workers, line.add)
    for split, scenes, arrangements in (
        ('train', wanted.scenes, wanted.arrangements),
        ('heldout', wanted.held_scenes, 1),
    ):
        if scenes:
            with progress(f'scenes, {split}', scenes) as line:
                size, workers = wanted.image_size, wanted.workers
                write(out / 'vqa', scenes, 0, split, size, workers, line.advance, arrangements, first_view(run))
    parts = f'{len(made) - failed} episodes ({failed} failed and left out)' if made else ''
    parts += f'{", " if made else ""}{wanted.moments} moments' if wanted.moments else ''
    print(f'{out}: {parts}, {wanted.scenes} scenes')


def fit(run: Run) -> Path | None:
    """Trains with bars on a terminal, with lines in a file; the bundle, or None when it was asked to stop."""
    import os

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ki.commands.data import show_problems
    from training.train.run import train as work

    console = Console(soft_wrap=True)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = int(os.environ.get('RANK', '0')) > 0
    with Progress(*columns, TextColumn('{task.fields[losses]}'), console=console, disable=quiet) as bar:
        shown: dict[str, Any] = {}

        def tell(kind: str, values: dict[str, Any]) -> None:
            if quiet:
                return
            if kind == 'begin':
                bar.print(_begin(values))
            elif kind == 'problems':
                show_problems(values['problems'], brief=True)
            elif kind == 'stage':
                shown['task'] = bar.add_task(values['name'], total=values['steps'], losses='')
                if not console.is_terminal:
                    bar.print(f'{values["name"]}: {values["steps"]} steps')
            elif kind == 'keeping':
                bar.print(f'  what the backbone makes of {values["samples"]} samples is computed once')
            elif kind == 'kept':
                bar.print(f'  kept {values["samples"]} samples, {values["bytes"] / 1e9:.1f} GB')
            elif kind == 'step':
                bar.update(shown['task'], completed=values['step'], losses=_losses(values))
                if not console.is_terminal:
                    bar.print(f'  step {values["step"]}: {_losses(values)}')
            elif kind == 'validation':
                bar.print(f'  step {values["step"]}: held out {_losses(values)}')
            elif kind == 'bundle':
                shown['bundle'] = 'written' if values['written'] else 'was finished before, and stays as it is'
            elif kind == 'warning':
                bar.print(f'[yellow]  {values["text"]}')

        made = work(run, tell)
    if quiet:
        return made
    if made is None:
        print(f'Stopped and saved in {run.out}; the same command goes on.')
    else:
        print(f'{made}: {shown["bundle"]}. Curves: {run.out}/{run.stages[-1].name}/curves.png')
    return made


def _begin(facts: dict[str, Any]) -> str:
    text = (
        f'{facts["samples"]} samples of {facts["episodes"]} episodes ({facts["held_episodes"]} held out), '
        f'{facts["vlm"]} pictures with words, {facts["parameters"] / 1e6:.2f} M parameters'
    )
    for name, count in facts['others'].items():
        text += f'\n{count} further samples, of {name}'
    fast = facts['fast']
    if fast:
        text += f'\nFAST: {fast["tokens_mean"]:.0f} tokens a chunk, error {fast["rmse"]:.4f} rms'
    if facts['floored']:
        text += f'\nhardly moving in the data, so their noise is not scaled up: {", ".join(facts["floored"])}'
    return '\n'.join([text, *facts['start_lines']])


def _losses(values: dict[str, Any]) -> str:
    from training.train.run_report import LOSSES

    parts = [f'{name} {values[name]:.3f}' for name in LOSSES if name in values]
    if 'samples_per_s' in values:
        parts.append(f'{values["samples_per_s"]:.0f} samples/s, waiting {values["waiting"]:.1%}')
    return ', '.join(parts)
