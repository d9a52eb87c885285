"""Whether several policies send chunks in turn: none of them is followed then. That one takes over is fine.

A policy numbers the chunks of a run one by one, so who goes on with other numbers is another, whatever name it gives.
"""

from __future__ import annotations

from dataclasses import dataclass

LOST_CHUNKS = 5
SILENT_NS = 2_000_000_000  # a policy that has been silent for this long speaks no more


@dataclass(frozen=True)
class _Speaker:
    """Who sent a chunk, its number, when, and whether the number was ever another."""

    policy_id: str
    chunk_id: int
    steady_ns: int
    counts: bool = False

    def may_say(self, policy_id: str, chunk_id: int) -> bool:
        """Whether this can be its next chunk; a few may have been lost. Who counts does not repeat a number."""
        return policy_id == self.policy_id and self.counts <= chunk_id - self.chunk_id <= LOST_CHUNKS

    def unlikeness(self, chunk_id: int) -> tuple[int, int]:
        """The smaller, the more likely is `chunk_id` its next: by number, then who has waited longest.

        Else one whose numbers have passed those of another, which has ended, would pass for both, in turn, for ever.
        """
        return chunk_id - self.chunk_id, self.steady_ns


class Speakers:
    """The policies that sent a chunk lately."""

    def __init__(self) -> None:
        self._heard: list[_Speaker] = []

    def forget(self) -> None:
        """Who spoke before speaks no more."""
        self._heard.clear()

    def rivals(self, policy_id: str, chunk_id: int, steady_ns: int) -> list[str]:
        """Hears a chunk; the names of all who speak where another has spoken between it and its sender's last one."""
        lately = [each for each in self._heard if steady_ns - each.steady_ns < SILENT_NS]
        may = [each for each in lately if each.may_say(policy_id, chunk_id)]
        same = min(may, key=lambda each: each.unlikeness(chunk_id), default=None)
        others = [each for each in lately if each is not same]
        counts = same is not None and (same.counts or chunk_id != same.chunk_id)
        self._heard = [*others, _Speaker(policy_id, chunk_id, steady_ns, counts)]
        if same is None or all(other.steady_ns <= same.steady_ns for other in others):
            return []
        return sorted({each.policy_id for each in self._heard})
