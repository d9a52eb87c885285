"""The simulated robot: run it, record the expert, check it, make VQA data, take pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ki.support.progress import progress
from ki_common.files import read_json, write_text

app = typer.Typer(help='The simulated robot: run it, record the expert, check it, make VQA data, take pictures.')

Out = Annotated[Path, typer.Option(help='Folder to write to.')]
Seeds = Annotated[int, typer.Option(min=0, help='First seed.')]
Workers = Annotated[int, typer.Option(min=0, help='Processes; 0: one per core.')]
PICTURES = ('.png', '.jpg', '.jpeg')


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    task: Annotated[str, typer.Option(help='What is asked of the robot.')] = 'demo',
    seed: Annotated[int, typer.Option(min=0, help='Scene.')] = 0,
    robot: Annotated[str, typer.Option(help='Robot contract whose topics are served.')] = 'bimanual_mobile',
    image_size: Annotated[int, typer.Option(help='Rows and columns of the cameras.')] = 96,
    camera_rate: Annotated[float, typer.Option(help='Pictures a second of every camera.')] = 20.0,
    clock: Annotated[bool, typer.Option(help='Publish /clock; the others need use_sim_time.')] = False,
    free_running: Annotated[bool, typer.Option(help='As fast as it goes, with /clock.')] = False,
    speed: Annotated[float, typer.Option(help='Real-time factor, with /clock unless 1.')] = 1.0,
    lock_step: Annotated[bool, typer.Option(help='Time waits for commands, with /clock.')] = False,
    operator: Annotated[str, typer.Option(help='Who drives after ~/operate: none, expert, plan.')] = 'none',
) -> None:
    """Without a command: the robot itself, as a ROS 2 node, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    from ki_policy_node.common.ros import use_dds_profile

    use_dds_profile()
    from ki_sim.node.sim_node import main

    values = {'task': task, 'seed': seed, 'robot': robot, 'camera_rate': camera_rate, 'operator': operator}
    values |= {'width': image_size, 'height': image_size, 'lock_step': lock_step}
    values |= {'speed': 0.0 if free_running else speed, 'clock': clock or free_running or lock_step or speed != 1.0}
    given = [part for name, value in values.items() for part in ('-p', f'{name}:={_ros(value)}')]
    raise typer.Exit(main(['--ros-args', *given]))


@app.command()
def record(
    out: Out,
    task: Annotated[list[str], typer.Option(help='Task; several times for several; `suite`, `all`.')],
    episodes: Annotated[int, typer.Option(help='Episodes of each task.')] = 10,
    first_seed: Seeds = 0,
    format: Annotated[str, typer.Option(help='`bag`: rosbag2 folders; `npz`: arrays.')] = 'bag',
    image_size: Annotated[int, typer.Option(help='Rows and columns of the cameras.')] = 96,
    quality: Annotated[int, typer.Option(min=1, max=100, help='Of the JPEGs, 1..100.')] = 92,
    keep_failures: Annotated[bool, typer.Option(help='Keep episodes in which the expert failed.')] = False,
    workers: Workers = 0,
    offline: Annotated[bool, typer.Option(help='Write the bags directly, much faster, without ROS.')] = False,
    real_time: Annotated[bool, typer.Option(help='Not offline: on the wall clock, as on a robot.')] = False,
) -> None:
    """Record the expert; a second call goes on where the first one stopped.

    It drives the simulated robot over its command topics, and the recorder node writes. With --offline the same
    messages are written without any node, over all cores.
    """
    from collections import Counter

    from ki.stack.sim_stack import record_live
    from ki_sim.record.batch import jobs, record
    from ki_sim.record.existing_recordings import check
    from ki_sim.record.job import RecordingResult
    from ki_sim.tasks.tasks import task_names

    names = task_names(task)
    work = jobs(names, episodes, out, first_seed, format, 'train', image_size, quality, keep_failures)
    count: Counter[str] = Counter()
    with progress('recording', len(work)) as line:

        def tell(result: RecordingResult) -> None:
            count[result.status] += 1
            line.advance()

        if offline or format == 'npz':
            record(work, workers, tell)
        else:
            check(work)
            record_live(work, out, image_size, quality, real_time, tell)
    print(f'{count["written"]} written to {out}, {count["present"]} were there, {count["failed"]} failed and left out')


@app.command()
def correct(
    bundle: Annotated[Path, typer.Argument(help='Folder of the policy bundle.')],
    out: Out,
    task: Annotated[
        list[str] | None, typer.Option(help='Task; several times for several; `suite`, `all`. Else those it learned.')
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help='Episodes of each task.')] = 20,
    first_seed: Annotated[int, typer.Option(min=0, help='First scene; not one that is evaluated on.')] = 500_000,
    patience: Annotated[
        float, typer.Option(min=0.5, help='Without progress for so long, the operator takes over [s].')
    ] = (10.0),
    keep_all: Annotated[bool, typer.Option(help='Keep also what the policy did alone, and failures.')] = False,
    led: Annotated[
        bool,
        typer.Option(help='Drive as `ki sim record` does, for a policy that learned from that; else as moments do.'),
    ] = False,
    heldout: Annotated[bool, typer.Option(help='Ask for objects that no action data shows.')] = False,
    backend: Annotated[str, typer.Option(help='auto, torch, onnx or tensorrt.')] = 'auto',
    seed: Annotated[int, typer.Option(help='Of the noise.')] = 0,
) -> None:
    """Record a policy and the corrections of a scripted operator, who takes over when it fails: bags to train on.

    Every step says who drove. `ki train` weighs or selects corrections by data.interventions. A second call goes on
    where the first one stopped.
    """
    from ki.simulation.sim_corrections import correct as run
    from ki.simulation.sim_evaluation import trained_tasks

    tasks = task or trained_tasks(bundle)
    print(run(bundle, out, tasks, episodes, first_seed, patience, keep_all, led, heldout, backend, seed, print))


