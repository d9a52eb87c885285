"""An e-stop stays pressed until everybody who pressed it has released it, or is gone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_policy_node.executor.estop import SETTLED_NS, UNNUMBERED, EstopLatch, EstopListener


class Topic:
    """A latch, the panels on its topic, and time that passes between two words."""

    def __init__(self, *firsts: int) -> None:
        self.latch, self.now = EstopLatch(), 0
        self.numbers: dict[str, int] = {}
        for name, first in zip('abcdef', firsts, strict=False):
            self.join(name, first)

    def join(self, name: str, first: int = 1) -> None:
        self.numbers[name] = first
        self.wait()

    def leave(self, name: str) -> None:
        del self.numbers[name]
        self.wait()

    def wait(self) -> None:
        self.now += SETTLED_NS
        self.latch.on_publishers(len(self.numbers), self.now)

    def say(self, name: str, pressed: bool, numbered: bool = True) -> bool:
        """Says it, three times as three subscriptions hear it; whether the e-stop is pressed after that."""
        for _ in range(3):
            number = self.numbers[name] if numbered else UNNUMBERED
            self.latch.on_message(pressed, number, sent_ns=self.now, now_ns=self.now)
        self.numbers[name] += 1
        self.wait()
        return self.latch.pressed


def test_a_single_publisher_is_obeyed() -> None:
    topic = Topic(1)
    assert not topic.say('a', False)
    assert topic.say('a', True)
    assert not topic.say('a', False)
    topic.numbers['a'] += 5  # a message was lost
    assert topic.say('a', True)
    topic.numbers['a'] += 5
    assert not topic.say('a', False)


def test_it_presses_at_once() -> None:
    latch = EstopLatch()
    latch.on_publishers(0, 0)
    latch.on_message(True, 1, 0, 0)
    assert latch.pressed


def test_anothers_false_does_not_release() -> None:
    topic = Topic(1, 500)
    assert not topic.say('b', False)
    assert topic.say('a', True)
    for _ in range(20):
        assert topic.say('b', False)
    assert not topic.say('a', False)


def test_two_who_pressed_must_both_release() -> None:
    topic = Topic(10, 90)
    assert topic.say('a', True)
    assert topic.say('b', True)
    assert topic.say('a', False)
    assert not topic.say('b', False)


def test_two_who_count_alike_are_told_apart_as_soon_as_both_have_spoken() -> None:
    topic = Topic(1, 1)
    topic.say('a', True)
    topic.say('b', False)
    assert topic.say('a', False)
    assert topic.latch.unclear
    assert not topic.say('b', False)


def test_who_is_gone_does_not_press_any_more() -> None:
    topic = Topic(1, 500)
    topic.say('b', False)
    topic.say('a', True)
    topic.leave('a')
    assert topic.latch.pressed  # one of the two is gone; which one, nobody knows yet
    assert not topic.say('b', False)
    assert topic.say('b', True)
    topic.leave('b')
    assert not topic.latch.pressed


def test_who_comes_back_with_false_was_not_who_is_still_there() -> None:
    topic = Topic(1, 7)
    topic.say('a', True)
    topic.say('b', False)
    topic.leave('b')
    topic.join('b')
    assert topic.say('b', False)
    assert topic.latch.pressed


def test_one_that_is_gone_is_not_counted_as_still_there() -> None:
    topic = Topic(1)
    topic.say('a', False)
    topic.join('b', 2)
    topic.join('c', 1)
    topic.say('a', False)
    topic.leave('a')
    assert topic.say('c', True)
    assert topic.say('b', False)


def test_a_publisher_that_the_graph_does_not_show_yet_releases_nobody() -> None:
    topic = Topic(1)
    topic.say('a', True)
    topic.latch.on_message(False, 7, topic.now, topic.now)  # of a second one, just discovered
    topic.latch.on_publishers(1, topic.now + 1)
    assert topic.latch.pressed
    topic.numbers['b'] = 8
    topic.wait()
    assert topic.latch.pressed


def test_unnumbered_words_of_several_release_nobody_and_of_one_do() -> None:
    topic = Topic(1, 1)
    topic.say('a', True, numbered=False)
    assert topic.say('b', False, numbered=False)
    assert topic.say('a', False, numbered=False)
    alone = Topic(1)
    assert alone.say('a', True, numbered=False)
    assert not alone.say('a', False, numbered=False)


def test_who_says_false_fifty_times_a_second_keeps_nobody_from_releasing() -> None:
    topic = Topic(1, 1)
    topic.say('a', True)

    def stream(seconds: float) -> bool:
        for _ in range(round(seconds * 50)):
            topic.now += 20_000_000
            topic.latch.on_publishers(2, topic.now)
            topic.latch.on_message(False, topic.numbers['b'], topic.now, topic.now)
            topic.numbers['b'] += 1
        return topic.latch.pressed

    assert stream(3.0)
    topic.latch.on_message(False, topic.numbers['a'], topic.now + 1, topic.now)
    assert not stream(1.0)
    assert len(topic.latch._accounts) < 200


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_it_is_never_free_while_somebody_presses_and_free_once_all_have_released(data: st.DataObject) -> None:
    topic, presses = Topic(), {}
    for _ in range(data.draw(st.integers(1, 25))):
        kind = data.draw(st.sampled_from(['say', 'say', 'say', 'say', 'join', 'leave']))
        if kind == 'join' and len(presses) < 4:
            name = next(each for each in 'abcdefgh' if each not in presses)
            topic.join(name, data.draw(st.integers(1, 6)))
            presses[name] = False
        elif kind == 'leave' and presses:
            name = data.draw(st.sampled_from(sorted(presses)))
            topic.leave(name)
            del presses[name]
        elif kind == 'say' and presses:
            name = data.draw(st.sampled_from(sorted(presses)))
            presses[name] = data.draw(st.booleans())
            topic.say(name, presses[name])
        assert topic.latch.pressed or not any(presses.values())
    if presses:  # all say once more, at numbers far apart, that they do not press: then nobody does
        for turn in range(2):
            for place, name in enumerate(sorted(presses)):
                topic.numbers[name] += 100 * (place + 1) if turn == 0 else 0
                topic.say(name, False)
    assert topic.latch.pressed is False or topic.latch.unclear


@pytest.mark.parametrize('count', [2, 4])
def test_many_words_keep_few_accounts(count: int) -> None:
    topic = Topic(*[1] * count)
    for turn in range(200):
        topic.say('abcd'[turn % count], turn % 7 == 0)
    assert len(topic.latch._accounts) < 50


@pytest.mark.ros
def test_a_listener_that_cannot_hear_any_more_stops_the_robot(ros_domain: int) -> None:
    rclpy = pytest.importorskip('rclpy')
    context = rclpy.Context()
    rclpy.init(context=context)
    beside = rclpy.create_node('chunk_executor', context=context)
    told: list[bool] = []
    listener = EstopListener(beside, told.append)

    def broken(*_: object, **__: object) -> None:
        raise ValueError('a message that does not decode')

    listener._executor.spin_once = broken
    listener._thread.join(5.0)
    assert told == [True]
    listener.close()
    beside.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.ros
def test_the_listener_ends_quietly_with_the_context(ros_domain: int, capfd: pytest.CaptureFixture[str]) -> None:
    rclpy = pytest.importorskip('rclpy')
    context = rclpy.Context()
    rclpy.init(context=context)
    beside = rclpy.create_node('chunk_executor', context=context)
    listener = EstopListener(beside, lambda pressed: None)
    rclpy.shutdown(context=context)
    listener._thread.join(5.0)
    assert not listener._thread.is_alive()
    assert 'Traceback' not in capfd.readouterr().err
