"""The e-stop of several publishers on one topic: pressed until every one that pressed has released it, or is gone.

ROS 2 does not tell who sent a message. From Jazzy on it tells the number that the sender gave it, and every publisher
counts for itself, without gaps where it is reliable. So this keeps every account of who said what that fits the
numbers and the publishers that there are, and releases only when all accounts agree that nobody presses. Where they
do not agree yet, the next words of the others decide: their numbers differ. Without numbers (Humble), a False counts
while its publisher is alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

from ki_policy_node.common.streams import hear_everybody, with_info

UNNUMBERED = 0  # ROS 2 counts from 1
REMEMBERED = 256  # messages: the same one comes over several subscriptions
SETTLED_NS = 300_000_000  # after a message, until the graph surely shows its publisher
MOST_ACCOUNTS = 512
WATCH_S = 0.1
FAILURES_TO_STOP = 10  # in a row
DEPTH = 100  # a True must not be overwritten by what others say before it is read

Word = tuple[int, bool, int]  # of one publisher: number and content of its last message, and when its first came
Account = tuple[Word, ...]  # one a publisher, sorted


class EstopLatch:
    """Give it how many publishers the topic has, several times a second and before every message; and every message."""

    def __init__(self) -> None:
        self._accounts: set[Account] = {()}
        self._most = 0  # publishers since the accounts last agreed with their number
        self._seen: deque[tuple[int, int, bool]] = deque(maxlen=REMEMBERED)

    @property
    def pressed(self) -> bool:
        """Whether somebody presses, or may be pressing."""
        return any(pressed for account in self._accounts for _, pressed, _ in account)

    @property
    def unclear(self) -> bool:
        """Whether that is so only because it is not clear who has released."""
        free = any(not any(pressed for _, pressed, _ in account) for account in self._accounts)
        return self.pressed and free

    def on_message(self, pressed: bool, number: int, sent_ns: int, now_ns: int) -> None:
        """Takes one message.

        Args:
            pressed: What it says.
            number: Its publisher's count, UNNUMBERED where ROS 2 does not tell.
            sent_ns: Its source time; tells, with the number, the same message on another subscription.
            now_ns: Steady time.
        """
        told = (number, sent_ns, pressed)
        if told in self._seen:
            return
        self._seen.append(told)
        # Of somebody new, whom the graph may not show yet; of two at once it would be strange.
        new = {_with(account, (number, pressed, now_ns)) for account in self._accounts if len(account) <= self._most}
        self._accounts = new | self._continued(number, pressed)
        if len(self._accounts) > MOST_ACCOUNTS:  # nobody can tell any more: all that is known is that somebody presses
            self._accounts = {((UNNUMBERED, True, now_ns),)} if self.pressed else {()}

    def on_publishers(self, count: int, now_ns: int) -> None:
        """Takes how many publishers the topic has now; drops the accounts that this rules out."""
        self._most = max(self._most, count)
        if count == 0:
            self._accounts, self._most = {()}, 0
            return
        # More publishers than there ever were, for long enough that the graph would show them: one was taken for two.
        fitting = {
            account
            for account in self._accounts
            if len(account) <= self._most or max(born for _, _, born in account) > now_ns - SETTLED_NS
        }
        self._accounts = fitting or self._accounts
        settled = {account for account in self._accounts if len(account) <= self._most}
        if count < self._most and settled:
            # Some are gone; which ones, is open, and whether they had ever spoken.
            gone = self._most - count
            self._accounts = {
                tuple(kept)
                for account in settled
                for size in range(max(0, len(account) - gone), min(len(account), count) + 1)
                for kept in combinations(account, size)
            }
            self._most = count

    def _continued(self, number: int, pressed: bool) -> set[Account]:
        """The accounts in which the message is the next one of somebody who has spoken before."""
        found = set()
        for account in self._accounts:
            for word in account:
                if number == word[0] + 1 or number == word[0] == UNNUMBERED:
                    found.add(_with(account, (number, pressed, word[2]), word))
        if not found:  # a message was lost
            for account in self._accounts:
                found |= {_with(account, (number, pressed, word[2]), word) for word in account if number > word[0]}
        return found


class EstopListener:
    """The topic `estop` of a robot, heard in a thread of its own: nothing that the executor does delays it.

    A node beside the executor's, since its events executor does not pass on what ROS 2 tells beside a message.

    Args:
        beside: The executor's node; namespace and context are taken from it.
        on_change: Called in the thread, with whether the e-stop is pressed.
    """

    def __init__(self, beside: Any, on_change: Callable[[bool], None]) -> None:
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node
        from std_msgs.msg import Bool

        self.latch = EstopLatch()
        self._on_change, self._told = on_change, False
        self.node = Node(
            f'{beside.get_name()}_estop',
            context=beside.context,
            namespace=beside.get_namespace(),
            use_global_arguments=False,
            enable_rosout=False,
            start_parameter_services=False,
        )
        self._topic = beside.resolve_topic_name('estop')
        hear_everybody(self.node, Bool, self._topic, with_info(self._on_message), DEPTH)
        self._executor = SingleThreadedExecutor(context=beside.context)
        self._executor.add_node(self.node)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name='estop', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and the node; may be called twice."""
        self._ended.set()
        if self._thread.is_alive():
            self._executor.wake()
            self._thread.join(2.0)
            self._executor.shutdown()
            self.node.destroy_node()

    def _run(self) -> None:
        from rclpy.executors import ExternalShutdownException

        failures = 0
        while not self._ended.is_set():
            try:
                self._executor.spin_once(timeout_sec=WATCH_S)
                self.latch.on_publishers(self.node.count_publishers(self._topic), time.monotonic_ns())
                self._tell()
                failures = 0
            except ExternalShutdownException:
                return
            except Exception as error:  # a message that does not decode must not silence the button
                failures += 1
                self.node.get_logger().error(f'The e-stop listener failed: {type(error).__name__}: {error}')
                if failures >= FAILURES_TO_STOP:  # who cannot hear the button has to take it as pressed
                    self._on_change(True)
                    return

    def _on_message(self, message: Any, info: Mapping[str, Any]) -> None:
        number, sent_ns = info.get('publication_sequence_number') or UNNUMBERED, info.get('source_timestamp') or 0
        self.latch.on_publishers(self.node.count_publishers(self._topic), time.monotonic_ns())
        self.latch.on_message(bool(message.data), number, sent_ns, time.monotonic_ns())
        self._tell()

    def _tell(self) -> None:
        pressed = self.latch.pressed
        if pressed != self._told:
            self._told = pressed
            self._on_change(pressed)


def _with(account: Account, word: Word, instead_of: Word | None = None) -> Account:
    words = list(account)
    if instead_of is not None:
        words.remove(instead_of)
    return tuple(sorted([*words, word]))
