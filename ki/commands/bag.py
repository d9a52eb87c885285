"""Bags: record, play, look into."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(help='Bags (rosbag2 folders, MCAP): record, play, look into.')


@app.callback()
def bag() -> None:
    """Bags (rosbag2 folders, MCAP): record, play, look into."""


@app.command()
def record(
    topics: list[str] = typer.Argument(None, help='Topics; without any, all that are not hidden.'),
    output: Path = typer.Option(None, '--output', '-o', help='Folder to make; else the next free one below bags/.'),
    task: str = typer.Option('', help='What the robot is told to do; goes into the markers.'),
    seconds: float = typer.Option(0.0, help='How long; 0: until Ctrl-C.'),
    compression: str = typer.Option('none', help='Of chunks: none, lz4 or zstd.'),
) -> None:
    """Records one episode, until Ctrl-C; status 1 when a topic that was listed said nothing."""
    import rclpy
    from rclpy.parameter import Parameter

    from ki_policy_node.common import ros
    from ki_policy_node.recorder.recorder_node import Recorder

    for topic in topics or ():
        ros.checked_topic(topic)
    ros.start()
    overrides = [Parameter('compression', value=compression)]
    overrides += [Parameter('topics', value=list(topics))] if topics else []
    node = Recorder(parameter_overrides=overrides)
    try:
        node.start(task, path=output)
        ros.spin_until_signal(node, seconds or float('inf'))
        episode, path = node.stop()
        silent = unheard(node, topics or [])
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    dropped = f', {episode.writer.dropped} DROPPED' if episode.writer.dropped else ''
    print(f'{path}: {episode.writer.messages} messages, {episode.writer.bytes / 1e6:.1f} MB{dropped}')
    if silent:
        typer.secho(
            f'Nothing was heard of {", ".join(silent)}; `ki topic list` names what there is.', fg='red', err=True
        )
        raise typer.Exit(code=1)


def unheard(node: Any, topics: Sequence[str]) -> list[str]:
    """Those of some topics that a recorder has no message of; its markers are written and not heard."""
    names = [node.resolve_topic_name(topic) for topic in topics]
    heard = {name for name, stream in node.streams.items() if stream.received or stream.latched}
    return [name for name in names if name not in heard | {node.resolve_topic_name('episode')}]


@app.command()
def play(
    path: Path,
    rate: float = typer.Option(1.0, help='2 is twice as fast.'),
    loop: bool = typer.Option(False, help='Again and again, until Ctrl-C.'),
    clock: float = typer.Option(0.0, help='Publish /clock at this rate [Hz]; 0: not.'),
    start: float = typer.Option(0.0, help='Skip so many seconds.'),
    topic: list[str] = typer.Option(None, help='Play this topic only; may be repeated.'),
    remap: list[str] = typer.Option(None, help='FROM:=TO; may be repeated.'),
    wait: int = typer.Option(0, help='First wait until so many topics have a subscriber.'),
) -> None:
    """Publishes the messages of a bag at the pace they were recorded at."""
    from ki_policy_node.errors import NodeError
    from ki_policy_node.replay.player import Playback
    from ki_policy_node.replay.player import play as play_bag

    pairs = [pair.partition(':=') for pair in remap or []]
    if wrong := [source for source, sign, target in pairs if not (source and sign and target)]:
        raise NodeError(f'--remap {wrong[0]!r} must read FROM:=TO.')
    names = {source: target for source, _, target in pairs}
    with contextlib.suppress(KeyboardInterrupt):
        count, missing = play_bag(Playback(path, rate, loop, clock, start, tuple(topic or ()), names, wait))
        for line in missing:
            typer.secho(line, fg='yellow', err=True)
        print(f'{count} messages played')


@app.command()
def info(path: Path) -> None:
    """Reads a bag to its end, CRCs included, and prints its topics and what is wrong with it."""
    from rich.console import Console
    from rich.table import Table

    from ki_bags.reader import open_bag

    opened = open_bag(path)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    counts: dict[str, tuple[int, int]] = {}
    for message in opened.messages():
        first.setdefault(message.topic, message.log_ns)
        last[message.topic] = message.log_ns
        count, size = counts.get(message.topic, (0, 0))
        counts[message.topic] = count + 1, size + len(message.data)
    table = Table('topic', 'type', 'messages', 'Hz', 'MB', box=None)
    for name, topic in sorted(opened.topics.items()):
        count, size = counts.get(name, (0, 0))
        span_s = (last[name] - first[name]) / 1e9 if count > 1 else 0.0
        rate = f'{(count - 1) / span_s:.2f}' if span_s > 0 else ''
        table.add_row(name, topic.type, str(count), rate, f'{size / 1e6:.3f}')
    print(summary(path, opened, list(first.values()), list(last.values()), counts))
    Console(width=None if Console().is_terminal else 200).print(table)
    problems = [problem.text for problem in opened.problems]
    for problem in problems:
        typer.secho(problem, fg='yellow')
    raise typer.Exit(code=1 if problems else 0)


@app.command()
def repair(paths: list[Path] = typer.Argument(help='Folders whose names end in .partial.')) -> None:
    """Finishes recordings whose recorder was killed: what can be read of NAME.partial becomes NAME."""
    from ki_bags.repair import finish

    for partial in paths:
        path, count = finish(partial)
        print(f'{path}: {count} messages')


def summary(path: Path, opened: Any, first: list[int], last: list[int], counts: dict[str, tuple[int, int]]) -> str:
    """The lines above the table."""
    total = sum(count for count, _ in counts.values())
    size = sum(file.stat().st_size for file in opened.files)
    lines = [f'{path}: {total} messages, {size / 1e6:.1f} MB in {", ".join(file.name for file in opened.files)}']
    if first:
        begin = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(min(first) / 1e9))
        lines.append(f'from {begin}, {(max(last) - min(first)) / 1e9:.2f} s')
    return '\n'.join(lines)