@app.command()
def expert(
    out: Annotated[Path, typer.Option(help='JSON to write.')] = Path('expert.json'),
    task: Annotated[list[str] | None, typer.Option(help='Task; several times for several; `suite`; else all.')] = None,
    seeds: Annotated[int, typer.Option(min=1, help='How many seeds.')] = 200,
    first_seed: Seeds = 0,
    workers: Workers = 0,
) -> None:
    """How often the expert succeeds, per task; a second call keeps the tasks that it does not measure."""
    import json

    from ki_sim.evaluate.closed_loop import expert_table
    from ki_sim.tasks.tasks import task_names

    table = _table(out)
    names = task_names(task or ['all'])
    seen = range(first_seed, first_seed + seeds)
    with progress('expert', len(names) * seeds) as line:
        for name in names:
            report = expert_table([name], seen, 'train', workers, line.advance)[name]
            row = report.summary() | {'first_seed': first_seed}
            row['failed_seeds'] = [outcome.seed for outcome in report.outcomes if not outcome.success]
            table[name] = row
            print(_row(row))
            write_text(out, json.dumps(table, indent=1) + '\n')  # now: all tasks together take long


@app.command()
def vqa(
    out: Out,
    scenes: Annotated[int, typer.Option(help='Scenes.')] = 1000,
    arrangements: Annotated[int, typer.Option(help='Images of each scene; some 15 lines each.')] = 1,
    first_seed: Seeds = 0,
    split: Annotated[str, typer.Option(help='train or heldout.')] = 'train',
    image_size: Annotated[int, typer.Option(help='Rows and columns of the images.')] = 96,
    workers: Workers = 0,
) -> None:
    """Captions, questions and boxes with their true answers, as JSONL and images."""
    from ki_sim.vqa.vqa_data import write

    with progress('scenes', scenes) as line:
        count = write(out, scenes, first_seed, split, image_size, workers, line.advance, arrangements)
    print(f'{count} lines about {scenes} scenes in {out / f"{split}.jsonl"}')


@app.command()
def picture(
    out: Annotated[Path, typer.Argument(help='PNG or JPEG to write.')],
    task: Annotated[str, typer.Option(help='Task.')] = 'demo',
    seed: Annotated[int, typer.Option(min=0, help='Seed.')] = 0,
    camera: Annotated[str, typer.Option(help='Camera of the robot, `front`, or `bystander`.')] = 'head',
    width: Annotated[int, typer.Option(help='Columns.')] = 640,
    height: Annotated[int, typer.Option(help='Rows.')] = 480,
    shadows: Annotated[bool, typer.Option(help='With shadows and reflections.')] = False,
) -> None:
    """One picture of a scene."""
    _check_suffix(out, PICTURES)
    import cv2

    from ki_sim.record.pictures import bystander
    from ki_sim.world.world import World

    with World(task, seed, image_size=(height, width), shadows=shadows) as world:
        image = bystander(world) if camera == 'bystander' else world.image(camera)
        print(f'{world.instruction}  [{", ".join(obj.label for obj in world.episode.scene.objects)}]')
    if not cv2.imwrite(str(out), image[..., ::-1]):
        from ki_sim.errors import SimError

        raise SimError(f'{out} cannot be written: give the name of a .png in a folder that exists')


@app.command()
def film(
    out: Annotated[Path, typer.Argument(help='GIF to write.')],
    task: Annotated[str, typer.Option(help='Task.')] = 'demo',
    seed: Annotated[int, typer.Option(min=0, help='Seed.')] = 0,
    every: Annotated[int, typer.Option(min=1, help='Steps of 50 ms from one picture to the next.')] = 4,
) -> None:
    """A film of the expert at a task, with what it was told and what it is doing."""
    _check_suffix(out, ('.gif',))
    from ki_sim.record.pictures import expert_film

    print(expert_film(task, seed, out, every))


def _table(path: Path) -> dict[str, Any]:
    """The rows that were measured before, by task: those that are not measured now are kept."""
    from ki_sim.errors import SimError

    return read_json(path, SimError, 'give another file with --out') if path.exists() else {}


def _check_suffix(path: Path, known: tuple[str, ...]) -> None:
    if path.suffix.lower() not in known:
        from ki_sim.errors import SimError

        raise SimError(f"{path} ends in '{path.suffix}': give a name that ends in {' or '.join(known)}")


def _row(summary: dict[str, Any]) -> str:
    success = summary['success']
    return (
        f'{summary["task"]:<11} {success["k"]:>4}/{success["n"]:<4} = {100 * success["rate"]:5.1f} % '
        f'[{100 * success["low"]:.1f}, {100 * success["high"]:.1f}]  mean {summary["time_s"] or 0:.1f} s'
    )


def _ros(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
