"""Training data: index recordings, check and show them, to and from LeRobot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ki.support.options import RayAddress, Workers
from ki.support.progress import progress

if TYPE_CHECKING:
    from ki_bags.problems import Problems
    from training.index.index import Index

app = typer.Typer(help='Training data: index recordings, check and show them, to and from LeRobot.')

DataOption = Annotated[Path, typer.Argument(help='Folder of recordings, or an index of them.')]
RobotOption = Annotated[str, typer.Option(help='Contract: a name of config/robots, or a YAML file.')]


@app.command()
def index(
    data: Annotated[Path, typer.Argument(help='Folder of recordings (rosbag2, .mcap, .db3, .bag), at any depth.')],
    robot: RobotOption = 'bimanual_mobile',
    out: Annotated[
        Path | None, typer.Option(help='Folder of the index; else DATA/index, or DATA.index beside one recording.')
    ] = None,
    state: Annotated[str, typer.Option(help='States between messages: hold (as the live node) or linear.')] = 'hold',
    column: Annotated[list[str] | None, typer.Option(help='COLUMN=hold|linear; may be repeated.')] = None,
    actions: Annotated[str, typer.Option(help='From commands, state (one step later), or auto.')] = 'auto',
    task: Annotated[str, typer.Option(help='Instruction of episodes that carry none.')] = '',
    store: Annotated[str, typer.Option(help='Pictures: original, or model (small, at its size).')] = 'original',
    remap: Annotated[list[str] | None, typer.Option(help='CONTRACT_TOPIC:=RECORDED_TOPIC; may be repeated.')] = None,
    trust_log_time: Annotated[
        list[str] | None,
        typer.Option(help='Camera, stream or output dated by its arrival, not by its stamps; may be repeated.'),
    ] = None,
    workers: Workers = 0,
    ray: RayAddress = '',
) -> None:
    """Reads every recording once into an index; a second call reads only what has changed."""
    from ki_robot.contract.contract import load_contract
    from training.index.episodes import IndexOptions
    from training.index.index import index_bags
    from training.index.recordings import index_folder

    options = IndexOptions(
        state=state,
        columns=pairs(column or [], '='),
        actions=actions,
        task=task,
        store=store,
        remap=pairs(remap or [], ':='),
        trust_log_time=tuple(trust_log_time or ()),
    )
    with progress('indexing') as line:
        contract = load_contract(robot)
        made = index_bags(data, contract, out or index_folder(data), options, workers, ray, line.to)
    summary(made)
    show_problems(made.problems)
    if not made.episodes:
        typer.secho('No episode can be used.', fg='red')
    if not made.episodes or made.problems.is_loss:
        raise typer.Exit(1)


@app.command()
def show(
    data: DataOption, every: Annotated[bool, typer.Option('--all', help='Also recordings without episodes.')] = False
) -> None:
    """The episodes of an index: steps, instruction, outcome; and how fast each stream came."""
    from rich.console import Console
    from rich.table import Table

    found = open_index(data)
    console = Console()
    table = Table('recording', 'episode', 'steps', 'usable', 'seconds', 'outcome', 'instruction', box=None)
    for entry in found.entries:
        name = Path(entry.path).name
        if every and not entry.episodes:
            table.add_row(name, '-', '0', '0', '', '', '')
        for number, each in enumerate(entry.episodes):
            seconds = f'{each.steps / found.contract.rate_hz:.1f}'
            text = each.texts[0] if each.texts else ''
            table.add_row(name, str(number), str(each.steps), str(each.usable), seconds, each.outcome, text)
    console.print(table)
    rates = Table('stream', 'messages', 'Hz', 'longest gap [s]', 'arrival - stamp [s]', 'drift [ppm]', box=None)
    names = sorted({name for entry in found.entries for name in entry.streams})
    for name in names:
        rows = [entry.streams[name] for entry in found.entries if name in entry.streams]
        timed = [row for row in rows if 'rate_hz' in row]
        rate = f'{min(row["mean_hz"] for row in timed):.1f}' if timed else ''
        gap = f'{max(row["longest_gap_s"] for row in timed):.3f}' if timed else ''
        clocks = [row for row in rows if 'clock_offset_s' in row]
        worst = max(clocks, key=lambda row: abs(row['clock_offset_s']), default=None)
        clock = (f'{worst["clock_offset_s"]:+.3f}', f'{worst["clock_drift_ppm"]:+.0f}') if worst else ('', '')
        rates.add_row(name, f'{sum(row["count"] for row in rows):.0f}', rate, gap, *clock)
    console.print(rates)
    if trusted := found.options.get('trust_log_time'):
        print(f'dated by arrival in the recording: {", ".join(trusted)}')
    summary(found)


@app.command()
def check(
    data: DataOption,
    deep: Annotated[bool, typer.Option('--deep', help='Decode every picture, too.')] = False,
) -> None:
    """Are the index and its recordings as they were when they were read? Exit status 1 where not.

    What a model would learn from them, `ki doctor data` says.
    """
    from training.index.index import check_index

    with progress('checking') as line:
        problems = check_index(open_index(data), deep, line.to)
    show_problems(problems)
    if {'index_lost', 'index_changed', 'bag_changed'} & problems.kinds():
        raise typer.Exit(1)
    print('Every file of the index is as it was written.')
    if 'bag_gone' not in problems.kinds():
        print('Every recording is the one that was read.')


@app.command()
def stats(
    data: DataOption,
    out: Annotated[Path, typer.Option(help='File to write.')] = Path('stats.json'),
    workers: Workers = 0,
    ray: RayAddress = '',
) -> None:
    """Normalisation statistics, after the delta transform, with where they come from."""
    from rich.console import Console
    from rich.table import Table

    from ki_robot.transforms import save_stats
    from training.fit.stats import compute_stats
    from training.samples.dataset import EpisodeDataset

    made = compute_stats(EpisodeDataset(open_index(data)), workers, ray)
    save_stats(out, made)
    table = Table('', 'column', 'unit', 'mean', 'std', 'q01', 'q99', box=None)
    for what, each in made.items():
        for row, name in enumerate(each.names):
            values = [f'{values[row]:.4g}' for values in (each.mean, each.std, each.q01, each.q99)]
            table.add_row(what, name, each.provenance['units'][row], *values)
    Console().print(table)
    print(f'{out}: {made["actions"].count} action values a column')


@app.command()
def fast(
    data: DataOption,
    out: Annotated[Path, typer.Option(help='File to write.')] = Path('fast.json'),
    size: Annotated[int, typer.Option(help='Tokens.')] = 1024,
    scale: Annotated[float, typer.Option(help='Steps per unit of a normalised coefficient.')] = 10.0,
) -> None:
    """Fits FAST on the chunks of an index and says what it costs."""
    import json

    from training.fit.fast_fit import fit_fast
    from training.fit.stats import compute_stats
    from training.samples.dataset import EpisodeDataset

    dataset = EpisodeDataset(open_index(data))
    codec, report = fit_fast(dataset, compute_stats(dataset), size, scale)
    out.write_text(json.dumps(codec.to_dict()), encoding='utf-8')
    print(f'{out}: {report.size} tokens, scale {report.scale:g}, fitted on {report.fitted} chunks')
    print(f'on {report.tested} others: {report.tokens_mean:.1f} tokens a chunk (at most {report.tokens_max}),')
    print(f'{report.values_per_token:.1f} values a token, error {report.rmse:.4f} rms, {report.max_error:.4f} at most')
    worst = sorted(report.rmse_si.items(), key=lambda pair: -pair[1])[:3]
    print('in SI, worst columns: ' + ', '.join(f'{name} {value:.4g}' for name, value in worst))


@app.command('to-lerobot')
def to_lerobot_command(
    data: DataOption,
    out: Annotated[Path, typer.Option(help='Folder to make.')],
    codec: Annotated[str, typer.Option(help='h264, or copy: the JPEGs as they are, quick and large.')] = 'h264',
    workers: Workers = 0,
    fps: Annotated[int | None, typer.Option(help="Steps a second; left out: the contract's rate.")] = None,
    ray: RayAddress = '',
) -> None:
    """Writes an index as a LeRobotDataset v3."""
    from training.lerobot.write import to_lerobot

    with progress('writing') as line:
        found = open_index(data)
        problems = to_lerobot(found, out, codec, workers=workers, progress=line.to, fps=fps, ray=ray)
    show_problems(problems)
    print(f'{out}: written')


@app.command('from-lerobot')
def from_lerobot_command(
    source: Annotated[Path, typer.Argument(help='A LeRobot dataset, v2.1 or v3.')],
    out: Annotated[Path | None, typer.Option(help='Folder to make the recordings in.')] = None,
    robot: Annotated[str | None, typer.Option(help='Contract; without one, it is made from the dataset.')] = None,
    map_file: Annotated[
        Path | None, typer.Option('--map', help='YAML: which number is which column, in which unit; see --draft.')
    ] = None,
    draft: Annotated[
        Path | None, typer.Option(help='Only write this file: a commented map, for you to complete.')
    ] = None,
    episode: Annotated[list[int] | None, typer.Option(help='Only this one; may be repeated.')] = None,
    quality: Annotated[int, typer.Option(help='Of the JPEGs, 1..100.')] = 95,
    workers: Workers = 0,
    ray: RayAddress = '',
) -> None:
    """Writes a LeRobot dataset as recordings (rosbag2, MCAP) and a contract."""
    from training.lerobot.to_bags import from_lerobot, write_draft

    if draft is not None:
        asked = write_draft(source, draft, robot)
        print(f'{draft}: a map of {source}; {len(asked)} entries are open')
        for each in asked:
            print(f'  {each}')
        return
    if out is None:
        raise typer.BadParameter('give --out FOLDER, or --draft FILE')
    with progress('writing') as line:
        contract, problems = from_lerobot(source, out, robot, episode, quality, line.to, map_file, workers, ray)
    show_problems(problems)
    written = len(list(out.glob('episode_*/metadata.yaml')))
    print(f'{out}: {written} recordings of {contract.name}, and contract.yaml')
    if robot is None:
        print('The contract was made from names and extremes: check its units and limits before a robot moves.')
    if problems.is_loss:
        raise typer.Exit(1)


def open_index(data: Path) -> Index:
    """The index of recordings, or the index itself."""
    from training.index.index import load_index
    from training.index.recordings import index_folder

    return load_index(index_folder(data))


def pairs(texts: Iterable[str], sign: str) -> dict[str, str]:
    """`a=b` as {a: b}."""
    found = {}
    for text in texts:
        key, between, value = text.partition(sign)
        if not between or not key or not value:
            raise typer.BadParameter(f'{text!r} is not NAME{sign}VALUE')
        found[key] = value
    return found


def summary(found: Index) -> None:
    """One line: how much there is."""
    episodes = found.episodes
    steps = sum(about.steps for _, about in episodes)
    usable = sum(about.usable for _, about in episodes)
    minutes = steps / found.contract.rate_hz / 60
    print(
        f'{found.folder}: {len(episodes)} episodes in {len(found.entries)} recordings, {steps} steps '
        f'({minutes:.1f} min), {usable} usable, {found.contract.name}, data {found.hash[:12]}'
    )


def show_problems(problems: Problems, brief: bool = False) -> None:
    """One row per file, field and kind: how often, why, what to do; where `brief`, one per kind."""
    from rich.console import Console
    from rich.table import Table

    from ki_bags.problems import ADVICE

    rows = list(problems.by_kind() if brief else problems)
    if not rows:
        return
    where = () if brief else ('file', 'field')
    table = Table(*where, 'problem', 'count', 'the first one', 'what to do', box=None, header_style='bold')
    for each in rows:
        place = () if brief else (Path(each.where).name, each.field)
        table.add_row(*place, each.kind, str(each.count), each.text, ADVICE.get(each.kind, ''), style='yellow')
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
    files = f' in {len({each.where for each in problems})} files' if brief else ''
    print(f'{sum(each.count for each in rows)} problems of {len({each.kind for each in rows})} kinds{files}')
