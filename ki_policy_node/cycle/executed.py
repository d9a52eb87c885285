"""Which of the chunks that were sent the robot executes: what the executor says of it, and what follows from that.

Without a word of an executor (a replay, an evaluation in one process) the newest chunk counts as executed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ki_robot.actions.chunk import ActionChunk

TAKEN_NS = 100_000_000  # a chunk that was sent so long ago has reached the executor, and its answer is back
SILENT_NS = 1_000_000_000  # an executor that was heard and then says nothing for so long executes nothing
KEPT = 16  # chunks: more than are sent while one is executed


@dataclass(frozen=True)
class Followed:
    """What an executor says it follows: `chunk_id` 0 for nothing."""

    at_ns: int  # ROS time of these words
    policy_id: str = ''
    chunk_id: int = 0
    start_ns: int = 0  # of the chunk


class Executed:
    """The chunks that were sent, and what the executor says of them. One thread sends, another may hear."""

    def __init__(self) -> None:
        self._sent: deque[tuple[int, ActionChunk]] = deque(maxlen=KEPT)
        self._said: Followed | None = None

    def hear(self, said: Followed) -> None:
        """Takes what the executor says."""
        self._said = said

    def send(self, chunk: ActionChunk, now_ns: int) -> None:
        """A chunk goes out."""
        self._sent.append((now_ns, chunk))

    def clear(self) -> None:
        """What was sent is void."""
        self._sent.clear()

    def forget(self) -> None:
        """What was sent, and what was said on a clock that is no more."""
        self._sent.clear()
        self._said = None

    def now(self, now_ns: int) -> ActionChunk | None:
        """The chunk that is executed; None where nothing is."""
        sent, said = list(self._sent), self._said
        if not sent:
            return None
        newest = sent[-1][1]
        if said is None:
            return newest
        if now_ns - said.at_ns > SILENT_NS:
            return None
        taken = [chunk for sent_ns, chunk in sent if sent_ns <= said.at_ns - TAKEN_NS]
        if not taken:
            return newest  # all are still on their way
        key = (said.policy_id, said.chunk_id, said.start_ns)
        followed = next((each for _, each in sent if (each.policy_id, each.chunk_id, each.start_ns) == key), None)
        # One that it has followed up to now may have been overtaken by one that is on its way; an older one was not.
        return newest if followed is not None and followed.chunk_id >= taken[-1].chunk_id else followed
