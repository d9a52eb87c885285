"""Ten instructions on the simulated robot, through the whole stack, with a report to look at."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ki_common.errors import KiError

app = typer.Typer(help='Ten instructions on the simulated robot, through the whole stack, with a report to look at.')

SHIPPED = Path('bundles/demo')
NUMBERS = 'demo.json'
LOG, STEPPED_LOG = 'nodes.log', 'nodes_stepped.log'
Pace = Literal['auto', 'real', 'stepped']
STACK = ('sim_robot', 'policy_node', 'chunk_executor', 'recorder')
SUCCESS, FAILURE, UNLABELED, DISCARD = 1, 2, 0, 3  # ki_msgs/EpisodeMarker OUTCOME_*
LOOK_S = 3.5  # Fast DDS announces a participant every 3 s
EXPERT_NOTE = (
    "No trained policy drives here. The simulator's scripted expert, which knows the scene and looks at no picture, "
    'plans the chunks. What you see is the stack: cameras, chunks, executor, controllers, recorder. '
    'It says nothing about learning.'
)
TRAIN_NOTE = (
    f'To see a policy: `ki demo --bundle {SHIPPED}`, or one of yours. `ki train config/train/demo.yaml` makes one '
    'from nothing, in one to two hours on two cores.'
)


@app.command()
def demo(
    bundle: Annotated[
        Path | None, typer.Option(help=f'Policy bundle that drives; without one {SHIPPED}, if it is there.')
    ] = None,
    expert: Annotated[
        bool, typer.Option('--expert', help="The simulator's scripted expert drives, on all tasks.")
    ] = False,
    episodes: Annotated[int, typer.Option(min=1, max=100, help='How many, each with another instruction.')] = 10,
    out: Annotated[Path, typer.Option(help='Folder for report.html, demo.gif and the bags.')] = Path('out/demo'),
    seed: Annotated[int, typer.Option(help='First scene; no recording uses seeds this high.')] = 1_000_000,
    backend: Annotated[str, typer.Option(help='What computes the policy: auto, torch, onnx or tensorrt.')] = 'auto',
    task: Annotated[list[str] | None, typer.Option(help='Task; several times for several in turn.')] = None,
    image_size: Annotated[int, typer.Option(help='Rows and columns of the cameras; 0: what suits who drives.')] = 0,
    pace: Annotated[
        Pace,
        typer.Option(
            help='real: in real time. stepped: by the clock of a slower simulator, /clock. '
            'auto: in real time, and stepped from where the machine turns out to be too slow for it.'
        ),
    ] = 'auto',
    real: Annotated[bool, typer.Option(help='Then the second part, on recordings of a real robot.')] = True,
    only_real: Annotated[bool, typer.Option('--only-real', help='The second part alone.')] = False,
) -> None:
    """Simulated robot, policy, chunk executor and recorder as processes over ROS 2, then a report.

    Where no trained bundle is, or with --expert, the simulator's expert plans the chunks, and the demo says so. The
    second part trains on four episodes of a real robot and replays a fifth, where the environment variable KI_DATA
    names a folder that holds a LeRobot dataset of it; where it does not, --only-real exits with 2.
    """
    from rich.console import Console

    from ki_sim.evaluate import demo_episodes as episodes_of

    console = Console()
    if only_real:
        if not out.exists():
            _make_room(out)
        raise typer.Exit(_second(out, console, alone=True))
    if bundle is not None and expert:
        raise KiError('--bundle and --expert: only one can drive; leave one out.')
    if bundle is None and not expert and SHIPPED.is_dir():
        bundle = SHIPPED
    if bundle is not None and not bundle.is_dir():
        raise KiError(f'There is no bundle {bundle}: give the folder of one, or leave --bundle out.')
    if bundle is not None:
        from ki.simulation.sim_evaluation import trained_tasks
        from ki_vla.policy.bundle import load_bundle

        load_bundle(bundle, verify=False)  # before anything of an earlier demonstration is removed
    # The expert knows every task.
    names = task or (trained_tasks(bundle) if bundle else list(episodes_of.TASKS))
    choices = episodes_of.choose(episodes, names, seed)
    stack = _stack(bundle, backend, image_size, seed, pace)
    _make_room(out)
    if bundle is None:
        console.print(f'[bold black on yellow]{EXPERT_NOTE}[/]\n{TRAIN_NOTE}\n', highlight=False)
    lines: Lines = []
    status = 0
    with _interruptible():
        try:
            _play(stack, choices, out, console, lines, pace == 'auto')
        except KeyboardInterrupt:
            console.print('Stopped; what was recorded so far stays.')
            status = 130
        finally:
            if any(shown.bag for shown, _ in lines):
                _report([shown for shown, _ in lines], bundle, out, console)
    if real and status == 0:
        status = _second(out, console, alone=False)
    raise typer.Exit(status)


def _second(out: Path, console: Any, alone: bool) -> int:
    """The second part; its exit status. That it was skipped takes nothing from the first part."""
    from ki.support.demo_real import show

    try:
        second = show(out, console)
    except KeyboardInterrupt:
        console.print('Stopped; the same call goes on with what was done.')
        return 130
    if second.stopped:
        return 130
    if second.failed:
        return 1
    return 2 if alone and second.report is None else 0


@dataclass
class Shown:
    """One episode: what was asked, what is known of it, and where its bag is."""

    task: str
    seed: int
    instruction: str
    state: str = 'waits'
    success: bool | None = None
    seconds: float = 0.0
    score: float = 0.0
    error: str = ''
    bag: str = ''
    speed: float = 1.0  # of simulated time, in parts of real time


Lines = list[tuple[Shown, Any]]  # each with what is seen of it


def _stack(bundle: Path | None, backend: str, image_size: int, seed: int, pace: Pace) -> Any:
    from ki.simulation.sim_evaluation import camera_size
    from ki.stack.pace import SPEEDS
    from ki.stack.sim_stack import Stack

    size = image_size or (camera_size(bundle) if bundle else 160)  # without a policy pictures are for people alone
    speed = SPEEDS[0] if pace == 'stepped' else 1.0
    return Stack(bundle, backend, bundle is None, speed=speed, image_size=size, seed=seed)


def _make_room(out: Path) -> None:
    """Removes an earlier demonstration, and nothing else."""
    if out.exists() and not out.is_dir():
        raise KiError(f'{out} is a file: give --out a folder.')
    if out.is_dir() and any(out.iterdir()):
        if not (out / NUMBERS).is_file():
            raise KiError(f'{out} holds something else than an earlier demonstration: give --out an empty folder.')
        for path in (*out.glob('episode_*'), *(out / name for name in ('report.html', 'demo.gif', LOG, STEPPED_LOG))):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / NUMBERS).write_text('{}\n', encoding='utf-8')


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the demonstration as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _play(stack: Any, choices: list[Any], out: Path, console: Any, lines: Lines, may_step: bool) -> None:
    """Plays the episodes; each is added to `lines` when it begins, and filled while it goes on.

    Where real time is too fast for this machine and `may_step`, what failed for it is played again, and all else goes
    on, by the clock of a slower simulator.
    """
    from ki.stack.sim_stack import private_domain
    from ki_sim.world.gl import candidates

    candidates()  # where nothing can be drawn, say so before anything starts
    domain = private_domain()
    os.environ['ROS_DOMAIN_ID'] = str(domain)
    _nobody_there(domain)
    left = list(choices)
    while left:
        show = _Show(stack, out, console, domain, lines, len(choices))
        with show.running() as port:
            while left:
                shown = Shown(left[0].task, left[0].seed, left[0].instruction, speed=stack.speed)
                lines.append((shown, None))
                slower = show.episode(port, shown, may_step and not stack.slowed)
                if slower is None or shown.success:
                    left.pop(0)
                else:
                    lines.pop()
                if slower is not None:
                    stack = replace(stack, speed=slower)
                    break


class _Show:
    """One stack of processes, and what a person sees of its episodes."""

    def __init__(self, stack: Any, out: Path, console: Any, domain: int, lines: Lines, total: int) -> None:
        from ki.simulation.sim_policy import simulated_robot
        from ki_robot.contract.contract import load_contract

        self._stack, self._out, self._console, self._domain = stack, out, console, domain
        self._lines, self._total = lines, total
        self._contract = load_contract(simulated_robot(stack.bundle))
        streams = [*self._contract.streams, *self._contract.outputs]
        self._topics = [each.topic for each in streams]
        self._topics += ['policy_node/action_chunk', 'chunk_executor/applied_command']

    @contextlib.contextmanager
    def running(self) -> Iterator[Any]:
        """The processes, and a table on a terminal."""
        from rclpy.parameter import Parameter
        from rich.live import Live

        from ki.stack.pace import LoadMeter
        from ki.stack.sim_stack import program, running
        from ki_policy_node.reports.watch import Watch

        timed = {'use_sim_time': self._stack.clocked}
        recorder = program('recorder', {'folder': str(self._out.absolute())} | timed)
        log = self._out / (STEPPED_LOG if self._stack.slowed else LOG)
        where = f'Starting the stack in ROS domain {self._domain}; its words go to {log}.'
        self._console.print(where, highlight=False)
        with running([*self._stack.programs(), recorder], log, self._domain) as port:
            port.node.set_parameters([Parameter('use_sim_time', value=self._stack.clocked)])
            self._watch, self._meter = Watch(port.node), LoadMeter(port.node, self._contract.step_ns)
            with Live(console=self._console, auto_refresh=False, transient=False) as self._live:
                yield port

    def episode(self, port: Any, shown: Shown, may_step: bool) -> float | None:
        """One episode and its recording. With `may_step`: how fast to go on, where real time was too fast."""
        try:
            self._meter.begin()
            self._recorded(port, shown)
        except KiError as error:
            port.check()  # a process that has ended is no question of pace
            if not may_step:
                raise
            shown.error = str(error)
            self._watch.stop(port, DISCARD)
        load = self._meter.load()
        why = load.too_slow or (shown.error if shown.success is None else '')
        slower = load.speed if may_step and why else None
        if slower is not None:
            self._say_slower(shown, why, slower)
            if not shown.success and shown.bag:
                shutil.rmtree(shown.bag)
        if not self._console.is_terminal and (slower is None or shown.success):
            self._console.print(_line(shown), highlight=False, soft_wrap=True)
        return slower

    def _say_slower(self, shown: Shown, why: str, speed: float) -> None:
        goes_on = 'what follows is' if shown.success else f'“{shown.instruction}” is played again, and what follows is'
        self._console.print(
            f'[bold black on yellow]This machine is too slow for real time: {why}. So {goes_on} '
            f'simulated at {speed:g} of real time.[/]',
            highlight=False,
            soft_wrap=True,
        )

    def _recorded(self, port: Any, shown: Shown) -> None:
        from ki_sim.evaluate.episode_runner import EXPERT, EpisodeOptions, play

        watch = self._watch
        options = EpisodeOptions(self._stack.plan, speed=self._stack.speed)

        def ready() -> None:
            watch.record(shown.instruction, EXPERT if self._stack.plan else '', self._topics)
            self._lines[-1] = (shown, watch.seen)
            shown.state = 'records'

        def look(said: dict[str, Any]) -> None:
            shown.state = watch.seen.executor or 'starts'
            shown.seconds, shown.score, shown.success = said['time_s'], said['score'], None
            self._draw()

        shown.state = 'new scene'
        self._draw()
        try:
            outcome = play(port, shown.task, shown.seed, None, options, ready, look)
        except KeyboardInterrupt:
            shown.state = 'interrupted'
            shown.bag = watch.stop(port, UNLABELED)
            raise
        shown.success, shown.seconds, shown.score = outcome.success, outcome.time_s, outcome.score
        shown.error, shown.state = outcome.error, 'done'
        shown.bag = watch.stop(port, SUCCESS if outcome.success else FAILURE)
        self._draw()

    def _draw(self) -> None:
        if self._console.is_terminal:
            cameras = [self._watch.topic(camera.topic) for camera in self._contract.cameras]
            joints = self._watch.topic(self._contract.state_streams[0].topic)
            self._live.update(_table(self._lines, self._total, cameras, joints), refresh=True)


def _nobody_there(domain: int) -> None:
    """Raises KiError when nodes of another stack are in the domain: two of them would command each other."""
    from ki_policy_node.common.ros import node, spin_until

    with node('look_around') as made:

        def others() -> set[str]:
            return set(made.get_node_names()) & set(STACK)

        spin_until(made, others, LOOK_S)
        found = sorted(others())
    if found:
        raise KiError(f'ROS domain {domain} is busy: {found[0]} is running there. End it, or set ROS_DOMAIN_ID.')


def _table(lines: Lines, total: int, cameras: list[str], joints: str) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    title = f'{sum(bool(shown.success) for shown, _ in lines)} of {total} succeeded so far'
    table = Table(title=title, title_justify='left', box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column('', min_width=2)
    table.add_column('instruction')
    for name in ('robot', 'time s', 'cameras Hz', 'joints Hz', 'chunk ms', 'limited', 'result'):
        least = max(len(word) for word in name.split())
        table.add_column(name, justify='left' if name in ('robot', 'result') else 'right', min_width=least)
    for index, (shown, seen) in enumerate(lines, 1):
        cells, state = ['', '', '', ''], shown.state
        if seen is not None:
            rate = min(seen.rates_hz.get(name, 0.0) for name in cameras)
            inference = f'+{seen.latency_ms:.0f}' if seen.latency_ms else ''
            cells = [f'{rate:.0f}', f'{seen.rates_hz.get(joints, 0.0):.0f}', f'{seen.age_ms:.0f}{inference}']
            cells.append(str(seen.events))
            if seen.hold and state in ('hold', 'fault', 'idle'):
                table.caption = f'{state}: {seen.hold}'
        result = {True: '[green]success[/]', False: '[red]failure[/]', None: ''}[shown.success]
        table.add_row(str(index), shown.instruction, state, f'{shown.seconds:.1f}', *cells, result)
    return table


def _line(shown: Shown) -> str:
    what = 'success' if shown.success else f'failure {shown.error}'.strip()
    return f'{shown.task:<10} {shown.seconds:5.1f} s  {what:<8} {shown.instruction}'


def _pace(speeds: list[float]) -> str:
    """How fast time passed, for the report."""
    from ki_policy_node.reports.episode_report import REAL_TIME

    stepped = [speed for speed in speeds if speed != 1.0]
    if not stepped:
        return REAL_TIME
    slow = f'at {stepped[-1]:g} of real time, by the clock of the simulator'
    first = len(speeds) - len(stepped)
    return f'{first} {REAL_TIME} and {len(stepped)} {slow}' if first else slow


def _report(shown: list[Shown], bundle: Path | None, out: Path, console: Any) -> None:
    """The report, the film and the numbers."""
    from ki.simulation.sim_policy import simulated_robot
    from ki_policy_node.reports.episode_numbers import FILM_HZ
    from ki_policy_node.reports.episode_report import EpisodeOutcome, EpisodeReport
    from ki_robot.contract.contract import load_contract
    from ki_sim.evaluate.closed_loop import rate, write_gif

    console.print('Reading the bags for the report ...')
    done = [each for each in shown if each.bag]
    outcomes = [
        EpisodeOutcome(each.instruction, Path(each.bag), each.success, each.seconds, each.task, each.error)
        for each in done
    ]
    finished = [each for each in done if each.success is not None]
    success = rate(sum(bool(each.success) for each in finished), len(finished))
    notes = [EXPERT_NOTE, TRAIN_NOTE] if bundle is None else []
    driver = 'the scripted expert' if bundle is None else f'the policy {bundle}'
    contract = load_contract(simulated_robot(bundle))
    report = EpisodeReport(contract, outcomes, success, driver, notes, _pace([each.speed for each in done]))
    film = write_gif(report.film(), out / 'demo.gif', fps=FILM_HZ, colours=192)
    (out / 'report.html').write_text(report.html(film.read_bytes()), encoding='utf-8')
    numbers = report.numbers() | {'bundle': str(bundle or ''), 'outcomes': [asdict(each) for each in shown]}
    (out / NUMBERS).write_text(json.dumps(numbers, indent=1) + '\n', encoding='utf-8')
    console.print(
        f'[bold]{success["k"]} of {success["n"]}[/] succeeded, 95 % interval {success["low"]:.0%} to '
        f'{success["high"]:.0%}, driven by {driver}.\nLook at {out / "report.html"} and {film}; '
        f'the bags are beside them, `ki bag info {done[0].bag}`.',
        highlight=False,
        soft_wrap=True,
    )
    sys.stdout.flush()
