"""Topics: what there is, what they say, how fast."""

from __future__ import annotations

import array
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import typer

app = typer.Typer(help='Topics: list them, echo their messages, measure their rate.')
WAIT_S = 3.0  # how long a topic may take to be discovered
ANNOUNCED_S = 3.5  # without a profile of ours, Fast DDS announces a participant every 3 s
QUIET_S = 1.0  # without a new topic or publisher after the first: all that is there has been heard


@app.callback()
def topic() -> None:
    """Topics: list them, echo their messages, measure their rate."""


@app.command('list')
def list_topics(
    wait: float = typer.Option(ANNOUNCED_S, help='Seconds to wait for discovery at most.'),
) -> None:
    """All topics with type and number of publishers and subscriptions."""
    from rich.console import Console
    from rich.table import Table

    from ki_policy_node.common import ros

    with ros.node('ki_topic', enable_rosout=False, start_parameter_services=False) as node:
        ros.spin_until(node, settled(node), wait)
        table = Table('topic', 'type', 'publishers', 'subscriptions', box=None)
        for name, types in sorted(node.get_topic_names_and_types()):
            counts = node.count_publishers(name), node.count_subscribers(name)
            table.add_row(name, ', '.join(types), *map(str, counts))
    # As wide as it must be: a pipe is not a terminal of 80 columns.
    Console(width=None if Console().is_terminal else 200).print(table)


def settled(node: Any) -> Callable[[], bool]:
    """A condition for `ros.spin_until`: others have been heard, and nothing new for a while."""
    first = seen = _graph(node)
    changed = time.monotonic()

    def condition() -> bool:
        nonlocal seen, changed
        now = _graph(node)
        if now != seen:
            seen, changed = now, time.monotonic()
        return seen != first and time.monotonic() - changed >= QUIET_S

    return condition


def _graph(node: Any) -> dict[str, tuple[int, int]]:
    names = [name for name, _ in node.get_topic_names_and_types()]
    return {name: (node.count_publishers(name), node.count_subscribers(name)) for name in names}


@app.command()
def inputs(
    robot: str = typer.Argument(..., help='Robot contract: a name of config/robots, or the path of a YAML file.'),
    namespace: str = typer.Option('', help='Namespace of the robot.'),
) -> None:
    """The topics that a policy for a robot reads, one a line: cameras, state, instruction."""
    from ki_robot.contract.contract import load_contract
    from ki_robot.messages.states import static_topic

    contract = load_contract(robot)
    prefix = f'/{namespace.strip("/")}/' if namespace.strip('/') else '/'
    still = dict.fromkeys(filter(None, map(static_topic, contract.state_streams)))
    for name in (*dict.fromkeys(stream.topic for stream in contract.streams), *still, 'instruction'):
        print(name if name.startswith('/') else prefix + name)


@app.command()
def echo(
    topic: str,
    count: int = typer.Option(0, '--count', '-n', help='Messages to print; 0: until interrupted.'),
    wait: float = typer.Option(WAIT_S, help='Seconds to wait for the topic.'),
    full: bool = typer.Option(False, help='Print long arrays in full.'),
) -> None:
    """Prints the messages of a topic as YAML."""
    import yaml

    seen = 0

    def show(message: Any) -> None:
        nonlocal seen
        seen += 1
        print(yaml.safe_dump(plain(message, None if full else 12), sort_keys=False, width=120) + '---', flush=True)

    listen(topic, wait, show, lambda: 0 < count <= seen, raw=False)


@app.command()
def hz(
    topic: str,
    window: int = typer.Option(100, help='Messages that the figures are taken over.'),
    seconds: float = typer.Option(0.0, help='How long to measure from the first message on; 0: until interrupted.'),
    wait: float = typer.Option(WAIT_S, help='Seconds to wait for the topic.'),
) -> None:
    """Prints rate, spread of the intervals and bandwidth of a topic once a second."""
    stamps: deque[float] = deque(maxlen=window)
    sizes: deque[int] = deque(maxlen=window)
    shown = time.monotonic()
    begin = shown + wait  # at the latest; else with the first message, however long the topic takes to be found

    def count(raw: bytes) -> None:
        nonlocal shown, begin
        stamps.append(time.monotonic())
        begin = min(begin, stamps[-1])
        sizes.append(len(raw))
        if stamps[-1] - shown >= 1.0:
            shown = stamps[-1]
            print(rate_line(list(stamps), list(sizes)), flush=True)

    listen(topic, wait, count, lambda: 0 < seconds <= time.monotonic() - begin, raw=True)
    if len(stamps) > 1:
        print(rate_line(list(stamps), list(sizes)))


def listen(topic: str, wait_s: float, callback: Callable[[Any], None], done: Callable[[], bool], raw: bool) -> None:
    """Waits for the topic to appear, subscribes with the QoS of its publishers, and spins until done or Ctrl-C."""
    from ki_policy_node.common import ros
    from ki_policy_node.errors import NodeError

    ros.checked_topic(topic)
    with ros.node('ki_topic', enable_rosout=False, start_parameter_services=False) as node:
        name = node.resolve_topic_name(topic)
        if not ros.spin_until(node, lambda: node.count_publishers(name) > 0, wait_s):
            known = ', '.join(sorted(name for name, _ in node.get_topic_names_and_types()))
            raise NodeError(f'Nobody published {name} within {wait_s:g} s. There are: {known}.')
        [type_name] = dict(node.get_topic_names_and_types())[name][:1]
        node.create_subscription(
            ros.message_class(type_name), name, callback, ros.matching_qos(node, name, depth=10), raw=raw
        )
        with contextlib.suppress(KeyboardInterrupt):
            ros.spin_until(node, done, float('inf'))


def rate_line(stamps: list[float], sizes: list[int]) -> str:
    """The figures of `ki topic hz` from arrival times [s] and sizes [B] of consecutive messages."""
    if len(stamps) < 2 or stamps[-1] == stamps[0]:
        return 'fewer than two messages'
    gaps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    span = stamps[-1] - stamps[0]
    return (
        f'{len(gaps) / span:.2f} Hz   interval {1e3 * min(gaps):.1f} to {1e3 * max(gaps):.1f} ms   '
        f'{sum(sizes[1:]) / span / 1e6:.3f} MB/s   {len(stamps)} messages'
    )


def plain(value: Any, longest: int | None) -> Any:
    """A message as dicts, lists and numbers; arrays beyond `longest` are cut and say how much is missing."""
    if hasattr(value, 'get_fields_and_field_types'):
        return {name: plain(getattr(value, name), longest) for name in value.get_fields_and_field_types()}
    if isinstance(value, (bytes, bytearray)):
        return plain(list(value), longest)
    if isinstance(value, (list, tuple, array.array)) or getattr(value, 'shape', None):
        head = [plain(item, longest) for item in value[:longest]]
        return head if len(head) == len(value) else [*head, f'... {len(value) - len(head)} more']
    return value.item() if hasattr(value, 'item') else value
