"""A bag back onto its topics: serialized messages as they lie there, at the pace they had."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ki_bags.reader import Bag, open_bag
from ki_policy_node.common import ros
from ki_policy_node.errors import NodeError

DISCOVERY_S = 5.0  # how long subscribers that were asked for may take to appear


@dataclass(frozen=True)
class Playback:
    """How to play: `rate` 2 is twice as fast; `start_s` skips from the front; `clock_hz` 0 publishes no /clock."""

    path: Path
    rate: float = 1.0
    loop: bool = False
    clock_hz: float = 0.0
    start_s: float = 0.0
    topics: tuple[str, ...] = ()
    remap: Mapping[str, str] = field(default_factory=dict)
    wait_for: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be played."""
        if not self.rate > 0.0:
            raise NodeError(f'rate is {self.rate}; it must be greater than 0.')
        if self.clock_hz < 0.0:
            raise NodeError(f'clock is {self.clock_hz} Hz; it must be 0 (no clock) or more.')


def play(plan: Playback) -> tuple[int, list[str]]:
    """Plays a bag; returns the number of messages and what was left out, in sentences.

    Raises:
        BagError: the bag cannot be read.
        NodeError: nothing in it can be played.
    """
    bag = open_bag(plan.path)
    with ros.node('ki_player', enable_rosout=False, start_parameter_services=False) as node:
        publishers, missing = advertise(node, bag, plan)
        if not publishers:
            known = ', '.join(bag.topics) or 'none'
            raise NodeError(
                f'{plan.path}: nothing to play ({"; ".join(missing) or "no topic chosen"}); topics: {known}.'
            )
        clock = clock_publisher(node) if plan.clock_hz else None
        if plan.wait_for and not ros.spin_until(node, lambda: ready(publishers, plan.wait_for), DISCOVERY_S):
            raise NodeError(f'Fewer than {plan.wait_for} topics found a subscriber within {DISCOVERY_S:g} s.')
        count = 0
        for _ in itertools.count() if plan.loop else range(1):
            played = play_once(bag, plan, publishers, clock)
            count += played
            if not played:
                break
        # Reliable subscribers must get the last messages before the writers are gone.
        for publisher in publishers.values():
            publisher.wait_for_all_acked()
    return count, [*missing, *(problem.text for problem in bag.problems)]


def advertise(node: Any, bag: Bag, plan: Playback) -> tuple[dict[str, Any], list[str]]:
    """A publisher for each chosen topic by its name in the bag, and why others have none."""
    unknown = [topic for topic in (*plan.topics, *plan.remap) if topic not in bag.topics]
    if unknown:
        raise NodeError(f'{plan.path} has no topic {unknown[0]}; it has {", ".join(bag.topics) or "none"}.')
    publishers, missing = {}, []
    for topic in bag.topics.values():
        if plan.topics and topic.name not in plan.topics:
            continue
        try:
            cls = ros.message_class(topic.type)
        except NodeError as error:
            missing.append(f'{topic.name}: {error}')
            continue
        qos = ros.offered_qos(getattr(topic, 'qos', ''))
        publishers[topic.name] = node.create_publisher(cls, plan.remap.get(topic.name, topic.name), qos)
    return publishers, missing


def ready(publishers: Mapping[str, Any], count: int) -> bool:
    """Whether so many topics have a subscriber."""
    return sum(bool(publisher.get_subscription_count()) for publisher in publishers.values()) >= count


def clock_publisher(node: Any) -> Any:
    """`publish(ns)` to /clock."""
    from rosgraph_msgs.msg import Clock

    publisher = node.create_publisher(Clock, '/clock', 1)

    def publish(now_ns: int) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(now_ns, 10**9)
        publisher.publish(message)

    return publish


def play_once(bag: Bag, plan: Playback, publishers: Mapping[str, Any], clock: Any) -> int:
    """Plays the messages once, in the order and at the distances of their log times; returns their number."""
    count = 0
    origin, first_ns, next_tick_s = time.monotonic(), None, 0.0
    for message in messages(bag, plan, publishers):
        first_ns = message.log_ns if first_ns is None else first_ns
        due_s = (message.log_ns - first_ns) / 1e9 / plan.rate
        while clock and next_tick_s <= due_s:
            sleep_until(origin + next_tick_s)
            clock(first_ns + int(next_tick_s * plan.rate * 1e9))
            next_tick_s += 1.0 / plan.clock_hz
        sleep_until(origin + due_s)
        publishers[message.topic].publish(message.data)
        count += 1
    return count


def messages(bag: Bag, plan: Playback, topics: Mapping[str, Any]) -> Iterator[Any]:
    """The messages of `topics` from `start_s` after the first on."""
    first_ns = None
    for message in bag.messages(list(topics)):
        first_ns = message.log_ns if first_ns is None else first_ns
        if message.log_ns - first_ns >= plan.start_s * 1e9:
            yield message


def sleep_until(when: float) -> None:
    """Sleeps to a time of the monotonic clock; not at all when it is past."""
    left = when - time.monotonic()
    if left > 0:
        time.sleep(left)
